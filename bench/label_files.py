"""Pseudo labels in a file each beside tar files of many (`plabel_shard`): 20,000 small ones, so that the number of
files is what costs. A function that begins with `inputs, variant` is a `bench.harness.Row.prepare`."""
import functools
import itertools
import os
import shutil
import time

import numpy as np
import torch
from PIL import Image

from bench.inputs import Inputs, photo
from dataset import files
from dataset.segmentation import Sample
from trainer.label_files import LabelFolder, intact, labelled_now

SIDE = 128, 64   # (width, height) of a label in pixels
SHARD = 1000     # images in a tar file
_CITIES = 20     # folders of files
_numbers = itertools.count()


def writing(inputs: Inputs, variant: str):
    """Encode and write all labels and their manifest; a unit is an image."""
    samples, labels = of(inputs)
    return lambda: write(inputs, variant, samples, labels), len(samples)


def reading(inputs: Inputs, variant: str):
    """Read labels in random order, as training does."""
    samples, labels = of(inputs)
    found = labelled_now(write(inputs, variant, samples, labels)[0], samples)
    order = np.random.default_rng(0).permutation(len(samples)).tolist()
    return lambda: [files.read_label_ids(found[i].label) for i in order] and None, len(samples)


def checking(inputs: Inputs, variant: str):
    """Compare all with the hashes of the manifest, as a run does that resumes."""
    samples, labels = of(inputs)
    folder, manifest = write(inputs, variant, samples, labels)
    return lambda: intact(folder, samples, manifest) or 1 / 0, len(samples)


def removing(inputs: Inputs, variant: str):
    """Microseconds an image of listing all with their sizes, and of removing them."""
    samples, labels = of(inputs)

    def work():
        folder, _ = write(inputs, variant, samples, labels)
        began = time.perf_counter()
        size_of(folder)
        shutil.rmtree(folder)
        return 1e6 * (time.perf_counter() - began) / len(samples)
    return work, 1


def space(inputs: Inputs, variant: str):
    """Bytes an image on the disk, with what the file system rounds up to."""
    samples, labels = of(inputs)
    return lambda: size_of(write(inputs, variant, samples, labels)[0]) / len(samples), 1


def of(inputs: Inputs):
    """(samples, a few labels that they share)."""
    count, labels = 20 * inputs.size.many, []
    for i in range(8):
        label = np.array(Image.fromarray(photo("cityscapes", "train", i, SIDE)[1]))
        label[np.random.default_rng(i).random((SIDE[1] // 8, SIDE[0] // 8)).repeat(8, 0).repeat(8, 1) < 0.5] = 255
        labels.append(torch.from_numpy(label))
    names = (f"city{i * _CITIES // count}/city_{i:06d}_000019" for i in range(count))
    return [Sample(name, inputs.root / f"{name}.png", None) for name in names], labels


def write(inputs, variant, samples, labels):
    """(new folder, hash of its manifest)."""
    folder = inputs.root / "label_files" / f"{os.getpid()}_{next(_numbers)}"
    target = LabelFolder(folder, samples, SHARD if variant == "tar" else 0)
    target.clear()
    with target.writing() as put:
        for i, sample in enumerate(samples):
            put(i, sample.name, functools.partial(labels.__getitem__, i % len(labels)))
    return folder, target.finish(weights="", portion=0.1)


def size_of(folder):
    return float(sum(512 * path.lstat().st_blocks for path in folder.rglob("*")))

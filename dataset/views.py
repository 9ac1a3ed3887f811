"""Random crops, whole images, and labels alone of a data set's samples.

A sample that cannot be read is never replaced by another: it raises a DataError that names the file.
"""
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from dataset import transforms
from dataset.files import read_size
from dataset.segmentation import Sample, read_ids, read_pair, read_pixels
from utils.errors import DataError

_LARGEST = 2**28  # pixels of a resized image, 800 MB: a crop may need a strip of any length of it


class TrainingCrops:
    """Random crops, addressed by (round, epoch, index).

    A crop is a function of these and the seed alone; the number of workers does not matter. Items: image uint8
    [crop, crop, K] (RGB), name, and, if a table is given, label uint8 [crop, crop] of train ids.
    """

    def __init__(self, samples: Sequence[Sample], table: np.ndarray | None, shorter_edge: int, crop: int,
                 scales: tuple[float, ...], mirror: bool, seed: int):
        self.samples, self.table, self.seed = samples, table, seed
        self.shorter_edge, self.crop, self.scales, self.mirror = shorter_edge, crop, scales, mirror

    def __getitem__(self, key: tuple[int, int, int]) -> dict[str, Any]:
        sample = self.samples[key[2]]
        image = read_pixels(sample)
        ids = None if self.table is None else read_ids(sample, image.shape[1::-1])
        rng = np.random.default_rng([self.seed, *key])
        size = image.shape[:2]
        window = transforms.draw_window(rng, size, self.shorter_edge, self.crop, self.scales, self.mirror)
        if math.prod(window.resized) > _LARGEST:
            raise DataError(f"{sample.image}: {size[1]}x{size[0]} would be resized to {window.resized[1]}x"
                            f"{window.resized[0]}: cut it into pieces or take it out of the list.")
        item = {"image": torch.from_numpy(transforms.cut_image(image, window, self.crop)), "name": sample.name}
        if ids is not None:
            item["label"] = torch.from_numpy(self.table.take(transforms.cut_label(ids, window, self.crop)))
        return item


class WholeImages:
    """Whole images at the evaluation size `input_size`, (width, height).

    Items: those of `at_sizes`, name, and, if a table is given, label uint8 [H, W] of train ids at the size of the file.
    """

    def __init__(self, samples: Sequence[Sample], input_size: tuple[int, int], table: np.ndarray | None = None,
                 scales: tuple[float, ...] = (1.0,)):
        self.samples, self.input_size, self.table, self.scales = samples, input_size, table, scales

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample = self.samples[index]
        item: dict[str, Any] = {"name": sample.name}
        if self.table is None:
            image = read_pixels(sample)
        else:
            image, label = read_pair(sample, self.table)
            item["label"] = torch.from_numpy(label)
        return {**item, **at_sizes(image, self.input_size, self.scales)}


def at_sizes(image: np.ndarray, input_size: tuple[int, int], scales: tuple[float, ...]) -> dict[str, Any]:
    """An image uint8 [H, W, K] as the network sees it: image uint8 [1, h, w, K], its (width, height) being input_size
    times the first of the scales; with several scales `others`, a dict of the further ones; and size (H, W)."""
    width, height = input_size
    sizes = [(max(1, round(height * scale)), max(1, round(width * scale))) for scale in scales]
    first, *others = (torch.from_numpy(transforms.resize_image(image, size)).unsqueeze(0) for size in sizes)
    item = {"size": image.shape[:2], "image": first}
    return {**item, "others": dict(zip(scales[1:], others))} if others else item


def sizes_of(item: dict[str, Any]) -> list[torch.Tensor]:
    """The image of an item at each of its scales."""
    return [item["image"], *item.get("others", {}).values()]


class WholeLabels:
    """The labels of whole images. Items: uint8 [H, W] of train ids, checked to have the size of the image."""

    def __init__(self, samples: Sequence[Sample], table: np.ndarray):
        self.samples, self.table = samples, table

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index: int) -> torch.Tensor:
        sample = self.samples[index]
        return torch.from_numpy(self.table.take(read_ids(sample, read_size(sample.image, sample.bands))))

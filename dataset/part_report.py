"""Reading one part of the data, such as the target's training split, and what that shows. Nothing grows with the number
of images but 17 bytes for each."""
import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from dataset import loaders, missing_labels, segmentation
from dataset.class_sets import require_network_classes
from dataset.inspection import (
    NO_ACCURACY,
    NO_VALIDATION,
    findings,
    labels_compared,
    no_images,
    progress_of,
    require_one_list,
    some_labels,
)
from dataset.messages import Messages
from dataset.samples import Kept, Samples
from utils import distributed
from utils.config import Config
from utils.errors import ConfigError, DataError

PARTS = {"source_train": ("source", "train"), "target_train": ("target", "train"), "target_val": ("target", "val")}
SHOWN = 3  # pairs of equal images that a note lists
_SIZES = 2**16  # different sizes that are counted


@dataclass
class Report:
    """What reading one part of the data has shown, such as target_val.

    unlisted: how many errors there are beyond those listed. ids: label id -> [pixels, files, index of the first file].
    sizes: (width, height) -> [images, index of the first].
    digests: int64 [n], of the content of each image. read: int8 [n], whether it could be read. twice: how many images
    have the content of another, and the paths of the first few such pairs.
    """

    title: str
    samples: Samples = field(default_factory=lambda: Samples.of([]))
    errors: list[str] = field(default_factory=list)
    unlisted: int = 0
    notes: list[str] = field(default_factory=list)
    pixels: Counter = field(default_factory=Counter)  # train id or IGNORE_INDEX -> pixels
    ids: dict[int, list[int]] = field(default_factory=dict)
    sizes: dict[tuple[int, int], list[int]] = field(default_factory=dict)
    digests: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    read: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int8))
    twice: tuple[int, list[tuple[Path, Path]]] = (0, [])


def check_part(cfg: Config, part: str) -> Report:
    """Read one of PARTS. Faults that would stop a run are in the report's errors; nothing is raised. Processes share
    the reading, and all get the same report. Collective."""
    side, split = PARTS[part]
    name = getattr(cfg, side)
    report, error = Report(f"{part} ({name})"), ""
    try:
        if side == "source":
            require_network_classes(cfg, name)
        report.samples, report.notes = segmentation.find_split(name, cfg.section(name), split,
                                                               required=split == "train", complete=False)
    except (ConfigError, DataError) as wrong:
        error = str(wrong)
    if errors := [text for text in distributed.gathered(error) if text]:
        report.samples = Samples.of([])
        report.errors += dict.fromkeys(errors)
        return report
    try:
        require_one_list(report.samples)
    except DataError as wrong:
        report.samples, report.errors = Samples.of([]), [f"{name}: {wrong}"]
        return report
    if not report.samples:
        report.notes.append(no_images(name, cfg.section(name), split))
    report.samples = _judge_gaps(report, cfg, part, report.samples)
    broken = _read(report, cfg, part)
    if cfg.on_bad_sample == "skip" and split == "train" and broken:
        report.notes.append(f"on_bad_sample: skip would leave out {broken} of {len(report.samples)} samples")
        if broken == len(report.samples):
            report.errors.append(f"{name}: none of its {broken} training samples can be read.")
    _judge_ids(report, segmentation.label_table(cfg.section(name), cfg.num_classes),
               segmentation.known_ids(cfg.section(name)))
    return report


def _judge_gaps(report, cfg, part, samples):
    """Report missing labels in one line where that is enough. Returns the samples; a label that is left in them must be
    there, and is reported on its own if it is not."""
    there = _labels_there(samples)
    report.title += f": {len(samples)} images, {there.sum()} labels"
    if there.all() or part != "target_train" and there.any() or samples.unseen and labels_compared(cfg, samples):
        return samples  # of a long list, a run finds out only when it reads them
    side, split = PARTS[part]
    name, lost = getattr(cfg, side), NO_VALIDATION if split == "val" else NO_ACCURACY
    if there.any():
        report.notes.append(some_labels(lost, int((~there).sum()), samples))
    elif part == "source_train":
        try:
            missing_labels.require_labels(name, cfg.section(name), split, samples)
        except DataError as error:
            report.errors.append(str(error))
    else:
        report.notes.append(missing_labels.why_no_labels(name, cfg.section(name), split, samples).remark(lost))
    return samples.with_labels(Kept(there))


def _labels_there(samples):
    """bool [n]: whether each sample's label file exists."""
    there = np.zeros(len(samples), np.int8)
    for index in distributed.share(range(len(samples))):
        label = samples[index].label
        there[index] = bool(label) and os.path.isfile(label)
    return distributed.total(torch.from_numpy(there)).numpy() > 0


def _read(report, cfg, part):
    """Read all samples, each in one process, and enter what was found. Returns how many training would leave out."""
    side, split = PARTS[part]
    samples, skip = report.samples, cfg.on_bad_sample == "skip" and split == "train"
    labels_matter = part != "target_train" or labels_compared(cfg, samples)
    errors, notes, broken = Messages(), Messages(), 0
    report.digests, report.read = np.zeros(len(samples), np.int64), np.zeros(len(samples), np.int8)
    with distributed.together():
        for index, found in findings(samples, loaders.worker_count(cfg), progress_of(cfg, part)):
            for place, (fault, stops) in enumerate(((found.image_error, True), (found.label_error, labels_matter))):
                if fault:
                    (errors if stops and not skip else notes).add(2 * index + place, fault)
            broken += bool(found.image_error or found.label_error and side == "source")
            _count(report, index, found)
    errors, notes = errors.merged(), notes.merged()
    report.errors += [line for _, line in errors.first]
    report.unlisted = errors.count - len(errors.first)
    report.notes += notes.lines()
    _merge(report)
    return sum(distributed.gathered(broken))


def _count(report, index, found):
    if found.size:
        report.digests[index], report.read[index] = found.digest, 1
        if found.size in report.sizes or len(report.sizes) < _SIZES:
            _add(report.sizes, found.size, 1, index)
    for label_id, pixels in found.pixels.items():
        _add(report.ids, label_id, pixels, 1, index)


def _add(table, key, *counts_and_index):
    """Add counts to the entry of a key, whose last number is the lowest index."""
    *counts, index = counts_and_index
    *before, first = table.get(key, [0] * len(counts) + [index])
    table[key] = [*(a + b for a, b in zip(before, counts)), min(first, index)]


def _merge(report):
    """Put together what the processes have counted, and find images with equal content."""
    report.digests = distributed.total(torch.from_numpy(report.digests)).numpy()
    report.read = distributed.total(torch.from_numpy(report.read)).numpy()
    counted = distributed.gathered((report.ids, report.sizes))
    report.ids, report.sizes = {}, {}
    for ids, sizes in counted:
        for merged, found in ((report.ids, ids), (report.sizes, sizes)):
            for key, entry in found.items():
                _add(merged, key, *entry)
    first = _distinct(report)[2]
    others = np.flatnonzero((report.read > 0) & (first != np.arange(len(first))))
    report.twice = len(others), [(report.samples[first[i]].image, report.samples[i].image) for i in others[:SHOWN]]


def _distinct(report):
    """(indices of the images that are the first with their content, their digests, int64 [n] the index of the first
    image with the content of each); all but the last ordered by digest."""
    there = np.flatnonzero(report.read)
    digests, at, which = np.unique(report.digests[there], return_index=True, return_inverse=True)
    first = np.arange(len(report.read))
    first[there] = there[at][which]
    return there[at], digests, first


def _judge_ids(report, table, known):
    for label_id, (pixels, number, first) in sorted(report.ids.items()):
        report.pixels[int(table[label_id])] += pixels
        if label_id not in known:
            file = report.samples[first].label
            report.notes.append(f"{file}: label id {label_id} is not in the table and is ignored "
                                f"({pixels} pixels in {number} files, this the first)")


def find_shared(train: Report, val: Report) -> None:
    """Enter in `val` which of its images have the content of one of `train`."""
    indices, digests, _ = _distinct(val)
    first, known, _ = _distinct(train)
    shared = np.isin(digests, known)
    pairs = np.stack([first[np.searchsorted(known, digests[shared])], indices[shared]])
    pairs = pairs[:, np.argsort(pairs[1])]
    same = train.samples.image_keys()[pairs[0]] == val.samples.image_keys()[pairs[1]]
    if same.any():
        val.notes.append(f"images that are adapted to as well: {same.sum()}")
    others, (count, shown) = pairs[:, ~same], val.twice
    shown = shown + [(train.samples[a].image, val.samples[b].image) for a, b in others[:, :SHOWN].T]
    val.twice = count + others.shape[1], shown[:SHOWN]

"""Configuration -> data loaders."""
import os
from typing import Any, Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from dataset import labels, segmentation, views
from dataset.segmentation import Sample
from utils.config import Config
from utils.interrupt import waiting
from utils.processes import map_in_order


def source_loader(cfg: Config, samples: list[Sample], first: int = 0, pin_memory: bool = False) -> "ReadingLoader":
    """Labelled crops of the source for the `num_steps` batches of stage 0, from batch number `first` on."""
    table = segmentation.label_table(cfg.source_data, cfg.num_classes)
    return _crop_loader(cfg, samples, table, cfg.input_src, cfg.crop_src, 0, range(first, cfg.num_steps), pin_memory)


def round_loader(cfg: Config, samples: list[Sample], epochs: int, round_index: int, first: int = 0,
                 pin_memory: bool = False) -> "ReadingLoader":
    """Crops of the target with a round's pseudo labels, from batch number `first` of the round on; `samples` carry the
    pseudo-label files as their labels."""
    return _target_loader(cfg, samples, labels.lookup_table({c: c for c in range(cfg.num_classes)}), epochs,
                          round_index, first, pin_memory)


def target_loader(cfg: Config, samples: list[Sample], epochs: int, round_index: int, first: int = 0,
                  pin_memory: bool = False) -> "ReadingLoader":
    """The same crops of the target without labels, whatever labels the samples have."""
    return _target_loader(cfg, samples, None, epochs, round_index, first, pin_memory)


def round_steps(cfg: Config, num_samples: int, epochs: int) -> int:
    """Steps of one round: `epochs` passes over the target, at least one step, at most num_steps."""
    return min(cfg.num_steps, max(1, epochs * num_samples // cfg.batch_size))


def whole_image_loader(cfg: Config, section_name: str, samples: list[Sample], with_labels: bool,
                       pin_memory: bool = False) -> "ReadingLoader":
    """Every image of `samples` once, in order, one at a time, never padded or repeated."""
    section = cfg.section(section_name)
    table = segmentation.label_table(section, cfg.num_classes) if with_labels else None
    return _image_loader(cfg, views.WholeImages(samples, section.input_size, table), pin_memory)


def whole_label_loader(cfg: Config, section_name: str, samples: list[Sample],
                       pin_memory: bool = False) -> "ReadingLoader":
    """The label of every sample once, in order, uint8 [H, W] train ids."""
    table = segmentation.label_table(cfg.section(section_name), cfg.num_classes)
    return _image_loader(cfg, views.WholeLabels(samples, table), pin_memory)


def crop_keys(seed: int, round_index: int, num_samples: int, count: int) -> list[tuple[int, int, int]]:
    """(round, epoch, index) of `count` crops: epoch after epoch, each a permutation of the samples."""
    keys = []
    for epoch in range(-(-count // num_samples)):
        order = np.random.default_rng([seed, round_index, epoch]).permutation(num_samples)
        keys += [(round_index, epoch, int(index)) for index in order]
    return keys[:count]


def worker_count(cfg: Config) -> int:
    """`worker`, but no more than the cores that this process may use: more only get in each other's way."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cfg.worker, cores)


class ReadingLoader:
    """Items or batches read ahead in `workers` processes (0: in this one, when asked for); each iteration begins again.

    read(key) -> item, for every key, in their order; titles(key) -> the files that it reads, for messages. An item is a
    tensor, or a dict of tensors and plain values. pin_memory: tensors come in page-locked memory. An error comes as it
    was raised, at the item that raised it. While an item is awaited, a signal raises Stopped (`interrupt.waiting`).
    """

    def __init__(self, read: Callable[[Any], Any], keys: list, workers: int, titles: Callable[[Any], str] = str,
                 pin_memory: bool = False):
        self.read, self.keys, self.workers, self.titles = read, keys, workers, titles
        self.finish = _pinned if pin_memory else lambda item: item

    def __len__(self):
        return len(self.keys)

    def __iter__(self) -> Iterator:
        items, end = map_in_order(self.read, self.keys, self.workers, self.finish, self.titles), object()
        try:
            while True:
                with waiting():
                    item = next(items, end)
                if item is end:
                    return
                yield item
        finally:
            items.close()


def _pinned(item):
    if isinstance(item, Tensor):
        return item.pin_memory()
    if isinstance(item, dict):
        return {key: _pinned(value) for key, value in item.items()}
    return item


def _target_loader(cfg, samples, table, epochs, round_index, first, pin_memory):
    steps = range(first, round_steps(cfg, len(samples), epochs))
    return _crop_loader(cfg, samples, table, cfg.input_tgt, cfg.crop_tgt, round_index, steps, pin_memory)


def _crop_loader(cfg, samples, table, shorter_edge, crop, round_index, steps, pin_memory):
    crops = views.TrainingCrops(samples, table, shorter_edge, crop, cfg.scales, cfg.mirror, cfg.seed)
    keys, size = crop_keys(cfg.seed, round_index, len(samples), steps.stop * cfg.batch_size), cfg.batch_size
    batches = [keys[step * size: (step + 1) * size] for step in steps]
    return ReadingLoader(Batches(crops), batches, worker_count(cfg),
                         lambda batch: ", ".join(str(samples[index].image) for *_, index in batch), pin_memory)


class Batches:
    """Batch keys -> the crops of those keys, tensors stacked, names as a list."""

    def __init__(self, crops: views.TrainingCrops):
        self.crops = crops

    def __call__(self, keys: list) -> dict[str, Tensor | list[str]]:
        items = [self.crops[key] for key in keys]
        return {name: torch.stack(values) if isinstance(values[0], Tensor) else values
                for name, values in ((name, [item[name] for item in items]) for name in items[0])}


def _image_loader(cfg, images, pin_memory):
    return ReadingLoader(images.__getitem__, range(len(images)), worker_count(cfg),
                         lambda index: str(images.samples[index].image), pin_memory)

"""The data loaders of a configuration: crops to train on, whole images to label and evaluate."""
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from dataset import labels, segmentation, views
from dataset.order import StepKeys, crop_keys
from dataset.segmentation import Sample
from utils import distributed
from utils.config import Config
from utils.interrupt import waiting
from utils.processes import map_in_order


def source_loader(cfg: Config, samples: Sequence[Sample], first: int = 0, pin_memory: bool = False) -> "ReadingLoader":
    """Labelled source crops, as source_only trains on: this process's of steps `first` to `num_steps` - 1."""
    table = segmentation.label_table(cfg.source_data, cfg.num_classes)
    return _crop_loader(cfg, samples, table, cfg.input_src, cfg.crop_src, 0, range(first, cfg.num_steps), pin_memory)


def round_loader(cfg: Config, samples: Sequence[Sample], epochs: int, round_index: int, first: int = 0,
                 pin_memory: bool = False) -> "ReadingLoader":
    """Target crops with pseudo labels: this process's, from step `first` of the round on, in each step one batch for
    all of its `accumulate` parts. The labels of `samples` are the pseudo-label files."""
    return _target_loader(cfg, samples, labels.lookup_table({c: c for c in range(cfg.num_classes)}), epochs,
                          round_index, first, pin_memory)


def target_loader(cfg: Config, samples: Sequence[Sample], epochs: int, round_index: int, first: int = 0,
                  pin_memory: bool = False) -> "ReadingLoader":
    """The same crops as those of `round_loader`, without labels, whether the samples have labels or not."""
    return _target_loader(cfg, samples, None, epochs, round_index, first, pin_memory)


def round_steps(cfg: Config, num_samples: int, epochs: int) -> int:
    """The number of steps of a round: `epochs` passes over the target, at least one step, at most `num_steps`."""
    return min(cfg.num_steps, max(1, epochs * num_samples // step_size(cfg)))


def step_size(cfg: Config) -> int:
    """The number of crops of a step, in all processes."""
    return distributed.size() * own_size(cfg)


def own_size(cfg: Config) -> int:
    """The number of crops of a step that this process takes."""
    return cfg.accumulate * cfg.batch_size


def whole_image_loader(cfg: Config, section_name: str, samples: Sequence[Sample], with_labels: bool,
                       pin_memory: bool = False, scales: tuple[float, ...] = (1.0,)) -> "ReadingLoader":
    """Whole images at the evaluation size times each of the scales (`views.WholeImages`): each sample once, in order,
    in batches of one."""
    section = cfg.section(section_name)
    table = segmentation.label_table(section, cfg.num_classes) if with_labels else None
    return _image_loader(cfg, views.WholeImages(samples, section.input_size, table, scales), pin_memory)


def lockstep_loader(cfg: Config, section_name: str, samples: Sequence[Sample], pin_memory: bool = False) -> "Lockstep":
    """Whole images as of `whole_image_loader`, this process's share, and then empty batches, until it has as many as
    every other process."""
    section = cfg.section(section_name)
    own = whole_image_loader(cfg, section_name, distributed.share(samples), False, pin_memory)
    return Lockstep(own, -(-len(samples) // distributed.size()), (*section.input_size[::-1], section.bands))


def whole_label_loader(cfg: Config, section_name: str, samples: Sequence[Sample],
                       pin_memory: bool = False) -> "ReadingLoader":
    """The labels of whole images, uint8 [H, W] train ids: each sample once, in order."""
    table = segmentation.label_table(cfg.section(section_name), cfg.num_classes)
    return _image_loader(cfg, views.WholeLabels(samples, table), pin_memory)


def worker_count(cfg: Config) -> int:
    """The number of reading processes: `worker`, at most this process's share of the cores that it may use; more are no
    faster."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cfg.worker, max(1, cores // distributed.local_size()))


class ReadingLoader:
    """An iterable over read(key) for each key, in order, computed ahead in `workers` processes (0: in this one).

    An item is a tensor, or a dict of tensors and plain values. titles(key): the files that an item is read from, for
    messages. pin_memory: tensors are in page-locked memory. Each iteration starts from the first key. An error of
    read(key) is raised when that item is asked for. While an item is waited for, a signal raises Stopped
    (`interrupt.waiting`).
    """

    def __init__(self, read: Callable[[Any], Any], keys: Sequence, workers: int, titles: Callable[[Any], str] = str,
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


class Lockstep:
    """The items of a loader of whole images, and then empty batches until there are `steps`. shape: of an image,
    (H, W, K)."""

    def __init__(self, images: ReadingLoader, steps: int, shape: tuple[int, int, int]):
        self.images, self.steps, self.shape = images, steps, shape

    def __len__(self):
        return self.steps

    def __iter__(self) -> Iterator[dict[str, Any]]:
        yield from self.images
        for _ in range(self.steps - len(self.images)):
            yield {"image": torch.empty(0, *self.shape, dtype=torch.uint8), "name": []}


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
    keys = crop_keys(cfg.seed, round_index, len(samples), steps.stop * step_size(cfg))
    batches = StepKeys(keys, own_size(cfg), steps, distributed.rank(), distributed.size())
    return ReadingLoader(Batches(crops), batches, worker_count(cfg),
                         lambda batch: ", ".join(str(samples[index].image) for *_, index in batch), pin_memory)


class Batches:
    """Makes a batch of crops: a list of crop keys -> {name: stacked tensors, or a list of other values}."""

    def __init__(self, crops: views.TrainingCrops):
        self.crops = crops

    def __call__(self, keys: list) -> dict[str, Tensor | list[str]]:
        """The batch of the crops with these keys."""
        items = [self.crops[key] for key in keys]
        return {name: torch.stack(values) if isinstance(values[0], Tensor) else values
                for name, values in ((name, [item[name] for item in items]) for name in items[0])}


def _image_loader(cfg, images, pin_memory):
    return ReadingLoader(images.__getitem__, range(len(images)), worker_count(cfg),
                         lambda index: str(images.samples[index].image), pin_memory)

"""Configuration -> data loaders."""
import os

import numpy as np
from torch.utils.data import DataLoader

from dataset import labels, segmentation, views
from dataset.segmentation import Sample
from utils.config import Config
from utils.errors import DataError
from utils.interrupt import ignore_signals


def source_loader(cfg: Config, samples: list[Sample], first: int = 0, pin_memory: bool = False) -> "ReadingLoader":
    """Labelled crops of the source for the `num_steps` batches of stage 0, from batch number `first` on."""
    table = segmentation.label_table(cfg.source_data, cfg.num_classes)
    return _crop_loader(cfg, samples, table, cfg.input_src, cfg.crop_src, 0, range(first, cfg.num_steps), pin_memory)


def round_loader(cfg: Config, samples: list[Sample], round_index: int, first: int = 0,
                 pin_memory: bool = False) -> "ReadingLoader":
    """Crops of the target with a round's pseudo labels, from batch number `first` of the round on; `samples` carry the
    pseudo-label files as their labels."""
    table = labels.lookup_table({c: c for c in range(cfg.num_classes)})
    steps = range(first, round_steps(cfg, len(samples)))
    return _crop_loader(cfg, samples, table, cfg.input_tgt, cfg.crop_tgt, round_index, steps, pin_memory)


def round_steps(cfg: Config, num_samples: int) -> int:
    """Steps of one round: `epochs` passes over the target, at least one step, at most num_steps."""
    return min(cfg.num_steps, max(1, cfg.epochs * num_samples // cfg.batch_size))


def whole_image_loader(cfg: Config, section_name: str, samples: list[Sample], with_labels: bool,
                       pin_memory: bool = False) -> "ReadingLoader":
    """Every image of `samples` once, in order, one at a time, never padded or repeated."""
    section = cfg.section(section_name)
    table = segmentation.label_table(section, cfg.num_classes) if with_labels else None
    return _loader(cfg, views.WholeImages(samples, section.input_size, table), pin_memory)


def whole_label_loader(cfg: Config, section_name: str, samples: list[Sample],
                       pin_memory: bool = False) -> "ReadingLoader":
    """The label of every sample once, in order, uint8 [H, W] train ids."""
    table = segmentation.label_table(cfg.section(section_name), cfg.num_classes)
    return _loader(cfg, views.WholeLabels(samples, table), pin_memory)


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
    """A DataLoader whose workers' DataErrors arrive as they were raised, without the worker's traceback around them."""

    def __init__(self, loader: DataLoader):
        self.loader = loader

    def __len__(self):
        return len(self.loader)

    def __iter__(self):
        try:
            yield from self.loader
        except DataError as error:
            error.__traceback__ = None  # its frames keep the workers, which a late collection cannot end in order
            raise DataError(str(error).strip().splitlines()[-1].removeprefix("utils.errors.DataError: ")) from None


def _crop_loader(cfg, samples, table, shorter_edge, crop, round_index, steps, pin_memory):
    dataset = views.TrainingCrops(samples, table, shorter_edge, crop, cfg.scales, cfg.mirror, cfg.seed)
    keys = crop_keys(cfg.seed, round_index, len(samples), steps.stop * cfg.batch_size)[steps.start * cfg.batch_size:]
    return _loader(cfg, dataset, pin_memory, batch_size=cfg.batch_size, sampler=keys)


def _loader(cfg, dataset, pin_memory, batch_size=None, sampler=None):
    return ReadingLoader(DataLoader(dataset, batch_size, sampler=sampler, num_workers=worker_count(cfg),
                                    pin_memory=pin_memory, worker_init_fn=ignore_signals))

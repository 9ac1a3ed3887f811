"""What training and evaluation see of a data set's samples: random crops, whole images, labels alone. No sample is ever
replaced: whatever cannot be read raises a DataError that names the file."""
import math

import numpy as np
import torch

from dataset import transforms
from dataset.files import read_image, read_label, read_label_ids, read_size, require_same_size
from dataset.segmentation import Sample, read_pair
from utils.errors import DataError

_LARGEST = 2**28  # pixels of a resized image, of which a crop may need a strip of any length: 800 MB


class TrainingCrops:
    """Random crops, addressed by (round, epoch, index): a crop is a function of these and the seed alone, whatever
    number of workers draws it. Items: image uint8 [crop, crop, K] (RGB), name, and, where a table is given, label
    uint8 [crop, crop] train ids."""

    def __init__(self, samples: list[Sample], table: np.ndarray | None, shorter_edge: int, crop: int,
                 scales: tuple[float, ...], mirror: bool, seed: int):
        self.samples, self.table, self.seed = samples, table, seed
        self.shorter_edge, self.crop, self.scales, self.mirror = shorter_edge, crop, scales, mirror

    def __getitem__(self, key: tuple[int, int, int]):
        sample = self.samples[key[2]]
        image, ids = read_image(sample.image, sample.bands), None
        if self.table is not None:
            ids = read_label_ids(sample.label)
            require_same_size(sample.image, image.shape[1::-1], sample.label, ids)
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
    """Whole images at the evaluation size. Items: image uint8 [1, h, w, K] (RGB), size (H, W) of the file, name, and,
    where a table is given, label uint8 [H, W] train ids."""

    def __init__(self, samples: list[Sample], input_size: tuple[int, int], table: np.ndarray | None = None):
        self.samples, self.input_size, self.table = samples, tuple(input_size), table

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index: int):
        sample = self.samples[index]
        item = {"name": sample.name}
        if self.table is None:
            image = read_image(sample.image, sample.bands)
        else:
            image, label = read_pair(sample, self.table)
            item["label"] = torch.from_numpy(label)
        item["size"] = image.shape[:2]
        item["image"] = torch.from_numpy(transforms.resize_image(image, self.input_size[::-1])).unsqueeze(0)
        return item


class WholeLabels:
    """The labels of whole images alone. Items: uint8 [H, W] train ids, checked to have the image's size."""

    def __init__(self, samples: list[Sample], table: np.ndarray):
        self.samples, self.table = samples, table

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index: int):
        sample = self.samples[index]
        label = read_label(sample.label, self.table)
        require_same_size(sample.image, read_size(sample.image, sample.bands), sample.label, label)
        return torch.from_numpy(label)

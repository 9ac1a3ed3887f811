"""Scores of a network that need no labels: how sure, varied and consistent its predictions of target images are.

None of them is the accuracy, and each can be fooled: a network that predicts one class everywhere is sure and
consistent. docs/label_free.md measures how well each ranks networks. All are in 0..1 and, except for `entropy`, higher
where a network is held to be better.

With p_n the probabilities of position n of N, C classes, H(p) = -sum_c p_c log p_c / log C:

- `entropy`: mean of H(p_n).
- `information`: H(mean of p_n) - mean of H(p_n), mutual information of position and class (Bridle, Heading and MacKay,
  NIPS 1991; as a score Shi and Sha, ICML 2012).
- `density`: soft neighbourhood density (Saito et al., "Tune it the right way", ICCV 2021).
- `nuclear`: nuclear norm of the matrix of all p_n (Cui et al., "Towards discriminability and diversity", CVPR 2020).
- `consistency`: mean IoU over classes of the predictions with those of the mirrored and of a smaller image.
- `agreement`: mean IoU over classes of the predictions with those of an ensemble of networks (Hu et al., EnsV, NeurIPS
  2024, with accuracy in place of the mean IoU, which one large class cannot decide alone). `nearest`: the highest with
  a single reference. `trust`: the mean of agreement, consistency and information (`trainer/verdict.py`).
"""
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from utils.metrics import class_iou, confusion_matrix

OWN_SCORES = ("consistency", "entropy", "information", "density", "nuclear")  # these take no other network
SCORES = ("trust", "agreement", "nearest", *OWN_SCORES)
LOWER_IS_BETTER = ("entropy",)
GRID_POINTS = 4096  # of an image at most, at which predictions are compared
SMALLER = 0.75  # second scale of `consistency`
_TEMPERATURE = 0.05  # of the density, as published
_NEIGHBOURS = 512  # positions of an image at most between which the density is measured


def grid_size(size: tuple[int, int]) -> tuple[int, int]:
    """(height, width) of the grid of at most GRID_POINTS points on which images of `size` are predicted."""
    factor = max(1.0, math.sqrt(size[0] * size[1] / GRID_POINTS))
    height = max(1, int(size[0] / factor))
    return height, max(1, min(int(size[1] / factor), GRID_POINTS // height))


def entropy(probs: Tensor) -> Tensor:
    """H(p) in 0..1 of each column: float [C, ...] -> [...]."""
    return torch.special.entr(probs).sum(0) / math.log(len(probs))


def density(probs: Tensor) -> Tensor:
    """Soft neighbourhood density in 0..1 of the columns of float [C, N]: with q_n = p_n / |p_n|, the mean over n of the
    entropy of softmax_m(q_n q_m / 0.05), m != n, divided by log(N - 1). 0 for fewer than 3 columns."""
    count = probs.shape[1]
    if count < 3:
        return probs.new_zeros(())
    unit = F.normalize(probs, dim=0)
    similar = (unit.T @ unit / _TEMPERATURE).fill_diagonal_(-math.inf)
    return torch.special.entr(similar.softmax(1)).sum(1).mean() / math.log(count - 1)


def nuclear_norm(gram: Tensor, count: int) -> Tensor:
    """Nuclear norm in 0..1 of the float [N, C] matrix P of probabilities, from its Gram matrix P^T P, float [C, C].
    count: N. Divided by its largest value, sqrt(N min(N, C))."""
    singular = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()
    return singular.sum() / math.sqrt(count * min(count, len(gram)))


def mean_iou(confusion: Tensor) -> float:
    """Mean IoU in 0..1 over the classes that occur on either side of a confusion matrix, integer [C, C]."""
    mean = class_iou(confusion, tuple(range(len(confusion))))[1]
    return 0.0 if mean is None else mean / 100


@dataclass
class Sums:
    """What `measure` adds up over images, float64 on the CPU; N positions of n images.

    histogram: [C] predicted pixels. mean: [C] sum of p. entropy, density: sums over positions, and over images. gram:
    [C, C] sum of p p^T. flipped, scaled: [C, C] confusion matrices of the predictions with those of the mirrored, and
    of the smaller image.
    """

    images: int
    histogram: Tensor
    mean: Tensor
    entropy: Tensor
    density: Tensor
    gram: Tensor
    flipped: Tensor
    scaled: Tensor

    @property
    def finite(self) -> bool:
        """Whether all probabilities were numbers."""
        return bool(self.mean.isfinite().all())

    def shares(self) -> list[float]:
        """Share of the positions predicted as each class."""
        return (self.histogram / self.histogram.sum()).tolist()

    def scores(self) -> dict[str, float]:
        """All scores but those that take other networks."""
        count = int(self.histogram.sum())
        mean_entropy = self.entropy.item() / count
        return {"consistency": (mean_iou(self.flipped) + mean_iou(self.scaled)) / 2, "entropy": mean_entropy,
                "information": entropy(self.mean / count).item() - mean_entropy,
                "density": self.density.item() / self.images, "nuclear": nuclear_norm(self.gram, count).item()}


def image_sums(probs: Tensor, flipped: Tensor, scaled: Tensor) -> Sums:
    """The sums of one image. probs: float64 [C, h, w] of the image, flipped and scaled those of its mirror image
    (mirrored back) and of the smaller image, on the same grid."""
    num_classes = len(probs)
    columns, label = probs.flatten(1), probs.max(0).indices
    near = columns[:, :: -(-columns.shape[1] // _NEIGHBOURS)]
    both = [confusion_matrix(label, other.max(0).indices, num_classes).double() for other in (flipped, scaled)]
    return Sums(1, label.flatten().bincount(minlength=num_classes).double(), columns.sum(1), entropy(columns).sum(),
                density(near), columns @ columns.T, *both)


def measure(predict: Callable[[Tensor, tuple[int, int]], Tensor], images: Iterator[Tensor],
            grid: tuple[int, int]) -> Iterator[tuple[Tensor, Sums]]:
    """Predict images, three forward passes each: for every image its probabilities on the grid, uint8 [C, *grid]
    (p x 255), on the CPU, and its sums.

    predict(x, size): the logits float [1, C, *size] of a prepared image x, float [1, K, H, W].
    """
    for x in images:
        height, width = (max(1, round(SMALLER * side)) for side in x.shape[-2:])
        smaller = F.interpolate(x, (height, width), mode="bilinear", align_corners=False, antialias=True)
        probs, flipped, scaled = (predict(view, grid)[0].double().softmax(0).cpu()
                                  for view in (x, x.flip(3), smaller))
        yield (probs.nan_to_num() * 255).round().byte(), image_sums(probs, flipped.flip(2), scaled)


def total(sums: list[Sums]) -> Sums:
    """The sum over images."""
    fields = Sums.__dataclass_fields__
    return Sums(**{name: sum(getattr(one, name) for one in sums) for name in fields})


def agreements(predictions: list[np.ndarray], ensembles: list[list[int]]) -> list[list[float]]:
    """Mean IoU in 0..1 of each network's predictions with those of each ensemble, a row for an ensemble.

    predictions: uint8 [n, C, h, w] of each network, memory maps for example: only one image of each is read at a time.
    ensembles: indices of their members; an ensemble predicts the class with the highest sum of probabilities.
    """
    images, num_classes = predictions[0].shape[:2]
    found = torch.zeros(len(ensembles), len(predictions), num_classes, num_classes, dtype=torch.int64)
    for image in range(images):
        labels = [torch.from_numpy(p[image].argmax(0).astype(np.uint8)) for p in predictions]
        for row, members in zip(found, ensembles):
            summed = sum(predictions[m][image].astype(np.int32) for m in members)
            reference = torch.from_numpy(np.asarray(summed).argmax(0))
            for confusion, label in zip(row, labels):
                confusion += confusion_matrix(reference, label, num_classes)
    return [[mean_iou(confusion) for confusion in row] for row in found]

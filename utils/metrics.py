"""Confusion matrix and intersection over union."""
import functools

import torch
from torch import Tensor

from utils.counting import count

Groups = tuple[tuple[int, ...], ...]  # class k of a protocol -> its rows or columns of a confusion matrix


def confusion_matrix(label: Tensor, prediction: Tensor, num_classes: int, num_labels: int | None = None) -> Tensor:
    """Count the pixels of each (labelled class, predicted class) pair.

    label: integer tensor of train ids; anything outside 0..num_labels-1 (255 above all) is ignored.
    prediction: integer tensor of the same shape, values in 0..num_classes-1.
    num_labels: classes of the labels; num_classes unless given.
    Returns int64 [num_labels, num_classes], rows = labels, columns = predictions, on label's device.
    """
    label, prediction = label.flatten().long(), prediction.flatten().long()
    rows = num_classes if num_labels is None else num_labels
    counted = (label >= 0) & (label < rows)
    pairs = label * num_classes + prediction
    # One more bin for the ignored pixels costs less than a boolean gather, and does not wait for the device.
    counts = count(torch.where(counted, pairs, rows * num_classes), rows * num_classes + 1)
    return counts[:-1].view(rows, num_classes)


def class_iou(confusion: Tensor, classes: tuple[int, ...]) -> tuple[list[float | None], float | None]:
    """IoU of some classes in percent, and their mean, where labels and predictions have the same classes (see
    `grouped_iou`)."""
    each = tuple((c,) for c in classes)
    return grouped_iou(confusion, each, each)


def grouped_iou(confusion: Tensor, labelled: Groups, predicted: Groups) -> tuple[list[float | None], float | None]:
    """IoU of each class of a protocol, in percent, and their mean.

    confusion: int64 [L, C], rows = labels, columns = predictions. Class k has the rows labelled[k] and the columns
    predicted[k]; no row and no column belongs to two classes. Pixels in rows of no class are ignored. A pixel in a row
    of class k but in a column of no class is a false negative of k. IoU_k = intersection_k / union_k. A class that is
    in neither labels nor predictions has no IoU (None) and is left out of the mean. The mean of no class is None.
    """
    rows, columns = (_members(g, n) for g, n in zip((labelled, predicted), confusion.shape))
    kept = rows @ confusion.cpu().double()  # [K, C], whole numbers, as all below: float64 is exact
    merged = kept @ columns.T
    intersection = merged.diagonal()
    union = merged.sum(0) + kept.sum(1) - intersection
    shares = (intersection / union).tolist()
    per_class = [100 * share if u > 0 else None for share, u in zip(shares, union.tolist())]
    present = [iou for iou in per_class if iou is not None]
    return per_class, sum(present) / len(present) if present else None


def right_predictions(confusion: Tensor, labelled: Groups, predicted: Groups) -> tuple[Tensor, Tensor]:
    """(correct pixels, all pixels) of each predicted class under a protocol: whole numbers, float64 [C] on the CPU.

    The arguments are those of `grouped_iou`. Pixels in rows of no class of the protocol are not counted.
    """
    rows, columns = (_members(g, n) for g, n in zip((labelled, predicted), confusion.shape))
    kept = confusion.cpu().double() * rows.sum(0).unsqueeze(1)
    return (kept * (rows.T @ columns)).sum(0), kept.sum(0)


@functools.lru_cache(64)
def _members(groups: Groups, count: int) -> Tensor:
    """float64 [K, count] on the CPU, to be read: 1 where number j belongs to group k, else 0."""
    members = torch.zeros(len(groups), count, dtype=torch.float64)
    for k, group in enumerate(groups):
        members[k, list(group)] = 1
    return members

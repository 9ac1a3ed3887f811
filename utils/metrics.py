"""Confusion matrix and intersection over union."""
import torch
from torch import Tensor

from utils.counting import count


def confusion_matrix(label: Tensor, prediction: Tensor, num_classes: int) -> Tensor:
    """Count the pixels of each (true class, predicted class) pair.

    label: integer tensor of train ids; anything outside 0..num_classes-1 (255 above all) is ignored.
    prediction: integer tensor of the same shape, values in 0..num_classes-1.
    Returns int64 [num_classes, num_classes], rows = truth, columns = prediction, on label's device.
    """
    label, prediction = label.flatten().long(), prediction.flatten().long()
    counted = (label >= 0) & (label < num_classes)
    pairs = label * num_classes + prediction
    # A bin of its own for ignored pixels costs less than a boolean gather, and does not wait for the device.
    counts = count(torch.where(counted, pairs, num_classes**2), num_classes**2 + 1)
    return counts[:-1].view(num_classes, num_classes)


def class_iou(confusion: Tensor, classes: tuple[int, ...]) -> tuple[list[float | None], float | None]:
    """IoU of each class of a protocol, in percent, and their mean.

    Pixels whose true class the protocol leaves out are ignored; a kept pixel predicted as a left-out class counts as a
    miss of its own class. IoU_c = intersection_c / union_c. A class in neither labels nor predictions has no IoU
    (None) and is left out of the mean; the mean of no class at all is None.
    """
    kept = torch.zeros_like(confusion, dtype=torch.float64)
    kept[list(classes)] = confusion[list(classes)].double()
    intersection = kept.diagonal()
    union = kept.sum(0) + kept.sum(1) - intersection
    per_class = [100 * (intersection[c] / union[c]).item() if union[c] > 0 else None for c in classes]
    present = [iou for iou in per_class if iou is not None]
    return per_class, sum(present) / len(present) if present else None

"""Evaluation: predictions of a network, their confusion matrix, and the IoU of every protocol as numbers and table."""
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from dataset.labels import ClassSet
from dataset.views import sizes_of
from model.build import build_model
from model.inference import Augmentation, image_scores
from model.segmenter import Segmenter
from model.weights import LoadReport
from utils import distributed
from utils.config import Config
from utils.errors import CheckpointError
from utils.metrics import confusion_matrix, grouped_iou

NO_AUGMENTATION = Augmentation()


def trained_network(cfg: Config, device: torch.device, checkpoint: str) -> tuple[Segmenter, LoadReport]:
    """The network of a checkpoint, and what was loaded. Raises CheckpointError for a checkpoint that does not fit the
    network, or that leaves a part of it at random."""
    network, loaded = build_model(cfg, device, checkpoint)
    if loaded.initialised:
        raise CheckpointError(f"{checkpoint}: is an initialisation without a head, no trained network "
                              f"({loaded.facts}).")
    return network, loaded


def predictions(model: Segmenter, loader: Iterable[dict], device: torch.device,
                flip: bool = False) -> Iterator[tuple[dict, Tensor]]:
    """Predict whole images, with the network in evaluation mode: yield each item of the loader with the predicted
    train ids, int64 [H, W] at the file's own size. Test-time augmentation (`model.inference.Augmentation`) is over the
    sizes in which the loader gives an image and, with `flip`, over mirrored ones."""
    model.eval()
    for item in loader:
        with torch.no_grad():
            images = [image.to(device, non_blocking=True) for image in sizes_of(item)]
            scores, = image_scores(model, images, [item["size"]], flip)
            prediction = scores.max(0).indices
        yield item, prediction  # outside, as the caller's code would run without gradients too


def evaluate(model: Segmenter, loader: Iterable[dict], num_classes: int, device: torch.device,
             check: Callable[[], None] = lambda: None, num_labels: int | None = None, flip: bool = False) -> Tensor:
    """Confusion matrix int64 [L, C] over all labelled images of the loader, on the CPU; rows are labels. Of several
    processes each gives the loader of its share, and all get the sum. Collective.

    Batch norms use their running statistics. check: called after each image; what it raises ends the evaluation.
    num_labels: L, the number of the labels' classes, if they are not the network's own C = num_classes. flip: as for
    `predictions`.
    """
    rows = num_classes if num_labels is None else num_labels
    total = torch.zeros(rows, num_classes, dtype=torch.int64, device=device)
    with distributed.together():
        for item, prediction in predictions(model, loader, device, flip):
            total += confusion_matrix(item["label"].to(device, non_blocking=True), prediction, num_classes, rows)
            check()
    return distributed.total(total).cpu()


def protocol_scores(confusion: Tensor, class_set: ClassSet) -> dict[str, dict]:
    """Scores of every protocol, {protocol: {"miou": float | None, "iou": {class name: float | None}, "unseen": [class
    name]}}, in percent (see `grouped_iou`). unseen: the protocol's classes of which the labels hold no pixel.

    confusion: int64 [classes of the labels, classes of the network]. Raises ValueError for another shape.
    """
    if confusion.shape != (len(class_set.labels), len(class_set)):
        raise ValueError(f"confusion matrix {tuple(confusion.shape)} for {len(class_set.labels)} labelled and "
                         f"{len(class_set)} predicted classes")
    scores = {}
    for name, protocol in class_set.protocols.items():
        per_class, mean = grouped_iou(confusion, protocol.labelled, protocol.predicted)
        unseen = [title for title, ids in zip(protocol.names, protocol.labelled) if not confusion[list(ids)].any()]
        scores[name] = {"miou": mean, "iou": dict(zip(protocol.names, per_class)), "unseen": unseen}
    return scores


def unseen_classes(scores: dict[str, dict], class_set: ClassSet) -> list[str]:
    """The labels' classes that a protocol scores although no label has a pixel of them. scores: `protocol_scores`."""
    named = {name for of_protocol in scores.values() for name in of_protocol["unseen"]}
    return [name for name in class_set.labels.names if name in named]


def scored_classes(scores: dict) -> str:
    """`n of m`: of the m classes of a protocol, n have an IoU, and the mIoU is their mean."""
    return f"{sum(iou is not None for iou in scores['iou'].values())} of {len(scores['iou'])}"


def means(scores: dict[str, dict]) -> str:
    """Every protocol's mIoU in one line, such as `41.30 (19 classes), 45.02 (15 of 16 classes), 50.10 (mine: 9 of 11
    classes)`. A mean over fewer classes than the protocol has says so."""
    def over(protocol, of_protocol):
        if None not in of_protocol["iou"].values():
            return protocol
        name = "" if protocol == f"{len(of_protocol['iou'])} classes" else f"{protocol}: "
        return f"{name}{scored_classes(of_protocol)} classes"
    return ", ".join(f"{s['miou']:.2f} ({over(protocol, s)})" for protocol, s in scores.items()
                     if s["miou"] is not None)


def score_table(columns: dict[str, dict[str, dict]], class_set: ClassSet,
                verdicts: dict[str, str] | None = None) -> str:
    """A table of scores as text: one row for each class of any protocol, with the mIoU in the last row, and one column
    for each checkpoint and protocol.

    columns: heading -> `protocol_scores`. "-" means that the class is not in the protocol, or occurs in neither labels
    nor predictions. Where a mean is over fewer classes than its protocol has, the row above it says over how many.
    verdicts: heading -> verdict, for a last row.
    """
    protocols = list(class_set.protocols)
    names = list(dict.fromkeys(name for protocol in class_set.protocols.values() for name in protocol.names))
    heads = [f"{p.removesuffix(' classes')} cl." if p.endswith(" classes") else p for p in protocols]
    first = max(len(name) for name in (*names, "classes"))
    cell_width = max(7, *(len(head) + 1 for head in heads))
    blocks = [max(cell_width * len(protocols), len(heading) + 2) for heading in columns]
    def row(title, cells):
        return title.ljust(first) + "".join("".join(c.rjust(block // len(protocols)) for c in cell).rjust(block)
                                            for block, cell in zip(blocks, cells))
    def number(value):
        return "-" if value is None else f"{value:.1f}"
    lines = [" " * first + "".join(heading.rjust(block) for block, heading in zip(blocks, columns)),
             row("IoU, %", [heads] * len(columns))]
    rule = "-" * len(lines[0])
    lines.append(rule)
    lines += [row(name, [[number(scores[p]["iou"].get(name)) for p in protocols] for scores in columns.values()])
              for name in names]
    lines.append(rule)
    if any(None in scores[p]["iou"].values() for scores in columns.values() for p in protocols):
        lines.append(row("classes", [[scored_classes(scores[p]).replace(" of ", "/") for p in protocols]
                                     for scores in columns.values()]))
    lines.append(row("mIoU", [[number(scores[p]["miou"]) for p in protocols] for scores in columns.values()]))
    if verdicts:
        lines.append("verdict".ljust(first) + "".join(verdicts.get(heading, "-").rjust(block)
                                                      for block, heading in zip(blocks, columns)))
    return "\n".join(lines)

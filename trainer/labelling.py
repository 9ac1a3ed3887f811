"""A round's pseudo labels: one pass of the network over the target images, thresholds, one PNG file an image, and at
the end a manifest with their hashes."""
import hashlib
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

import torch
from PIL import Image
from torch import Tensor

from dataset import inspection, loaders
from dataset.class_sets import class_set
from dataset.labels import IGNORE_INDEX, ClassSet
from dataset.segmentation import Sample
from dataset.transforms import network_input
from model.deeplabv2 import DeepLabV2, upsample
from trainer import pseudo_label as pl
from utils.background import Background, host_copy
from utils.checkpoint import digest, remove_unfinished, write_atomically
from utils.config import Config
from utils.counting import count
from utils.errors import TrainingError, naming
from utils.metrics import confusion_matrix, right_predictions
from utils.progress import Progress
from utils.spool import TensorSpool

_WRITERS = 2
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class RoundLabels:
    """What a round's labelling found. thresholds: int64 [C] bins (`pseudo_label.class_thresholds`), on the CPU.
    coverage: selected / predicted pixels of each class of the network and of `all`; accuracy: right / selected pixels
    under the first protocol (`ClassSet.main`), None where the target's training split has no labels to compare with.
    unseen: the protocol's classes of which those labels hold no pixel.
    manifest: SHA-256 of the manifest file."""

    thresholds: Tensor
    coverage: dict[str, float]
    accuracy: dict[str, float] | None
    unseen: list[str]
    manifest: str


def label_round(model: DeepLabV2, cfg: Config, samples: list[Sample], names: tuple[str, ...], portion: float,
                folder: Path, check: Callable[[], None] = lambda: None) -> RoundLabels:
    """Write `<folder>/<sample.name>.png` for every sample: uint8 train ids at the image's own size, 255 where nothing
    is selected; then `<folder>/manifest.json` with the portion and the hashes of the weights and of every file. names:
    of the classes, for the report. check: called between images; what it raises ends the round, without a manifest.

    The network sees every image once, alone in its pass. With `bn_stats: batch` it is normalised by its own statistics,
    and the running ones move to the target with every image seen. What it gives at output stride 8 is
    upsampled twice: at once to the network's input size for the thresholds, and, kept in 16 bits (`score_budget`), to
    the file's for the labels. Raises TrainingError, after that pass, where a logit is not finite.
    """
    device = next(model.parameters()).device
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST).unlink(missing_ok=True)
    remove_unfinished(folder)
    manifest = {"weights": digest(model.state_dict()), "portion": portion, "labels": {}}
    with TensorSpool(cfg.score_budget * 2**20, folder) as spool:
        histogram, sizes = _score_target(model, cfg, samples, device, spool, check)
        thresholds = pl.class_thresholds(histogram, portion)
        counts = _LabelCounts(class_set(cfg))
        truths = _truths(cfg, samples, device)
        with Background(_WRITERS) as writers, torch.inference_mode():
            watched = Progress(samples, "pseudo labels", cfg.print_freq, cfg.screen)
            for sample, size, packed, truth in zip(watched, sizes, spool, truths):
                check()
                scores = pl.unpack_scores(packed.to(device, non_blocking=True))
                label, doubt = pl.predict(upsample(scores, size))
                chosen = pl.select(label, doubt, thresholds, portion if cfg.select_image else None)
                counts.add(label, chosen, truth)
                writers.submit(_write_label, folder, sample.name, host_copy(chosen), manifest["labels"])
    content = json.dumps(manifest, indent=1, sort_keys=True).encode()
    write_atomically(folder / MANIFEST, lambda file: file.write(content))
    return RoundLabels(thresholds.cpu(), *counts.shares(names), _sha256(content))


def labels_intact(folder: Path, samples: list[Sample], manifest: str) -> bool:
    """Whether the folder still holds, whole and unchanged, the labels of `samples` whose hashes the manifest of this
    SHA-256 lists."""
    try:
        content = (folder / MANIFEST).read_bytes()
        hashes = json.loads(content)["labels"]
        found = {s.name: _sha256((folder / f"{s.name}.png").read_bytes()) for s in samples}
        return _sha256(content) == manifest and hashes == found
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _score_target(model, cfg, samples, device, spool, check):
    """Histogram of doubt over all images, and their sizes (H, W); fills `spool` with the packed score maps. Raises
    TrainingError where a logit is not finite, before anything is made of the histogram."""
    histogram = torch.zeros(cfg.num_classes, pl.NUM_BINS, dtype=torch.int64, device=device)
    sizes, finite = [], torch.ones(len(samples), dtype=torch.bool, device=device)
    model.train(cfg.bn_stats == "batch")
    loader = loaders.whole_image_loader(cfg, cfg.target, samples, False, device.type == "cuda")
    with Background() as keeper, torch.inference_mode():
        for item in Progress(loader, "thresholds", cfg.print_freq, cfg.screen):
            check()
            image = network_input(item["image"].to(device, non_blocking=True))
            scores = model.score_map(image)[0]
            # Read once, at the end: a GPU need not wait for each image. One tensor for all: a small one per image would
            # stand between the large blocks that the allocator keeps, 1 MiB lost an image.
            finite[len(sizes)] = scores.isfinite().all()
            label, doubt = pl.predict(upsample(scores, image.shape[-2:]))
            histogram += pl.doubt_histogram(label, pl.doubt_bin(doubt), cfg.num_classes)
            keeper.submit(_keep, spool, host_copy(pl.pack_scores(scores)))
            sizes.append(tuple(item["size"]))
    broken = [sample.name for sample, fine in zip(samples, finite.tolist()) if not fine]
    if broken:
        raise TrainingError(f"pseudo labels: the network's outputs are not finite for {len(broken)} of {len(samples)} "
                            f"images, the first {broken[0]!r}: lower learning_rate, set amp=off or bf16, or check "
                            "these images and init_weight.")
    return histogram, sizes


def _truths(cfg, samples, device):
    """Train ids uint8 [H, W] of each sample on the device, or None where there is nothing to compare with."""
    if not inspection.labels_compared(cfg, samples):
        return [None] * len(samples)
    loader = loaders.whole_label_loader(cfg, cfg.target, samples, device.type == "cuda")
    return (label.to(device, non_blocking=True) for label in loader)


def _sha256(content) -> str:
    return hashlib.sha256(content).hexdigest()


def _keep(spool: TensorSpool, packed: Callable[[], Tensor]):
    spool.append(packed())


def _write_label(folder: Path, name: str, label: Callable[[], Tensor], hashes: dict[str, str]):
    png, path = io.BytesIO(), folder / f"{name}.png"
    Image.fromarray(label().numpy()).save(png, "PNG", compress_level=1)
    path.parent.mkdir(parents=True, exist_ok=True)
    with naming(path):
        path.write_bytes(png.getbuffer())
    hashes[name] = _sha256(png.getbuffer())


class _LabelCounts:
    """Pixels predicted and selected per class, and, where the truth is known, which of the selected are right."""

    def __init__(self, classes: ClassSet):
        self.num_classes, self.num_labels, self.protocol = len(classes), len(classes.labels), classes.main
        self.predicted = self.selected = self.confusion = 0

    def add(self, label, chosen, truth):
        self.predicted += count(label, self.num_classes)
        self.selected += count(chosen.long(), IGNORE_INDEX + 1)[: self.num_classes]
        if truth is not None:  # pixels that are not selected are counted in a column of their own
            self.confusion += confusion_matrix(truth, chosen.clamp(max=self.num_classes), self.num_classes + 1,
                                               self.num_labels)

    def shares(self, names) -> tuple[dict, dict | None, list[str]]:
        """(coverage, accuracy, unseen) as `RoundLabels` has them."""
        coverage = _shares(self.selected, self.predicted, names)
        if not isinstance(self.confusion, Tensor):
            return coverage, None, []
        protocol = self.protocol
        unseen = [name for name, ids in zip(protocol.names, protocol.labelled) if not self.confusion[list(ids)].any()]
        right, selected = right_predictions(self.confusion[:, :-1], protocol.labelled, protocol.predicted)
        return coverage, _shares(right, selected, names), unseen


def _shares(part, whole, names):
    shares = (part.double() / whole.double()).tolist()
    return {"all": (part.sum().double() / whole.sum().double()).item(), **dict(zip(names, shares))}

"""A round's pseudo labels: one pass of the network over the target images, thresholds per class, one PNG file for each
image, and a manifest with the SHA-256 hashes of these files."""
import hashlib
import io
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from dataset import inspection, loaders
from dataset.class_sets import class_set
from dataset.labels import IGNORE_INDEX, ClassSet
from dataset.segmentation import Sample
from model.segmenter import Segmenter
from trainer import selection
from utils.background import Background, host_copy, to_device
from utils.checkpoint import digest, remove_unfinished, write_atomically
from utils.config import Config
from utils.counting import count
from utils.disk_buffer import TensorBuffer
from utils.errors import TrainingError, naming
from utils.metrics import confusion_matrix, right_predictions
from utils.progress import Progress

_WRITERS = 2
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class RoundLabels:
    """Facts about a round's pseudo labels, for the log.

    thresholds: int64 [C] bins (`selection.class_thresholds`), on the CPU. coverage: selected / predicted pixels, for
    each class of the network and for `all`. accuracy: right / selected pixels under the first protocol
    (`ClassSet.main`), None where the target's training split has no labels to compare with. unseen: the protocol's
    classes of which those labels hold no pixel. manifest: SHA-256 of the manifest file.
    """

    thresholds: Tensor
    coverage: dict[str, float]
    accuracy: dict[str, float] | None
    unseen: list[str]
    manifest: str


Selector = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # see `label_round`


def label_round(network: Segmenter, cfg: Config, samples: list[Sample], names: tuple[str, ...], portion: float,
                select: Selector, folder: Path, check: Callable[[], None] = lambda: None) -> RoundLabels:
    """Write the pseudo labels of every sample, `<folder>/<sample.name>.png`: uint8 train ids at the image's own size,
    255 where a pixel is not selected. Then write `<folder>/manifest.json`: the portion, and SHA-256 hashes of the
    weights and of every file.

    names: of the classes, for the report. select(logits float [C, H, W], thresholds int64 [C]) -> (predicted class
    int64 [H, W], pseudo label uint8 [H, W]), at the image's own size. check: called between images; what it raises ends
    the round, without a manifest.

    The network sees every image once, in a batch of its own. With `bn_stats: batch` each image is normalised by its own
    statistics, and the running statistics move towards the target. An image's score map, at the network's own
    resolution, is upsampled twice: at once, to the size of the network's input, for the thresholds; and, after it was
    kept in 16 bits (`score_budget`), to the size of the file, for the labels. Raises TrainingError, after that pass, if
    a score is not finite.
    """
    device = next(network.parameters()).device
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST).unlink(missing_ok=True)
    remove_unfinished(folder)
    hashes: dict[str, str] = {}
    manifest = {"weights": digest(network.state_dict()), "portion": portion, "labels": hashes}
    width, height = cfg.target_data.input_size
    input_size = height, width
    with TensorBuffer(cfg.score_budget * 2**20, folder) as buffer:
        histogram, sizes = _score_target(network, cfg, samples, device, buffer, check)
        thresholds = selection.class_thresholds(histogram, portion)
        counts = _LabelCounts(class_set(cfg))
        labels = _labels(cfg, samples, device)
        with Background(_WRITERS) as writers, torch.no_grad():
            watched = Progress(samples, "pseudo labels", cfg.print_freq, cfg.screen)
            for sample, size, packed, label in zip(watched, sizes, buffer, labels):
                check()
                scores = selection.unpack_scores(to_device(packed, device))
                predicted, selected = select(network.upsample(scores, size, input_size), thresholds)
                counts.add(predicted, selected, label)
                writers.submit(_write_label, folder, sample.name, host_copy(selected), hashes)
    content = json.dumps(manifest, indent=1, sort_keys=True).encode()
    write_atomically(folder / MANIFEST, lambda file: file.write(content))
    return RoundLabels(thresholds.cpu(), *counts.shares(names), _sha256(content))


class PseudoLabels:
    """The pseudo labels that the current round trains on, in `<plabel>/<note>/<stage>/round<r>`. Of a run's saved state
    they are a part, which holds the hash of their manifest."""

    def __init__(self, cfg: Config, samples: list[Sample]):
        self.cfg, self._samples = cfg, samples
        self.manifest: str | None = None  # SHA-256 of the round's manifest

    def write(self, round_index: int, network: Segmenter, names: tuple[str, ...], portion: float, select: Selector,
              check: Callable[[], None]) -> RoundLabels:
        """`label_round` into the round's folder."""
        found = label_round(network, self.cfg, self._samples, names, portion, select, self._folder(round_index), check)
        self.manifest = found.manifest
        return found

    def samples(self, round_index: int) -> list[Sample]:
        """The samples with the round's pseudo labels as their labels."""
        return [replace(s, label=self._folder(round_index) / f"{s.name}.png") for s in self._samples]

    def intact(self, round_index: int, state: dict) -> bool:
        """Whether the round's folder holds the very files that a saved state relies on: its manifest has the hash in
        `state` (of `state_dict`), and every PNG file the hash in the manifest."""
        folder = self._folder(round_index)
        try:
            content = (folder / MANIFEST).read_bytes()
            hashes = json.loads(content)["labels"]
            found = {s.name: _sha256((folder / f"{s.name}.png").read_bytes()) for s in self._samples}
            return _sha256(content) == state["manifest"] and hashes == found
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def state_dict(self) -> dict:
        """The hash of the round's manifest."""
        return {"manifest": self.manifest}

    def load_state_dict(self, state: dict) -> None:
        """Go on from where `state_dict` was."""
        self.manifest = state["manifest"]

    def _folder(self, round_index):
        return Path(self.cfg.plabel) / self.cfg.note / self.cfg.stage / f"round{round_index}"


def _score_target(network, cfg, samples, device, buffer, check):
    """The histogram of uncertainties over all images, and the images' sizes (H, W). Fills `buffer` with packed score
    maps. Raises TrainingError if a score is not finite, since the histogram is then worthless."""
    histogram = torch.zeros(cfg.num_classes, selection.NUM_BINS, dtype=torch.int64, device=device)
    sizes, finite = [], torch.ones(len(samples), dtype=torch.bool, device=device)
    network.use_statistics(cfg.bn_stats)
    loader = loaders.whole_image_loader(cfg, cfg.target, samples, False, device.type == "cuda")
    with Background() as keeper, torch.no_grad():
        for item in Progress(loader, "thresholds", cfg.print_freq, cfg.screen):
            check()
            image = network.prepare(item["image"].to(device, non_blocking=True))
            scores = network.score_map(image)[0]
            # Read once, at the end, so that no image waits for the GPU. One tensor for all images: a small one for each
            # would fragment the allocator's large blocks, which costs 1 MiB an image.
            finite[len(sizes)] = scores.isfinite().all()
            label, uncertainty = selection.predict(network.upsample(scores, image.shape[-2:]))
            histogram += selection.uncertainty_histogram(label, selection.uncertainty_bin(uncertainty), cfg.num_classes)
            keeper.submit(_keep, buffer, host_copy(selection.pack_scores(scores)))
            sizes.append(tuple(item["size"]))
    broken = [sample.name for sample, fine in zip(samples, finite.tolist()) if not fine]
    if broken:
        raise TrainingError(f"pseudo labels: the network's outputs are not finite for {len(broken)} of {len(samples)} "
                            f"images, the first {broken[0]!r}: lower learning_rate, set amp=off or bf16, or check "
                            "these images and init_weight.")
    return histogram, sizes


def _labels(cfg: Config, samples: list[Sample], device: torch.device) -> Iterable[Tensor | None]:
    """Train ids uint8 [H, W] of each sample, on the device, or None where there are no labels to compare with."""
    if not inspection.labels_compared(cfg, samples):
        return [None] * len(samples)
    loader = loaders.whole_label_loader(cfg, cfg.target, samples, device.type == "cuda")
    return (label.to(device, non_blocking=True) for label in loader)


def _sha256(content: bytes | memoryview) -> str:
    return hashlib.sha256(content).hexdigest()


def _keep(buffer, packed):
    buffer.append(packed())


def _write_label(folder, name, label, hashes):
    """Write a PNG file and note its hash. label: as `host_copy` returns it."""
    png, path = io.BytesIO(), folder / f"{name}.png"
    Image.fromarray(label().numpy()).save(png, "PNG", compress_level=1)
    path.parent.mkdir(parents=True, exist_ok=True)
    with naming(path):
        path.write_bytes(png.getbuffer())
    hashes[name] = _sha256(png.getbuffer())


class _LabelCounts:
    """Pixels predicted and selected of each class and, where labels are known, how many of the selected are right."""

    def __init__(self, classes: ClassSet):
        self.num_classes, self.num_labels, self.protocol = len(classes), len(classes.labels), classes.main
        self.predicted = self.selected = torch.tensor(0)  # [C], once an image has been added
        self.confusion: Tensor | None = None

    def add(self, predicted: Tensor, selected: Tensor, label: Tensor | None) -> None:
        """Add an image: what `select` of `label_round` returned, and its labels (integer [H, W] train ids)."""
        self.predicted = self.predicted + count(predicted, self.num_classes)
        self.selected = self.selected + count(selected.long(), IGNORE_INDEX + 1)[: self.num_classes]
        if label is not None:  # pixels that are not selected are counted in a column of their own
            found = confusion_matrix(label, selected.clamp(max=self.num_classes), self.num_classes + 1, self.num_labels)
            self.confusion = found if self.confusion is None else self.confusion + found

    def shares(self, names: tuple[str, ...]) -> tuple[dict, dict | None, list[str]]:
        """(coverage, accuracy, unseen) as `RoundLabels` has them."""
        coverage = _shares(self.selected, self.predicted, names)
        if self.confusion is None:
            return coverage, None, []
        protocol = self.protocol
        unseen = [name for name, ids in zip(protocol.names, protocol.labelled) if not self.confusion[list(ids)].any()]
        right, selected = right_predictions(self.confusion[:, :-1], protocol.labelled, protocol.predicted)
        return coverage, _shares(right, selected, names), unseen


def _shares(part, whole, names):
    shares = (part.double() / whole.double()).tolist()
    return {"all": (part.sum().double() / whole.sum().double()).item(), **dict(zip(names, shares))}

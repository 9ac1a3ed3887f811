"""A round's pseudo labels: one pass of the network over the target images, thresholds per class, and the files of the
labels. Several processes deal out the images; thresholds and counts are those of all."""
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from dataset import inspection, loaders
from dataset.class_sets import class_set
from dataset.labels import IGNORE_INDEX, ClassSet
from dataset.segmentation import Sample
from model.segmenter import Segmenter
from model.statistics import batch_norms
from trainer import label_files, selection
from trainer.label_files import LabelFolder
from utils import distributed
from utils.background import Background, host_copy, to_device
from utils.checkpoint import digest_later
from utils.config import Config
from utils.counting import count
from utils.disk_buffer import TensorBuffer
from utils.errors import TrainingError
from utils.metrics import confusion_matrix, right_predictions
from utils.progress import Progress


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


def label_round(network: Segmenter, cfg: Config, samples: Sequence[Sample], names: tuple[str, ...], portion: float,
                select: Selector, folder: Path, check: Callable[[], None] = lambda: None) -> RoundLabels:
    """Write the pseudo labels of every sample to a folder: `<sample.name>.png`, uint8 train ids at the image's own
    size, 255 where a pixel is not selected; or, with `plabel_shard`, tar files of these. Then write its manifest
    (`LabelFolder.finish`): hash of the weights, portion, and hashes of the files.

    names: of the classes, for the report. select(logits float [C, H, W], thresholds int64 [C]) -> (predicted class
    int64 [H, W], pseudo label uint8 [H, W]), at the image's own size. check: called between images; what it raises ends
    the round, without a manifest.

    The network sees every image once, in a batch of its own. With `bn_stats: batch` each image is normalised by its own
    statistics, and the running statistics move towards the target. An image's score map, at the network's own
    resolution, is upsampled twice: at once, to the size of the network's input, for the thresholds; and, after it was
    kept in 16 bits (`score_budget`), to the size of the file, for the labels. Raises TrainingError, after that pass, if
    a score is not finite.

    Collective: each process labels its share, and all get the same result. The files are the same for any number of
    processes. Running statistics become the mean of what they are in each process, weighted by the images it has seen.
    """
    device = next(network.parameters()).device
    files = LabelFolder(folder, samples, cfg.plabel_shard)
    files.clear()
    if cfg.plabel_shard and distributed.any_of(not files.share):
        network.remark("plabel_shard: each process labels whole tar files, and some have none to label: choose fewer "
                       "images for each")
    # Of the weights as they are before running statistics move.
    weights = digest_later(network.state_dict()) if distributed.is_main() else lambda: ""
    width, height = cfg.target_data.input_size
    input_size = height, width
    with TensorBuffer(cfg.score_budget * 2**20, folder) as buffer:
        histogram = _score_target(network, cfg, samples, files.share, device, buffer, check)
        thresholds = selection.class_thresholds(histogram, portion)
        labels = _labels(cfg, samples, files.share, device)
        counts = _LabelCounts(class_set(cfg), labels is not None, device)
        with distributed.together(), files.writing() as write, torch.no_grad():
            watched = Progress(files.share, "pseudo labels", cfg.print_freq, cfg.screen)
            items = zip(watched, buffer, labels or itertools.repeat(None))
            for index, (sample, (packed, size), label) in enumerate(items):
                check()
                scores = selection.unpack_scores(to_device(packed, device))
                predicted, selected = select(network.upsample(scores, size, input_size), thresholds)
                counts.add(predicted, selected, label)
                write(index, sample.name, host_copy(selected))
    found = counts.of_all().shares(names)
    return RoundLabels(thresholds.cpu(), *found, files.finish(weights=weights(), portion=portion))


class PseudoLabels:
    """The pseudo labels that the current round trains on, in `<plabel>/<note>/<stage>/round<r>`. Of a run's saved state
    they are a part, which holds the hash of their manifest."""

    def __init__(self, cfg: Config, samples: Sequence[Sample]):
        self.cfg, self._samples = cfg, samples
        self.manifest: str | None = None  # SHA-256 of the round's manifest
        self.tarred = False  # whether the round's files are tar files

    def write(self, round_index: int, network: Segmenter, names: tuple[str, ...], portion: float, select: Selector,
              check: Callable[[], None]) -> RoundLabels:
        """`label_round` into the round's folder."""
        found = label_round(network, self.cfg, self._samples, names, portion, select, self._folder(round_index), check)
        self.manifest, self.tarred = found.manifest, self.cfg.plabel_shard > 0
        return found

    def samples(self, round_index: int) -> Sequence[Sample]:
        """The samples with the round's pseudo labels as their labels."""
        return label_files.labelled(self._folder(round_index), self._samples, self.tarred)

    def intact(self, round_index: int, state: dict) -> bool:
        """Whether the round's folder holds the very files that a saved state relies on: its manifest has the hash in
        `state` (of `state_dict`), and every file the hash in the manifest. Collective."""
        return label_files.intact(self._folder(round_index), self._samples, state.get("manifest"))

    def state_dict(self) -> dict:
        """The hash of the round's manifest, and whether it is of tar files."""
        return {"manifest": self.manifest, "tarred": self.tarred}

    def load_state_dict(self, state: dict) -> None:
        """Go on from where `state_dict` was."""
        self.manifest, self.tarred = state["manifest"], state["tarred"]

    def _folder(self, round_index):
        return Path(self.cfg.plabel) / self.cfg.note / self.cfg.stage / f"round{round_index}"


def _score_target(network, cfg, samples, share, device, buffer, check):
    """The histogram of uncertainties over the images of all processes. Fills `buffer` with the packed score maps of
    this process's share, and the images' sizes (H, W). Raises TrainingError if a score of any process is not finite,
    since the histogram is then worthless."""
    histogram = torch.zeros(cfg.num_classes, selection.NUM_BINS, dtype=torch.int64, device=device)
    # Read once, at the end, so that no image waits for the GPU: how many are broken, and the number of the first.
    broken, first = torch.zeros((), dtype=torch.int64, device=device), torch.full((), len(samples), device=device)
    network.use_statistics(cfg.bn_stats)
    tracked = [norm.num_batches_tracked.clone() for norm in batch_norms(network)]
    loader = loaders.whole_image_loader(cfg, cfg.target, share, False, device.type == "cuda")
    with distributed.together(), Background() as keeper, torch.no_grad():
        for index, item in enumerate(Progress(loader, "thresholds", cfg.print_freq, cfg.screen)):
            check()
            image = network.prepare(item["image"].to(device, non_blocking=True))
            scores = network.score_map(image)[0]
            fine = scores.isfinite().all()
            broken += ~fine
            first.clamp_(max=torch.where(fine, len(samples), share.numbers[index]))
            label, uncertainty = selection.predict(network.upsample(scores, image.shape[-2:]))
            histogram += selection.uncertainty_histogram(label, selection.uncertainty_bin(uncertainty), cfg.num_classes)
            keeper.submit(_keep, buffer, host_copy(selection.pack_scores(scores)), tuple(item["size"]))
    count, number = distributed.total(broken).item(), distributed.smallest(first).item()
    if count:
        raise distributed.of_all(TrainingError(
            f"pseudo labels: the network's outputs are not finite for {count} of {len(samples)} images, the first "
            f"{samples[number].name!r}: lower learning_rate, set amp=off or bf16, or check these images and "
            "init_weight."))
    if cfg.bn_stats == "batch":
        _merge_statistics(network, tracked, len(share))
    return distributed.total(histogram)


def _merge_statistics(network, tracked, seen):
    """Make the running statistics equal in all processes: the mean of theirs, weighted by the images that each has
    seen. tracked: the batch norms' numbers of batches before these images; what all processes have added is added."""
    norms = batch_norms(network)
    if not distributed.joined() or not norms:
        return
    buffers = [buffer for norm in norms for buffer in (norm.running_mean, norm.running_var)]
    values = torch.cat([torch.cat(buffers).double() * seen, torch.full((1,), seen, device=buffers[0].device)])
    *means, count = distributed.total(values).split([*map(len, buffers), 1])
    for buffer, mean in zip(buffers, means):
        buffer.copy_(mean / count)
    added = distributed.total(torch.stack([norm.num_batches_tracked - old for norm, old in zip(norms, tracked)]))
    for norm, old, new in zip(norms, tracked, added):
        norm.num_batches_tracked.copy_(old + new)


def _labels(cfg, samples, share, device):
    """Train ids uint8 [H, W] of each sample of the share, on the device, or None where there are no labels to compare
    with, for any process."""
    if distributed.any_of(not inspection.labels_compared(cfg, samples)):
        return None
    loader = loaders.whole_label_loader(cfg, cfg.target, share, device.type == "cuda")
    return (label.to(device, non_blocking=True) for label in loader)


def _keep(buffer, packed, size):
    buffer.append(packed(), *size)


class _LabelCounts:
    """Pixels predicted and selected of each class and, where labels are known, how many of the selected are right."""

    def __init__(self, classes: ClassSet, labelled: bool, device: torch.device):
        self.num_classes, self.num_labels, self.protocol = len(classes), len(classes.labels), classes.main
        self.predicted, self.selected = torch.zeros(2, self.num_classes, dtype=torch.int64, device=device)
        self.confusion = torch.zeros(self.num_labels, self.num_classes + 1, dtype=torch.int64,
                                     device=device) if labelled else None

    def add(self, predicted: Tensor, selected: Tensor, label: Tensor | None) -> None:
        """Add an image: what `select` of `label_round` returned, and its labels (integer [H, W] train ids)."""
        self.predicted += count(predicted, self.num_classes)
        self.selected += count(selected.long(), IGNORE_INDEX + 1)[: self.num_classes]
        if label is not None:  # pixels that are not selected are counted in a column of their own
            self.confusion += confusion_matrix(label, selected.clamp(max=self.num_classes), self.num_classes + 1,
                                               self.num_labels)

    def of_all(self) -> "_LabelCounts":
        """These counts, summed over the processes. Collective."""
        self.predicted, self.selected = distributed.total(self.predicted), distributed.total(self.selected)
        self.confusion = None if self.confusion is None else distributed.total(self.confusion)
        return self

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

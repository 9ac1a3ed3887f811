"""Checking in parallel whether samples can be read; the samples that a run trains and validates on."""
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from dataset import files, labels, loaders, missing_labels, segmentation
from dataset.class_sets import require_network_classes
from dataset.messages import Messages
from dataset.samples import Kept, Sample, Samples
from utils import distributed
from utils.config import Config, DataConfig
from utils.errors import DataError
from utils.progress import Progress

NO_VALIDATION = "validation skipped"
NO_ACCURACY = "the accuracy of pseudo labels is not reported"
_LOOKED_AT, _SHOWN = 8, 6  # label files that are compared with the id table before a run; ids that a warning lists

_FINE, _NO_LABEL, _LEFT_OUT = range(3)  # what is done with a sample


@dataclass(frozen=True)
class Finding:
    """The result of reading one sample. Errors name the file. pixels: label id -> number of its pixels."""

    image_error: str | None = None
    label_error: str | None = None
    size: tuple[int, int] | None = None  # (width, height)
    digest: int | None = None  # 64 bits, of the decoded image
    pixels: dict[int, int] = field(default_factory=dict)


def inspect(sample: Sample) -> Finding:
    """Read a sample as training would. A sample without a label path has no label error."""
    image = image_error = ids = label_error = None
    try:
        image = segmentation.read_pixels(sample)
    except DataError as error:
        image_error = str(error)
    try:
        if sample.label:
            ids = segmentation.read_ids(sample, image.shape[1::-1] if image is not None else None)
    except DataError as error:
        label_error = str(error)
    counts = np.bincount(ids.ravel()) if ids is not None else np.zeros(0, int)
    pixels = {int(label_id): int(counts[label_id]) for label_id in np.flatnonzero(counts)}
    if image is None:
        return Finding(image_error, label_error, pixels=pixels)
    digest = hashlib.blake2b(repr(image.shape).encode() + image.tobytes(), digest_size=8).digest()
    return Finding(None, label_error, image.shape[1::-1], int.from_bytes(digest, "little", signed=True), pixels)


def header_fault(sample: Sample) -> str | None:
    """What the headers of a sample's files show to be wrong with them, without decoding a pixel; None: nothing."""
    try:
        segmentation.require_inside(sample.image, sample.image_roots)
        segmentation.require_inside(sample.label, sample.label_roots)
        size = files.read_size(sample.image, sample.bands)
        if sample.label:
            width, height = files.read_label_size(sample.label)
            files.require_same_size(sample.image, size, sample.label, np.broadcast_to(np.uint8(0), (height, width)))
    except DataError as error:
        return str(error)
    return None


def findings(samples: Sequence[Sample], workers: int, watch: Callable = iter) -> Iterator[tuple[int, Finding]]:
    """(index, `inspect`) of each sample of this process's share, in order, in `workers` processes (0: in this one).
    watch(loader) -> iterator over it that shows the progress (`progress_of`)."""
    share = distributed.share(range(len(samples)))
    loader = loaders.ReadingLoader(_Inspected(samples), share, workers, lambda index: str(samples[index].image))
    return zip(share, watch(loader), strict=True)


@dataclass(frozen=True)
class _Inspected:
    """The function index -> `inspect` of that sample: an index is sent to a reading process in place of a sample."""

    samples: Sequence[Sample]

    def __call__(self, index):
        return inspect(self.samples[index])


def progress_of(cfg: Config, title: str) -> Callable:
    """A function: loader -> iterator over it that shows the progress, as `screen` and `print_freq` say."""
    return lambda loader: Progress(loader, title, cfg.print_freq, cfg.screen)


def require_one_list(samples: Sequence[Sample]) -> None:
    """Raise DataError, in all processes, unless all have found the same samples, which they are about to share out.
    Collective."""
    if distributed.size() == 1:
        return
    found = distributed.gathered((len(samples), segmentation.fingerprint(samples)))
    if len(set(found)) > 1:
        others = [str(rank) for rank, one in enumerate(found) if one != found[0]]
        raise distributed.of_all(DataError(
            f"the processes of this run differ: the images (names and sizes): {found[0][0]} in process 0, others in "
            f"process {', '.join(others[:8])} ({found[int(others[0])][0]} there): start them with the same command and "
            "the same files."))


def readable(samples: Sequence[Sample], labels_needed: bool, workers: int,
             watch: Callable = iter) -> tuple[Samples, list[str]]:
    """The samples that training can read, in order, and what is wrong with the others (`Messages.lines`). watch: see
    `findings`. Processes share the work, and all get the whole result. Collective.

    labels_needed: samples with a broken label are left out. Else only the image counts: the target's labels must not
    decide what is trained on. So the sample is kept, without its label.
    """
    require_one_list(samples)
    faults, broken = np.zeros(len(samples), np.int8), Messages()
    with distributed.together():
        for index, found in findings(samples, workers, watch):
            if fault := found.image_error or found.label_error:
                faults[index] = _LEFT_OUT if found.image_error or labels_needed else _NO_LABEL
                broken.add(index, fault)
    faults = distributed.total(torch.from_numpy(faults)).numpy()
    good = Samples.of(samples).take(np.flatnonzero(faults != _LEFT_OUT))
    kept = faults[faults != _LEFT_OUT]
    return good.with_labels(Kept(kept == 0)) if kept.any() else good, broken.merged().lines()


def training_samples(cfg: Config, section_name: str, labels_needed: bool) -> tuple[Samples, list[str]]:
    """The samples of a section to train on, and remarks for the log on what was left out.

    on_bad_sample=error: all samples; the files must exist (of a long list, those looked at), but are not read here.
    skip: the samples of `readable`. They are chosen before anything is drawn at random, so order and augmentation are
    functions of seed, round, epoch and index. Raises DataError if files are missing or no sample can be read;
    ConfigError if labels that are needed have other classes than the network (`require_network_classes`).
    """
    section, skip = cfg.section(section_name), cfg.on_bad_sample == "skip"
    if labels_needed:
        require_network_classes(cfg, section_name)
    samples, lines = segmentation.find_split(section_name, section, "train", complete=not skip)
    if not labels_needed and cfg.plabel_accuracy:
        lines += _accuracy_remarks(section_name, section, samples)
    if not skip:
        if labels_needed:
            missing_labels.require_labels(section_name, section, "train", samples)
            lines += unknown_ids(cfg, section_name, samples)
        return samples, lines
    if not labels_needed and not labels_compared(cfg, samples):
        samples = samples.without_labels()
    good, broken = readable(samples, labels_needed, loaders.worker_count(cfg), progress_of(cfg, "reading"))
    if not good:
        raise DataError(f"{section_name}: none of its {len(samples)} training samples can be read; the first: "
                        f"{broken[0]}")
    lines += [f"on_bad_sample: {reason}" for reason in broken]
    if len(good) < len(samples):
        lines.append(f"on_bad_sample: {len(samples) - len(good)} of {len(samples)} training samples of {section_name} "
                     "left out")
    if any(s.label is None for s in good) and any(s.label for s in good):
        lines.append("on_bad_sample: the accuracy of pseudo labels is not reported, a label is broken")
        good = good.without_labels() if good.unseen else good  # `labels_compared` looks at a few
    return good, lines + (unknown_ids(cfg, section_name, good) if labels_needed else [])


def no_images(section_name: str, section: DataConfig, split: str) -> str:
    """A remark that a split without images cannot be validated on, and why it has none."""
    return f"{NO_VALIDATION}: {section_name} has no images in its split {split!r}: " + (
        f"its list {section.data_list_val!r} is empty" if section.data_list_val else
        f"none matches {segmentation.image_pattern(section, split)!r}")


def some_labels(lost: str, missing: int, samples: Sequence[Sample], listed: int = 0) -> str:
    """A remark that `missing` of the samples have no label. lost: what is not possible for that reason. listed: the
    number of samples of which these were looked at, if there are more."""
    return (f"{lost}: {missing} of {len(samples)} labels are not there"
            + (f" ({listed} are listed, these were looked at)" if listed > len(samples) else ""))


def _accuracy_remarks(section_name, section, samples):
    """Remarks on missing labels of the target's training split, which only the accuracy of pseudo labels needs."""
    some = missing_labels.looked_at(samples)
    missing = sum(not (s.label and os.path.isfile(s.label)) for s in some)
    if missing < len(some):
        return [some_labels(NO_ACCURACY, missing, some, len(samples))] if missing else []
    why = missing_labels.why_no_labels(section_name, section, "train", samples)
    return [why.remark(NO_ACCURACY)] if why.surprising else []


def validation_samples(cfg: Config) -> tuple[Samples, list[str]]:
    """The samples of the target to validate on, and remarks for the log on what was left out.

    There are none if the split has no images or no labels; a remark says why. Raises DataError, also if only some of
    the images have labels.
    """
    samples, remarks = segmentation.find_split(cfg.target, cfg.target_data, "val", required=False)
    if not samples:
        return samples, [*remarks, no_images(cfg.target, cfg.target_data, "val")]
    if not missing_labels.has_labels(samples):
        why = missing_labels.why_no_labels(cfg.target, cfg.target_data, "val", samples)
        return samples[:0], [*remarks, why.remark(NO_VALIDATION)]
    return samples, remarks + unknown_ids(cfg, cfg.target, samples)


def never_seen(cfg: Config, section_name: str, names: list[str], where: str) -> str:
    """A warning that the classes `names` of a section have no pixel, and what to check. where: in which labels."""
    kind, counted = cfg.section(section_name).type, "python -m dataset.check counts the ids that the files hold"
    if kind == "folder":
        advice = (f"check {section_name}.label_ids and {section_name}.classes ({counted}; masks of 0 and 255 need "
                  "label_ids: {0: 0, 255: 1})")
    elif kind == "synthia" and not {*names} & {*labels.street_class_set(16).names}:
        advice = "SYNTHIA has none of them; num_classes=16 leaves them out"
    else:
        advice = f"check {section_name}.data_dir and the lists of its files ({counted})"
    return f"classes never seen: {', '.join(names)}: no pixel of them in {where}; {advice}"


def unknown_ids(cfg: Config, section_name: str, samples: Sequence[Sample]) -> list[str]:
    """A list of at most one warning, on label ids that the section's table does not have.

    A few labels, spread over the samples, are read. Label files with another numbering (Cityscapes' labelIds in place
    of train ids, say) would be read wrong without any error.
    """
    section = cfg.section(section_name)
    known = segmentation.known_ids(section)
    key = "label_ids" if section.type == "folder" else "data_dir"
    for sample in samples[:: -(-len(samples) // _LOOKED_AT)] if samples else ():
        try:
            found = np.flatnonzero(np.bincount(files.read_label_ids(sample.label).ravel()))
        except DataError:  # reported when it is read for use
            continue
        if unknown := sorted({*found.tolist()} - known):
            more = f" and {len(unknown) - _SHOWN} more" if len(unknown) > _SHOWN else ""
            meant = f", where {unknown[0]}: 255 says that this is meant" if key == "label_ids" else ""
            return [f"warning: {sample.label}: label ids {', '.join(map(str, unknown[:_SHOWN]))}{more} are not in the "
                    f"table and are ignored: check {section_name}.{key}{meant} (python -m dataset.check counts the ids "
                    "that the files hold)"]
    return []


def labels_compared(cfg: Config, samples: Sequence[Sample]) -> bool:
    """Whether the accuracy of pseudo labels is measured: it is wanted, and all training labels of the target exist (of
    a long list, those that are looked at)."""
    return cfg.plabel_accuracy and all(s.label and os.path.isfile(s.label) for s in missing_labels.looked_at(samples))

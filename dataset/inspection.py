"""Reading samples to see whether they can be read, in parallel, and the training split as `on_bad_sample` has it."""
import hashlib
import os
from dataclasses import dataclass, field, replace
from typing import Callable, Iterator

import numpy as np

from dataset import files, labels, loaders, segmentation
from dataset.class_sets import require_network_classes
from dataset.segmentation import Sample
from utils.config import Config, DataConfig
from utils.errors import DataError
from utils.progress import Progress

NO_VALIDATION = "validation skipped"
NO_ACCURACY = "the accuracy of pseudo labels is not reported"
_LOOKED_AT, _SHOWN = 8, 6  # labels whose ids are compared with the table before a run, ids in a warning


@dataclass(frozen=True)
class Finding:
    """What reading one sample showed. Errors name the file; `pixels`: label id -> number of its pixels."""

    image_error: str | None = None
    label_error: str | None = None
    size: tuple[int, int] | None = None  # (width, height)
    digest: bytes | None = None  # of the decoded image
    pixels: dict[int, int] = field(default_factory=dict)


def inspect(sample: Sample) -> Finding:
    """Read a sample as training would. Without a label path there is no label to judge."""
    image = image_error = ids = label_error = None
    try:
        image = files.read_image(sample.image, sample.bands)
    except DataError as error:
        image_error = str(error)
    try:
        if sample.label:
            ids = files.read_label_ids(sample.label)
            if image is not None:
                files.require_same_size(sample.image, image.shape[1::-1], sample.label, ids)
    except DataError as error:
        label_error = str(error)
    counts = np.bincount(ids.ravel()) if ids is not None else np.zeros(0, int)
    pixels = {int(label_id): int(counts[label_id]) for label_id in np.flatnonzero(counts)}
    if image is None:
        return Finding(image_error, label_error, pixels=pixels)
    digest = hashlib.blake2b(repr(image.shape).encode() + image.tobytes(), digest_size=16).digest()
    return Finding(None, label_error, image.shape[1::-1], digest, pixels)


def findings(samples: list[Sample], workers: int, watch: Callable = iter) -> Iterator[Finding]:
    """`inspect` of every sample, in their order, in `workers` processes (0: in this one). watch(loader) -> iterator:
    shows the pace (`progress_of`)."""
    return iter(watch(loaders.ReadingLoader(inspect, samples, workers, lambda sample: str(sample.image))))


def progress_of(cfg: Config, title: str) -> Callable:
    """Loader -> the loader with its pace shown as `screen` and `print_freq` have it."""
    return lambda loader: Progress(loader, title, cfg.print_freq, cfg.screen)


def readable(samples: list[Sample], labels_needed: bool, workers: int,
             watch: Callable = iter) -> tuple[list[Sample], list[tuple[Sample, str]]]:
    """Which samples training can read: (those, [(sample, what is wrong with it)]), both in order. watch: of `findings`.

    With `labels_needed` a sample with a broken label is left out. Without, its image alone decides: labels of the
    target must not choose what is trained on, so the sample stays, without the label.
    """
    good, broken = [], []
    for sample, found in zip(samples, findings(samples, workers, watch), strict=True):
        if found.image_error or found.label_error:
            broken.append((sample, found.image_error or found.label_error))
        if not found.image_error and not (labels_needed and found.label_error):
            good.append(replace(sample, label=None) if found.label_error else sample)
    return good, broken


def training_samples(cfg: Config, section_name: str, labels_needed: bool) -> tuple[list[Sample], list[str]]:
    """The training split of a section as `on_bad_sample` has it: (samples, remarks for the log on what was left out).

    error: all that is there; files must exist, their content is not looked at. skip: what `readable` leaves, before
    anything is drawn at random, so that order and augmentation stay functions of seed, round, epoch and index.
    Raises DataError, with skip if nothing is left; ConfigError if labels that are needed have other classes than the
    network (`require_network_classes`).
    """
    section, skip = cfg.section(section_name), cfg.on_bad_sample == "skip"
    if labels_needed:
        require_network_classes(cfg, section_name)
    samples, lines = segmentation.find_split(section_name, section, "train", complete=not skip)
    if not labels_needed and cfg.plabel_accuracy:
        lines += _accuracy_remarks(section_name, section, samples)
    if not skip:
        if labels_needed:
            segmentation.require_labels(section_name, section, "train", samples)
            lines += unknown_ids(cfg, section_name, samples)
        return samples, lines
    if not labels_needed and not labels_compared(cfg, samples):
        samples = [replace(s, label=None) for s in samples]
    good, broken = readable(samples, labels_needed, loaders.worker_count(cfg), progress_of(cfg, "reading"))
    if not good:
        raise DataError(f"{section_name}: none of its {len(samples)} training samples can be read; the first: "
                        f"{broken[0][1]}")
    lines += [f"on_bad_sample: {reason}" for _, reason in broken]
    if len(good) < len(samples):
        lines.append(f"on_bad_sample: {len(samples) - len(good)} of {len(samples)} training samples of {section_name} "
                     "left out")
    if any(s.label is None for s in good) and any(s.label for s in good):
        lines.append("on_bad_sample: the accuracy of pseudo labels is not reported, a label is broken")
    return good, lines + (unknown_ids(cfg, section_name, good) if labels_needed else [])


def no_images(section_name: str, section: DataConfig, split: str) -> str:
    """The remark that a split without images cannot be scored."""
    return f"{NO_VALIDATION}: {section_name} has no images in its split {split!r}: " + (
        f"its list {section.data_list_val!r} is empty" if section.data_list_val else
        f"none matches {segmentation.image_pattern(section, split)!r}")


def some_labels(lost: str, missing: int, samples: list[Sample]) -> str:
    """The remark that not all of the samples have a label."""
    return f"{lost}: {missing} of {len(samples)} labels are not there"


def _accuracy_remarks(section_name, section, samples):
    """Where labels are not needed: that some are there but cannot be used."""
    missing = sum(not (s.label and os.path.isfile(s.label)) for s in samples)
    if missing < len(samples):
        return [some_labels(NO_ACCURACY, missing, samples)] if missing else []
    why = segmentation.why_no_labels(section_name, section, "train", samples)
    return [why.remark(NO_ACCURACY)] if why.surprising else []


def validation_samples(cfg: Config) -> tuple[list[Sample], list[str]]:
    """(the target's validation split if it can be scored, else nothing; remarks for the log on why not, and on what was
    left out). Raises DataError, also if only some of the images have labels."""
    samples, remarks = segmentation.find_split(cfg.target, cfg.target_data, "val", required=False)
    if not samples:
        return [], [*remarks, no_images(cfg.target, cfg.target_data, "val")]
    if not segmentation.has_labels(samples):
        why = segmentation.why_no_labels(cfg.target, cfg.target_data, "val", samples)
        return [], [*remarks, why.remark(NO_VALIDATION)]
    return samples, remarks + unknown_ids(cfg, cfg.target, samples)


def never_seen(cfg: Config, section_name: str, names: list[str], where: str) -> str:
    """What is said of classes of a section without a single pixel, and what helps; where: in which labels."""
    kind, counted = cfg.section(section_name).type, "python -m dataset.check counts the ids that the files hold"
    if kind == "folder":
        advice = (f"check {section_name}.label_ids and {section_name}.classes ({counted}; masks of 0 and 255 need "
                  "label_ids: {0: 0, 255: 1})")
    elif kind == "synthia" and not {*names} & {*labels.street_class_set(16).names}:
        advice = "SYNTHIA has none of them; num_classes=16 leaves them out"
    else:
        advice = f"check {section_name}.data_dir and the lists of its files ({counted})"
    return f"classes never seen: {', '.join(names)}: no pixel of them in {where}; {advice}"


def unknown_ids(cfg: Config, section_name: str, samples: list[Sample]) -> list[str]:
    """A warning, if any, of ids that a section's table does not know, in a few labels spread over the samples: label
    files of another numbering (Cityscapes' labelIds for train ids, say) would be read wrong without a word."""
    section = cfg.section(section_name)
    known = segmentation.known_ids(section)
    key = "label_ids" if section.type == "folder" else "data_dir"
    for sample in samples[:: -(-len(samples) // _LOOKED_AT)] if samples else ():
        try:
            found = np.flatnonzero(np.bincount(files.read_label_ids(sample.label).ravel()))
        except DataError:  # who reads it will say so
            continue
        if unknown := sorted({*found.tolist()} - known):
            more = f" and {len(unknown) - _SHOWN} more" if len(unknown) > _SHOWN else ""
            meant = f", where {unknown[0]}: 255 says that this is meant" if key == "label_ids" else ""
            return [f"warning: {sample.label}: label ids {', '.join(map(str, unknown[:_SHOWN]))}{more} are not in the "
                    f"table and are ignored: check {section_name}.{key}{meant} (python -m dataset.check counts the ids "
                    "that the files hold)"]
    return []


def labels_compared(cfg: Config, samples: list[Sample]) -> bool:
    """Whether a round reads the target's training labels, for the accuracy of its pseudo labels: only if all exist."""
    return cfg.plabel_accuracy and all(s.label and os.path.isfile(s.label) for s in samples)

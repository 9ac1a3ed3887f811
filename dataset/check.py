"""Read a whole data set before a run, in `worker` processes, and report what is wrong with it.

    python -m dataset.check [--config config/ldbe_config.yml] [--split target_val ...] [key=value ...]

Reports missing, unreadable and truncated files, sizes that differ, label ids outside the table, classes never seen and
images that occur twice; ends with each class's share of the labelled pixels. An `error` would stop a run, a
`warning` or `note` would not. Target labels are not needed. The source is read if it is not the target's own section.
Its folder need not be there for a method that adapts without the source, as ld and be do.
"""
import os
from collections import Counter
from dataclasses import dataclass, field, replace

from dataset import loaders, missing_labels, segmentation
from dataset.class_sets import class_set, label_classes, require_network_classes
from dataset.inspection import (
    NO_ACCURACY,
    NO_VALIDATION,
    findings,
    labels_compared,
    never_seen,
    no_images,
    progress_of,
    some_labels,
)
from dataset.labels import IGNORE_INDEX
from utils.cli import guarded, leave, parser
from utils.config import Config, load_config
from utils.errors import ConfigError, DataError, one_line

PARTS = {"source_train": ("source", "train"), "target_train": ("target", "train"), "target_val": ("target", "val")}
EXIT_WOULD_STOP = 1
_SHOWN, _IDS = 3, 40  # how many pairs of equal images and how many label ids a note lists


@dataclass
class Report:
    """What reading one part of the data has shown, such as target_val.

    ids: label id -> [pixels, files, first file]. digests: digest of an image's content -> path of the image.
    """

    title: str
    errors: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    pixels: Counter = field(default_factory=Counter)  # train id or IGNORE_INDEX -> pixels
    ids: dict = field(default_factory=dict)
    sizes: Counter = field(default_factory=Counter)  # (width, height) -> images
    digests: dict = field(default_factory=dict)
    twice: list = field(default_factory=list)  # pairs of images with the same content


def check_part(cfg: Config, part: str) -> Report:
    """Read one of PARTS. Faults that would stop a run are in the report's errors; nothing is raised."""
    side, split = PARTS[part]
    name = getattr(cfg, side)
    report = Report(f"{part} ({name})")
    try:
        if side == "source":
            require_network_classes(cfg, name)
        samples, report.notes = segmentation.find_split(name, cfg.section(name), split, required=split == "train",
                                                        complete=False)
    except (ConfigError, DataError) as error:
        report.errors.append(str(error))
        return report
    if not samples:
        report.notes.append(no_images(name, cfg.section(name), split))
    samples = _judge_gaps(report, cfg, part, samples)
    labels_matter = part != "target_train" or labels_compared(cfg, samples)
    skip, broken = cfg.on_bad_sample == "skip" and split == "train", 0
    read = findings(samples, loaders.worker_count(cfg), progress_of(cfg, part))
    for sample, found in zip(samples, read, strict=True):
        for fault, stops in ((found.image_error, True), (found.label_error, labels_matter)):
            if fault:
                (report.errors if stops and not skip else report.notes).append(fault)
        broken += bool(found.image_error or found.label_error and side == "source")
        _count(report, sample, found)
    if skip and broken:
        report.notes.append(f"on_bad_sample: skip would leave out {broken} of {len(samples)} samples")
        if broken == len(samples):
            report.errors.append(f"{name}: none of its {broken} training samples can be read.")
    _judge_ids(report, segmentation.label_table(cfg.section(name), cfg.num_classes),
               segmentation.known_ids(cfg.section(name)))
    return report


def _judge_gaps(report, cfg, part, samples):
    """Report missing labels in one line where that is enough. Returns the samples; a label that is left in them must be
    there, and is reported on its own if it is not."""
    there = [bool(s.label) and os.path.isfile(s.label) for s in samples]
    report.title += f": {len(samples)} images, {sum(there)} labels"
    if all(there) or part != "target_train" and any(there):
        return samples
    side, split = PARTS[part]
    name, lost = getattr(cfg, side), NO_VALIDATION if split == "val" else NO_ACCURACY
    if any(there):
        report.notes.append(some_labels(lost, there.count(False), samples))
    elif part == "source_train":
        try:
            missing_labels.require_labels(name, cfg.section(name), split, samples)
        except DataError as error:
            report.errors.append(str(error))
    else:
        report.notes.append(missing_labels.why_no_labels(name, cfg.section(name), split, samples).remark(lost))
    return [s if label else replace(s, label=None) for s, label in zip(samples, there)]


def _count(report, sample, found):
    if found.size:
        report.sizes[found.size] += 1
        first = report.digests.setdefault(found.digest, sample.image)
        if first != sample.image:
            report.twice.append((first, sample.image))
    for label_id, pixels in found.pixels.items():
        entry = report.ids.setdefault(label_id, [0, 0, sample.label])
        entry[0] += pixels
        entry[1] += 1


def _judge_ids(report, table, known):
    for label_id, (pixels, number, first) in sorted(report.ids.items()):
        report.pixels[int(table[label_id])] += pixels
        if label_id not in known:
            report.notes.append(f"{first}: label id {label_id} is not in the table and is ignored ({pixels} pixels in "
                                f"{number} files, this the first)")


def check(cfg: Config, parts: list[str]) -> dict[str, Report]:
    """`check_part` of each part, and the images that the target's training and validation splits share.

    Raises ConfigError if the target's protocols do not fit its classes and the network's (`class_set`).
    """
    class_set(cfg)
    reports = {part: check_part(cfg, part) for part in parts}
    if {"target_train", "target_val"} <= reports.keys():
        train, val = reports["target_train"].digests, reports["target_val"]
        shared = [(train[digest], image) for digest, image in val.digests.items() if digest in train]
        val.twice += [(first, image) for first, image in shared if first != image]
        if same := sum(first == image for first, image in shared):
            val.notes.append(f"images that are adapted to as well: {same}")
    for part, report in reports.items():
        if report.twice:
            shown = "; ".join(f"{a} and {b}" for a, b in report.twice[:_SHOWN])
            report.notes.append(f"images with the content of another: {len(report.twice)} ({shown}"
                                + ("; ...)" if len(report.twice) > _SHOWN else ")"))
        section = getattr(cfg, PARTS[part][0])
        names = label_classes(cfg.section(section), cfg.num_classes).names
        unseen = [n for c, n in enumerate(names) if not report.pixels[c]]
        if report.pixels and unseen:
            ids = [f"{label_id} ({entry[0]} pixels)" for label_id, entry in sorted(report.ids.items())]
            found = ", ".join(ids[:_IDS]) + (", ..." if len(ids) > _IDS else "")
            report.notes.append(f"{never_seen(cfg, section, unseen, 'these labels')}; ids that they hold: {found}")
    return reports


def summary(cfg: Config, reports: dict[str, Report]) -> str:
    """The reports as text: part by part, then a table of each class's share of the labelled pixels."""
    lines = []
    for report in reports.values():
        sizes = "".join(f", {w}x{h} ({n})" for (w, h), n in report.sizes.most_common(_SHOWN))
        lines.append(report.title + sizes + (", ..." if len(report.sizes) > _SHOWN else ""))
        said = [f"error: {text}" for text in report.errors]
        said += [text if text.startswith("warning: ") else f"note: {text}" for text in report.notes]
        lines += [f"  {one_line(text)}" for text in said]
    columns = {part: report.pixels for part, report in reports.items() if report.pixels}
    if columns:
        names = {part: _label_names(cfg, part) for part in columns}
        rows = list(dict.fromkeys(name for of_part in names.values() for name in of_part))
        width = max(len(n) for n in (*rows, "pixels, %"))
        lines += ["", "pixels, %".ljust(width) + "".join(part.rjust(14) for part in columns)]
        for row in (*rows, None):
            shares = [_share(pixels, names[part], row) for part, pixels in columns.items()]
            lines.append((row or "ignored").ljust(width) + "".join(share.rjust(14) for share in shares))
        lines.append("")
    count = len({text for report in reports.values() for text in report.errors})  # a file may be in two parts
    return "\n".join([*lines, f"errors: {count}; a run would stop" if count else
                      "nothing in the data would stop a run"])


def _label_names(cfg, part):
    """The names of a part's classes, in the order of the train ids of its labels."""
    classes = class_set(cfg)
    return (classes.labels if getattr(cfg, PARTS[part][0]) == cfg.target else classes).names


def _share(pixels, names, name):
    """The share of a class among the labelled pixels of a part, in percent, as text; "-" if the part has no such class.
    name None: the share of ignored pixels among all."""
    if name not in (*names, None):
        return "-"
    of_class, whole = pixels[IGNORE_INDEX], pixels.total()
    if name is not None:
        of_class, whole = pixels[names.index(name)], whole - of_class
    return f"{100 * of_class / max(1, whole):.3f}"


def main(arguments: list[str] | None = None) -> int:
    """The command-line program; returns its exit code."""
    exit_codes = f"0 nothing in the data would stop a run, {EXIT_WOULD_STOP} something would"
    options = parser(__doc__, "config/ldbe_config.yml", exit_codes)
    options.prog = "python -m dataset.check"
    options.add_argument("--split", nargs="+", default=[], metavar="PART",
                         help=f"what to read: {', '.join(PARTS)} (default: see above)")
    options.add_argument("overrides", nargs="*", metavar="key=value", help="set a key, e.g. worker=8")
    given = options.parse_intermixed_args(arguments)
    split = [word for word in given.split if "=" not in word]  # --split takes all words behind it, overrides too
    for word in split:
        if word not in PARTS:
            options.error(f"argument --split: {word!r} is none of {', '.join(PARTS)}")

    def run():
        cfg = load_config(given.config, [*given.overrides, *(word for word in given.split if "=" in word)])
        parts, left_out = split or list(PARTS), None
        if not split and not cfg.method_class.needs_source:
            if cfg.source == cfg.target:
                left_out = f"source_train ({cfg.source}): not read, it is the target's own section"
            elif not os.path.isdir(cfg.source_data.data_dir):
                left_out = (f"source_train ({cfg.source}): not read, no folder {cfg.source_data.data_dir!r}; run_so.py "
                            f"would stop, method {cfg.method} opens nothing of it")
        if left_out:
            print(left_out)
            parts.remove("source_train")
        reports = check(cfg, parts)
        print(summary(cfg, reports))
        return EXIT_WOULD_STOP if any(report.errors for report in reports.values()) else 0
    return guarded(run, given.debug, several=True)


if __name__ == "__main__":
    leave(main())

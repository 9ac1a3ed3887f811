"""Read a whole data set before a run, in `worker` processes, and report what is wrong with it.

    python -m dataset.check [--config config/ldbe_config.yml] [--split target_val ...] [key=value ...]

Reports missing, unreadable and truncated files, sizes that differ, label ids outside the table, classes never seen and
images that occur twice; ends with each class's share of the labelled pixels. An `error` would stop a run, a
`warning` or `note` would not. Target labels are not needed. The source is read if it is not the target's own section.
Its folder need not be there for a method that adapts without the source, as ld and be do.
"""
import os

from dataset.class_sets import class_set, label_classes
from dataset.inspection import never_seen
from dataset.labels import IGNORE_INDEX
from dataset.part_report import PARTS, SHOWN, Report, check_part, find_shared
from utils import distributed
from utils.cli import guarded, leave, parser
from utils.config import Config, load_config
from utils.errors import ConfigError, one_line
from utils.progress import say

EXIT_WOULD_STOP = 1
_IDS = 40  # how many label ids a note lists


def check(cfg: Config, parts: list[str]) -> dict[str, Report]:
    """`check_part` of each part, and the images that the target's training and validation splits share.

    Raises ConfigError if the target's protocols do not fit its classes and the network's (`class_set`).
    """
    class_set(cfg)
    reports = {part: check_part(cfg, part) for part in parts}
    if {"target_train", "target_val"} <= reports.keys():
        find_shared(reports["target_train"], reports["target_val"])
    for part, report in reports.items():
        count, pairs = report.twice
        if count:
            shown = "; ".join(f"{a} and {b}" for a, b in pairs)
            report.notes.append(f"images with the content of another: {count} ({shown}"
                                + ("; ...)" if count > len(pairs) else ")"))
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
        by_number = sorted(report.sizes.items(), key=lambda item: (-item[1][0], item[1][1]))
        sizes = "".join(f", {w}x{h} ({n})" for (w, h), (n, _) in by_number[:SHOWN])
        lines.append(report.title + sizes + (", ..." if len(report.sizes) > SHOWN else ""))
        said = [f"error: {text}" for text in report.errors]
        said += [f"error: and {report.unlisted} more like these"] if report.unlisted else []
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
    count += sum(report.unlisted for report in reports.values())
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
        asked = split, cfg.method, cfg.source, cfg.target
        if any(others != asked for others in distributed.gathered(asked)):
            raise distributed.of_all(ConfigError("--split, method, source, target: they differ between the processes "
                                                 "of this run: start all with the same command."))
        parts, left_out = split or list(PARTS), None
        if not split and not cfg.method_class.needs_source:
            if cfg.source == cfg.target:
                left_out = f"source_train ({cfg.source}): not read, it is the target's own section"
            elif distributed.any_of(not os.path.isdir(cfg.source_data.data_dir)):  # another machine may have it
                left_out = (f"source_train ({cfg.source}): not read, no folder {cfg.source_data.data_dir!r}; run_so.py "
                            f"would stop, method {cfg.method} opens nothing of it")
        if left_out:
            say(left_out)
            parts.remove("source_train")
        reports = check(cfg, parts)
        distributed.from_main(lambda: say(summary(cfg, reports)))  # torchrun ends it once another has ended with 1
        return EXIT_WOULD_STOP if any(report.errors for report in reports.values()) else 0
    return guarded(run, given.debug, several=True)


if __name__ == "__main__":
    leave(main())

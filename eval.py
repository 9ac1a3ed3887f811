"""Score checkpoints on the target's validation split: IoU of each class and mIoU, by every protocol that applies.

    python eval.py --config config/ldbe_config.yml snapshot/gta5_cityscapes/ld.pth [CKPT ...] [key=value ...]
"""
import argparse
import json
import os
import sys
from pathlib import Path

from utils import distributed
from utils.cli import guarded, leave, parser, path
from utils.config import load_config
from utils.config_values import expanded
from utils.errors import ConfigError, naming
from utils.option_words import add_augmentation, split_overrides


def main(given: argparse.Namespace) -> None:
    """Score the checkpoints, print the table and write the files that the options ask for."""
    from model.build import pick_device, with_precision  # late, so that --help answers at once
    from model.inference import Augmentation
    from trainer import comparison
    overrides, others = split_overrides(given.words)
    checkpoints = [expanded(word, "checkpoint") for word in others]
    cfg = load_config(given.config, [*overrides, *given.overrides])
    cfg = with_precision(cfg, pick_device(cfg.device))  # by all processes: the first alone draws the figure
    augmentation = Augmentation(tuple(given.scales), given.flip)
    distributed.from_main(lambda: _require_writable("--json", given.json, ("",)))  # now, not after the evaluation
    distributed.from_main(lambda: _require_writable("--figure", given.figure, (".png", ".jpg", ".jpeg")))
    scored = comparison.score_checkpoints(cfg, checkpoints, augmentation)
    distributed.from_main(lambda: _show(given, cfg, checkpoints, scored, augmentation))


def _show(given, cfg, checkpoints, scored, augmentation):
    """Print the table of the scores and write the files."""
    from dataset.class_sets import class_set
    from dataset.inspection import never_seen
    from trainer import comparison, evaluate, verdict
    classes = class_set(cfg)
    found = {name: verdict.beside(checkpoint) for name, checkpoint in zip(scored, checkpoints)}
    print(evaluate.score_table(scored, classes, {name: v["verdict"] for name, v in found.items() if v}))
    if unseen := evaluate.unseen_classes(next(iter(scored.values())), classes):
        print(f"warning: {never_seen(cfg, cfg.target, unseen, 'the validation labels')}", file=sys.stderr)
    if given.json:
        with naming(given.json):
            Path(given.json).write_text(json.dumps(scored, indent=1) + "\n", encoding="utf-8")
    if given.figure:
        picture = comparison.figure(cfg, checkpoints, given.images, augmentation)
        with naming(given.figure):
            picture.save(given.figure)


def _require_writable(option: str, file: str | None, endings: tuple[str, ...]) -> None:
    """Make the folder of an option's file. Raises ConfigError if the file is a folder or has another ending."""
    if not file:
        return
    if os.path.isdir(file):
        raise ConfigError(f"{option}: {file!r} is a folder: give a file in it.")
    if not file.lower().endswith(endings):
        raise ConfigError(f"{option}: {file!r} does not end in {' or '.join(endings)}: give it such an ending.")
    Path(file).parent.mkdir(parents=True, exist_ok=True)


def run() -> int:
    """Parse the command line and evaluate; returns the exit code."""
    arguments = parser(__doc__, "config/ldbe_config.yml")
    arguments.add_argument("words", nargs="+", metavar="CKPT", help="checkpoints, and key=value overrides among them")
    arguments.set_defaults(overrides=[])
    add_augmentation(arguments)
    arguments.add_argument("--json", metavar="FILE", type=path, help="write the scores to FILE")
    arguments.add_argument("--figure", metavar="FILE", type=path,
                           help="write a grid: image, each checkpoint's labels, ground truth")
    arguments.add_argument("--images", type=int, default=4, metavar="N",
                           help="images in the grid (default: %(default)s)")
    given = arguments.parse_intermixed_args()
    if given.images < 1:
        arguments.error(f"argument --images: expected at least 1, found {given.images}")
    return guarded(lambda: main(given), given.debug, several=True)


if __name__ == "__main__":
    leave(run())

"""Predict the classes of images: a folder, files or a pattern, of any size and format.

    python predict.py --config mine.yml --checkpoint snapshot/mine/ld_chosen.pth --input shots/ --output predicted/
    python predict.py --checkpoint snapshot/mine/ld/ --input a.png 'more/**/*.jpg' --output out/ --save ids overlay
"""
import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from utils import distributed
from utils.cli import EXIT_USER_ERROR, guarded, leave, parser, path
from utils.config_values import expanded
from utils.errors import ConfigError, one_line
from utils.option_words import Words, add_augmentation, parts, split_overrides


def main(given: argparse.Namespace) -> int:
    """Predict, say what was done, and return the exit code."""
    from model.folder import config_for  # late, so that --help answers at once
    from model.inference import Augmentation
    from trainer import prediction
    overrides, others = split_overrides(given.words)
    if others:
        raise ConfigError(f"{others[0]!r}: expected key=value; images are given behind --input.")
    cfg = config_for(given.config, given.checkpoint, [*given.overrides, *overrides])
    outcome = prediction.predict_files(cfg, given.checkpoint, prediction.Request(
        tuple(given.input), Path(given.output), tuple(given.save), given.ids,
        Augmentation(tuple(given.scales), given.flip), given.size and tuple(given.size), given.tile, given.overlap,
        given.batch, given.overwrite))
    distributed.from_main(lambda: _say(outcome))  # all wait: torchrun stops the others when one has ended with an error
    return EXIT_USER_ERROR if outcome.failed else 0


def _say(outcome):
    for line in [*outcome.remarks, *outcome.failed]:
        print(one_line(line), file=sys.stderr)
    print(one_line(outcome))


def _at_least(low: int) -> Callable[[str], int]:
    def number(text):
        value = int(text)
        if value < low:
            raise argparse.ArgumentTypeError(f"expected at least {low}, found {text}")
        return value
    number.__name__ = "whole number"
    return number


def run() -> int:
    """Parse the command line and predict; returns the exit code."""
    arguments = parser(__doc__, None)
    arguments.set_defaults(overrides=[])
    add = arguments.add_argument
    add("words", nargs="*", metavar="key=value", help="set a key of the configuration")
    add("--checkpoint", required=True, metavar="C", type=path, help="the network: a checkpoint or a stage's folder")
    add("--input", required=True, action=Words, each=lambda word: [expanded(word, "--input")], metavar="IMAGES",
        help="folders, image files, or patterns such as 'shots/*.png'")
    add("--output", required=True, metavar="DIR", type=path, help="folder of the predictions, DIR/KIND/NAME.png")
    add("--save", action=Words, each=parts, default=["ids"], metavar="KIND",
        help="what to write: ids (indexed PNG), color, overlay (on the photo), confidence (grey) (default: ids)")
    add("--ids", choices=("train", "label"), default="train",
        help="numbers of the network's classes, or the ids of the data set's label files (default: train)")
    add_augmentation(arguments)
    add("--size", nargs=2, type=_at_least(8), metavar=("WIDTH", "HEIGHT"),
        help="at which the network sees an image (default: input_size of the target)")
    add("--tile", type=_at_least(1), metavar="N", help="cut each image at its own size into tiles of N x N pixels")
    add("--overlap", type=_at_least(0), metavar="M", help="pixels that neighbouring tiles share (default: N / 4)")
    add("--batch", type=_at_least(1), default=1, metavar="N", help="images or tiles of one pass (default: 1)")
    add("--overwrite", action="store_true", help="predict again what is there already")
    given = arguments.parse_intermixed_args()
    return guarded(lambda: main(given), given.debug, several=True)


if __name__ == "__main__":
    leave(run())

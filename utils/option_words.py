"""Options of several words, among which `key=value` overrides of the configuration may stand."""
import argparse
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from utils.errors import ConfigError

_LARGEST_SCALE = 4


def split_overrides(words: Iterable[str]) -> tuple[list[str], list[str]]:
    """(`key=value` words, the other words). A word that is the path of a file, which may hold a =, is of the others."""
    found: tuple[list[str], list[str]] = [], []
    for word in words:
        found["=" not in word or _is_file(word)].append(word)
    return found


class Words(argparse.Action):
    """Stores what `each(word)` gives for every word of an option, joined to one list. The `key=value` words go to
    `overrides` of the namespace. each: word -> list; a ValueError is reported as the option's."""

    def __init__(self, *args: Any, each: Callable[[str], list] = lambda word: [word], **options: Any):
        super().__init__(*args, **{"nargs": "+", **options})
        self.each = each

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace,
                 values: str | Sequence[Any] | None, option: str | None = None) -> None:
        """Store the words of one occurrence of the option."""
        overrides, words = split_overrides(values or ())
        namespace.overrides = [*getattr(namespace, "overrides", []), *overrides]
        try:
            found = [value for word in words for value in self.each(word)]
        except (ValueError, ConfigError) as error:
            raise argparse.ArgumentError(self, str(error)) from None
        setattr(namespace, self.dest, list(dict.fromkeys(found)))


def add_augmentation(arguments: argparse.ArgumentParser) -> None:
    """Add the options of test-time augmentation, `--scales` and `--flip`."""
    arguments.add_argument("--scales", action=Words, each=_scales, default=[1.0], metavar="S",
                           help="average the probabilities over the image at these factors on input_size, such as "
                                "0.75 1 1.25 (default: 1)")
    arguments.add_argument("--flip", action="store_true", help="average over mirrored images too: twice the passes")


def parts(word: str) -> list[str]:
    """The parts of a word between commas."""
    return [part for part in word.split(",") if part]


def _scales(word):
    found = []
    for part in parts(word):
        try:
            found.append(float(part))
        except ValueError:
            raise ValueError(f"expected numbers, found {part!r}: write what is no scale before the option") from None
        if not 0.1 <= found[-1] <= _LARGEST_SCALE:
            raise ValueError(f"expected scales from 0.1 to {_LARGEST_SCALE}, found {part}")
    return found


def _is_file(word):
    """Whether a word is the path of a file, which may hold a =, or such a path and #NAME."""
    return any(os.path.exists(os.path.expanduser(name)) for name in (word, word.rpartition("#")[0]))

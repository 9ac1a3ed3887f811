"""Reading YAML text strictly, and turning its values into those of a configuration key.

A key that is given twice, and a text that stands for far more than it holds, are errors.
"""
import math
import unicodedata
from pathlib import Path
from typing import Any

import yaml

from utils.errors import ConfigError

NONE_WORDS = ("", "none", "null", "~")
_MOST_ENTRIES = 10_000  # of a mapping: merge keys can double a small file line by line
_TRUE_WORDS, _FALSE_WORDS = ("true", "yes", "on"), ("false", "no", "off")


def read_text(path: str) -> str:
    """The text of a configuration file. Raises ConfigError if it cannot be read."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file: give a configuration with --config.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}): give a YAML file in UTF-8.") from None
    if not text:  # as `> FILE` leaves it behind a command that fails
        raise ConfigError(f"{path}: is empty: write it again, or give it a line with a key.")
    return text


def parse_yaml(text: str, where: str) -> dict:
    """The mapping in a YAML text, {} if the text is empty. Raises ConfigError that starts with `where`, also for a key
    that is given twice."""
    try:
        content = yaml.load(text, _Loader)
    except Exception as error:  # the parser raises YAMLError, but many other kinds for wrong dates, tags and numbers
        raise ConfigError(f"{where}{_line_of(error)}: not valid YAML: {_fault_of(error)}.") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"{where}: expected `key: value` lines, found {type(content).__name__}.")
    return content


def value_of(text: str) -> Any:
    """The value that a text has as YAML; the text itself if it is not valid YAML."""
    try:
        return yaml.load(text, _Loader)
    except Exception:  # as in parse_yaml
        return text


def to_bool(value: Any) -> bool | None:
    """A truth value, also from a word such as yes or off; None for anything else."""
    if isinstance(value, bool):
        return value
    word = value.strip().lower() if isinstance(value, str) else ""
    return True if word in _TRUE_WORDS else False if word in _FALSE_WORDS else None


def to_int(value: Any) -> int | None:
    """A whole number that fits into 64 bits, also from text or a float such as 1e3; None for anything else."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63:
        return value  # not by way of a float, which has 53 bits
    number = to_float(value)
    return int(number) if number is not None and number == int(number) and abs(number) < 2**63 else None


def to_float(value: Any) -> float | None:
    """A number, also from text, as which YAML 1.1 reads 1e-4; None for anything else, NaN and infinity."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def to_str(value: Any) -> str | None:
    """A text, or None if it holds control characters, which no name of a file or class has on purpose."""
    if isinstance(value, str):
        clean = not any(unicodedata.category(c) in ("Cc", "Zl", "Zp") for c in value)
        return value if clean and value.strip().lower() not in NONE_WORDS else None
    return str(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _line_of(error):
    """`, line N` of a YAML error, empty if it does not name its line."""
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    return f", line {mark.line + 1}" if mark else ""


def _fault_of(error):
    parts = [part for part in (getattr(error, "context", None), getattr(error, "problem", None)) if part]
    return " ".join(": ".join(parts or [str(error)]).split())[:300]


class _Loader(yaml.SafeLoader):
    def construct_mapping(self, node, deep=False):
        seen = set()
        for k in (k for k, _ in node.value if node not in self.merged and isinstance(k, yaml.ScalarNode)):
            if k.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {k.value!r} is given twice", k.start_mark)
            seen.add(k.value)
        return super().construct_mapping(node, deep)

    def flatten_mapping(self, node):
        # Merging writes the merged keys into the node, where they may stand beside an overriding key of the same name.
        if any(k.tag == "tag:yaml.org,2002:merge" for k, _ in node.value):
            self.merged.append(node)
        super().flatten_mapping(node)
        if len(node.value) > _MOST_ENTRIES:
            raise yaml.constructor.ConstructorError(None, None, f"more than {_MOST_ENTRIES} entries", node.start_mark)

    def __init__(self, stream):
        super().__init__(stream)
        self.merged = []


# Without dates: no key is a date, so 2024-05-01 is text, and 2024-13-45 is text rather than an error of the loader.
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()}

"""How a configuration key is declared, its values read and checked."""
import dataclasses
import difflib
import math
import os
import re
import reprlib
import types
import typing
import unicodedata
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Mapping

import yaml

from utils.errors import ConfigError

_NONE_WORDS = ("", "none", "null", "~")
_MOST_ENTRIES = 10_000  # of a mapping: merge keys can double a small file line by line
_TRUE_WORDS, _FALSE_WORDS = ("true", "yes", "on"), ("false", "no", "off")


@dataclass(frozen=True)
class Key:
    """A declared key. kind: bool, int, float, str, [kind] for a list, {kind: kind} for a mapping."""

    kind: object
    default: object
    meaning: str
    choices: tuple | None = None
    optional: bool = False
    low: float | None = None
    high: float | None = None
    above: bool = False  # strictly above `low`
    below: bool = False  # strictly below `high`
    length: int | None = None
    pattern: str | None = None  # of the whole text, said in words in `meaning`
    path: bool = False  # of a file or folder: `~` is a home folder
    may_change: bool = False  # when a run is resumed: it changes no result, or only where it is computed and written
    group: str | None = None  # heading in --help that starts with this key

    def read(self, value, where: str):
        """A value from YAML, checked and made read-only. Raises ConfigError that starts with `where`."""
        if self.optional and (value is None or isinstance(value, str) and value.strip().lower() in _NONE_WORDS):
            return None
        if self.path and isinstance(value, str):
            value = expanded(value, where)
        result = self._convert(self.kind, value, where)
        if self.length is not None and len(result) != self.length:
            raise ConfigError(f"{where}: expected {self.length} values, found {shown(value)}.")
        return result

    def read_text(self, text: str, where: str):
        """A value from the command line: text stays as it is typed, anything else is read as YAML."""
        if self.kind is str:
            return self.read(text, where)
        value = _from_text(text)
        single = isinstance(value, (str, int, float)) and not isinstance(value, bool)
        if isinstance(self.kind, list) and single and not (self.optional and text.strip().lower() in _NONE_WORDS):
            value = [_from_text(part) for part in text.split(",")]
        return self.read(value, where)

    def help_line(self, name: str) -> str:
        default = "required" if self.default is None and not self.optional else f"default {plain(self.default)}"
        choices = f" ({' | '.join(self.choices)})" if self.choices else ""
        return f"  {name}: {kind_name(self.kind)}{choices}, {default}\n      {self.meaning}"

    def _convert(self, kind, value, where):
        if isinstance(kind, list):
            if not isinstance(value, (list, tuple)) or not value:
                self._refuse(value, where)
            return tuple(self._convert(kind[0], item, where) for item in value)
        if isinstance(kind, dict):
            if not isinstance(value, Mapping) or not value:
                self._refuse(value, where)
            (key_kind, value_kind), = kind.items()
            return MappingProxyType({self._convert(key_kind, k, where): self._convert(value_kind, v, where)
                                     for k, v in value.items()})
        if kind is Any:
            return value
        result = {bool: _to_bool, int: _to_int, float: _to_float, str: _to_str}[kind](value)
        if result is None or not self._allowed(result):
            self._refuse(value, where)
        return result

    def _allowed(self, value):
        if self.choices and value not in self.choices or self.pattern and not re.fullmatch(self.pattern, value):
            return False
        if isinstance(value, (bool, str)):
            return True
        return not (self.low is not None and (value < self.low or self.above and value == self.low)
                    or self.high is not None and (value > self.high or self.below and value == self.high))

    def _refuse(self, value, where):
        raise ConfigError(f"{where}: expected {self._expected()}, found {shown(value)}"
                          f"{nearest(value, self.choices) if self.choices else ''}.")

    def _expected(self):
        if self.choices:
            return " or ".join(self.choices)
        if self.pattern:
            return self.meaning
        limits = [f"{'above' if self.above else 'at least'} {self.low}"] if self.low is not None else []
        limits += [f"{'below' if self.below else 'at most'} {self.high}"] if self.high is not None else []
        shape = f"of {self.length} values " if self.length else ""
        if isinstance(self.kind, dict):
            example = ("{7: 0, 8: 1}" if int in self.kind else "{depth: 2}" if Any in self.kind.values() else
                       "{two: {road: [road], other: [sky, car]}}")
            shape += f"such as {example} (a blank behind each colon)"
        none = " or None" if self.optional else ""
        return f"{kind_name(self.kind)} {shape}{' and '.join(limits)}".strip() + none


def key(default, meaning: str, **rules) -> Any:
    """A class attribute that declares a configuration key: `rate: float = key(1e-4, "learning rate", low=0)`.

    The annotation is the key's kind: bool, int, float, str, `tuple[kind, ...]`, `Mapping[kind, kind]` or `Mapping` (of
    anything); `| None` makes it optional. A default of None that is not optional marks a required key. rules: `Key`.
    """
    return field(default=default, metadata={"key": (meaning, rules)})


def declared(cls: type) -> dict[str, Key]:
    """The keys that a class itself declares, not those of its bases, in order."""
    attributes = vars(cls).get("__dataclass_fields__", vars(cls))
    fields = {name: value for name, value in attributes.items()
              if isinstance(value, dataclasses.Field) and "key" in value.metadata}
    if not fields:
        return {}
    hints = typing.get_type_hints(cls)
    if bare := [name for name in fields if name not in hints]:
        raise TypeError(f"{cls.__name__}.{bare[0]}: a key needs an annotation, such as `{bare[0]}: float = key(...)`")
    return {name: _key_of(hints[name], f.default, *f.metadata["key"]) for name, f in fields.items()}


def _key_of(hint, default, meaning, rules):
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union \
        else (hint,)
    kind, = (k for k in kinds if k is not type(None))
    return Key(_kind_of(kind), default, meaning, optional=len(kinds) > 1, **rules)


def _kind_of(hint):
    """tuple[int, ...] -> [int], Mapping[int, str] -> {int: str}, a plain type -> itself."""
    inner = [_kind_of(part) for part in typing.get_args(hint) if part is not Ellipsis]
    origin = typing.get_origin(hint) or hint
    if origin is tuple:
        return inner[:1]
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return {inner[0]: inner[1]} if inner else {str: Any}
    if hint not in (bool, int, float, str, Any):
        raise TypeError(f"{hint}: no kind of configuration key; use bool, int, float, str, tuple or Mapping")
    return hint


UNUSED: Any = object()  # assigned to an inherited key, takes it out of a subclass


class Declares:
    """Base of classes that bring configuration keys of their own (methods, networks).

    Attributes made by `key` are collected in `keys`, those of the bases too. A subclass gives an inherited key another
    default by assigning one, and does without it by assigning UNUSED. An object has each key's value as an attribute.
    """

    keys: ClassVar[dict[str, Key]] = {}

    def __init_subclass__(cls, **more):
        super().__init_subclass__(**more)
        own = declared(cls)
        inherited = {name: k for base in reversed(cls.__bases__) for name, k in getattr(base, "keys", {}).items()}
        given = {name: vars(cls)[name] for name in inherited if name in vars(cls) and name not in own}
        cls.keys = {name: dataclasses.replace(k, default=given.get(name, k.default))
                    for name, k in {**inherited, **own}.items() if given.get(name) is not UNUSED}
        for name, k in own.items():
            setattr(cls, name, k.default)

    @classmethod
    def check(cls, cfg) -> None:
        """Conditions between this class's keys and others of a whole configuration. Raises ConfigError."""

    def __init__(self, options: Mapping[str, Any]):
        for name in self.keys:
            setattr(self, name, options[name])


def expanded(path: str, where: str) -> str:
    """A path whose leading `~` or `~user` is that home folder. Raises ConfigError that starts with `where` if there is
    none; ./~x is a file of that name."""
    result = os.path.expanduser(path)
    if result.startswith("~"):
        raise ConfigError(f"{where}: {path!r}: the home folder {path.split('/')[0]} is not known: write the whole path "
                          "(a name that begins with ~: ./~...).")
    return result


def kind_name(kind) -> str:
    if isinstance(kind, list):
        return f"list of {kind_name(kind[0])}"
    if isinstance(kind, dict):
        return "mapping of " + " to ".join(kind_name(k) for pair in kind.items() for k in pair)
    return {bool: "True/False", int: "whole number", float: "number", str: "text", Any: "any value"}[kind]


def nearest(name, known) -> str:
    """` (did you mean 'x'?)` where a known name is near, else nothing."""
    found = difflib.get_close_matches(str(name), list(known), 1)
    return f" (did you mean {found[0]!r}?)" if found else ""


def shown(value) -> str:
    """`repr` for a message, cut short: a few aliases in a YAML file can stand for more text than fits into memory."""
    short = reprlib.Repr()
    short.maxlevel, short.maxstring, short.maxother = 3, 100, 100
    return short.repr(value)


def plain(value):
    """Tuples and read-only mappings -> lists and dicts, for YAML and for display."""
    if isinstance(value, tuple):
        return [plain(item) for item in value]
    return {k: plain(v) for k, v in value.items()} if isinstance(value, Mapping) else value


def read_text(path: str | Path) -> str:
    """The text of a configuration file."""
    path = expanded(str(path), "--config")
    try:
        return Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file: give a configuration with --config.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}): give a YAML file in UTF-8.") from None


def parse_yaml(text: str, where: str) -> dict:
    """The mapping in a YAML text, by a safe loader that also refuses a key given twice; an empty text is empty."""
    try:
        content = yaml.load(text, _Loader)
    except Exception as error:  # the parser raises YAMLError, but many other kinds for wrong dates, tags and numbers
        raise ConfigError(f"{where}{_line_of(error)}: not valid YAML: {_fault_of(error)}.") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"{where}: expected `key: value` lines, found {type(content).__name__}.")
    return content


def _line_of(error):
    """`, line N` of a YAML error that knows it."""
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    return f", line {mark.line + 1}" if mark else ""


def _fault_of(error):
    parts = [part for part in (getattr(error, "context", None), getattr(error, "problem", None)) if part]
    return " ".join(": ".join(parts or [str(error)]).split())[:300]


class _Loader(yaml.SafeLoader):
    # Without dates: no key is one, so 2024-05-01 is text, and 2024-13-45 no error of the loader's own kind.
    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()}

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


def _from_text(text):
    try:
        return yaml.load(text, _Loader)
    except Exception:  # as in parse_yaml
        return text


def _to_bool(value):
    if isinstance(value, bool):
        return value
    word = value.strip().lower() if isinstance(value, str) else ""
    return True if word in _TRUE_WORDS else False if word in _FALSE_WORDS else None


def _to_int(value):
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63:
        return value  # not by way of a float, which has 53 bits
    number = _to_float(value)
    return int(number) if number is not None and number == int(number) and abs(number) < 2**63 else None


def _to_float(value):
    """YAML 1.1 reads 1e-4 as text; NaN and infinity are refused."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _to_str(value):
    """Text without control characters, which no file or class is named by on purpose."""
    if isinstance(value, str):
        clean = not any(unicodedata.category(c) in ("Cc", "Zl", "Zp") for c in value)
        return value if clean and value.strip().lower() not in _NONE_WORDS else None
    return str(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None

"""Declaring configuration keys, and reading and checking their values."""
import dataclasses
import difflib
import os
import re
import reprlib
import textwrap
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, ClassVar

from utils.errors import ConfigError
from utils.yaml_text import NONE_WORDS, to_bool, to_float, to_int, to_str, value_of

HELP_WIDTH = 100  # characters of a line of --help


@dataclass(frozen=True)
class Key:
    """A declared configuration key. kind: bool, int, float, str, [kind] for a list, {kind: kind} for a mapping."""

    kind: Any
    default: Any
    meaning: str
    choices: tuple | None = None
    optional: bool = False
    low: float | None = None
    high: float | None = None
    above: bool = False  # strictly above `low`
    below: bool = False  # strictly below `high`
    length: int | None = None
    pattern: str | None = None  # regular expression of the whole text; `meaning` says it in words
    path: bool = False  # the value is a path of a file or folder: `~` is the home folder
    may_change: bool = False  # when a run is resumed: it changes no result, or only where it is computed or written
    group: str | None = None  # the heading in --help that this key is the first of

    def read(self, value: Any, where: str) -> Any:
        """The value of this key from a YAML value, checked and read-only. Raises ConfigError that starts with
        `where`."""
        if self.optional and (value is None or isinstance(value, str) and value.strip().lower() in NONE_WORDS):
            return None
        if self.path and isinstance(value, str):
            value = expanded(value, where)
        if value is False and "off" in (self.choices or ()):
            value = "off"  # as YAML reads that word
        result = self._convert(self.kind, value, where)
        if self.length is not None and len(result) != self.length:
            raise ConfigError(f"{where}: expected {self.length} values, found {shown(value)}.")
        return result

    def read_default(self, name: str) -> Any:
        """The default, read like a value from YAML, so that a saved configuration gives the same. name: of the key.
        Raises ConfigError for a key without default, and for a default that the key does not allow."""
        if self.default is None and not self.optional:
            raise ConfigError(f"{name}: missing; set it: {self.meaning}.")
        return self.read(self.default, f"{name}: default")

    def read_text(self, text: str, where: str) -> Any:
        """The value of this key from the command line: for a str the text as it is typed, else read as YAML. Raises
        ConfigError that starts with `where`."""
        if self.kind is str:
            return self.read(text, where)
        value = value_of(text)
        single = isinstance(value, (str, int, float)) and not isinstance(value, bool)
        if isinstance(self.kind, list) and single and not (self.optional and text.strip().lower() in NONE_WORDS):
            value = [value_of(part) for part in text.split(",")]
        return self.read(value, where)

    def help_line(self, name: str) -> str:
        """The key's lines in --help: kind, choices and default, then the meaning."""
        default = "required" if self.default is None and not self.optional else f"default {plain(self.default)}"
        choices = f" ({' | '.join(self.choices)})" if self.choices else ""
        return "\n".join(textwrap.fill(text, HELP_WIDTH, initial_indent=indent, subsequent_indent=" " * 6,
                                       break_long_words=False, break_on_hyphens=False)
                         for indent, text in (("  ", f"{name}: {kind_name(self.kind)}{choices}, {default}"),
                                              (" " * 6, self.meaning)))

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
        result = {bool: to_bool, int: to_int, float: to_float, str: to_str}[kind](value)
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


def key(default: Any, meaning: str, **rules: Any) -> Any:
    """A class attribute that declares a configuration key: `rate: float = key(1e-4, "learning rate", low=0)`.

    The annotation is the key's kind: bool, int, float, str, `tuple[kind, ...]`, `Mapping[kind, kind]` or `Mapping` (of
    anything); `| None` makes it optional. A default of None marks a key that is required, unless it is optional.
    rules: further fields of `Key`.
    """
    return field(default=default, metadata={"key": (meaning, rules)})


def declared(cls: type) -> dict[str, Key]:
    """Name -> key of all that a class itself declares, without those of its bases, in order. Raises TypeError for a key
    without an annotation, or with one that is no kind of key."""
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
    """The `Key.kind` of an annotation: tuple[int, ...] -> [int], Mapping[int, str] -> {int: str}, float -> float."""
    inner = [_kind_of(part) for part in typing.get_args(hint) if part is not Ellipsis]
    origin = typing.get_origin(hint) or hint
    if origin is tuple:
        return inner[:1]
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return {inner[0]: inner[1]} if inner else {str: Any}
    if hint not in (bool, int, float, str, Any):
        raise TypeError(f"{hint}: no kind of configuration key; use bool, int, float, str, tuple or Mapping")
    return hint


UNUSED: Any = object()  # assigned to an inherited key, it removes the key from the subclass


class Declares:
    """Base of classes that declare configuration keys of their own: methods and networks.

    Attributes made by `key` are collected in `keys`, together with those of the bases. A subclass gives an inherited
    key another default by assigning one, and removes it by assigning UNUSED. An object has each key's value as an
    attribute; options: name -> value.
    """

    keys: ClassVar[dict[str, Key]] = {}

    def __init_subclass__(cls, **more):
        super().__init_subclass__(**more)
        own = declared(cls)
        inherited = {name: k for base in reversed(cls.__bases__) for name, k in getattr(base, "keys", {}).items()}
        if taken := next((name for name in own if name not in inherited
                          and any(getattr(base, name, UNUSED) is not UNUSED for base in cls.__bases__)), None):
            raise TypeError(f"{cls.__name__}.{taken}: a base has something else of that name: rename the key")
        given = {name: vars(cls)[name] for name in inherited if name in vars(cls) and name not in own}
        cls.keys = {name: dataclasses.replace(k, default=given.get(name, k.default))
                    for name, k in {**inherited, **own}.items() if given.get(name) is not UNUSED}
        for name, k in own.items():
            setattr(cls, name, k.default)

    @classmethod
    def check(cls, cfg: Any) -> None:
        """Raise ConfigError if this class's keys do not go with the others of a whole configuration (`Config`)."""

    def __init__(self, options: Mapping[str, Any]):
        for name in self.keys:
            setattr(self, name, options[name])


def expanded(path: str, where: str) -> str:
    """The path with a leading `~` or `~user` replaced by that home folder; ./~x is a file of that name. Raises
    ConfigError that starts with `where` if there is no such folder."""
    result = os.path.expanduser(path)
    if result.startswith("~"):
        raise ConfigError(f"{where}: {path!r}: the home folder {path.split('/')[0]} is not known: write the whole path "
                          "(a name that begins with ~: ./~...).")
    return result


def kind_name(kind: Any) -> str:
    """A `Key.kind` in words, such as "list of number"."""
    if isinstance(kind, list):
        return f"list of {kind_name(kind[0])}"
    if isinstance(kind, dict):
        return "mapping of " + " to ".join(kind_name(k) for pair in kind.items() for k in pair)
    return {bool: "True/False", int: "whole number", float: "number", str: "text", Any: "any value"}[kind]


def nearest(name: object, known: Iterable[str]) -> str:
    """` (did you mean 'x'?)` if a known name is similar, else an empty text."""
    found = difflib.get_close_matches(str(name), list(known), 1)
    return f" (did you mean {found[0]!r}?)" if found else ""


def shown(value: object) -> str:
    """`repr`, cut short for a message: a few aliases in a YAML file can stand for more text than fits into memory."""
    short = reprlib.Repr()
    short.maxlevel, short.maxstring, short.maxother = 3, 100, 100
    return short.repr(value)


def plain(value: Any) -> Any:
    """The value with tuples and read-only mappings replaced by lists and dicts, for YAML and for display."""
    if isinstance(value, tuple):
        return [plain(item) for item in value]
    return {k: plain(v) for k, v in value.items()} if isinstance(value, Mapping) else value

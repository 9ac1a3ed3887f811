"""The reference of all configuration keys as a page of markdown, made from their declarations.

    python -m utils.key_reference > docs/keys.md
"""
import re
from collections.abc import Iterable, Iterator
from typing import Any

from utils.config import keys_by_owner
from utils.config_keys import KEYS, NO_EFFECT, SECTION_KEYS, known_classes
from utils.config_values import Key, kind_name, plain

INTRODUCTION = """# Configuration keys

`make docs` writes this page from the declarations in the code; `--help` of each script prints the same. A key is set in
the YAML file, or as `key=value` on the command line (`section.key=value` for a data-set section). An unknown
key is refused. A key of another method or network than the chosen one gives a warning and has no effect."""
SECTIONS = """A section describes one data set: a top-level key of the YAML file with a mapping as its value. There are
`gta5`, `synthia`, `cityscapes`, and any name of your own with `type: folder`."""
OWNERS = {"method": "Keys of the methods", "model": "Keys of the networks"}


def page() -> str:
    """The whole page, with a line break at the end."""
    return "\n".join(_lines()) + "\n"


def _lines() -> Iterator[str]:
    yield INTRODUCTION
    for name, key in KEYS.items():
        if key.group:
            yield from (f"\n## {key.group}\n", *_header())
        yield _row(name, key)
    yield from ("\n## Data-set sections\n", f"{SECTIONS}\n", *_header())
    yield from (_row(name, key) for name, key in SECTION_KEYS.items())
    for choosing, title in OWNERS.items():
        yield from (f"\n## {title}\n", *_header("of"))
        for name, key, owners in keys_by_owner(choosing):
            yield _row(name, key, _owners(owners, known_classes(choosing)))
    yield "\n## Accepted without effect\n"
    yield "Keys of the released configuration that no method reads: " + _listed(NO_EFFECT) + "."


def _header(*more: str) -> tuple[str, str]:
    columns = ("key", "value", "default", *more, "meaning")
    return f"| {' | '.join(columns)} |", "|" + " --- |" * len(columns)


def _row(name: str, key: Key, *more: str) -> str:
    default = "required" if key.default is None and not key.optional else f"`{_default(key.default)}`"
    return f"| {' | '.join((f'`{name}`', _values(key), default, *more, _escaped(key.meaning)))} |"


def _owners(owners: list[str], known: Iterable[str]) -> str:
    """The names, or, where that is shorter, `all but` the others."""
    others = [name for name in known if name not in owners]
    if not others:
        return "all"
    return f"all but {_listed(others)}" if len(others) < len(owners) - 1 else _listed(owners)


def _values(key: Key) -> str:
    """What a key may be set to."""
    if key.choices:
        return _listed(key.choices)
    limits = [f"{'above' if key.above else 'at least'} {key.low}"] if key.low is not None else []
    limits += [f"{'below' if key.below else 'at most'} {key.high}"] if key.high is not None else []
    return ", ".join([_kind(key.kind, key.length), *limits])


def _kind(kind: Any, length: int | None) -> str:
    if isinstance(kind, list):
        inner, = kind
        many = f"lists of {kind_name(inner[0])}s" if isinstance(inner, list) else f"{kind_name(inner)}s"
        return f"{length or 'list of'} {many}"
    return kind_name(kind)


def _default(value):
    """A default as in a YAML file; a float rounded to ten digits (sqrt 2)."""
    return round(value, 10) if isinstance(value, float) else plain(value)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _escaped(text):
    return re.sub(r"([|*<])", r"\\\1", text)


if __name__ == "__main__":
    print(page(), end="")

"""The reference of all configuration keys as a page of markdown, from their declarations: `make docs`.

    python -m trainer.key_reference > docs/keys.md
"""
import inspect
import math
import re
from typing import Iterator, Mapping

from model import networks
from trainer import methods
from utils.config_keys import KEYS, NO_EFFECT, SECTION_KEYS
from utils.config_values import Key, kind_name, plain

INTRODUCTION = """# Configuration keys

Written by `make docs` from the declarations in the code; `--help` of each script prints the same. A key is set in the YAML
file, or as `key=value` on the command line (`section.key=value` for a data-set section). A file with a key that nothing
knows is refused; a key of another method or network than the chosen one gives a warning and has no effect."""


def page() -> str:
    """The whole page."""
    return "\n".join(_lines())


def _lines() -> Iterator[str]:
    yield INTRODUCTION
    rows: dict[str, dict[str, Key]] = {}
    for name, key in KEYS.items():
        if key.group:
            group = rows.setdefault(key.group, {})
        group[name] = key
    for title, keys in rows.items():
        yield from (f"\n## {title}\n", *_table(keys))
    yield "\n## Data-set sections\n"
    yield ("A section is a top-level key of the YAML file whose value is a mapping: `gta5`, `synthia`, `cityscapes`, or a "
           "name of your own with `type: folder`.\n")
    yield from _table(SECTION_KEYS)
    yield "\n## Keys of the methods"
    yield from _classes("Method", methods.known())
    yield "\n## Keys of the networks"
    yield from _classes("Network", networks.known())
    yield "\n## Accepted without effect\n"
    yield f"Keys of the released configuration that nothing reads: {', '.join(f'`{name}`' for name in NO_EFFECT)}."


def _classes(kind: str, classes: Mapping[str, type]) -> Iterator[str]:
    for name, cls in classes.items():
        summary = inspect.getdoc(cls).split("\n\n")[0].replace("\n", " ")
        yield f"\n### {kind} {name}\n"
        yield _escaped(summary)
        if cls.keys:
            yield from ("", *_table(cls.keys))


def _table(keys: Mapping[str, Key]) -> Iterator[str]:
    yield from ("| key | value | default | meaning |", "| --- | --- | --- | --- |")
    for name, key in keys.items():
        default = "required" if key.default is None and not key.optional else f"`{_shown(key.default)}`"
        yield f"| `{name}` | {_values(key)} | {default} | {_escaped(key.meaning)} |"


def _values(key: Key) -> str:
    """What a key may be set to."""
    if key.choices:
        return ", ".join(f"`{choice}`" for choice in key.choices)
    limits = [f"{'above' if key.above else 'at least'} {key.low}"] if key.low is not None else []
    limits += [f"{'below' if key.below else 'at most'} {key.high}"] if key.high is not None else []
    length = f" of {key.length}" if key.length else ""
    return ", ".join([kind_name(key.kind) + length, *limits])


def _shown(default: object) -> object:
    """A default as it would be written; sqrt(2) to ten digits."""
    return round(default, 10) if isinstance(default, float) and math.isfinite(default) else plain(default)


def _escaped(text: str) -> str:
    return re.sub(r"([|*<])", r"\\\1", text)


if __name__ == "__main__":
    print(page())

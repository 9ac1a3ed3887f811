"""Filling in config/own_config.yml: the one source of the settings and comments of a configuration for own data."""
import re
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from utils.config_values import plain
from utils.errors import one_line

TEMPLATE = Path(__file__).parents[1] / "config/own_config.yml"
SECTION = "mine"
_COLUMN, _WIDTH = 28, 118  # of comments; of lines


def filled(header: Sequence[str], values: Mapping[str, Any], comments: Mapping[str, str], section: Mapping[str, Any],
           notes: Mapping[str, str]) -> str:
    """The template's text with other values.

    header: lines of a comment in place of the template's first ones. values: of general keys, or of those of the
    network, which are put behind `model`. comments: of these keys, where the template's does not fit. section: the
    data-set section. notes: comments on its keys; one of a key that is not in the section is put at its end.
    """
    _, _, text = TEMPLATE.read_text(encoding="utf-8").partition("\n\n")
    above = "\n".join(line for text in header for line in _comment(text, ""))
    text = text[: text.index(f"\n{SECTION}:\n") + 1]
    for key, value in values.items():
        old = re.search(rf"^{key}:[^#\n]*(?:# *(.*))?\n", text, re.MULTILINE)
        new = "\n".join(_entry(key, value, comments.get(key, (old[1] if old else "") or ""), "")) + "\n"
        start, end = old.span() if old else [re.search(r"^model:.*\n", text, re.MULTILINE).end()] * 2
        text = text[:start] + new + text[end:]
    lines = [line for key, value in section.items() for line in _entry(key, value, notes.get(key, ""), "  ")]
    lines += [line for key, note in notes.items() if key not in section for line in _comment(note, "  ")]
    return f"{above}\n\n{text}{SECTION}:\n" + "\n".join(lines) + "\n"


def yaml_of(value: Any) -> str:
    """A value as YAML in one line."""
    if value is None or isinstance(value, bool):
        return str(value)
    text = yaml.safe_dump(plain(value), default_flow_style=True, width=10**9, allow_unicode=True, sort_keys=False)
    return text.removesuffix("\n").removesuffix("\n...")


def _entry(key, value, comment, indent):
    """Lines of `key: value # comment`; the comment stands above where the line would be too long."""
    entry, comment = f"{indent}{key}: {yaml_of(value)}", one_line(comment)
    line = f"{entry.ljust(_COLUMN - 1)} # {comment}" if comment else entry
    if len(line) <= _WIDTH:
        return [line]
    above = _comment(comment, indent) if comment else []
    if isinstance(value, (list, tuple)) and len(entry) > _WIDTH:
        wrapped = yaml.safe_dump({key: plain(value)}, default_flow_style=None, width=_WIDTH - 8, allow_unicode=True)
        return [*above, *(indent + part for part in wrapped.splitlines())]
    return [*above, entry]


def _comment(text, indent):
    return textwrap.wrap(one_line(text), _WIDTH, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# ",
                         break_long_words=False, break_on_hyphens=False)

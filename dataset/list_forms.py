"""The one form in which all lines of a long list are written, and checking all lines for it at once."""
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from dataset.list_lines import Lines, NotPlain
from dataset.lists import LONGEST, Entry, cuts
from dataset.patterns import LABEL_EXTENSIONS, Pattern

_BREAKS = " \t,;"  # may stand between an image and its label


class Spans(NamedTuple):
    """Texts within lines: number i is data[starts[i]:ends[i]]."""

    starts: np.ndarray
    ends: np.ndarray


@dataclass(frozen=True)
class Names:
    """How lines name files: `written`, a name, and one of `endings`, for the file of that name and ending in `folder`.
    added: the ending that lines leave out; they then end in none of `endings`."""

    written: str
    folder: str
    endings: tuple[str, ...]
    added: str = ""


@dataclass(frozen=True)
class Form:
    """How lines are written: an image and, unless `label` is None, `between` and its label."""

    image: Names
    between: str = ""
    label: Names | None = None

    @property
    def constant(self) -> tuple[str, ...]:
        """The parts of a line that are the same in all."""
        return self.image.written, self.between, self.label.written if self.label else ""


def contiguous(pattern: Pattern) -> bool:
    """Whether the name of each path that matches is a part of it, behind the folder."""
    return "*" not in pattern.folder and not pattern.prefix


def find_form(lines: Lines, entries: dict[int, Entry], images: Pattern, labels: Pattern | None) -> Form:
    """The form of some lines, index -> what it means. Raises NotPlain if they are not of one form."""
    first, image_endings, label_endings = None, set(), set()
    for index, entry in entries.items():
        found = _form_of(lines.text(index), entry, images, labels)
        if found:
            image_endings.update(found.image.endings)
            label_endings.update(found.label.endings if found.label else ())
            found = Form(replace(found.image, endings=()), found.between,
                         found.label and replace(found.label, endings=()))
        first = first or found
        lines.require_one(index, found is not None and found == first)
    assert first
    if first.image.added:
        image_endings = {form for ending in images.endings for form in (ending, ending.lower(), ending.upper())}
    return Form(replace(first.image, endings=_longest_first(image_endings)), first.between,
                first.label and replace(first.label, endings=_longest_first(label_endings)))


def find_spans(lines: Lines, form: Form, images: Pattern, labels: Pattern | None) -> tuple[Spans, Spans | None]:
    """The images' names with their endings, and the labels'. Raises NotPlain if some line is not of the form."""
    starts, ends = lines.starts, lines.ends
    lines.require(ends - starts <= LONGEST, f"has more than {LONGEST} bytes")
    for text in (*_BREAKS, "//", "/."):
        if lines.data.count(text.encode()) != len(lines) * sum(part.count(text) for part in form.constant):
            raise NotPlain(f"{text!r} does not stand in all lines alike")
    lines.require(lines.holds(form.image.written, starts, ends))
    label_spans = None
    if form.label:
        before, break_ = form.between + form.label.written, form.between[0]
        breaks = lines.places(break_.encode()).reshape(len(lines), -1)
        lines.require(((breaks >= starts[:, None]) & (breaks < ends[:, None])).all(1))
        cut = breaks[:, form.image.written.count(break_)]
        lines.require(lines.holds(before, cut, ends))
        label_spans = Spans(_moved(cut, before), ends)
        _require_one_reading(lines, label_spans, form.label, labels)
        ends = cut
    image_spans = Spans(_moved(starts, form.image.written), ends)
    _require_one_reading(lines, image_spans, form.image, images)
    return image_spans, label_spans


def without_endings(lines: Lines, spans: Spans, names: Names) -> Spans:
    """The names alone. Raises NotPlain for a line that ends in another way, or an empty last part of a name."""
    starts, ends = spans
    name_ends, found = ends.copy(), np.zeros(len(lines), bool)
    for ending in names.endings:
        size = ends.dtype.type(len(ending.encode()))
        fits = ~found & (ends - starts > size) & lines.holds(ending, np.maximum(ends, size) - size, ends)
        found |= fits
        name_ends[fits] -= size
    lines.require(~found if names.added else found)
    lines.require(lines.bytes_at(name_ends - name_ends.dtype.type(1)) != ord("/"))
    return Spans(starts, name_ends)


def _form_of(text: str, entry: Entry, images: Pattern, labels: Pattern | None) -> Form | None:
    """The form of one line, None if it cannot be told."""
    for written, rest in cuts(text):
        image = _names_of(written, entry.image, images)
        label = _names_of(rest, entry.label, labels) if entry.label else None
        if image and bool(rest) == bool(entry.label) == bool(label and not label.added):
            return Form(image, text[len(written): len(text) - len(rest)], label)
    return None


def _names_of(written: str, path: str, pattern: Pattern | None) -> Names | None:
    """How `written` names the file at `path`."""
    name_of_path = pattern.name(path) if pattern else None
    folder = f"{pattern.folder}/" if pattern and pattern.folder and path.startswith(f"{pattern.folder}/") else ""
    endings = pattern.endings if pattern and name_of_path is not None else LABEL_EXTENSIONS
    length = next((len(ending) for ending in endings if path.lower().endswith(ending.lower())), 0)
    name, ending = path[len(folder): len(path) - length], path[len(path) - length:]
    if not length or name_of_path not in (None, name):
        return None
    for tail, added in ((name + ending, ""), (name, ending)):
        before = written.removesuffix(tail)
        if before != written and (not before or before.endswith("/")):
            return Names(before, folder, (ending,), added)
    return None


def _longest_first(endings: set[str]) -> tuple[str, ...]:
    return tuple(sorted(endings, key=lambda ending: (-len(ending), ending)))


def _moved(starts, text):
    """The places behind the text, if it begins at `starts`."""
    return starts + starts.dtype.type(len(text.encode()))


def _require_one_reading(lines: Lines, spans: Spans, names: Names, pattern: Pattern | None) -> None:
    """Raise NotPlain for an empty name, one that begins with a sign of another meaning, or one that begins with a
    folder that `written` leaves out: it may be meant to be read from a folder further up."""
    starts, ends = spans
    lines.require(ends > starts)
    lines.require(~np.isin(lines.bytes_at(starts), np.frombuffer(b"/~#.", np.uint8)))
    if pattern and pattern.folder and not names.written.rstrip("/").endswith(pattern.folder):
        parts: Sequence[str] = pattern.folder.split("/")
        for number in range(len(parts)):
            lines.require(~lines.holds("/".join(parts[number:]) + "/", starts, ends))

"""Reading lists of very many images: all lines must be written in one form, which is found from some of them.

The form is checked of all lines, as bytes. What it does not tell, whether each file is there and is no link out of
data_dir, is found when the file is read.
"""
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from dataset.columns import Column, sha256
from dataset.files import Bands
from dataset.list_forms import contiguous, find_form, find_spans, without_endings
from dataset.list_lines import Lines, NotPlain, read_lines
from dataset.lists import Entry, Places, Reader, label_path
from dataset.patterns import Pattern, Tree
from dataset.samples import Samples, Table
from utils.errors import DataError

_LOOKED_AT = 200  # lines, spread over a list, that tell its form and whose files are looked at


class _AsSpelled(Tree):
    """A tree whose files are found by their exact spelling; no folder is listed."""

    def file(self, path: str, ending: str) -> str | None:
        """The path, if there is a file or dangling link."""
        full = self.root / path
        return path if path and os.path.lexists(full) and not os.path.isdir(full) else None


@dataclass(frozen=True)
class LongList:
    """A list of many images of a section, below data_dir `root`. free_labels: as of `lists.read_list`. complete: the
    files of the lines that are looked at must be there."""

    section_name: str
    file: str
    root: Path
    images: Pattern
    labels: Pattern | None
    free_labels: bool
    bands: Bands
    complete: bool

    def read(self) -> tuple[Samples | None, list[str]]:
        """The samples, and remarks for the log; None for a list that is to be read line by line: if it is short, or, as
        a remark says, if its lines are not of one form.

        Raises DataError as `lists.read_list` does for the lines that are looked at; also if an image of these is not
        there, two images share a name, or an image is its own label.
        """
        try:
            lines = read_lines(self.file)
            return (self._samples(lines) if lines else None), []
        except NotPlain as reason:
            return None, [f"{self.file}: is read line by line, which takes more time and memory: {reason}"]

    def _samples(self, lines: Lines) -> Samples:
        if not contiguous(self.images):
            raise NotPlain(f"by {str(self.images)!r}, a name is no part of a path")
        looked_at = np.unique(np.linspace(0, len(lines) - 1, _LOOKED_AT).round().astype(int)).tolist()
        entries = {index: self._entry(lines, index) for index in looked_at}
        form = find_form(lines, entries, self.images, self.labels)
        image_spans, label_spans = find_spans(lines, form, self.images, self.labels)
        spans = without_endings(lines, image_spans, form.image)
        names, folder, endings = Column(lines.data, *spans), self._below(form.image.folder), form.image.endings
        if form.image.added or len(endings) == 1:  # as most lists are; the names' places serve twice
            images = replace(names, before=folder, behind=form.image.added or endings[0])
        else:
            images = Column(lines.data, *image_spans, folder)
        if form.label and label_spans:
            without_endings(lines, label_spans, form.label)
            labels = Column(lines.data, *label_spans, self._below(form.label.folder))
        else:
            labels = self._labels(names, [self.images.name(entry.image) or "" for entry in entries.values()])
        self._require_different(lines, names, images, labels)
        patterns = [pattern for pattern in (self.images, self.labels) if pattern]
        roots = tuple(dict.fromkeys(root for p in patterns for root in Places(Tree(self.root), p.fixed).real))
        table = Table(names, images, labels, self.bands, roots, roots, sha256(lines.data, repr(form.image)))
        return Samples(table, range(len(table)))

    def _entry(self, lines: Lines, index: int) -> Entry:
        """The entry of a line that is looked at. Raises NotPlain if only a search of the folders can find its files."""
        number, text = lines.number(index), lines.text(index)
        lines.require_one(index, bool(text.strip()))
        try:
            entry = self._reader(_AsSpelled(self.root)).entry(number, text)
        except DataError:
            entry = None
        if entry is None or self.complete and not os.path.isfile(self.root / entry.image):
            other = self._reader(Tree(self.root)).entry(number, text)
            lines.require_one(index, self.complete and other is not None
                              and not os.path.isfile(self.root / other.image))
            raise DataError(f"{self.root / other.image}: listed in {self.file!r} but not there: check "
                            f"{self.section_name}.data_dir or the list.")
        return entry

    def _reader(self, tree):
        return Reader(self.section_name, self.file, tree, self.images, self.labels, self.free_labels)

    def _labels(self, names: Column, known: Sequence[str]) -> Column | None:
        """The labels by the pattern, with the ending that those of the `known` names have."""
        if self.labels is None:
            return None
        if not contiguous(self.labels):
            raise NotPlain(f"by {str(self.labels)!r}, a name is no part of a path")
        tree, folder = _AsSpelled(self.root), f"{self.labels.folder}/" if self.labels.folder else ""
        paths = {name: label_path(tree, self.labels, name) or "" for name in known}
        endings = {path[len(folder + name):] for name, path in paths.items() if os.path.lexists(self.root / path)}
        if len(endings) > 1:
            raise NotPlain(f"its labels end in {' and '.join(sorted(endings))}")
        return replace(names, before=self._below(folder), behind=next(iter(endings), self.labels.endings[0]))

    def _below(self, folder):
        """The path of data_dir's `folder`, with a slash at its end."""
        return str(self.root / folder / "-")[:-1]

    def _require_different(self, lines, names, images, labels):
        """Raise DataError if two images share a name or an image is its own label."""
        keys = names.keys()
        for key in _twice(keys):
            alike: dict[str | None, int] = {}
            for index in np.flatnonzero(keys == key).tolist():
                if (other := alike.setdefault(names.text(index), index)) != index:
                    how = " (it is listed twice)" if images.text(index) == images.text(other) else ""
                    raise DataError(f"{self.file}, lines {lines.number(other)} and {lines.number(index)}: "
                                    f"{images.text(index)} and {images.text(other)} share the name "
                                    f"{names.text(index)!r}{how}: pseudo labels could not be told apart; keep one of "
                                    "them.")
        if labels is not None:
            for index in _equal(images, labels):
                if images.text(index) == labels.text(index):
                    raise DataError(f"{images.text(index)}: is by {self.section_name}.labels its own label: give labels"
                                    " another folder or another ending, such as '{split}/{name}_label.png', or leave "
                                    "it out.")


def _equal(images, labels):
    """The indices of images that may be their own labels."""
    if labels.starts is images.starts and labels.ends is images.ends:  # all are, or none
        return [0]
    if not images.before.startswith(labels.before) and not labels.before.startswith(images.before):
        return []
    return np.flatnonzero(images.keys() == labels.keys()).tolist()


def _twice(keys):
    """The keys that occur more than once."""
    ordered = np.sort(keys)
    return np.unique(ordered[1:][ordered[1:] == ordered[:-1]])

"""Lists of images: text files with an image a line, or an image and its label. As in `dataset.patterns`, paths are text
below data_dir."""
import os
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Iterator

from dataset.patterns import LABEL_EXTENSIONS, Pattern, Tree, composed, join
from utils.errors import DataError

THERE, MISSING, OUTSIDE = range(3)  # what is known of a name that is written in a list


@dataclass(frozen=True)
class Entry:
    """A line of a list. The files need not be there; label: None if the line names none."""

    number: int
    image: str
    label: str | None


def read_list(section_name: str, list_file: str, tree: Tree, images: Pattern, labels: Pattern | None,
              free_labels: bool) -> tuple[list[Entry], list[str]]:
    """(the images that a list names, remarks on what was passed over).

    Names may hold blanks, may be written as `Places` has it, and may leave out the image's ending. What follows an
    image is its label if it ends as one: a file that matches `labels` or, with `free_labels`, any below data_dir or
    below the labels' folder. A line that begins with # and names no file is a comment. Raises OSError or ValueError if
    the list cannot be read, DataError that names the line where one leaves data_dir, does not match, or where some
    lines name a label and others do not.
    """
    reader = _Reader(section_name, list_file, tree, images, labels, free_labels)
    entries = [entry for number, line in _lines(list_file) if (entry := reader.entry(number, line))]
    named = [entry.label is not None for entry in entries]
    if any(named) and not all(named):
        raise DataError(f"{list_file}, line {entries[named.index(False)].number}: names no label, as line "
                        f"{entries[named.index(True)].number} does: name one in every line or in none.")
    return entries, reader.remarks()


class Places:
    """The ways to write a file below a data set's folder: below data_dir or any folder on the way to `folder`, with or
    without a slash in front, as an absolute path, with ~, with backslashes."""

    def __init__(self, tree: Tree, folder: str):
        self.tree = tree
        parts = folder.split("/") if folder else []
        self._folders = ["/".join(parts[:n]) for n in range(len(parts) + 1)]  # data_dir, ..., `folder`
        self._real = [os.path.realpath(tree.root / f) for f in ("", folder)]  # both may be links
        self._absolute = [(os.path.abspath(tree.root), ""), *zip(self._real, ("", folder))]

    def find(self, written: str, pattern: Pattern, added: str = "") -> tuple[str, int] | None:
        """(path, THERE, MISSING or OUTSIDE) of a written name with `added` behind it; None if no way to read it matches
        the pattern."""
        missing = None
        for form in dict.fromkeys((written, written.replace("\\", "/"), os.path.expanduser(written))):
            if ".." in PurePosixPath(form).parts:
                return form, OUTSIDE
            for path, certain in self._readings(PurePosixPath(form + added)):
                ending = pattern.ending(path)
                if ending is not None:
                    if (found := self.tree.file(path, ending)) is not None:
                        return found, THERE
                    missing = missing or ((path, MISSING) if certain else None)
        return missing or ((written, OUTSIDE) if PurePosixPath(written).is_absolute() else None)

    def inside(self, path: str) -> bool:
        """Whether the file is, with all links followed, below data_dir or below `folder`."""
        real = os.path.realpath(self.tree.root / path)
        return any(real.startswith(os.path.join(folder, "")) for folder in self._real)

    def _readings(self, path):
        """(path below data_dir, whether it is what is meant if no file is there)"""
        if not path.is_absolute():
            yield from ((join(folder, str(path)), True) for folder in self._folders)
            return
        for resolved in (False, True):
            spelling = Path(os.path.realpath(path.parent), path.name) if resolved else path
            for folder, inner in self._absolute:
                if (rest := _below(spelling, folder)) is not None:
                    yield join(inner, rest), True
        yield str(path).lstrip("/"), len(self._folders) > 1  # without a folder in the pattern, any path would do


def _below(path, folder):
    parts, above = path.parts, PurePosixPath(folder).parts
    if len(parts) > len(above) and [*map(composed, parts[: len(above)])] == [*map(composed, above)]:
        return "/".join(parts[len(above):])
    return None


def _lines(path: str) -> list[tuple[int, str]]:
    """(number, text) of the lines that are not blank."""
    if os.path.exists(path) and not os.path.isfile(path):  # a device or a pipe may never end
        raise OSError("not a file")
    lines = Path(path).read_text(encoding="utf-8-sig").split("\n")  # every kind of line end has become \n
    return [(number, line) for number, line in enumerate(lines, 1) if line.strip()]


def _cuts(text: str) -> Iterator[tuple[str, str]]:
    """The ways to read a text as a file name, which may hold blanks, and what follows it: all of it, cut at a tab, cut
    at any blanks."""
    stripped = text.strip()
    yield from dict.fromkeys([(text, ""), (stripped, "")])
    for separator in (r"\s*\t\s*", r"\s+"):
        for blank in re.finditer(separator, stripped):
            yield stripped[: blank.start()], stripped[blank.end():]


class _Reader:
    """The lines of one list, and what was passed over in them."""

    def __init__(self, section_name, list_file, tree, images, labels, free_labels):
        self.section_name, self.list_file, self.images, self.labels = section_name, list_file, images, labels
        self.image_places, self.label_places = Places(tree, images.fixed), Places(tree, labels.fixed if labels else "")
        self.any_label = Pattern("", "", None, LABEL_EXTENSIONS)
        self.label_patterns = [p for p in (labels, self.any_label if free_labels else None) if p]
        self.comments, self.no_labels = [], []  # line numbers; (line number, text)

    def entry(self, number: int, line: str) -> Entry | None:
        """The line's entry, None for a comment."""
        if "\0" in line:
            self._refuse_outside(number, line)
        read = [(text, rest, *found) for text, rest in _cuts(line) if (found := self._image(text, bare=not rest))]
        there = [reading for reading in read if reading[3] == THERE]
        if not there and line.lstrip().startswith("#"):
            self.comments.append(number)
            return None
        if not read:
            self._refuse_name(number, line.strip())
        # Blanks may be part of a name: the first reading that leaves a label, or nothing, behind the image is meant.
        chosen = next((r for r in there if not r[1] or (self._label(r[1]) or (None, None))[1] == THERE),
                      there[0] if there else min(read, key=lambda reading: len(reading[0])))
        text, rest, image, state = chosen
        label = self._label(rest) if rest else None
        if state == OUTSIDE or label and label[1] == OUTSIDE:
            self._refuse_outside(number, text if state == OUTSIDE else rest)
        if rest and not label:
            self._refuse_label(number, rest)
            self.no_labels.append((number, rest))
        return Entry(number, image, label[0] if label else None)

    def remarks(self) -> list[str]:
        found = []
        if self.comments:
            found.append(f"{self.list_file}: lines that begin with # are comments: {len(self.comments)} (the first: "
                         f"line {self.comments[0]})")
        if self.no_labels:
            number, text = self.no_labels[0]
            found.append(f"{self.list_file}: what follows the image is no label file and is not read: "
                         f"{len(self.no_labels)} lines (the first: line {number}, {text!r})")
        return found

    def _image(self, text, bare):
        """What `Places.find` says; with `bare`, of a name without its ending too, if that file is there."""
        found = self.image_places.find(text, self.images)
        for ending in self.images.endings if bare and not (found and found[1] == THERE) else ():
            longer = self.image_places.find(text, self.images, ending)
            if longer and longer[1] == THERE:
                return longer
        return found

    def _label(self, rest):
        """What `Places.find` says of the label at the start of `rest`, None if there is none."""
        read = [(text, *found) for text, _ in _cuts(rest) for pattern in self.label_patterns
                if (found := self.label_places.find(text, pattern))]
        first = next((r for r in read if r[2] == THERE), None) or min(read, key=lambda r: len(r[0]), default=None)
        return first and first[1:]

    def _refuse_outside(self, number, text):
        raise DataError(f"{self.list_file}, line {number}: {text!r} points outside the data folder: give names below "
                        f"{self.images.folder or 'data_dir'!r}.")

    def _refuse_name(self, number, text):
        endings = self.images.endings
        fault = (f"does not match {str(self.images)!r}" if text.lower().endswith(tuple(e.lower() for e in endings)) else
                 f"does not end in {' or '.join(map(repr, endings))}")
        raise DataError(f"{self.list_file}, line {number}: {text!r} {fault}, as the images of {self.section_name} do.")

    def _refuse_label(self, number, rest):
        """Where only the layout's own labels can be read, another label file is refused rather than passed over."""
        named = next((text for text, _ in _cuts(rest) if self.any_label.name(text.lstrip("/"))), None)
        if named is not None:
            raise DataError(f"{self.list_file}, line {number}: the label {named!r} does not match "
                            f"{str(self.labels)!r}, the labels whose ids are known for {self.section_name}: name "
                            "those, or none.")

"""Reading lists of images: text files with one image a line, or one image and its label. As in `dataset.patterns`,
paths are text below data_dir."""
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from dataset.patterns import LABEL_EXTENSIONS, Pattern, Tree, composed, join
from utils.errors import DataError

# What a name in a list is: a file, no file, not below data_dir, or a path that does not match the pattern.
THERE, MISSING, OUTSIDE, UNFIT = range(4)
LONGEST, _MOST_WORDS = 8192, 50  # characters and words of a line; each blank is one more way to split it


@dataclass(frozen=True)
class Entry:
    """A line of a list: its number, image and label (None if it names none). The files need not exist."""

    number: int
    image: str
    label: str | None


def read_list(section_name: str, list_file: str, tree: Tree, images: Pattern, labels: Pattern | None,
              free_labels: bool) -> tuple[list[Entry], list[str]]:
    """The entries of a list, and remarks on what was ignored in it.

    Names may hold blanks, may be written in the ways of `Places`, and may lack the image's ending. The text behind an
    image, after a tab, a comma, a semicolon or blanks, is its label if it ends like one: a file that matches `labels`
    or, with `free_labels`, any file below data_dir or below the labels' folder. A line that begins with # and names no
    file is a comment.

    Raises OSError or ValueError if the list cannot be read. Raises DataError, which names the line, if a name leaves
    data_dir or does not match, if some lines name a label and others do not, or if a line is too long for two names.
    """
    reader = Reader(section_name, list_file, tree, images, labels, free_labels)
    entries = [entry for number, line in _lines(list_file) if (entry := reader.entry(number, line))]
    named = [entry.label is not None for entry in entries]
    if any(named) and not all(named):
        raise DataError(f"{list_file}, line {entries[named.index(False)].number}: names no label, as line "
                        f"{entries[named.index(True)].number} does: name one in every line or in none.")
    return entries, reader.remarks()


class Places:
    """Finds the file that a written name means, in any of the usual ways to write it.

    A name may be relative to data_dir or to any folder on the way to `folder`, with or without a slash in front; it may
    be an absolute path, begin with ~, and have backslashes.
    """

    def __init__(self, tree: Tree, folder: str):
        self.tree = tree
        parts = folder.split("/") if folder else []
        self._folders = ["/".join(parts[:n]) for n in range(len(parts) + 1)]  # data_dir, ..., `folder`
        self.real = [os.path.realpath(tree.root / f) for f in ("", folder)]  # both may be links
        self._absolute = [(composed(path).rstrip("/") + "/", inner) for path, inner in
                          ((os.path.abspath(tree.root), ""), *zip(self.real, ("", folder)))]

    def find(self, written: str, pattern: Pattern, added: str = "") -> tuple[str | None, int]:
        """(path, THERE or MISSING), (None, OUTSIDE) or (None, UNFIT) for a written name with `added` appended. A file
        below data_dir that does not match the pattern is UNFIT."""
        missing, unfit = None, False
        for form in dict.fromkeys((written, written.replace("\\", "/"), os.path.expanduser(written))):
            parts = [part for part in form.split("/") if part not in ("", ".")]
            if ".." in parts:
                return None, OUTSIDE
            for path, guess in self._readings("/".join(parts) + added, form.startswith("/")):
                ending = pattern.ending(path)
                if ending is not None:
                    if (found := self.tree.file(path, ending)) is not None:
                        return found, THERE
                    if not guess or pattern.fixed:  # without a folder in the pattern, any path would do
                        missing = missing or (path, MISSING)
            unfit = unfit or self.tree.file("/".join(parts), "") is not None
        if missing and not unfit:
            return missing
        return None, OUTSIDE if written.startswith("/") and not unfit else UNFIT

    def inside(self, path: str) -> bool:
        """Whether the file is below data_dir or below `folder`, after following all links."""
        return is_inside(self.tree.root / path, self.real)

    def _readings(self, path, absolute):
        """Yields (path below data_dir, whether it is only a guess) for each way to read a written path."""
        if not absolute:
            yield from ((join(folder, path), False) for folder in self._folders)
            return
        above, _, name = f"/{path}".rpartition("/")
        for resolved in (False, True):
            if resolved and not os.path.isdir(above):
                break
            spelling = os.path.join(os.path.realpath(above), name) if resolved else f"/{path}"
            for folder, inner in self._absolute:
                if composed(spelling).startswith(folder):
                    yield join(inner, "/".join(spelling.split("/")[folder.count("/"):])), False
        yield path, True


def is_inside(path: str | Path, folders: Iterable[str]) -> bool:
    """Whether a file is, after following all links, below one of the folders, whose paths hold no link."""
    real = os.path.realpath(path)
    return any(real.startswith(os.path.join(folder, "")) for folder in folders)


def label_path(tree: Tree, labels: Pattern, name: str) -> str | None:
    """The path of the label of the image of that name, as spelled on disk; if there is none, where it is expected."""
    expected = [labels.path(name, ending) for ending in labels.endings]
    found = [path for there in expected if there and (path := tree.file(there, labels.ending(there) or ""))]
    if len(found) > 1:
        raise DataError(f"{tree.root / found[0]}: is a label of the same image as {found[1]}: keep one of them, or "
                        "give the labels' ending in the key `labels`, as in '{split}/{name}.png'.")
    return found[0] if found else labels.path(name)


def _lines(path: str) -> list[tuple[int, str]]:
    """(number, text) of the lines that are not blank."""
    if os.path.exists(path) and not os.path.isfile(path):  # a device or a pipe may never end
        raise OSError("not a file")
    lines = Path(path).read_text(encoding="utf-8-sig").split("\n")  # every kind of line end has become \n
    return [(number, line) for number, line in enumerate(lines, 1) if line.strip()]


def cuts(text: str) -> Iterator[tuple[str, str]]:
    """Yields the ways to split a text into a file name, which may hold blanks and commas, and the rest: not at all, at
    a tab, at a comma or semicolon, at blanks."""
    stripped = text.strip()
    yield from dict.fromkeys([(text, ""), (stripped, "")])
    for separator in (r"\s*\t\s*", r"\s*[,;]\s*", r"\s+"):
        for blank in re.finditer(separator, stripped):
            yield stripped[: blank.start()], stripped[blank.end():]


class _Reading(NamedTuple):
    """One way to read a line: name of the image, the rest, and what each of them was found to be."""

    text: str
    rest: str
    image: str | None
    state: int
    label: str | None
    label_state: int

    @property
    def complete(self):
        """Whether the whole line names existing files."""
        return self.state == THERE and (not self.rest or self.label_state == THERE)


class Reader:
    """Reads the lines of one list, and collects what was ignored in them."""

    def __init__(self, section_name, list_file, tree, images, labels, free_labels):
        self.section_name, self.list_file, self.images, self.labels = section_name, list_file, images, labels
        self.image_places, self.label_places = Places(tree, images.fixed), Places(tree, labels.fixed if labels else "")
        self.any_label = Pattern("", "", None, LABEL_EXTENSIONS)
        self.label_patterns = [p for p in (labels, self.any_label if free_labels else None) if p]
        self.comments, self.no_labels = [], []  # line numbers; (line number, text)

    def entry(self, number: int, line: str) -> Entry | None:
        """The entry of a line, None for a comment. Raises DataError for a line that cannot be read."""
        if "\0" in line:
            raise DataError(f"{self.list_file}, line {number}: {line!r} holds a zero byte: save the list as text in "
                            "UTF-8.")
        if len(line) > LONGEST or len(line.split()) > _MOST_WORDS:
            if line.lstrip().startswith("#"):
                self.comments.append(number)
                return None
            raise DataError(f"{self.list_file}, line {number}: of {len(line)} characters in {len(line.split())} words, "
                            "is no image, or image and label: give a list with one image a line.")
        readings = []
        for cut in cuts(line):
            readings += [self._reading(*cut)]
            if readings[-1].complete:
                break
        best = min(readings, key=lambda r: (not r.complete, r.state, len(r.text)))
        if best.state != THERE:
            bare = [self._reading(line.strip(), "", ending) for ending in self.images.endings]
            best = next((reading for reading in bare if reading.complete), best)
        if best.state != THERE and line.lstrip().startswith("#"):
            self.comments.append(number)
            return None
        if best.state == UNFIT:
            self._refuse_name(number, line.strip())
        if best.state == OUTSIDE or best.label_state == OUTSIDE:
            self._refuse_outside(number, best.text if best.state == OUTSIDE else best.rest)
        if best.rest and not best.label:
            self._refuse_label(number, best.rest)
            self.no_labels.append((number, best.rest))
        return Entry(number, best.image, best.label)

    def _reading(self, text, rest, ending=""):
        """The reading of a line as an image, `text` with `ending` appended, and a label at the start of `rest`."""
        image, state = self.image_places.find(text, self.images, ending)
        labels = [] if state in (OUTSIDE, UNFIT) or not rest else [
            (*self.label_places.find(part, pattern), len(part))
            for part, _ in cuts(rest) for pattern in self.label_patterns]
        label, label_state, _ = min(labels, key=lambda found: found[1:], default=(None, UNFIT, 0))
        return _Reading(text, rest, image, state, label, label_state)

    def remarks(self) -> list[str]:
        """Remarks for the log on comments and on text that is no label."""
        found = []
        if self.comments:
            found.append(f"{self.list_file}: lines that begin with # are comments: {len(self.comments)} (the first: "
                         f"line {self.comments[0]})")
        if self.no_labels:
            number, text = self.no_labels[0]
            found.append(f"{self.list_file}: what follows the image is no label file and is not read: "
                         f"{len(self.no_labels)} lines (the first: line {number}, {text!r})")
        return found

    def _refuse_outside(self, number, text):
        slash = "" if ".." in re.split(r"[/\\]", text) else " (and is not there without its slash)"
        raise DataError(f"{self.list_file}, line {number}: {text!r} points outside the data folder{slash}: give names "
                        f"below {self.images.folder or 'data_dir'!r}, or of labels below "
                        f"{self.labels and self.labels.folder or 'data_dir'!r}.")

    def _refuse_name(self, number, text):
        endings = self.images.endings
        fault = (f"does not match {str(self.images)!r}" if text.lower().endswith(tuple(e.lower() for e in endings)) else
                 f"does not end in {' or '.join(map(repr, endings))}")
        raise DataError(f"{self.list_file}, line {number}: {text!r} {fault}, as the images of {self.section_name} do.")

    def _refuse_label(self, number, rest):
        """Raise DataError if `rest` names a label file that the layout cannot read; it must not be ignored."""
        named = next((text for text, _ in cuts(rest) if self.any_label.name(text.lstrip("/"))), None)
        if named is not None:
            raise DataError(f"{self.list_file}, line {number}: the label {named!r} does not match "
                            f"{str(self.labels)!r}, the labels whose ids are known for {self.section_name}: name "
                            "those, or none.")

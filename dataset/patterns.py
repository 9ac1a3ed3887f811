"""Patterns of file names, and finding the files that match them. All paths are text below data_dir, with "/"; returned
paths are spelled as on disk.

Two spellings of a file name are taken for equal if people read them as equal: letters with accents may be composed or
decomposed (NFC / NFD), and the ending may be in any case. If two files fit a name, the one with the exact spelling is
taken; if there is none, it is an error.
"""
import os
import re
import unicodedata
from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

from utils.errors import DataError

IMAGE_EXTENSIONS = (".png", ".jpg", ".jpeg", ".jfif", ".bmp", ".tif", ".tiff", ".webp", ".ppm")
LABEL_EXTENSIONS = (".png", ".bmp", ".tif", ".tiff", ".pgm", ".pbm", ".pnm", ".ppm")  # the first is the usual one
# Pictures that are not read.
OTHER_PICTURES = (".gif", ".heic", ".heif", ".avif", ".jp2", ".jpe", ".tga", ".dng", ".exr", ".psd", ".svg")
# Folders that systems and viewers create among images, in lower case. Those that begin with a dot are left out anyway.
NO_DATA = frozenset({
    "__macosx", "@eadir", "@tmp", "@recycle", "@recently-snapshot", "#recycle", "#snapshot", "lost+found",
    "$recycle.bin", "recycler", "system volume information", "thumb", "thumbs", "thumbnail", "thumbnails", "preview",
    "previews"})


def composed(text: str) -> str:
    """The text in Unicode NFC: a letter with an accent is one character, where there is one."""
    return unicodedata.normalize("NFC", text)


@dataclass(frozen=True)
class Pattern:
    """A pattern of file paths: `folder/`, any sub-folders, `prefix`, the stem, `suffix` (None: one of `extensions`).

    A part `*` of `folder` stands for one folder of any name. The name of a file is what the stars stand for, its
    sub-folders and its stem, joined by "/"; it is unique among the files that match. exact: only the part of the suffix
    behind its last dot may be in another case.
    """

    folder: str
    prefix: str
    suffix: str | None
    extensions: tuple[str, ...]
    exact: bool = False

    @classmethod
    def parse(cls, text: str, split: str, extensions: tuple[str, ...], exact: bool = False) -> "Pattern":
        """The pattern of a configured text with `{split}` and `{name}`. A text without `{name}` is a folder."""
        text = str(PurePosixPath(text.replace("{split}", split)))
        before, name, suffix = text.partition("{name}")
        folder, _, prefix = before.rpartition("/") if name else (text, "", "")
        return cls("" if folder == "." else folder, prefix, suffix or None, extensions, exact)

    def __str__(self):
        return "/".join(filter(None, [self.folder, f"{self.prefix}<name>{self.suffix or self.extensions[0]}"]))

    @property
    def endings(self) -> tuple[str, ...]:
        """The texts that a matching path may end in."""
        return self.extensions if self.suffix is None else (self.suffix,)

    def ending(self, path: str) -> str | None:
        """The part at the end of a path that may be in any case; None if the path does not match."""
        if self.name(path) is None:
            return None
        return os.path.splitext(path)[1] if self.exact or not self.suffix else self.suffix

    @cached_property
    def fixed(self) -> str:
        """The part of `folder` before any star."""
        return self.folder.split("*")[0].rstrip("/")

    @cached_property
    def _expressions(self):
        def expression(form):
            folders = [part.replace(r"\*", "([^/]+)") + "/" for part in re.escape(form(self.folder)).split("/") if part]
            kept = (self.suffix or "").rpartition(".")[0] if self.exact else ""
            endings = "|".join(re.escape(form(ending.removeprefix(kept))) for ending in self.endings)
            return re.compile("".join(folders) + f"((?:[^/]+/)*){re.escape(form(self.prefix))}([^/]+)"
                              f"{re.escape(form(kept))}(?i:{endings})")
        return expression(str), expression(composed)

    def name(self, path: str) -> str | None:
        """The name of the file at `path`; None if the path does not match."""
        exactly, tolerantly = self._expressions
        match = exactly.fullmatch(path) or tolerantly.fullmatch(composed(path))
        if match is None:
            return None
        *stars, folders, stem = match.groups()
        return "/".join([*stars, folders + stem])

    def path(self, name: str, ending: str | None = None) -> str | None:
        """The path of the file with that name; None if the name has too few parts."""
        parts = iter(name.split("/"))
        folder = [next(parts, None) if part == "*" else part for part in self.folder.split("/") if part]
        *folders, stem = [*parts] or [None]
        if stem is None:
            return None
        return "/".join([*folder, *folders, self.prefix + stem + (ending or self.endings[0])])


class Tree:
    """The files and folders below `root`. Each folder is listed once, when it is first needed. Raises DataError if a
    folder cannot be listed."""

    def __init__(self, root: str | Path):
        self.root = Path(root)
        self._entries, self._similar, self._folders = {}, {}, {}

    def entries(self, folder: str) -> dict[str, os.DirEntry]:
        """Name -> entry of everything in a folder, sorted by name; empty if there is no such folder."""
        if folder not in self._entries:
            try:
                with os.scandir(self.root / folder) as found:
                    self._entries[folder] = {entry.name: entry for entry in sorted(found, key=lambda e: e.name)}
            except (FileNotFoundError, NotADirectoryError):
                self._entries[folder] = {}
            except OSError as error:
                raise DataError(f"{error.filename}: cannot be listed ({error.strerror}): make the folder readable."
                                ) from None
        return self._entries[folder]

    def folders(self, path: str) -> list[str]:
        """The folders that `path` may mean, as spelled on disk; one with the exact spelling comes first."""
        if path not in self._folders:
            found = [""]
            for part in filter(None, path.split("/")):
                found = [join(here, name) for here in found
                         for name in self._match(here, part, 0) if is_folder(self.entries(here)[name])]
            self._folders[path] = found
        return self._folders[path]

    def file(self, path: str, ending: str) -> str | None:
        """The file, or dangling link, that `path` means, as spelled on disk; None if there is none. ending: the end of
        `path` that may be in any case. Raises DataError if two files fit and neither has the exact spelling."""
        above, _, last = path.rpartition("/")
        for folder in self.folders(above):
            names = [name for name in self._match(folder, last, min(len(ending), len(last)))
                     if not is_folder(self.entries(folder)[name])]
            if len(names) > 1 and names[0] != last:
                raise DataError(f"{self.root / folder}: {names[0]!r} and {names[1]!r} both fit {last!r}: keep one of "
                                "them.")
            if names:
                return join(folder, names[0])
        return None

    def _match(self, folder, name, free):
        """The names in a folder that `name` may mean, an exact one first. Its last `free` letters have any case."""
        entries = self.entries(folder)
        if name in entries and free:
            return [name]
        if folder not in self._similar:
            self._similar[folder] = defaultdict(list)
            for entry in entries:
                self._similar[folder][composed(entry).lower()].append(entry)
        wanted = composed(name)
        kept = wanted[: len(wanted) - free]
        found = [n for n in self._similar[folder].get(wanted.lower(), ())
                 if composed(n)[: len(wanted) - free] == kept]
        return sorted(found, key=lambda n: n != name)


def join(folder: str, name: str) -> str:
    """The path of `name` in `folder`; "" is data_dir itself."""
    return f"{folder}/{name}" if folder else name


def is_folder(entry: os.DirEntry) -> bool:
    """Whether an entry is a folder or a link to one."""
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def folders(tree: Tree, pattern: Pattern) -> list[str]:
    """The folders that match the pattern's `folder`, in order, those of NO_DATA included."""
    found = [""]
    for part in filter(None, pattern.folder.split("/")):
        if part == "*":
            found = [join(here, name) for here in found for name, e in tree.entries(here).items() if is_folder(e)]
        else:
            found = [inner for here in found for inner in tree.folders(join(here, part))]
    return found


def scan(tree: Tree, pattern: Pattern) -> tuple[list[str], list[str]]:
    """The paths that match the pattern, and those that match but are left out as not meant to be data; both sorted.

    Left out are hidden files (their name begins with a dot), and files in hidden folders or in folders of NO_DATA,
    unless the pattern itself spells the folder. Linked folders are followed, each once. A dangling link is returned:
    reading it will be an error that names it.
    """
    found, left_out, seen = [], [], set()
    spelled = {*pattern.folder.split("/"), *(pattern.suffix or "").split("/")}

    def no_data(name):
        return name not in spelled and (name.startswith(".") or name.lower() in NO_DATA)

    def count(folder):
        for here, _, files in os.walk(tree.root / folder):
            below = Path(here).relative_to(tree.root).as_posix()
            left_out.extend(path for path in (join(below, name) for name in files) if pattern.name(path) is not None)

    waiting = folders(tree, pattern)[::-1]
    while waiting:  # depth first, in order of name: of two links to one folder the first counts
        here = waiting.pop()
        if any(map(no_data, here.split("/"))):
            count(here)
            continue
        if (real := os.path.realpath(tree.root / here)) in seen:
            continue
        seen.add(real)
        inner = []
        for name, entry in tree.entries(here).items():
            if is_folder(entry):
                inner.append(join(here, name))
            elif pattern.name(join(here, name)) is not None and (entry.is_symlink() or entry.is_file()):
                (left_out if no_data(name) else found).append(join(here, name))
        waiting += reversed(inner)
    return sorted(found, key=lambda path: path.split("/")), sorted(left_out)

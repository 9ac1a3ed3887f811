"""Images to be predicted: which files the words of a command line mean, and reading them."""
import glob
import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import torch

from dataset.files import RGB, Bands, read_image
from dataset.patterns import IMAGE_EXTENSIONS, NO_DATA, OTHER_PICTURES, Pattern, Tree, composed, scan
from dataset.segmentation import Sample
from dataset.transforms import for_display
from dataset.views import at_sizes
from utils.errors import DataError

_ALL = Pattern("", "", None, IMAGE_EXTENSIONS)


def find_inputs(words: Sequence[str], outputs: Sequence[Path],
                bands: Bands = RGB) -> tuple[list[Sample], list[str]]:
    """The images that the words mean, each once, and remarks on what was left out.

    A word is a folder, which is searched with its sub-folders for files with a known ending; a file of any name; or a
    pattern with `*`, `?`, `[...]`, or `**` for any folders, which matches files with a known ending. An image's name is
    its path without the ending: below the folder; of a pattern below the folders before its first star; of a file its
    own name. Hidden files and the like are left out as in a data set (`patterns.scan`), and so is what lies in the
    folders `outputs`, which are going to be written to.

    Raises DataError if a word means no image, a file in `outputs`, or if two images share a name.
    """
    folders = [os.path.realpath(folder) + os.sep for folder in outputs]
    found: dict[str, Path] = {}
    remarks: list[str] = []
    for word in words:
        here, left_out = _images_of(word)
        mine = [path for _, path in here if any(os.path.realpath(path).startswith(f) for f in folders)]
        if mine and os.path.isfile(word):
            raise DataError(f"--input: {word}: lies in the output folder: choose another --output.")
        if mine:
            remarks.append(f"{word}: files in the output folder are left out: {len(mine)} (the first: {mine[0]})")
        here = [(name, path) for name, path in here if path not in set(mine)]
        remarks += [f"{word}: {what} are left out: {len(paths)} (the first: {paths[0]!r})"
                    for what, paths in left_out.items() if paths]
        if not here:
            raise DataError("; ".join([f"--input: no image in {word!r}: check the path; files that end in "
                                       f"{' '.join(IMAGE_EXTENSIONS)} are read", *remarks]) + ".")
        for name, path in here:
            other = found.setdefault(composed(name), path)
            if os.path.realpath(other) != os.path.realpath(path):
                raise DataError(f"--input: {other} and {path} share the name {name!r}, their predictions would be one "
                                "file: give the folder above them, predict them into two folders, or rename one.")
    return [Sample(name, path, None, bands) for name, path in found.items()], remarks


def _images_of(word: str) -> tuple[list[tuple[str, Path]], dict[str, list]]:
    """([(name, path)], {kind of file: those left out}) of one word. Raises DataError if nothing is there."""
    if os.path.isdir(word):
        tree = Tree(word)
        paths, hidden = scan(tree, _ALL)
        others = scan(tree, replace(_ALL, extensions=OTHER_PICTURES))[0]
        return ([(_ALL.name(path), tree.root / path) for path in paths],
                {"hidden files, previews and the like": hidden, "pictures whose kind is not read": others})
    if os.path.lexists(word):
        return [(Path(word).stem, Path(word))], {}
    if not glob.has_magic(word):
        raise DataError(f"--input: {word!r} is not there: give a folder, image files, or a pattern such as "
                        "'shots/*.png'.")
    fixed = Path(*(part for part in _before_magic(PurePath(word).parts)))
    here, hidden, others = [], [], []
    for path in map(Path, sorted(glob.glob(word, recursive=True))):
        below = path.relative_to(fixed)
        if any(part.startswith(".") or part.lower() in NO_DATA for part in below.parts):
            hidden.append(str(path))
        elif _ALL.name(below.as_posix()) is None or path.is_dir():
            others.append(str(path))
        else:
            here.append((below.with_suffix("").as_posix(), path))
    return here, {"hidden files, previews and the like": hidden, "folders and files of other kinds": others}


def _before_magic(parts: Iterable[str]) -> list[str]:
    found: list[str] = []
    for part in parts:
        if glob.has_magic(part):
            break
        found.append(part)
    return found


class InputImages:
    """Images to be predicted. Items: name, and those of `views.at_sizes`; without an input_size (width, height) the
    image has its own size, and no scales. photo: uint8 [H, W, 3] of it as well, for pictures, unless the image is
    that. A file that cannot be read gives an item with `name` and `error`, the message."""

    def __init__(self, samples: list[Sample], input_size: tuple[int, int] | None, scales: tuple[float, ...] = (1.0,),
                 photo: bool = False):
        self.samples, self.input_size, self.scales, self.photo = samples, input_size, scales, photo

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample = self.samples[index]
        try:
            image = read_image(sample.image, sample.bands)
        except DataError as error:
            return {"name": sample.name, "error": str(error)}
        scaled = at_sizes(image, self.input_size or image.shape[1::-1], self.scales if self.input_size else (1.0,))
        if self.photo and (self.input_size or image.shape[2] != 3):
            scaled["photo"] = torch.from_numpy(np.ascontiguousarray(for_display(image)))
        return {"name": sample.name, **scaled}

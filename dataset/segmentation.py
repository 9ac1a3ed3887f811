"""The data sets: where each keeps its files, and how its labels are read. A file that is listed but missing, or cannot
be read, raises a DataError that names it."""
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from dataset import labels
from dataset.files import Bands, read_image, read_label_ids, require_same_size
from dataset.lists import Places, is_inside, label_path, read_list
from dataset.long_lists import LongList
from dataset.patterns import IMAGE_EXTENSIONS, LABEL_EXTENSIONS, OTHER_PICTURES, Pattern, Tree, composed, scan
from dataset.samples import Sample, Samples
from utils.config import DataConfig
from utils.errors import DataError


@dataclass(frozen=True)
class Layout:
    """Where a data set keeps its files, below its data_dir.

    A pattern may hold `{split}` (train or val), `{name}` (a file's path below the folder, without the text of the
    pattern before and behind its last part) and, before `{name}`, `*` for one folder of any name. A pattern without
    `{name}` is a folder, of images with any known extension, or of labels with the same names and any known extension.
    """

    images: str
    labels: str | None
    label_ids: dict[int, int] | None = None  # label id -> train id of the 19 street classes; None: given by the user
    void_ids: frozenset[int] = frozenset()  # label ids known to belong to no class


LAYOUTS = {
    "gta5": Layout("images/{name}.png", "labels/{name}.png", labels.CITYSCAPES_IDS, labels.CITYSCAPES_VOID),
    "synthia": Layout("RGB/{name}.png", "GT/LABELS/{name}.png", labels.SYNTHIA_IDS, labels.SYNTHIA_VOID),
    "cityscapes": Layout("leftImg8bit/{split}/{name}_leftImg8bit.png", "gtFine/{split}/{name}_gtFine_labelIds.png",
                         labels.CITYSCAPES_IDS, labels.CITYSCAPES_VOID),
}


def label_table(section: DataConfig, num_classes: int) -> np.ndarray:
    """uint8 [65536]: label id in the section's files -> train id, the number of a class of `class_sets.label_classes`.
    num_classes: of the network."""
    if section.type != "folder":
        return labels.street_table(LAYOUTS[section.type].label_ids, labels.street_count(num_classes))
    return labels.lookup_table(section.label_ids or {c: c for c in range(len(section.classes))})


def known_ids(section: DataConfig) -> set[int]:
    """The label ids that are expected in the section's files: those of its classes, known void ids, IGNORE_INDEX."""
    layout = LAYOUTS.get(section.type)
    ids = layout.label_ids if layout else section.label_ids or range(len(section.classes))
    return {*ids, *(layout.void_ids if layout else ()), labels.IGNORE_INDEX}


def find_samples(section_name: str, section: DataConfig, split: str, required: bool = True,
                 complete: bool = True) -> Samples:
    """The samples of `find_split`, without its remarks."""
    return find_split(section_name, section, split, required, complete)[0]


def find_split(section_name: str, section: DataConfig, split: str, required: bool = True,
               complete: bool = True) -> tuple[Samples, list[str]]:
    """The images of a split with their label paths, and remarks on the files that were left out.

    The label files need not exist. The training split is the list `data_list`, the validation split the list
    `data_list_val`, in the order of the list. Without a list the folder is scanned, linked folders too, and the samples
    are in order of path. A scan leaves out hidden files and the like (`patterns.scan`), and labels among the images.
    gta5 and synthia have one split.

    Of a list of more than `list_lines.LONG` lines in one form (`long_lists`), files are looked at when they are read:
    links out of the folder and most missing images are found then.

    Raises DataError if the folder, the list or (unless `complete` is False) a listed image is missing; if a listed name
    leaves the folder, by `..` or by a link (data_dir and the pattern's folder may themselves be links); if an image is
    its own label or two labels fit it; if two images share a name; if nothing is found and the split is `required`.
    """
    root, list_key = Path(section.data_dir), "data_list" if split == "train" else "data_list_val"
    images, labels_ = patterns_of(section, split)
    if not os.path.isdir(root):
        stars = "; a * may stand in images and labels only" if "*" in str(root) else ""
        raise DataError(f"{section_name}.data_dir: no folder {str(root)!r}: give the folder that holds "
                        f"{str(images)!r}{stars}.")
    tree, list_file = Tree(root), getattr(section, list_key)
    bands = Bands(section.bands, section.value_range, section_name)
    if list_file:
        many, careful = LongList(section_name, list_file, root, images, labels_, section.type == "folder", bands,
                                 complete).read()
        if many is not None:
            return many, []
        found, remarks = _listed(section_name, section, list_key, tree, images, labels_, complete)
        remarks = careful + remarks
    else:
        found, remarks = _scanned(section_name, tree, images, labels_)
    if not found and required:
        empty = f"list {list_file!r} is empty" if list_file else f"no image matches {str(root / str(images))!r}"
        raise DataError("; ".join([f"{section_name}: {empty}: check data_dir, the split {split!r} and the file names",
                                   *remarks]) + ".")
    return _samples(section_name, root, images, found, bands), remarks


def patterns_of(section: DataConfig, split: str) -> tuple[Pattern, Pattern | None]:
    """The patterns of a split's images and of their labels."""
    layout = LAYOUTS.get(section.type) or Layout(section.images, section.labels)
    exact = section.type in LAYOUTS  # IDD's _labelids hold other ids than Cityscapes' _labelIds
    return (Pattern.parse(layout.images, split, IMAGE_EXTENSIONS, exact),
            Pattern.parse(layout.labels, split, LABEL_EXTENSIONS, exact) if layout.labels else None)


def image_pattern(section: DataConfig, split: str) -> str:
    """The path pattern of a split's images, for messages."""
    return str(Path(section.data_dir) / str(patterns_of(section, split)[0]))


def fingerprint(samples: Sequence[Sample]) -> str:
    """Hexadecimal SHA-256 of the samples' names and the sizes of the image files, to detect a changed data set; of a
    long list, of the bytes of the list."""
    if isinstance(samples, Samples) and samples.digest():
        return samples.digest()
    listed = [(s.name, os.path.getsize(s.image) if os.path.isfile(s.image) else None) for s in samples]
    return hashlib.sha256(repr(listed).encode()).hexdigest()


def read_pixels(sample: Sample) -> np.ndarray:
    """Image uint8 [H, W, K] of a sample. Raises DataError, also for a link out of the data set's folder."""
    require_inside(sample.image, sample.image_roots)
    return read_image(sample.image, sample.bands)


def read_ids(sample: Sample, size: tuple[int, int] | None) -> np.ndarray:
    """Label ids [H, W] of a sample that has a label. Raises DataError as `read_pixels` does, or if they are not of the
    image's size (width, height); None: it is not known."""
    require_inside(sample.label, sample.label_roots)
    ids = read_label_ids(sample.label)
    if size:
        require_same_size(sample.image, size, sample.label, ids)
    return ids


def read_pair(sample: Sample, table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Image uint8 [H, W, K] and train ids uint8 [H, W] of one sample. Raises DataError if their sizes differ."""
    image = read_pixels(sample)
    return image, table.take(read_ids(sample, image.shape[1::-1]))


def require_inside(path: Path | None, roots: tuple[str, ...]) -> None:
    """Raise DataError if a file is, after following all links, in none of these folders; (): it may be anywhere."""
    if path and roots and not is_inside(path, roots):
        raise DataError(f"{path}: is a link out of {roots[0]!r} to {os.path.realpath(path)!r}: copy the file there, or "
                        "link the whole data folder.")


def _samples(section_name, root, images, found, bands):
    """The samples of [(image, label or None)]. Raises DataError if two share a name or an image is its own label.

    Names that differ only in how accents are encoded are the same name: they would share a label, and some file systems
    take them for one file.
    """
    samples = {}
    for image, label in found:
        name = images.name(image)
        key = composed(name)
        if label == image:
            raise DataError(f"{root / image}: is by {section_name}.labels its own label: give labels another folder or "
                            "another ending, such as '{split}/{name}_label.png', or leave it out.")
        if key in samples:
            other = samples[key].image.relative_to(root).as_posix()
            raise DataError(f"{image} and {other} share the name {name!r}{_how_alike(image, other)}: pseudo labels "
                            "could not be told apart; keep one of them.")
        samples[key] = Sample(name, root / image, root / label if label else None, bands)
    return Samples.packed(list(samples.values()))


def _how_alike(image, other):
    if image == other:
        return " (it is listed twice)"
    return " (their accents are written in two ways, NFC and NFD)" if composed(image) == composed(other) else ""


def _scanned(section_name, tree, images, labels_):
    """([(image, label or None)], remarks) of the scanned folder, without labels that lie among the images."""
    paths, hidden = scan(tree, images)
    label_of = {path: labels_ and label_path(tree, labels_, images.name(path)) for path in paths}
    others = {label for path, label in label_of.items() if label != path}
    kept = [(path, label) for path, label in label_of.items() if path not in others]
    remarks = []
    if images.suffix is None and (unread := scan(tree, replace(images, extensions=OTHER_PICTURES))[0]):
        remarks.append(f"warning: {section_name}: pictures among the images whose kind is not read are left out: "
                       f"{len(unread)} (the first: {unread[0]!r}); save them as PNG or JPEG")
    if hidden:
        remarks.append(f"{section_name}: hidden files, previews and the like among the images are left out: "
                       f"{len(hidden)} (the first: {hidden[0]!r}); a list may name them")
    if len(kept) < len(paths):
        first = next(path for path in paths if path in others)
        remarks.append(f"{section_name}: files among the images that are labels of others are left out: "
                       f"{len(paths) - len(kept)} (the first: {first!r}); a list may name them")
    return kept, remarks


def _listed(section_name, section, key, tree, images, labels_, complete):
    """([(image, label or None)], remarks) of the list that `key` gives. Raises DataError for files outside data_dir."""
    list_file = getattr(section, key)
    try:
        entries, remarks = read_list(section_name, list_file, tree, images, labels_, section.type == "folder")
    except (OSError, ValueError) as error:
        there = len(_scanned(section_name, tree, images, labels_)[0])
        advice = "save it as text in UTF-8" if isinstance(error, UnicodeDecodeError) else "correct the path"
        advice += (f", or {section_name}.{key}=None takes the {there} images of the folder." if there else
                   f"; no image matches {str(tree.root / str(images))!r} either.")
        raise DataError(f"{section_name}.{key}: cannot read {list_file!r} ({error}): {advice}") from None
    places = Places(tree, images.fixed), Places(tree, labels_.fixed if labels_ else "")
    found = [(e.image, e.label or labels_ and label_path(tree, labels_, images.name(e.image))) for e in entries]
    for pair in found:
        for path, place in zip(pair, places):
            if path and not place.inside(path):
                raise DataError(f"{tree.root / path}: named by {list_file!r}, is a link out of {str(tree.root)!r} to "
                                f"{os.path.realpath(tree.root / path)!r}: copy the file there, or link the whole data "
                                "folder.")
        if complete and not os.path.isfile(tree.root / pair[0]):
            raise DataError(f"{tree.root / pair[0]}: listed in {list_file!r} but not there: check "
                            f"{section_name}.data_dir or the list.")
    return found, remarks

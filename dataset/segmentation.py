"""The data sets: where each keeps its files and how its labels are read. What is listed but not there, or cannot be
read, raises a DataError that names it."""
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from dataset import labels
from dataset.files import read_image, read_label, require_same_size
from utils.config import DataConfig
from utils.errors import DataError

IMAGE_EXTENSIONS = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".ppm")


@dataclass(frozen=True)
class Layout:
    """Where a data set keeps its files, below its data_dir.

    Patterns hold `{split}` (train or val) and `{name}` (a file's path below the folder, less what the pattern writes
    behind it). A pattern without `{name}` is a folder: images of any known extension, labels as .png of the same name.
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


@dataclass(frozen=True)
class Sample:
    """One image. `name` has no extension and is unique in its split; it names the pseudo label as well."""

    name: str
    image: Path
    label: Path | None


def class_set(section: DataConfig, num_classes: int) -> labels.ClassSet:
    """The classes of a data-set section: street classes, or the user's own under one protocol."""
    if section.type != "folder":
        return labels.street_class_set(num_classes)
    palette = section.palette or labels.default_palette(num_classes)
    return labels.ClassSet(tuple(section.classes), tuple(map(tuple, palette)),
                           {f"{num_classes} classes": tuple(range(num_classes))})


def label_table(section: DataConfig, num_classes: int) -> np.ndarray:
    """uint8 [65536]: label id in the section's files -> train id (`labels.lookup_table`)."""
    if section.type != "folder":
        return labels.street_table(LAYOUTS[section.type].label_ids, num_classes)
    return labels.lookup_table(section.label_ids or {c: c for c in range(num_classes)})


def known_ids(section: DataConfig, num_classes: int) -> set[int]:
    """The label ids that may occur in the section's files: those of its classes, the known void ones, IGNORE_INDEX."""
    layout = LAYOUTS.get(section.type)
    ids = layout.label_ids if layout else section.label_ids or range(num_classes)
    return {*ids, *(layout.void_ids if layout else ()), labels.IGNORE_INDEX}


def find_samples(section_name: str, section: DataConfig, split: str, required: bool = True,
                 complete: bool = True) -> list[Sample]:
    """The images of a split with the label paths that belong to them (which need not exist), in order of name.

    The training split is what `data_list` lists, the validation split what `data_list_val` lists; without a list the
    folder is scanned, linked folders too. gta5 and synthia have one split. Raises DataError if the folder, the list or
    (unless `complete` is False) a listed image is missing, if a name of a list leaves the folder, by `..` or by a link
    (data_dir and the pattern's folder may be links themselves), or if nothing is found and the split is `required`.
    """
    layout = LAYOUTS.get(section.type) or Layout(section.images, section.labels)
    root = Path(section.data_dir)
    if not os.path.isdir(root):
        raise DataError(f"{section_name}.data_dir: no folder {str(root)!r}: give the folder that holds "
                        f"{layout.images.format(split=split, name='<name>')!r}.")
    base, suffix = _split_pattern(layout.images, split)
    list_file = section.data_list if split == "train" else section.data_list_val
    if list_file:
        names = _read_list(section_name, "data_list" if split == "train" else "data_list_val", list_file, base, suffix)
    else:
        names = _scan(root / base, suffix)
    if not names and required:
        found = f"list {list_file!r} is empty" if list_file else f"no image matches {str(root / base)}/*{suffix or ''}"
        raise DataError(f"{section_name}: {found}: check data_dir, the split {split!r} and the file names.")
    samples = []
    for name, image in names.items():
        sample = Sample(name, root / base / image, _label_path(root, layout.labels, split, name))
        if list_file:
            _require_inside(root, root / base, sample.image, list_file)
            if sample.label:
                _require_inside(root, root / _split_pattern(layout.labels, split)[0], sample.label, list_file)
            if complete and not os.path.isfile(sample.image):
                raise DataError(f"{sample.image}: listed in {list_file!r} but not there: check {section_name}.data_dir "
                                "or the list.")
        samples.append(sample)
    return samples


def has_labels(samples: list[Sample]) -> bool:
    """True if every sample's label file exists, False if none does. Raises DataError naming the first of a few gaps."""
    missing = [s for s in samples if s.label is None or not os.path.isfile(s.label)]
    if missing and len(missing) < len(samples):
        raise DataError(f"{missing[0].image}: its label {missing[0].label} is missing ({len(missing)} of "
                        f"{len(samples)} labels are): add it, or take the image out of the split.")
    return not missing


def require_labels(section_name: str, samples: list[Sample]) -> None:
    """Raise DataError unless every sample's label file exists."""
    if not has_labels(samples):
        raise DataError(f"{samples[0].image}: its label {samples[0].label} is missing, as are all others: "
                        f"check {section_name}'s labels; this step needs them.")


def fingerprint(samples: list[Sample]) -> str:
    """Hexadecimal SHA-256 of the names and the image files' sizes, which tells whether a data set has changed."""
    listed = [(s.name, os.path.getsize(s.image) if os.path.isfile(s.image) else None) for s in samples]
    return hashlib.sha256(repr(listed).encode()).hexdigest()


def read_pair(sample: Sample, table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Image uint8 [H, W, 3] and train ids uint8 [H, W] of one sample. Raises DataError if their sizes differ."""
    image, label = read_image(sample.image), read_label(sample.label, table)
    require_same_size(sample.image, image.shape[1::-1], sample.label, label)
    return image, label


def _split_pattern(pattern: str, split: str) -> tuple[str, str | None]:
    """(folder, what follows the name) of a layout pattern; None where any image extension may follow."""
    folder, name, suffix = pattern.replace("{split}", split).partition("{name}")
    return folder.rstrip("/"), suffix if name else None


def _label_path(root: Path, pattern: str | None, split: str, name: str) -> Path | None:
    if pattern is None:
        return None
    folder, suffix = _split_pattern(pattern, split)
    return root / folder / (name + (".png" if suffix is None else suffix))


def _require_inside(root: Path, folder: Path, path: Path, list_file: str) -> None:
    real = os.path.realpath(path)
    if not any(real.startswith(os.path.join(os.path.realpath(f), "")) for f in (root, folder)):
        raise DataError(f"{path}: named by {list_file!r}, is a link out of {str(root)!r} to {real!r}: copy the file "
                        "there, or link the whole data folder.")


def _scan(folder: Path, suffix: str | None) -> dict[str, str]:
    """name -> path below `folder` of every image in it, sorted. A dangling link counts: reading will name it."""
    def refuse(error):
        raise DataError(f"{error.filename}: cannot be listed ({error.strerror}): make the folder readable.")
    endings = tuple(e.lower() for e in (IMAGE_EXTENSIONS if suffix is None else (suffix,)))
    paths, seen = [], set()
    for here, folders, files in os.walk(folder, followlinks=True, onerror=refuse) if os.path.isdir(folder) else ():
        folders.sort()
        if (real := os.path.realpath(here)) in seen:  # a link back to a folder already read
            folders.clear()
            continue
        seen.add(real)
        files = [Path(here, name) for name in files]
        paths += [p.relative_to(folder).as_posix() for p in files if os.path.isfile(p) or os.path.islink(p)]
    found = {}
    for relative in sorted(paths, key=lambda p: p.split("/")):
        if relative.lower().endswith(endings):
            _add(found, relative, suffix)
    return found


def _read_list(section_name: str, key: str, list_file: str, base: str, suffix: str | None) -> dict[str, str]:
    """name -> path below the image folder of every line; a line's first field counts, with or without the folder."""
    try:
        if os.path.exists(list_file) and not os.path.isfile(list_file):  # a device or a pipe may never end
            raise OSError("not a file")
        lines = Path(list_file).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise DataError(f"{section_name}.{key}: cannot read {list_file!r} ({error}): correct the path, or set it to "
                        "None to take every image of the folder.") from None
    found = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        written = line.split()[0]
        entry = str(PurePosixPath(written.removeprefix(base + "/")))
        if "\0" in written or PurePosixPath(written).is_absolute() or ".." in PurePosixPath(entry).parts:
            raise DataError(f"{list_file}, line {number}: {written!r} points outside the data folder: give names below "
                            f"{base or 'data_dir'!r}.")
        if not entry.endswith(suffix or "") or entry.rpartition("/")[2] in (".", suffix):
            raise DataError(f"{list_file}, line {number}: {written!r} does not end in {suffix or 'a file name'!r}, as "
                            f"the images of {section_name} do.")
        _add(found, entry, suffix)
    return found


def _add(found: dict[str, str], relative: str, suffix: str | None) -> None:
    name = str(PurePosixPath(relative).with_suffix("")) if suffix is None else relative[: -len(suffix)]
    if name in found:
        raise DataError(f"{relative} and {found[name]} share the name {name!r}: pseudo labels could not be told apart; "
                        "keep one of them.")
    found[name] = relative

"""Finding out how the images of a folder and their labels are laid out: values for the keys `data_dir`, `images` and
`labels` of a data-set section. Paths are text below data_dir, with "/"."""
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dataset.pairing import SPLITS, paired
from dataset.patterns import IMAGE_EXTENSIONS, LABEL_EXTENSIONS, OTHER_PICTURES, Pattern, Tree, scan
from utils.errors import ConfigError, DataError

VIDEOS = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv", ".ts", ".mts")
# Names of folders that hold labels, in lower case.
_LABEL_FOLDERS = frozenset(("label", "labels", "mask", "masks", "gt", "gtfine", "ground_truth", "groundtruth",
                            "annotation", "annotations", "segmentation", "labelids", "labeltrainids", "seg"))


@dataclass(frozen=True)
class Layout:
    """Where images and labels are, as the keys of a data-set section say it."""

    data_dir: str
    images: str
    labels: str | None = None

    @property
    def splits(self) -> bool:
        """Whether the images are sorted into train and val."""
        return "{split}" in self.images


def find_layout(images: str, labels: str | None) -> Layout:
    """The layout of a folder of images and a folder of labels, which may be the same or one in the other. Raises
    DataError if there are no images, or no label fits any."""
    for option, folder in (("--images", images), ("--labels", labels)):
        if folder is not None:
            _require_folder(option, folder)
    data_dir = _common(images, labels or images)
    tree = Tree(data_dir)
    root = _below(data_dir, images)
    paths = _scanned(tree, root, IMAGE_EXTENSIONS)
    if labels is None:
        if not paths:
            raise DataError(_no_images(tree, root, images))
        return Layout(_written(data_dir), _folder(paths, root))
    label_root = _below(data_dir, labels)
    label_paths = _scanned(tree, label_root, LABEL_EXTENSIONS)
    paths, label_paths = _apart(paths, root, label_paths, label_root)
    if not paths:
        raise DataError(_no_images(tree, root, images))
    if not label_paths:
        raise DataError(f"--labels: no label in {labels!r}: none of {', '.join(LABEL_EXTENSIONS)}; leave --labels out "
                        "if there are none.")
    root = root if not _inside(label_root, root) or label_root == root else _common_folder(paths)
    found = max((paired(tree, paths, _folder(paths, root, tight), label_paths, _folder(label_paths, label_root, tight))
                 for tight in (False, True)), key=lambda pairing: pairing.count)
    if not found.count:
        raise DataError(f"--labels: no label fits an image by its name: the first image is {tree.root / paths[0]}, the "
                        f"first label {tree.root / label_paths[0]}: give labels the images' names, or such with an "
                        "ending, in folders of the same names.")
    return Layout(_written(data_dir), found.images, found.labels)


# ---- folders ---------------------------------------------------------------------------------------------------------

def _require_folder(option, folder):
    if os.path.isfile(folder):
        what = "is a video: extract its frames first, and give their folder" + _ffmpeg(folder) if \
            folder.lower().endswith(VIDEOS) else "is a file: give the folder that it is in."
        raise ConfigError(f"{option}: {folder!r} {what}")
    if not os.path.isdir(folder):
        raise ConfigError(f"{option}: no folder {folder!r}: check the path.")
    if not folder.isprintable() or folder != folder.encode(errors="replace").decode():
        raise ConfigError(f"{option}: {folder!r} holds characters that a configuration cannot: rename the folder, or "
                          "give a link to it.")


def _no_images(tree, root, given):
    """The error of a folder without images: what is there instead."""
    videos = _scanned(tree, root, VIDEOS)
    if videos:
        return (f"--images: {given!r} holds videos ({len(videos)}, the first {videos[0]!r}) and no images: extract "
                f"their frames{_ffmpeg(str(tree.root / videos[0]))}")
    others = _scanned(tree, root, OTHER_PICTURES)
    there = ": check the path"
    if others:
        there = f", but {len(others)} pictures of other kinds, the first {others[0]!r}: save them as PNG or JPEG"
    return f"--images: no image in {given!r}: none of {', '.join(IMAGE_EXTENSIONS)}{there}."


def _ffmpeg(video):
    return f", such as: mkdir -p frames && ffmpeg -i {_quoted(video)} -vf fps=1 frames/%06d.png"


def _quoted(text):
    return "'" + text.replace("'", "'\\''") + "'"


def _scanned(tree: Tree, root: str, extensions: tuple[str, ...]) -> list[str]:
    return scan(tree, Pattern(root, "", None, extensions))[0]


def _common(images, labels):
    """The folder above both, written as they are; one of them if they are the same or one is in the other."""
    if os.path.isabs(images) != os.path.isabs(labels) or os.path.normpath(images).startswith("..") \
            or os.path.normpath(labels).startswith(".."):
        images, labels = os.path.abspath(images), os.path.abspath(labels)
    return os.path.commonpath([os.path.normpath(images), os.path.normpath(labels)]) or "."


def _below(data_dir: str, folder: str) -> str:
    """The path of a folder below data_dir, "" for data_dir itself. Raises ConfigError if no pattern can name it."""
    path = os.path.relpath(os.path.abspath(folder), os.path.abspath(data_dir)).replace(os.sep, "/")
    path = "" if path == "." else path
    if set(path) & set("{}*"):
        raise ConfigError(f"{folder!r}: a folder whose name holds {{, }} or * cannot be named beside another one: "
                          "rename it, or give a link to it.")
    return path


def _written(data_dir: str) -> str:
    """A data_dir as the configuration has it: a relative one begins with ./ so that it is read as what it is."""
    return data_dir if os.path.isabs(data_dir) or data_dir == "." else "./" + os.path.normpath(data_dir)


def _inside(path: str, folder: str) -> bool:
    return not folder or path == folder or path.startswith(folder + "/")


def _common_folder(paths: Sequence[str]) -> str:
    return os.path.commonpath([os.path.dirname(path) for path in paths]) if all(map(os.path.dirname, paths)) else ""


def _apart(paths, root, label_paths, label_root):
    """Images and labels, where one of the folders holds the other: labels are what is in the labels' folder or, if that
    is the same, in folders with such a name, if there are any."""
    if label_root != root:
        return ([p for p in paths if not _inside(label_root, root) or not _inside(p, label_root)],
                [p for p in label_paths if not _inside(root, label_root) or not _inside(p, root)])
    def of_labels(path):
        return bool({part.lower() for part in path.split("/")[:-1]} & _LABEL_FOLDERS)
    if any(map(of_labels, label_paths)):
        return [p for p in paths if not of_labels(p)], list(filter(of_labels, label_paths))
    return paths, label_paths


def _folder(paths: Sequence[str], root: str, tight: bool = False) -> str:
    """The pattern of the folder of these paths, all below `root`: with {split} if folders of them are called train or
    val, and * for folders above it that differ. tight: with the folders further below that all share."""
    start = root.count("/") + 1 if root else 0
    parts = [path.split("/")[:-1] for path in paths]
    places = Counter(next((i for i in range(start, len(p)) if p[i] in SPLITS), None) for p in parts)
    at = max((place for place in places if place is not None), key=lambda place: places[place], default=None)
    if at is None:
        inner = _common_folder(paths) if tight else ""
        return (inner if not set(inner) & set("{}*") else "") or root or "."
    parts = [p for p in parts if len(p) > at and p[at] in SPLITS]
    shared = [level[0] if len(set(level)) == 1 and not set(level[0]) & set("{}*") else "*" for level in zip(*parts)]
    below = []
    for name in shared[at + 1:] if tight else ():
        if name == "*":
            break
        below.append(name)
    return "/".join([*shared[:at], "{split}", *below])


def neighbour(images: str) -> Path | None:
    """The folder of the other split beside a folder called train or val, if it is there."""
    folder = Path(os.path.abspath(images))
    other = folder.with_name("val" if folder.name == "train" else "train")
    return other if folder.name in SPLITS and other.is_dir() else None

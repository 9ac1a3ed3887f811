"""The data sets: where each keeps its files, how its labels are read, and the two views that training and evaluation
take of it. No sample is ever replaced: whatever cannot be read raises a DataError that names the file."""
import warnings
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from dataset import labels, transforms
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
    label_ids: dict[int, int] | None  # label id -> train id of the 19 street classes; None: given by the user


LAYOUTS = {
    "gta5": Layout("images/{name}.png", "labels/{name}.png", labels.CITYSCAPES_IDS),
    "synthia": Layout("RGB/{name}.png", "GT/LABELS/{name}.png", labels.SYNTHIA_IDS),
    "cityscapes": Layout("leftImg8bit/{split}/{name}_leftImg8bit.png", "gtFine/{split}/{name}_gtFine_labelIds.png",
                         labels.CITYSCAPES_IDS),
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


def find_samples(section_name: str, section: DataConfig, split: str, required: bool = True) -> list[Sample]:
    """The images of a split with the label paths that belong to them (which need not exist), in order of name.

    The training split is what `data_list` lists, the validation split what `data_list_val` lists; without a list the
    folder is scanned. gta5 and synthia have one split. Raises DataError if the folder, the list or a listed image is
    missing, if a list names a file outside the folder, or if nothing is found and the split is `required`.
    """
    layout = LAYOUTS.get(section.type) or Layout(section.images, section.labels, None)
    root = Path(section.data_dir)
    if not root.is_dir():
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
        image = root / base / image
        if list_file and not image.is_file():
            raise DataError(f"{image}: listed in {list_file!r} but not there: check {section_name}.data_dir or the list.")
        samples.append(Sample(name, image, _label_path(root, layout.labels, split, name)))
    return samples


def has_labels(samples: list[Sample]) -> bool:
    """True if every sample's label file exists, False if none does. Raises DataError naming the first of a few gaps."""
    missing = [s for s in samples if s.label is None or not s.label.is_file()]
    if missing and len(missing) < len(samples):
        raise DataError(f"{missing[0].image}: its label {missing[0].label} is missing ({len(missing)} of {len(samples)} "
                        "labels are): add it, or take the image out of the split.")
    return not missing


def require_labels(section_name: str, samples: list[Sample]) -> None:
    """Raise DataError unless every sample's label file exists."""
    if not has_labels(samples):
        raise DataError(f"{samples[0].image}: its label {samples[0].label} is missing, as are all others: "
                        f"check {section_name}'s labels; this step needs them.")


def read_image(path: Path) -> Image.Image:
    """The image as RGB, decoded. Raises DataError naming a file that is missing, truncated or no image."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                return image.convert("RGB")
    except FileNotFoundError:
        raise DataError(f"{path}: image not found.") from None
    except Exception as error:  # Pillow's decoders raise many kinds for damaged files
        raise DataError(f"{path}: cannot be read as an image ({error}): replace it or take it out of the list.") from None


def read_label(path: Path, table: np.ndarray) -> np.ndarray:
    """Train ids uint8 [H, W] of a label file: 8-bit grey or palette (the index is the id), 16-bit grey, or 16-bit RGB
    (the id is in the first channel, as in SYNTHIA). Raises DataError naming a file of any other kind."""
    try:
        with Image.open(path) as image:
            if image.mode in ("L", "P", "I;16", "I;16B", "I"):
                ids = np.asarray(image)
            elif image.format == "PNG":
                ids = _first_channel(path)
            else:
                raise ValueError(f"mode {image.mode}, expected one channel, or 16-bit RGB in a PNG")
        return table[ids]
    except FileNotFoundError:
        raise DataError(f"{path}: label not found.") from None
    except Exception as error:
        raise DataError(f"{path}: cannot be read as a label ({error}).") from None


def read_pair(sample: Sample, table: np.ndarray) -> tuple[Image.Image, np.ndarray]:
    """Image and train ids of one sample. Raises DataError if their sizes differ."""
    image, label = read_image(sample.image), read_label(sample.label, table)
    if label.shape != (image.height, image.width):
        raise DataError(f"{sample.label}: label is {label.shape[1]}x{label.shape[0]}, its image {sample.image} is "
                        f"{image.width}x{image.height}: mend it or take the pair out of the list.")
    return image, label


class TrainingCrops(Dataset):
    """Random crops, addressed by (round, epoch, index): a crop is a function of these and the seed alone, whatever
    number of workers draws it. Items: image uint8 [3, crop, crop] RGB, label int64 [crop, crop] train ids, name."""

    def __init__(self, samples: list[Sample], table: np.ndarray, shorter_edge: int, crop: int,
                 scales: tuple[float, ...], mirror: bool, seed: int):
        self.samples, self.table, self.seed = samples, table, seed
        self.shorter_edge, self.crop, self.scales, self.mirror = shorter_edge, crop, scales, mirror

    def __getitem__(self, key: tuple[int, int, int]):
        sample = self.samples[key[2]]
        image, label = read_pair(sample, self.table)
        rng = np.random.default_rng([self.seed, *key])
        window = transforms.draw_window(rng, label.shape, self.shorter_edge, self.crop, self.scales, self.mirror)
        image = transforms.cut(image, window, self.crop, Image.Resampling.BICUBIC)
        label = transforms.cut(Image.fromarray(label), window, self.crop, Image.Resampling.NEAREST)
        return {"image": transforms.image_tensor(image), "label": torch.from_numpy(np.array(label)).long(),
                "name": sample.name}


class WholeImages(Dataset):
    """Whole images at the evaluation size. Items: image uint8 [1, 3, h, w] RGB, size (H, W) of the file, name, and,
    where a table is given, label uint8 [H, W] train ids."""

    def __init__(self, samples: list[Sample], input_size: tuple[int, int], table: np.ndarray | None = None):
        self.samples, self.input_size, self.table = samples, tuple(input_size), table

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index: int):
        sample = self.samples[index]
        item = {"name": sample.name}
        if self.table is None:
            image = read_image(sample.image)
        else:
            image, label = read_pair(sample, self.table)
            item["label"] = torch.from_numpy(label)
        item["size"] = (image.height, image.width)
        resized = image.resize(self.input_size, Image.Resampling.BICUBIC)
        item["image"] = transforms.image_tensor(resized).unsqueeze(0)
        return item


class WholeLabels(Dataset):
    """The labels of whole images alone. Items: uint8 [H, W] train ids, checked to have the image's size."""

    def __init__(self, samples: list[Sample], table: np.ndarray):
        self.samples, self.table = samples, table

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index: int):
        return torch.from_numpy(read_pair(self.samples[index], self.table)[1])


def _split_pattern(pattern: str, split: str) -> tuple[str, str | None]:
    """(folder, what follows the name) of a layout pattern; None where any image extension may follow."""
    folder, name, suffix = pattern.replace("{split}", split).partition("{name}")
    return folder.rstrip("/"), suffix if name else None


def _label_path(root: Path, pattern: str | None, split: str, name: str) -> Path | None:
    if pattern is None:
        return None
    folder, suffix = _split_pattern(pattern, split)
    return root / folder / (name + (".png" if suffix is None else suffix))


def _scan(folder: Path, suffix: str | None) -> dict[str, str]:
    """name -> path below `folder` of every image in it, sorted by name."""
    if not folder.is_dir():
        return {}
    endings = IMAGE_EXTENSIONS if suffix is None else (suffix,)
    found = {}
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder).as_posix()
        if relative.lower().endswith(tuple(e.lower() for e in endings)) and path.is_file():
            _add(found, relative, suffix)
    return found


def _read_list(section_name: str, key: str, list_file: str, base: str, suffix: str | None) -> dict[str, str]:
    """name -> path below the image folder of every line; a line's first field counts, with or without the folder."""
    try:
        lines = Path(list_file).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{section_name}.{key}: cannot read {list_file!r} ({error}): correct the path, or set it to "
                        "None to take every image of the folder.") from None
    found = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        entry = line.split()[0].removeprefix(base + "/")
        if PurePosixPath(entry).is_absolute() or ".." in PurePosixPath(entry).parts:
            raise DataError(f"{list_file}, line {number}: {entry!r} points outside the data folder.")
        if suffix is not None and not entry.endswith(suffix):
            raise DataError(f"{list_file}, line {number}: {entry!r} does not end in {suffix!r}, as the images of "
                            f"{section_name} do.")
        _add(found, entry, suffix)
    return found


def _add(found: dict[str, str], relative: str, suffix: str | None) -> None:
    name = str(PurePosixPath(relative).with_suffix("")) if suffix is None else relative[: -len(suffix)]
    if name in found:
        raise DataError(f"{relative} and {found[name]} share the name {name!r}: pseudo labels could not be told apart; "
                        "keep one of them.")
    found[name] = relative


def _first_channel(path: Path) -> np.ndarray:
    """First channel [H, W] of a 16-bit RGB PNG. Pillow keeps only the high bytes of such a file."""
    import cv2  # late: only SYNTHIA needs it
    pixels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if pixels is None or pixels.dtype != np.uint16:
        raise ValueError("expected one channel, or 16-bit RGB")
    return pixels[:, :, 2]  # OpenCV's order is blue, green, red

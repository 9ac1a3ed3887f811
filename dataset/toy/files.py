"""Writing the toy world to disk, in the layouts of GTA5, SYNTHIA and Cityscapes."""
import json
import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from dataset.labels import CITYSCAPES_CLASSES, CITYSCAPES_IDS, CITYSCAPES_PALETTE, SYNTHIA_IDS
from dataset.toy.camera import render
from dataset.toy.canvas import LABEL_ID
from dataset.toy.looks import LAYOUT, LOOK, STRENGTH
from utils.errors import ConfigError, DataError, naming
from utils.processes import map_in_order
from utils.progress import Progress

VERSION = 1  # raise it when the drawing changes: worlds of an older version are then drawn again
MARKER = "toy.json"
CITIES = {"train": ("eichstadt", "lindenau", "morwald"), "val": ("suderburg",)}


def png_rgb16(pixels: np.ndarray) -> bytes:
    """A 16-bit RGB PNG of uint16 [H, W, 3], which Pillow cannot write (PNG specification, colour type 2)."""
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    height, width = pixels.shape[:2]
    rows = pixels.astype(">u2").reshape(height, -1).view(np.uint8)
    rows = np.concatenate([np.zeros((height, 1), np.uint8), rows], 1)  # filter type 0 before every row
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0))
            + chunk(b"IDAT", zlib.compress(rows.tobytes(), 6)) + chunk(b"IEND", b""))


def save_label(path: Path, label: np.ndarray, dataset: str) -> None:
    """Write Cityscapes label ids uint8 [H, W] in the ids and the file format of a data set."""
    if dataset == "synthia":
        table = np.zeros(256, np.uint16)
        for label_id, train_id in SYNTHIA_IDS.items():
            table[LABEL_ID[CITYSCAPES_CLASSES[train_id]]] = label_id
        ids = table[label]
        path.write_bytes(png_rgb16(np.stack([ids, ids * 7 % 50, np.zeros_like(ids)], 2)))
        return
    image = Image.fromarray(label)
    if dataset == "gta5":
        palette = np.zeros((256, 3), np.uint8)
        for label_id, train_id in CITYSCAPES_IDS.items():
            palette[label_id] = CITYSCAPES_PALETTE[train_id]
        image = image.convert("P")
        image.putpalette(palette.tobytes())
    image.save(path)


def write_pair(item: tuple, seed: int, size: tuple[int, int], strength: float) -> None:
    """Draw and write one image and its label. item: one of `world_files`."""
    dataset, split, index, image_path, label_path = item
    image, label = render(seed, dataset, split, index, size, strength)
    with naming(image_path):
        Image.fromarray(image).save(image_path, compress_level=3)
    with naming(label_path):
        save_label(label_path, label, dataset)


def world_files(root: Path, source: int, synthia: int, train: int,
                val: int) -> Iterator[tuple[str, str, int, Path, Path]]:
    """Yields (data set, split, index, image path, label path) for all images of a world."""
    for i in range(source):
        file = f"{i + 1:05d}.png"
        yield "gta5", "train", i, root / "gta5/images" / file, root / "gta5/labels" / file
    for i in range(synthia):
        file = f"{i:07d}.png"
        yield "synthia", "train", i, root / "synthia/RGB" / file, root / "synthia/GT/LABELS" / file
    for split, number in (("train", train), ("val", val)):
        for i in range(number):
            city = CITIES[split][i % len(CITIES[split])]
            stem = f"{city}_{i // len(CITIES[split]):06d}_000019"
            yield ("cityscapes", split, i, root / "cityscapes/leftImg8bit" / split / city / f"{stem}_leftImg8bit.png",
                   root / "cityscapes/gtFine" / split / city / f"{stem}_gtFine_labelIds.png")


def read_marker(root: Path) -> dict | None:
    """The marker of the world in `root`, None if `root` is new or empty. Raises DataError if it holds other files."""
    if not os.path.exists(root) or root.is_dir() and not any(root.iterdir()):
        return None
    try:
        marker = json.loads((root / MARKER).read_text())
        return {**marker, "counts": {k: int(marker["counts"][k]) for k in ("source", "synthia", "train", "val")}}
    except (OSError, ValueError, KeyError, TypeError):
        raise DataError(f"{root} is not empty and has no valid {MARKER} of a toy world: give a new or empty folder, "
                        "nothing was changed") from None


def write_toy_world(root: str | Path, seed: int = 0, size: tuple[int, int] = (256, 128), source: int = 400,
                    synthia: int = 40, train: int = 300, val: int = 100, strength: float = STRENGTH) -> str:
    """Write a toy world below `root`. size: (width, height). Returns a line that says what was done.

    An earlier toy world in `root` is replaced, or kept if it is complete and has the same parameters. Raises
    ConfigError for impossible parameters, DataError if `root` holds anything else.
    """
    root, counts = Path(root), {"source": source, "synthia": synthia, "train": train, "val": val}
    for name, value, low, high in (("seed", seed, 0, 2**63), ("strength", strength, 0, 1.5),
                                   ("size", min(size), 32, 4096), ("size", max(size), 32, 4096),
                                   *((k, n, 0, 99999) for k, n in counts.items())):
        if not low <= value <= high:
            raise ConfigError(f"--{name}: {value} is not within {low}..{high}.")
    old, files = read_marker(root), list(world_files(root, **counts))
    marker = {"version": VERSION, "seed": seed, "size": list(size), "counts": counts, "strength": strength,
              "look": {k: asdict(v) for k, v in LOOK.items()}, "layout": {k: asdict(v) for k, v in LAYOUT.items()}}
    if old == {"complete": True, **marker} and all(path.is_file() for item in files for path in item[3:]):
        return f"{root}: already there ({len(files)} images, seed {seed})"
    for *_, image_path, label_path in world_files(root, **old["counts"]) if old else ():
        image_path.unlink(missing_ok=True)
        label_path.unlink(missing_ok=True)
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{root}: cannot be made ({error.strerror}): give another folder as --root.") from None
    # The marker says incomplete until the last image is written, so that an interrupted run can be repeated.
    (root / MARKER).write_text(json.dumps({"complete": False, **marker}, indent=1))
    for folder in {path.parent for item in files for path in item[3:]}:
        folder.mkdir(parents=True, exist_ok=True)
    draw = partial(write_pair, seed=seed, size=size, strength=strength)
    drawn = map_in_order(draw, files, min(os.cpu_count() or 1, 8, len(files) // 64), title=lambda item: str(item[3]))
    for _ in zip(Progress(files, "toy world", 100, True), drawn, strict=True):
        pass
    (root / MARKER).write_text(json.dumps({"complete": True, **marker}, indent=1))
    return (f"{root}: wrote {source} gta5, {synthia} synthia, {train} + {val} cityscapes images of "
            f"{size[0]} x {size[1]}, seed {seed}")

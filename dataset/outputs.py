"""Files of a prediction: label ids as indexed PNG, colours, overlay on the photo, confidence; and what they mean."""
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from dataset.class_sets import class_set, label_classes
from dataset.labels import IGNORE_INDEX, STREET_PROTOCOLS
from dataset.segmentation import LAYOUTS
from utils.checkpoint import write_atomically
from utils.config import Config
from utils.errors import ConfigError
from utils.visualize import colourise

KINDS = ("ids", "color", "overlay", "confidence")
TRAIN, LABEL = "train", "label"  # which ids are written: numbers of the network's classes, or those of label files
_FAST = 1  # level of PNG's compression: others take several times as long and save little of label maps


@dataclass(frozen=True)
class Legend:
    """What is written for class c of the network: the id `ids[c]`, named `names[c]`, in `palette[c]` (RGB)."""

    ids: tuple[int, ...]
    names: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]

    def json(self) -> bytes:
        """A list of {id, name, color}, in the order of the network's classes, one a line."""
        rows = [json.dumps({"id": i, "name": name, "color": colour}, ensure_ascii=False)
                for i, name, colour in zip(self.ids, self.names, self.palette)]
        return ("[\n" + ",\n".join(rows) + "\n]\n").encode()


def legend(cfg: Config, which: str) -> Legend:
    """The legend of a configuration's network. which: TRAIN or LABEL, the ids of the target's label files. Raises
    ConfigError where a class has no label id, or several."""
    classes = class_set(cfg)
    ids = tuple(range(len(classes))) if which == TRAIN else _label_ids(cfg, classes.names)
    return Legend(ids, classes.names, classes.palette)


def _label_ids(cfg: Config, names: tuple[str, ...]) -> tuple[int, ...]:
    section, advice = cfg.target_data, f"; write --ids {TRAIN}, and map them yourself."
    if names != label_classes(section, cfg.num_classes).names:
        raise ConfigError(f"--ids {LABEL}: the network's classes are not those of the labels of {cfg.target}{advice}")
    if section.type != "folder":
        kept = STREET_PROTOCOLS[cfg.num_classes]
        known: Mapping[int, int] = {i: kept.index(t) for i, t in LAYOUTS[section.type].label_ids.items() if t in kept}
    else:
        known = section.label_ids or {c: c for c in range(len(names))}
    found = [[i for i, train_id in known.items() if train_id == c and train_id != IGNORE_INDEX]
             for c in range(len(names))]
    for name, ids in zip(names, found):
        if len(ids) != 1 or ids[0] > 255:
            what = f"the ids {', '.join(map(str, ids))}" if len(ids) > 1 else \
                f"the id {ids[0]}, and an indexed PNG holds 0..255" if ids else "no id"
            raise ConfigError(f"--ids {LABEL}: by {cfg.target}.label_ids the class {name!r} has {what}{advice}")
    return tuple(ids[0] for ids in found)


def pictures(kinds: Sequence[str], ids: np.ndarray, key: Legend, confidence: np.ndarray | None,
             photo: np.ndarray | None) -> Iterator[tuple[str, Image.Image]]:
    """The pictures of one image, (kind, picture), one after the other, as large ones take much memory.

    ids: uint8 [H, W] numbers of the network's classes. confidence: uint8 [H, W], for that kind. photo: uint8 [H, W, 3],
    for the overlay, which is the mean of photo and colours.
    """
    for kind in kinds:
        if kind == "ids":
            yield kind, _indexed(ids, key)
        elif kind == "confidence":
            yield kind, Image.fromarray(confidence)
        elif kind == "color":
            yield kind, colourise(ids, key.palette)
        else:
            yield kind, Image.blend(Image.fromarray(photo), colourise(ids, key.palette), 0.5)


def _indexed(ids, key):
    table, palette = np.zeros(256, np.uint8), np.zeros((256, 3), np.uint8)
    table[:len(key.ids)] = key.ids
    palette[list(key.ids)] = key.palette
    picture = Image.fromarray(table[ids])
    picture.putpalette(palette.tobytes())
    return picture


def output_path(folder: Path, kind: str, name: str) -> Path:
    """Where the picture of a kind is written for an image of that name."""
    return folder / kind / f"{name}.png"


def write_png(path: Path, picture: Image.Image) -> int:
    """Write a picture atomically; its size in bytes. Raises CheckpointError if it cannot be written."""
    png = io.BytesIO()
    picture.save(png, "PNG", compress_level=_FAST)
    write_atomically(path, lambda file: file.write(png.getbuffer()))
    return len(png.getbuffer())

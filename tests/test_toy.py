"""The toy world: deterministic, complete, in the real layouts, with a shift between its two domains."""
import hashlib
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from dataset.labels import CITYSCAPES_IDS, SYNTHIA_IDS, lookup_table
from dataset.toy import write_toy_world
from dataset.toy.__main__ import main
from dataset.toy.camera import look_of, render
from dataset.toy.files import MARKER
from dataset.toy.looks import LOOK
from utils.errors import ConfigError, DataError

SIZE = (128, 64)
SMALL = {"size": SIZE, "source": 2, "synthia": 1, "train": 3, "val": 1}
GTA5, SYNTHIA, CITYSCAPES = ("gta5/images", "gta5/labels"), ("synthia/RGB", "synthia/GT/LABELS"), (
    "cityscapes/leftImg8bit", "cityscapes/gtFine")


def files_of(root):
    """Relative path -> digest of every file under root."""
    return {p.relative_to(root).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()
            for p in root.rglob("*") if p.is_file()}


def read_rgb16(path):
    """uint16 [H, W, 3] of a 16-bit RGB PNG with filter type 0; asserts bit depth and colour type."""
    data, at, stream = path.read_bytes(), 8, b""
    while at < len(data):
        length, kind = struct.unpack(">I4s", data[at:at + 8])
        body = data[at + 8:at + 8 + length]
        assert struct.unpack(">I", data[at + 8 + length:at + 12 + length])[0] == zlib.crc32(kind + body)
        if kind == b"IHDR":
            width, height, depth, colour, *_ = struct.unpack(">IIBBBBB", body)
            assert (depth, colour) == (16, 2)
        stream += body if kind == b"IDAT" else b""
        at += 12 + length
    rows = np.frombuffer(zlib.decompress(stream), np.uint8).reshape(height, 1 + width * 6)
    assert not rows[:, 0].any()
    return rows[:, 1:].copy().view(">u2").reshape(height, width, 3)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("toy") / "world"
    write_toy_world(root, size=SIZE, source=24, synthia=24, train=18, val=6)
    return root


def pairs(root, image_dir, label_dir, pattern="*.png"):
    images, labels = sorted((root / image_dir).rglob(pattern)), sorted((root / label_dir).rglob(pattern))
    assert len(images) == len(labels) == 24
    return list(zip(images, labels))


def test_same_seed_same_bytes_other_seed_other_bytes(tmp_path):
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        np.random.seed(seed * 7)  # whatever else happened
        write_toy_world(tmp_path / name, seed=seed, **SMALL)
    a, b, c = (files_of(tmp_path / n) for n in "abc")
    assert a == b
    assert a.keys() == c.keys() and all(a[k] != c[k] for k in a)


def test_image_does_not_depend_on_the_other_images(tmp_path, world):
    write_toy_world(tmp_path, **SMALL)
    large, small = files_of(world), files_of(tmp_path)
    assert {k for k in small if small[k] != large[k]} == {MARKER}


@pytest.mark.parametrize("folders", [GTA5, CITYSCAPES])
def test_all_classes_occur_and_layout_is_real(world, folders):
    table, seen, outside = lookup_table(CITYSCAPES_IDS), set(), set()
    for image_path, label_path in pairs(world, *folders):
        image, label = Image.open(image_path), Image.open(label_path)
        assert image.mode == "RGB" and image.size == label.size == SIZE
        assert label.mode == ("P" if folders == GTA5 else "L") and label_path.read_bytes()[24] == 8
        ids = np.asarray(label)
        seen |= set(np.unique(table[ids]).tolist())
        outside |= set(np.unique(ids).tolist()) - set(CITYSCAPES_IDS)
    assert seen == set(range(19)) | {255}
    assert outside <= {1, 4, 10} and (1 in outside) == (folders == CITYSCAPES)


def test_synthia_is_16_bit_and_lacks_its_three_classes(world):
    seen = set()
    for image_path, label_path in pairs(world, *SYNTHIA):
        label = read_rgb16(label_path)
        assert label.shape[1::-1] == Image.open(image_path).size == SIZE
        seen |= set(np.unique(label[..., 0]).tolist())
    train_ids = {SYNTHIA_IDS[i] for i in seen if i in SYNTHIA_IDS}
    assert set(range(19)) - train_ids == {9, 14, 16}
    assert seen - set(SYNTHIA_IDS) <= {0}


def test_names_follow_the_published_sets(world):
    assert (world / "gta5/images/00001.png").exists() and (world / "gta5/labels/00024.png").exists()
    assert (world / "synthia/RGB/0000000.png").exists() and (world / "synthia/GT/LABELS/0000023.png").exists()
    cities = {s: {p.name for p in (world / "cityscapes/leftImg8bit" / s).iterdir()} for s in ("train", "val")}
    assert len(cities["train"]) >= 2 and cities["val"] and not cities["train"] & cities["val"]
    for image_path, label_path in pairs(world, *CITYSCAPES):
        assert image_path.name.startswith(image_path.parent.name + "_")
        assert label_path.name == image_path.name.replace("_leftImg8bit", "_gtFine_labelIds")
        assert label_path.parent.parts[-2:] == image_path.parent.parts[-2:]  # split, city


def test_the_domains_differ_and_strength_removes_the_shift():
    def brightness(dataset, strength):
        return np.mean([render(0, dataset, "train", i, SIZE, strength)[0].mean() for i in range(12)])
    shift = brightness("gta5", 1.0) - brightness("cityscapes", 1.0)
    assert shift > 12
    assert abs(brightness("gta5", 0.0) - brightness("cityscapes", 0.0)) < shift / 2
    assert look_of("camera", 0.0) == LOOK["game"] == look_of("game", 1.0)


def test_a_complete_world_is_kept_and_a_smaller_one_leaves_nothing_stale(tmp_path):
    root = tmp_path / "world"
    assert "wrote" in write_toy_world(root, **SMALL)
    stamps = {p: p.stat().st_mtime_ns for p in root.rglob("*.png")}
    assert "already there" in write_toy_world(root, **SMALL)
    assert stamps == {p: p.stat().st_mtime_ns for p in root.rglob("*.png")}
    before = files_of(root)
    (root / "gta5/images/00002.png").unlink()
    assert "wrote" in write_toy_world(root, **SMALL) and files_of(root) == before
    (root / "gta5/notes.txt").write_text("mine")
    write_toy_world(root, **{**SMALL, "source": 1, "synthia": 0})
    assert len(list(root.rglob("*.png"))) == 2 * 5
    assert (root / "gta5/notes.txt").read_text() == "mine"


@pytest.mark.parametrize("name, text", [("photo.png", "x"), (MARKER, "{}"), (MARKER, "[1]")])
def test_a_foreign_folder_is_refused_untouched(tmp_path, capsys, name, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match="not empty"):
        write_toy_world(tmp_path, **SMALL)
    assert main(["--root", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("error: ")
    assert [p.name for p in tmp_path.iterdir()] == [name] and (tmp_path / name).read_text() == text


@pytest.mark.parametrize("wrong", [{"seed": -1}, {"size": (16, 16)}, {"source": -1}, {"strength": 2.0}])
def test_impossible_parameters_are_refused(tmp_path, wrong):
    with pytest.raises(ConfigError):
        write_toy_world(tmp_path / "new", **{**SMALL, **wrong})
    assert not (tmp_path / "new").exists()

"""Which files a data set means: tables of (files on disk, patterns, list) -> samples or message, and random names."""
import json
import os
import random
import sys
import time
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import eval as eval_script
import run as run_script
from dataset import check, files, inspection, missing_labels, segmentation
from model.deeplabv2 import DeepLabV2
from utils.cli import run_stage
from utils.config import DataConfig, load_config
from utils.errors import ConfigError, DataError

NFC, NFD = (lambda text, form=form: unicodedata.normalize(form, text) for form in ("NFC", "NFD"))


def write(root, *paths):
    for path in paths:
        Path(root, path).parent.mkdir(parents=True, exist_ok=True)
        Path(root, path).write_bytes(b"x")


def section(root, images=None, labels=None, lines=None, kind="folder"):
    """A data-set section below root/d; lines: of its list of training images."""
    if lines is not None:
        content = lines if isinstance(lines, bytes) else "\n".join(lines).encode()
        Path(root, "list.txt").write_bytes(content)
    return DataConfig(kind, str(Path(root, "d")), str(Path(root, "list.txt")) if lines is not None else None,
                      input_size=(8, 8), images=images, labels=labels, classes=("a", "b"))


def found(root, *what, split="train", **more):
    """({name: (image, label or None)} below root/d, remarks); labels that are not there as None too."""
    samples, remarks = segmentation.find_split("mine", section(root, *what, **more), split)

    def below(path):
        return path.relative_to(Path(root, "d")).as_posix() if path and path.is_file() else None
    return {s.name: (below(s.image), below(s.label)) for s in samples}, remarks


# ---- what a scan leaves out ------------------------------------------------------------------------------------------

JUNK = {
    "macOS on exFAT": ["._a.png", "x/._b.png", "._x/a.png", ".DS_Store"],
    "macOS zip": ["__MACOSX/._a.png", "__MACOSX/x/b.png", ".fseventsd/a.png", ".Spotlight-V100/a.png"],
    "Jupyter": [".ipynb_checkpoints/a.png", "x/.ipynb_checkpoints/b-checkpoint.png"],
    "Synology": ["@eaDir/a.png/SYNOPHOTO_THUMB_M.png", "x/@eaDir/b.png", "#recycle/c.png", "@tmp/a.png",
                 "#snapshot/GMT-2024/a.png"],
    "QNAP": ["@Recycle/a.png", ".@__thumb/a.png", "@Recently-Snapshot/a.png"],
    "Windows": ["$RECYCLE.BIN/S-1-5/a.png", "System Volume Information/a.png", "$Recycle.Bin/b.png", "Thumbs.db"],
    "Linux": [".Trash-1000/files/a.png", "lost+found/a.png", ".nfs0001.png", ".a.png.swp", ".git/annex/a.png"],
    "viewers": [".thumbnails/a.png", "thumbnails/a.png", "x/Thumbs/b.png", ".xvpics/a.png", ".picasaoriginals/a.png"],
}


@pytest.mark.parametrize("name", JUNK)
@pytest.mark.parametrize("images, folder", [
    ("img/{split}", "img/train"), ("{split}/{name}.png", "train"), ("*/{split}", "cam/train"),
    (".hidden/{split}", ".hidden/train"), ("./", ".")])
def test_a_scan_leaves_out_what_is_no_image_of_the_set(tmp_path, name, images, folder):
    good = ["a.png", "x/b.png", "x/y/c.png", "my.thumbs/d.png", "@home/e.png", "#1/f.png"]
    write(tmp_path / "d" / folder, *good, *JUNK[name])
    samples, remarks = found(tmp_path, images)
    assert {image for image, _ in samples.values()} == {Path(folder, path).as_posix() for path in good}
    number = sum(path.endswith(".png") for path in JUNK[name])
    assert len(remarks) == 1 and f"left out: {number} (the first: " in remarks[0] and "mine: " in remarks[0]
    picked = next(path for path in JUNK[name] if path.endswith(".png"))  # but a list may name it
    samples, remarks = found(tmp_path, images, lines=[f"{folder}/{picked}"])
    assert [image for image, _ in samples.values()] == [Path(folder, picked).as_posix()] and remarks == []


def test_junk_among_the_folders_of_a_star_and_linked_ones(tmp_path):
    write(tmp_path / "d", "cam/fog/train/a.png", "cam/.fog/train/a.png", "cam/@eaDir/train/b.png", "cam/@eaDir/c.png")
    (tmp_path / "d/cam/fog/train/.cache").symlink_to("../train")  # must not count as the folder's first visit
    samples, remarks = found(tmp_path, "cam/*/{split}/{name}.png")
    assert samples == {"fog/a": ("cam/fog/train/a.png", None)} and "left out: 3 " in remarks[0]
    (tmp_path / "d/cam/fog/train/again").symlink_to(".")
    (tmp_path / "d/cam/rain").symlink_to("fog")
    assert found(tmp_path, "cam/*/{split}/{name}.png")[0] == samples


def test_nothing_is_said_where_nothing_is_left_out(tmp_path):
    write(tmp_path / "d", "train/a.png", "train/.cache/readme.txt", "train/@eaDir/a.jpg@SynoEAStream", "train/.keep")
    assert found(tmp_path, "{split}/{name}.png") == ({"a": ("train/a.png", None)}, [])


def test_an_empty_split_says_what_was_left_out(tmp_path):
    write(tmp_path / "d", "train/._a.png", "train/.x/a.png", "val/._a.png")
    with pytest.raises(DataError, match="no image matches .*left out: 2 .*a list may name"):
        found(tmp_path, "{split}")
    samples, remarks = segmentation.find_split("mine", section(tmp_path, "{split}"), "val", required=False)
    assert samples == [] and "left out: 1 " in remarks[0]


# ---- labels among the images -----------------------------------------------------------------------------------------

AMONG = [  # images, labels, files below d, samples, number of labels left out
    ("{split}", "{split}/{name}_mask.png", ["a.png", "a_mask.png", "x/b.jpg", "x/b_MASK.PNG"],
     {"a": ("a.png", "a_mask.png"), "x/b": ("x/b.jpg", "x/b_MASK.PNG")}, 2),
    ("{split}", "{split}", ["a.jpg", "a.png", "b.JPEG", "b.PNG"],
     {"a": ("a.jpg", "a.png"), "b": ("b.JPEG", "b.PNG")}, 2),
    ("{split}/{name}.jpg", "{split}/{name}.png", ["a.jpg", "a.png"], {"a": ("a.jpg", "a.png")}, 0),
    ("{split}/{name}.png", "{split}/{name}_L.png", ["a.png", "a_L.png", "b_L.png", "b_L_L.png"],
     {"a": ("a.png", "a_L.png"), "b_L": ("b_L.png", "b_L_L.png")}, 2),
    ("{split}", "{split}/masks", ["a.jpg", "masks/a.tif", "x/b.jpg", "masks/x/b.bmp"],
     {"a": ("a.jpg", "masks/a.tif"), "x/b": ("x/b.jpg", "masks/x/b.bmp")}, 2),
    ("{split}", "{split}/lab_{name}.png", ["a.png", "lab_a.png"], {"a": ("a.png", "lab_a.png")}, 1),
    ("{split}", "{split}/{name}_mask.png", [NFC("é.png"), NFD("é_mask.png")],
     {NFC("é"): (NFC("é.png"), NFD("é_mask.png"))}, 1),
]


@pytest.mark.parametrize("images, labels, files, expected, number", AMONG)
def test_labels_among_the_images_are_no_images(tmp_path, images, labels, files, expected, number):
    write(tmp_path / "d/train", *files)
    samples, remarks = found(tmp_path, images, labels)
    assert samples == {name: tuple(f"train/{path}" for path in pair) for name, pair in expected.items()}
    assert len(remarks) == (number > 0) and all(f"labels of others are left out: {number} " in r for r in remarks)


@pytest.mark.parametrize("images, labels, files, said", [
    ("{split}", "{split}", ["a.png"], "train/a.png: is by mine.labels its own label"),
    ("{split}", "{split}", ["a.jpg", "a.png", "b.png"], "train/b.png: is by mine.labels its own label"),
    ("{split}/{name}.png", "{split}/{name}.png", ["a.PNG"], "a.PNG: is by mine.labels its own label"),
    ("{split}", "gt", ["a.jpg", "../gt/a.png", "../gt/a.bmp"], "gt/a.png: is a label of the same image as gt/a.bmp"),
    ("{split}", "gt", ["a.jpg", "../gt/a.Tif", "../gt/a.tiff"], "gt/a.Tif: is a label of the same image as gt/a.tiff"),
    ("{split}", "gt/{name}.png", ["a.jpg", "../gt/a.PNG", "../gt/a.Png"], "'a.PNG' and 'a.Png' both fit 'a.png'"),
    ("{split}", None, ["a.jpg", "a.png"], "share the name 'a'"),
    ("{split}/{name}.png", None, ["a.png", "a.PNG"], "share the name 'a'"),
])
def test_files_that_leave_a_choice_are_refused(tmp_path, images, labels, files, said):
    write(tmp_path / "d/train", *files)
    with pytest.raises(DataError) as error:
        found(tmp_path, images, labels)
    assert said in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(DataError) as again:  # the same of a list of the same files
        found(tmp_path, images, labels, lines=[file for file in files if not file.startswith("..")])
    assert said in str(again.value) or labels == images


# ---- layouts that people have ----------------------------------------------------------------------------------------

SETS = {  # files, images, labels, samples of the training split
    "ACDC": (["rgb_anon/fog/train/GOPR0475/a_rgb_anon.png", "gt/fog/train/GOPR0475/a_gt_labelIds.png",
              "gt/fog/train/GOPR0475/a_gt_labelColor.png", "rgb_anon/night/train/GOPR0475/a_rgb_anon.png",
              "gt/night/train/GOPR0475/a_gt_labelIds.png", "rgb_anon/night/train_ref/GOPR0475/a_ref_rgb_anon.png",
              "rgb_anon/rain/val/GP01/b_rgb_anon.png"],
             "rgb_anon/*/{split}/{name}_rgb_anon.png", "gt/*/{split}/{name}_gt_labelIds.png",
             {"fog/GOPR0475/a": (0, 1), "night/GOPR0475/a": (3, 4)}),
    "Mapillary": (["train/images/a b.jpg", "train/labels/a b.png", "val/images/c.jpg"],
                  "{split}/images/{name}.jpg", "{split}/labels/{name}.png", {"a b": (0, 1)}),
    "BDD100K": (["images/10k/train/1.jpg", "labels/sem_seg/masks/train/1.png", "labels/sem_seg/colormaps/train/1.png"],
                "images/10k/{split}", "labels/sem_seg/masks/{split}", {"1": (0, 1)}),
    "BDD, older": (["images/train/1.jpg", "labels/train/1_train_id.png"],
                   "images/{split}/{name}.jpg", "labels/{split}/{name}_{split}_id.png", {"1": (0, 1)}),
    "KITTI": (["training/image_2/000000_10.png", "training/semantic/000000_10.png", "training/semantic_rgb/0_10.png"],
              "training/image_2", "training/semantic", {"000000_10": (0, 1)}),
    "KITTI-360": (["data_2d_raw/drive_0000/image_00/1.png", "gt/drive_0000/image_00/semantic/1.png",
                   "data_2d_raw/drive_0001/image_00/1.png", "gt/drive_0001/image_00/semantic/1.png"],
                  "data_2d_raw/*/image_00/{name}.png", "gt/*/image_00/semantic/{name}.png",
                  {"drive_0000/1": (0, 1), "drive_0001/1": (2, 3)}),
    "two stars": (["rgb/a/left/1.png", "gt/a/left/1.bmp", "rgb/b/left/1.png", "gt/b/left/1.pgm", "rgb/b/x/right/2.png"],
                  "rgb/*/*", "gt/*/*", {"a/left/1": (0, 1), "b/left/1": (2, 3), "b/x/right/2": (4, None)}),
    "CamVid": (["train/0001TP.png", "train_labels/0001TP_L.png"],
               "{split}", "{split}_labels/{name}_L.png", {"0001TP": (0, 1)}),
    "a folder for each image": (["train/s/1/image.png", "train/s/1/label.png", "train/2/image.PNG"],
                                "{split}/{name}/image.png", "{split}/{name}/label.png",
                                {"s/1": (0, 1), "2": (2, None)}),
    "numbers behind a word": (["x/frame_01.jpg", "x/sub/frame_02.jpg", "gt/mask_01.png", "gt/sub/mask_02.png"],
                              "x/frame_{name}.jpg", "gt/mask_{name}.png", {"01": (0, 2), "sub/02": (1, 3)}),
    "endings of several kinds": ([f"i/{n}{e}" for n, e in enumerate((".PNG", ".Jpeg", ".TIF", ".webp", ".JPG", ".txt"))]
                                 + ["l/0.Png", "l/1.bmp", "l/2.tiff", "l/3.PGM", "l/4.tif"], "i", "l",
                                 {str(n): (n, n + 6) for n in range(5)}),
    "an upper-case suffix": (["train/a_RGB.PNG", "gt/a_Gt.pnG"], "{split}/{name}_rgb.png", "gt/{name}_gt.png",
                             {"a": (0, 1)}),
    "accents": ([f"{NFD('bilder_ü')}/{NFD('straße_é')}.png", f"{NFC('ü')}/{NFC('straße_é')}.png"],
                NFC("bilder_ü"), NFD("ü"), {NFC("straße_é"): (0, 1)}),
    "several dots": (["i/a.b.c.png", "i/v1.0/x.jpg", "l/a.b.c.png", "l/v1.0/x.png"], "i", "l",
                     {"a.b.c": (0, 2), "v1.0/x": (1, 3)}),
}


@pytest.mark.parametrize("name", SETS)
def test_layouts(tmp_path, name):
    files, images, labels, expected = SETS[name]
    write(tmp_path / "d", *files)
    expected = {n: tuple(None if i is None else files[i] for i in pair) for n, pair in expected.items()}
    assert found(tmp_path, images, labels) == (expected, [])
    # A list of the same names them all by itself, and needs their labels only where the pattern cannot tell them.
    lines = [image for image, _ in expected.values()]
    assert found(tmp_path, images, labels, lines=lines) == (expected, [])
    if all(label for _, label in expected.values()):
        lines = [f"{image}\t{label}" for image, label in expected.values()]
        assert found(tmp_path, images, labels, lines=lines) == (expected, [])
        assert found(tmp_path, images, None, lines=lines) == (expected, [])


def test_released_archives_unzipped_on_a_mac(tmp_path):
    name = "ulm_000001_000019"
    for split in ("train", "val"):
        for dot in ("", "._"):
            write(tmp_path / "d", f"leftImg8bit/{split}/ulm/{dot}{name}_leftImg8bit.png",
                  *(f"gtFine/{split}/ulm/{dot}{name}_gtFine_{kind}.png" for kind in ("labelIds", "color")))
    write(tmp_path / "d", "__MACOSX/leftImg8bit/train/ulm/x_leftImg8bit.png")
    samples, remarks = found(tmp_path, kind="cityscapes")
    assert samples == {f"ulm/{name}": (f"leftImg8bit/train/ulm/{name}_leftImg8bit.png",
                                       f"gtFine/train/ulm/{name}_gtFine_labelIds.png")}
    assert f"left out: 1 (the first: 'leftImg8bit/train/ulm/._{name}_leftImg8bit.png')" in remarks[0]


# ---- lists -----------------------------------------------------------------------------------------------------------

VOC = ["JPEGImages/a.jpg", "SegmentationClass/a.png", "JPEGImages/b c.jpg", "SegmentationClass/b c.png", "other/a.png",
       "JPEGImages/#1.jpg", "SegmentationClass/#1.png", "JPEGImages/s/é.JPG", "SegmentationClass/s/é.PNG"]
A, B, H, E = (("JPEGImages/" + n, "SegmentationClass/" + m) for n, m in (
    ("a.jpg", "a.png"), ("b c.jpg", "b c.png"), ("#1.jpg", "#1.png"), ("s/é.JPG", "s/é.PNG")))
LINES = [  # lines, pairs expected
    (["a.jpg", "b c.jpg", "s/é.JPG"], [A, B, E]),
    (["JPEGImages/b c.jpg", "./JPEGImages//a.jpg", "  a.jpg  "][:2], [B, A]),
    (["a", "b c", "s/é"], [A, B, E]),  # VOC's lists name neither folder nor ending
    (["/JPEGImages/a.jpg /SegmentationClass/a.png", "/JPEGImages/b c.jpg /SegmentationClass/b c.png"], [A, B]),
    (["{d}/JPEGImages/a.jpg", "{d}/JPEGImages/b c.jpg"], [A, B]),
    (["{d}/JPEGImages/a.jpg {d}/SegmentationClass/a.png", "b c.jpg\tb c.png", "s/é.jpg s/é.png"], [A, B, E]),
    (["{real}/JPEGImages/a.jpg"], [A]),
    (["a.jpg other/a.png", "b c.jpg SegmentationClass/b c.png"], [(A[0], "other/a.png"), B]),
    (["a.jpg \t /other/a.png"], [(A[0], "other/a.png")]),
    (["JPEGImages\\a.jpg", "s\\é.JPG", "JPEGImages\\b c.jpg"], [A, E, B]),
    (["JPEGImages\\a.jpg SegmentationClass\\a.png"], [A]),
    (["~/d/JPEGImages/a.jpg", "~/d/JPEGImages/b c.jpg"], [A, B]),
    (["~/d/JPEGImages/a.jpg ~/d/SegmentationClass/a.png"], [A]),
    ([NFD("s/é.jpg"), "a.JPG"], [E, A]),
    ([NFD("s/é.JPG") + " " + NFD("SegmentationClass/s/é.png")], [E]),
    (["#1.jpg", "a.jpg"], [H, A]),
    (["a.jpg,a.png", "JPEGImages/b c.jpg, SegmentationClass/b c.png", "s/é.JPG ; s/é.PNG"], [A, B, E]),
    (["/JPEGImages/a.jpg;/SegmentationClass/a.png"], [A]),
    ("\ufeffa.jpg\r\nb c.jpg\r\n\r\n".encode(), [A, B]),
    ("a.jpg\rs/é.jpg".encode(), [A, E]),
]


@pytest.mark.parametrize("labels", ["SegmentationClass/{name}.png", "SegmentationClass"])
@pytest.mark.parametrize("images", ["JPEGImages/{name}.jpg", "JPEGImages"])
@pytest.mark.parametrize("lines, expected", LINES, ids=[str(line[0])[:40] for line in LINES])
def test_lines_of_lists(tmp_path, monkeypatch, images, labels, lines, expected):
    write(tmp_path / "real", *VOC)
    (tmp_path / "d").symlink_to("real")
    monkeypatch.setenv("HOME", str(tmp_path))
    if not isinstance(lines, bytes):
        lines = [line.format(d=tmp_path / "d", real=tmp_path / "real") for line in lines]
    samples, remarks = found(tmp_path, images, labels, lines=lines)
    assert list(samples.values()) == expected and remarks == []


@pytest.mark.parametrize("lines, expected, said", [
    (["# my list", "a.jpg", "#b c.jpg", "  # b c.jpg"], [A], "comments: 3 (the first: line 1)"),
    (["a.jpg 17", "b c.jpg 3 0.5", "s/é.jpg\tsunny"], [A, B, E], "not read: 3 lines (the first: line 1, '17')"),
    (["a.jpg a.png 17", "b c.jpg b c.png 3"], [A, B], None),
])
def test_what_is_passed_over_in_a_list_is_said(tmp_path, lines, expected, said):
    write(tmp_path / "d", *VOC)
    samples, remarks = found(tmp_path, "JPEGImages", "SegmentationClass", lines=lines)
    assert list(samples.values()) == expected and [said in r for r in remarks] == [True] * (said is not None)


@pytest.mark.parametrize("line", [
    " ".join(["a.jpg"] * 400), "\t".join(["a.jpg", "a.png"] * 400), json.dumps(["a.jpg"] * 3000), "a/" * 5000 + "a.jpg",
    "x" * 9000 + ".jpg", " " * 9000 + "a.jpg", " ".join("abcdefghijklmnopqrstuvwxyz" * 4)], ids=lambda line: line[:20])
def test_a_file_of_another_kind_is_no_list_and_costs_no_time(tmp_path, line):
    """A line can be read in as many ways as it has blanks, squared for a label behind the image."""
    write(tmp_path / "d", *VOC)
    start = time.process_time()
    for images, labels in (("JPEGImages", "SegmentationClass"), ("JPEGImages/{name}.jpg", None)):
        with pytest.raises(DataError, match="line 2: of .* characters .* one image a line") as error:
            found(tmp_path, images, labels, lines=["a.jpg", line])
        assert len(str(error.value)) < 400
        assert found(tmp_path, images, labels, lines=["a.jpg", f"# {line}"])[0].keys() == {"a"}
    assert time.process_time() - start < 1


def test_folders_as_deep_as_a_line_is_long(tmp_path):
    write(tmp_path / "d", *VOC)
    with pytest.raises(DataError, match="listed in"):
        found(tmp_path, "JPEGImages", lines=["a/" * 4000 + "a.jpg"])


@pytest.mark.parametrize("lines, said", [
    (["a.jpg", "b c.jpg b c.png"], "line 1: names no label, as line 2 does"),
    (["a.jpg a.png", "", "b c.jpg 3"], "line 3: names no label, as line 1 does"),
    (["a.jpg ../secret.png"], "line 1: '../secret.png' points outside"),
    (["a.jpg /etc/a.png"], "line 1: '/etc/a.png' points outside"),
    (["a.jpg", "{d}/../d/JPEGImages/b c.jpg"], "line 2"),
    (["{d}2/JPEGImages/a.jpg"], "line 1: '{d}2/JPEGImages/a.jpg' points outside"),
    (["..\\JPEGImages\\a.jpg"], "points outside"), (["~/JPEGImages/../../a.jpg"], "points outside"),
    (["/JPEGImages/nowhere.jpg"], "JPEGImages/nowhere.jpg: listed in"),
    (["a.jpg", "no where.jpg"], "JPEGImages/no where.jpg: listed in"),
    (["nowhere.jpg SegmentationClass/a.png"], "JPEGImages/nowhere.jpg: listed in"),
    (["a.jpg", "{d}/JPEGImages/a.JPG"], "share the name 'a'"),
    (["A.jpg"], "JPEGImages/A.jpg: listed in"),
    (["a.gif"], "line 1: 'a.gif' does not end in '.png' or '.jpg'"),
    (["# a.jpg", "#"], "is empty"),
    (["a.jpg", "a.jpg"], "a.jpg share the name 'a' (it is listed twice)"),
    (["other/a.png"], "line 1: 'other/a.png' does not match 'JPEGImages/<name>.png'"),
    (["a.jpg", "/other/a.png"], "line 2: '/other/a.png' does not match"),
    (["image,label", "a.jpg,a.png"], "line 1: 'image,label' does not end in"),
    (['"a.jpg"'], "line 1: '\"a.jpg\"' does not end in"),
    (["out/a.jpg"], "is a link out"), (["leak.jpg"], "is a link out"), (["a.jpg leak.png"], "is a link out"),
    (["{d}/JPEGImages/leak.jpg"], "is a link out"), (["a.jpg out/a.png"], "is a link out"),
])
def test_lines_that_are_refused(tmp_path, monkeypatch, lines, said):
    write(tmp_path / "d", *VOC)
    write(tmp_path, "secret.png", "outside/a.jpg", "outside/a.png", "d2/JPEGImages/a.jpg")
    monkeypatch.setenv("HOME", str(tmp_path / "d"))
    for folder, ending in (("JPEGImages", ".jpg"), ("SegmentationClass", ".png")):
        (tmp_path / "d" / folder / "out").symlink_to(tmp_path / "outside")
        (tmp_path / "d" / folder / f"leak{ending}").symlink_to(tmp_path / f"outside/a{ending}")
    with pytest.raises(DataError) as error:
        found(tmp_path, "JPEGImages", "SegmentationClass", lines=[line.format(d=tmp_path / "d") for line in lines])
    assert said.format(d=tmp_path / "d") in str(error.value) and "\n" not in str(error.value)


def test_a_star_of_a_list_may_not_be_a_link_out(tmp_path):
    write(tmp_path / "d", "rgb/fog/a.png")
    write(tmp_path, "outside/a.png")
    (tmp_path / "d/rgb/evil").symlink_to(tmp_path / "outside")
    with pytest.raises(DataError, match="is a link out"):
        found(tmp_path, "rgb/*/{name}.png", lines=["fog/a.png", "evil/a.png"])
    with pytest.raises(DataError, match=r"line 1: 'a.png' does not match 'rgb/\*/<name>.png'"):
        found(tmp_path, "rgb/*/{name}.png", lines=["a.png"])


def test_labels_of_the_street_sets_keep_their_ids(tmp_path):
    """A list may name other files than the layout's, whose ids would be read by a wrong table."""
    image, label = "leftImg8bit/train/ulm/u_leftImg8bit.png", "gtFine/train/ulm/u_gtFine_labelIds.png"
    write(tmp_path / "d", image, label, label.replace("labelIds", "labelTrainIds"))
    for line in (f"{image} {label}", f"{image}\t/{label}", "ulm/u_leftImg8bit.png ulm/u_gtFine_labelIds.png",
                 "train/ulm/u_leftImg8bit.png", "ulm/u"):
        assert found(tmp_path, kind="cityscapes", lines=[line])[0] == {"ulm/u": (image, label)}
    with pytest.raises(DataError, match="line 1: the label '.*labelTrainIds.png' does not match 'gtFine/train/<name>"):
        found(tmp_path, kind="cityscapes", lines=[f"{image} {label.replace('labelIds', 'labelTrainIds')}"])


@pytest.mark.parametrize("key, split", [("data_list", "train"), ("data_list_val", "val")])
def test_the_advice_for_a_missing_list_helps(tmp_path, key, split):
    write(tmp_path / "d", *(f"leftImg8bit/{split}/ulm/{i}_leftImg8bit.png" for i in range(3)),
          f"leftImg8bit/{split}/ulm/._0_leftImg8bit.png")
    (tmp_path / "c.yml").write_text(f"cityscapes: {{data_dir: {tmp_path}/d, {key}: ./dataset/cityscapes_list/x.txt}}")
    with pytest.raises(DataError) as error:
        segmentation.find_samples("cityscapes", load_config(tmp_path / "c.yml").target_data, split)
    (advice,) = [word for word in str(error.value).split() if "=None" in word]
    assert f"{advice} takes the 3 images of the folder" in str(error.value) and advice == f"cityscapes.{key}=None"
    cfg = load_config(tmp_path / "c.yml", [advice])
    assert len(segmentation.find_samples("cityscapes", cfg.target_data, split)) == 3
    write(tmp_path, "e/x")
    cfg = load_config(tmp_path / "c.yml", [f"cityscapes.data_dir={tmp_path}/e"])
    with pytest.raises(DataError, match="correct the path; no image matches"):
        segmentation.find_samples("cityscapes", cfg.target_data, split)


CITIES = [f"leftImg8bit/{s}/x/{n}_leftImg8bit.png" for s, n in (("train", "a_0"), ("train", "b_0"), ("val", "c_0"),
                                                                    ("train_extra", "d_0"))]
CITIES += [f"gtFine/{s}/x/{n}_gtFine_{kind}.png" for s, n in (("train", "a_0"), ("train", "b_0"), ("val", "c_0"))
           for kind in ("labelIds", "labelTrainIds", "color")]
TRAIN_IDS = "/gtFine/train/x/a_0_gtFine_labelTrainIds.png"


@pytest.mark.parametrize("line, expected", [
    ("x/a_0_leftImg8bit.png", "x/a_0"), ("leftImg8bit/train/x/a_0_leftImg8bit.png", "x/a_0"),
    ("/leftImg8bit/train/x/a_0_leftImg8bit.png", "x/a_0"), ("train/x/a_0_leftImg8bit.png", "x/a_0"),
    ("leftImg8bit/train/x/a_0_leftImg8bit.png,gtFine/train/x/a_0_gtFine_labelIds.png", "x/a_0"),
    (f"/{CITIES[0]}\t{TRAIN_IDS}", f"the label '{TRAIN_IDS}' does not match 'gtFine/train/"),
    (f"{CITIES[0]} {TRAIN_IDS[1:]}", f"the label '{TRAIN_IDS[1:]}' does not match 'gtFine/"),
    (f"{CITIES[0]},{TRAIN_IDS[1:]}", f"the label '{TRAIN_IDS[1:]}' does not match 'gtFine/"),
    *((slash + image, f"line 1: '{slash}{image}' does not match 'leftImg8bit/train/<name>_leftImg8bit.png'")
      for image in CITIES[2:4] for slash in ("", "/")),
    ("x/c_0_leftImg8bit.png", "train/x/c_0_leftImg8bit.png: listed in"),
    ("/gtFine/x/c.png", "points outside the data folder (and is not there without its slash)"),
])
def test_lists_of_other_projects_for_cityscapes(tmp_path, line, expected):
    write(tmp_path / "d", *CITIES)
    if expected == "x/a_0":
        assert found(tmp_path, kind="cityscapes", lines=[line])[0] == {"x/a_0": (CITIES[0], CITIES[4])}
        return
    with pytest.raises(DataError) as error:
        found(tmp_path, kind="cityscapes", lines=[line])
    assert expected in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("kind, image, label, fits", [
    ("cityscapes", "leftImg8bit/train/x/a_leftImg8bit.PNG", "gtFine/train/x/a_gtFine_labelIds.Png", True),
    ("cityscapes", "leftImg8bit/train/x/a_leftImg8bit.png", "gtFine/train/x/a_gtFine_labelids.png", False),  # IDD's
    ("cityscapes", "leftImg8bit/train/x/a_leftImg8bit.png", "gtFine/train/x/a_gtFine_LabelIds.png", False),
    ("gta5", "images/1.PNG", "labels/1.Png", True), ("synthia", "RGB/1.pNG", "GT/LABELS/1.PNG", True)])
def test_ids_of_street_labels_are_known_by_their_exact_names(tmp_path, kind, image, label, fits):
    """IDD looks like Cityscapes, but for the case of one letter and the meaning of every id."""
    write(tmp_path / "d", image, label)
    for lines in (None, [image]):
        samples, _ = found(tmp_path, kind=kind, lines=lines)
        assert list(samples.values()) == [(image, label if fits else None)]
    if not fits:
        with pytest.raises(DataError, match="does not match 'gtFine/train/<name>_gtFine_labelIds.png'"):
            found(tmp_path, kind=kind, lines=[f"{image} {label}"])


@pytest.mark.parametrize("encoding, said", [("utf-16", "text in UTF-8"), ("utf-16-le", "text in UTF-8"), ("utf-32", ""),
                                            ("latin-1", "text in UTF-8, or mine.data_list=None takes the 2 images")])
@pytest.mark.parametrize("names", [("é.png", "b.png"), ("b.png", "b.png")])
def test_lists_of_other_encodings_say_what_to_do(tmp_path, encoding, said, names):
    write(tmp_path / "d/i", "é.png", "b.png")
    if encoding == "latin-1" and names[0] == "b.png":
        return
    with pytest.raises(DataError) as error:
        found(tmp_path, "i", lines="\r\n".join(names).encode(encoding))
    assert said in str(error.value) and "text in UTF-8" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("lines", [None, [NFC("é.png"), NFD("é.png")]])
def test_two_ways_to_write_an_accent_are_one_name(tmp_path, lines):
    write(tmp_path / "d", NFC("i/é.png"), NFD("i/é.png"), "l/é.png")
    with pytest.raises(DataError, match="share the name .* accents are written in two ways"):
        found(tmp_path, "i", "l", lines=lines)


@pytest.mark.parametrize("images", ["{split}", "./{split}/", "*"])
def test_pictures_that_are_not_read_are_said(tmp_path, images):
    write(tmp_path / "d/train", "a.jpg", "b.GIF", "x/c.heic", "._d.gif", "e.JFIF", "notes.txt", "a.json")
    samples, remarks = found(tmp_path, images)
    assert {image for image, _ in samples.values()} == {"train/a.jpg", "train/e.JFIF"}
    assert len(remarks) == 1 and "not read are left out: 2 (the first: 'train/b.GIF')" in remarks[0]
    for path in (tmp_path / "d/train").glob("*.[jJ]*"):
        path.unlink()
    with pytest.raises(DataError, match="no image matches .*not read are left out: 2"):
        found(tmp_path, images)


def test_links_that_lead_nowhere_are_left_to_reading(tmp_path):
    write(tmp_path / "d/i", "a.png")
    (tmp_path / "d/i/b.png").symlink_to("b.png")
    (tmp_path / "d/i/c.png").symlink_to("gone.png")
    samples = segmentation.find_samples("mine", section(tmp_path, "i"), "train")
    assert [s.name for s in samples] == ["a", "b", "c"]
    for sample in samples[1:]:
        with pytest.raises(DataError, match=f"{sample.name}.png: "):
            files.read_image(sample.image)


# ---- random names ----------------------------------------------------------------------------------------------------

FAMILY = [  # images, labels, the endings where the pattern has none
    ("{split}/img", "{split}/gt", ".png", ".png"), ("rgb/*/*", "gt/*/*", ".jpg", ".bmp"),
    ("i/{split}/{name}_rgb.png", "l/{split}/{name}_gt.png", None, None),
    ("all/*/{split}/{name}.jpg", "gt/*/{split}/{name}_l.png", None, None),
    ("{split}", "{split}/{name}_mask.png", ".png", None), ("{name}.png", "gt/{name}.tif", None, None),
    ("{split}/{name}/image.png", "l/{name}/label.png", None, None),
    ("{split}/img_{name}.jpg", "{split}/lab_{name}.png", None, None)]
LETTERS = ["a", "B", "7", "é", "Å", "ñ", "한", "ß", " ", "  ", ".", "-", "_", "(1)", "'", "#", "~", "&", "日本", "ẋ̣",
           "[", "+", "%20"]


def random_part(rng):
    """A name as people give them: neither hidden nor with blanks at its ends."""
    while True:
        part = "".join(rng.choices(LETTERS, k=rng.randint(1, 6))).strip()
        if part.strip(".") and not part.startswith("."):
            return rng.choice([NFC, NFD])(part)


def any_case(rng, text):
    return "".join(rng.choice([letter.lower(), letter.upper()]) for letter in text)


def place(pattern, name, extension, rng=None):
    """The path of a name, computed in the most direct way. rng: the ending in any case, accents in either form."""
    folder, _, suffix = pattern.replace("{split}", "train").partition("{name}")
    parts = name.split("/")
    while "*" in folder:
        folder = folder.replace("*", parts.pop(0), 1)
    if "{name}" not in pattern:
        folder, suffix = folder + "/", extension
    above, _, prefix = folder.rpartition("/")
    path = "/".join([above, *parts[:-1], prefix + parts[-1]] if above else [*parts[:-1], prefix + parts[-1]])
    if rng is None:
        return path + suffix
    *inner, last = suffix.split("/")
    return rng.choice([NFC, NFD])(path) + "/".join([*inner, any_case(rng, last)])


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("images, labels, image_end, label_end", FAMILY)
def test_a_scan_and_every_list_of_the_same_files_agree(tmp_path, images, labels, image_end, label_end, seed):
    rng = random.Random(f"{images} {seed}")
    stars, names = images.count("*"), {}
    while len(names) < 12:
        name = "/".join(random_part(rng) for _ in range(stars + rng.choice([1, 1, 2, 3])))
        names.setdefault(NFC(name).lower(), name)
    root, expected = tmp_path / "d", set()
    for name in names.values():
        image, label = place(images, name, image_end), place(labels, name, label_end)
        last = image.rsplit(name.split("/")[-1], 1)[-1]
        image = image[: len(image) - len(last)] + (last if "/" in last else any_case(rng, last))
        label = "/".join([*label.split("/")[:-1], rng.choice([NFC, NFD])(label.split("/")[-1])])
        write(root, image, label)
        expected.add((image, label))
    scanned, _ = found(tmp_path, images, labels)
    assert set(scanned.values()) == expected and set(scanned) == set(names.values())
    pairs = list(scanned.values())
    strange = [(place(images, n, image_end, rng), place(labels, n, label_end, rng)) for n in scanned]
    for lines in ([i for i, _ in pairs], [f"/{i}" for i, _ in pairs], [str(root / i) for i, _ in pairs],
                  [i.replace("/", "\\") for i, _ in pairs], [i for i, _ in strange], [f"{i}\t{t}" for i, t in pairs],
                  [f"{i} {t}" for i, t in pairs], [f"{root / i}  {root / t}" for i, t in pairs],
                  [f"{i}\t{t}" for i, t in strange], [f"/{i} /{t}" for i, t in strange],
                  "\r\n".join(["\ufeff" + pairs[0][0], *(i for i, _ in pairs[1:])]).encode()):
        listed, remarks = found(tmp_path, images, labels, lines=lines)
        assert list(listed.items()) == list(scanned.items()) and remarks == []
    listed, _ = found(tmp_path, images, None, lines=[f"{i}\t{t}" for i, t in pairs])
    assert list(listed.items()) == list(scanned.items())


@pytest.mark.parametrize("images, labels", [("img", "gt"), ("img", None), ("img/*/{name}.png", "gt/*"),
                                            ("{name}.png", "gt/{name}.png")])
def test_no_line_leaves_the_data_folder(tmp_path, monkeypatch, images, labels):
    """Lines put together at random: what they name lies below data_dir with all links followed, or is refused."""
    write(tmp_path / "d", "a.png", "img/a.png", "img/x/a.png", "img/x y/a b.png", "gt/a.png", "gt/x/a.png")
    write(tmp_path, "secret.png", "out/a.png")
    for link in ("img/out", "gt/out", "img/x/out", "out"):
        (tmp_path / "d" / link).symlink_to(tmp_path / "out")
    (tmp_path / "d/gt/secret.png").symlink_to(tmp_path / "secret.png")
    monkeypatch.setenv("HOME", str(tmp_path))
    atoms = ["..", ".", "/", "\\", " ", "\t", "~", "~/", "#", "a.png", "img", "gt", "x", "x y", "out", "secret.png",
             "a b.png", "d", str(tmp_path), "/img/a.png", "img/a.png", "gt/a.png", "../", "/../", "\\..\\", "é"]
    rng, accepted, refused = random.Random(0), 0, 0
    for _ in range(700):
        line = "".join(rng.choices(atoms, k=rng.randint(1, 6)))
        try:
            samples = segmentation.find_samples("mine", section(tmp_path, images, labels, lines=[line]), "train",
                                                complete=rng.random() < 0.5)
        except DataError as error:
            refused += 1
            assert "\n" not in str(error)
            continue
        accepted += 1
        for path in (path for s in samples for path in (s.image, s.label) if path):
            assert os.path.realpath(path).startswith(f"{tmp_path}/d/"), line
        assert not any(".." in s.name.split("/") or s.name.startswith("/") for s in samples)
    assert accepted > 20 and refused > 200


# ---- labels that do not fit ------------------------------------------------------------------------------------------

NO_FIT = [  # images, labels, files, whether to warn, what is said (besides the path that was expected)
    ("img/{split}", "gt/{split}", ["img/{s}/a.png", "gt/{s}/a_gt.png"], True, "d/gt/{s}/a_gt.png is, and fits no"),
    ("img/{split}", "gt/{split}/{name}_L.png", ["img/{s}/a.png", "gt/{s}/a.png"], True, "d/gt/{s}/a.png is"),
    ("img/{split}", "gt/{split}", ["img/{s}/x/a.png", "gt/{s}/a.png"], True, "d/gt/{s}/a.png is"),
    ("img/{split}", "labels/{split}", ["img/{s}/a.png", "gt/{s}/a.png"], True, "nor is the folder d/labels/{s}"),
    ("img/*/{split}", "gt/*/{split}", ["img/f/{s}/a.png", "gt/f/{s}/b.png"], True, "d/gt/f/{s}/b.png is"),
    *(("img/{split}", "gt/{split}", ["img/{s}/a.png", f"gt/{{s}}/a.{e}"], True,
       f"d/gt/{{s}}/a.{e} is, of a kind that does not keep ids: save labels as PNG") for e in ("jpg", "JPEG", "webp")),
    ("img/{split}", "gt/{split}", ["img/{s}/a.png", "gt/{s}/readme.txt"], False, "nor is any other"),
    ("{split}/{name}.png", "{split}/{name}_mask.png", ["{s}/a.png", "{s}/b.png"], False, "nor is any other"),
    ("img/{split}", None, ["img/{s}/a.png", "gt/{s}/a.png"], False, "mine.labels is not set"),
]


@pytest.mark.parametrize("images, labels, files, warns, said", NO_FIT)
def test_labels_that_fit_no_image_are_said_in_the_same_words(tmp_path, monkeypatch, images, labels, files, warns, said):
    monkeypatch.chdir(tmp_path)
    for path in (file.format(s=split) for file in files for split in ("train", "val")):
        Path("d", path).parent.mkdir(parents=True, exist_ok=True)
        write("d", path)
        if path.endswith(".png"):
            Image.new("RGB", (8, 8)).save(f"d/{path}")
    own = {"type": "folder", "data_dir": "d", "images": images, "labels": labels, "classes": ["a", "b"],
           "input_size": [8, 8]}
    Path("c.yml").write_text(yaml.safe_dump({"source": "mine", "target": "mine", "num_classes": 2, "worker": 0,
                                             "neg_rank_width": 0, "screen": False, "mine": own}))
    cfg = load_config("c.yml")
    samples, (remark,) = inspection.validation_samples(cfg)
    assert samples == [] and remark.startswith("warning: validation skipped: " if warns else "validation skipped: ")
    assert said.format(s="val") in remark and ("correct mine.labels" in remark) == warns
    assert remark in check.check_part(cfg, "target_val").notes
    _, remarks = inspection.training_samples(cfg, "mine", labels_needed=False)
    notes = check.check_part(cfg, "target_train").notes
    assert len(remarks) == warns and set(remarks) <= set(notes)
    assert any("the accuracy of pseudo labels is not reported: " in note and said.format(s="train") in note
               for note in notes)
    with pytest.raises(DataError, match="this step needs them") as error:
        inspection.training_samples(cfg, "mine", labels_needed=True)
    assert said.format(s="train") in str(error.value) and "\n" not in str(error.value)
    assert str(error.value) in check.check_part(cfg, "source_train").errors
    if labels:
        first = segmentation.find_samples("mine", cfg.target_data, "val")[0]
        assert f"{first.label} is not there" in remark


def test_names_with_line_ends_and_terminal_codes_are_shown_as_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    odd = "a\n\x1b[2Jb.png"
    write("d", f"img/train/{odd}", "gt/train/other\n.png", "img/val/a.png")
    own = {"type": "folder", "data_dir": "d", "images": "img/{split}", "labels": "gt/{split}", "classes": ["a", "b"],
           "input_size": [8, 8]}
    Path("c.yml").write_text(yaml.safe_dump({"source": "mine", "target": "mine", "num_classes": 2, "worker": 0,
                                             "screen": False, "mine": own}))
    assert check.main(["--config", "c.yml", "--split", "target_train"]) == 1
    said = capsys.readouterr().out
    assert r"error: d/img/train/a\n\x1b[2Jb.png: " in said and r"d/gt/train/other\n.png is, and fits" in said
    assert "\x1b" not in said


def test_labels_that_a_list_alone_names_are_looked_for_in_their_own_folder(tmp_path):
    write(tmp_path / "d", *VOC, ".gt/other.png")
    own = section(tmp_path, "JPEGImages", lines=["a.jpg .gt/a.png"])
    with pytest.raises(DataError, match="d/.gt/a.png is not there, but .*d/.gt/other.png is"):
        missing_labels.require_labels("mine", own, "train", segmentation.find_samples("mine", own, "train"))


def test_cityscapes_without_labels_of_the_split_is_no_surprise_but_half_of_them_is(tmp_path):
    cfg = section(tmp_path, kind="cityscapes")
    write(tmp_path / "d", "leftImg8bit/val/ulm/a_leftImg8bit.png")
    def why():
        samples = segmentation.find_samples("cityscapes", cfg, "val")
        return missing_labels.why_no_labels("cityscapes", cfg, "val", samples)
    assert not why().surprising and "a_gtFine_labelIds.png is not there" in str(why())
    write(tmp_path / "d", "gtFine/train/ulm/a_gtFine_labelIds.png")
    assert why().surprising and str(why()).endswith("correct cityscapes.data_dir")
    write(tmp_path / "d", "gtFine/val/ulm/a_gtFine_color.png")
    assert why().surprising and "a_gtFine_color.png is, and fits no image" in str(why())


def test_runs_say_what_was_left_out_and_that_validation_is_lost(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for path in (f"d/img/{split}/{i}.png" for i in range(2)):
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(path)
        write(f"d/img/{split}", "._0.png", ".thumbnails/0.png")
        Path(f"d/gt/{split}").mkdir(parents=True)
        for i in range(2):
            Image.fromarray(rng.integers(0, 3, (32, 32), dtype=np.uint8)).save(f"d/gt/{split}/{i}_gt.PNG")
    own = {"type": "folder", "data_dir": "d", "images": "img/{split}", "labels": "gt/{split}", "input_size": [32, 32],
           "classes": ["a", "b", "c"]}
    Path("c.yml").write_text(yaml.safe_dump({
        "note": "t", "source": "mine", "target": "mine", "num_classes": 3, "neg_rank_width": 0, "layers": [1, 1, 1, 1],
        "width": 4, "worker": 0, "screen": False, "device": "cpu", "num_steps": 1, "batch_size": 2, "round": 1,
        "crop_tgt": 32, "input_tgt": 32, "tensorboard": False, "init_weight": "n.pth", "mine": own}))
    torch.manual_seed(0)
    torch.save(DeepLabV2(3, (1, 1, 1, 1), 4).state_dict(), "n.pth")

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["run.py", "--config", "c.yml", *words])
        assert run_stage(run_script.__doc__, "c.yml", run_script.run) == 0
        return capsys.readouterr().out
    out = run()
    assert "stage ld: 2 images" in out and "warning: validation skipped: mine has no labels" in out
    assert out.count("left out: 2 (the first: ") == 2 and "_gt.PNG is, and fits no image: correct mine.labels" in out
    remark = next(line for line in out.splitlines() if "validation skipped" in line)
    assert check.main(["--config", "c.yml"]) == 0 and f"\n  {remark}\n" in capsys.readouterr().out  # no note: warning:
    out = run("mine.labels=gt/{split}/{name}_gt.png", "overwrite=true")
    assert "mIoU" in out and "validation skipped" not in out and "trained on as well" not in out
    assert out.count("left out: 2 (the first: ") == 2
    out = run("mine.labels=gt/train/{name}_gt.png", "mine.images=img/train", "overwrite=true")  # there is one split
    assert "note: 2 of the 2 validation images are trained on as well" in out
    os.rename("d/img/val", "d/img/validation")
    skipped = "validation skipped: mine has no images in its split 'val': none matches 'd/img/val/<name>.png'"
    assert skipped in run("mine.labels=gt/{split}/{name}_gt.png", "overwrite=true")
    assert check.main(["--config", "c.yml", "--split", "target_val", "worker=0"]) == 0  # what follows is an override
    assert skipped in capsys.readouterr().out
    os.rename("d/img/validation", "d/img/val")
    os.rename("d/gt/train/0_gt.PNG", "d/gt/0")
    partly = "the accuracy of pseudo labels is not reported: 1 of 2 labels are not there"
    assert partly in run("mine.labels=gt/{split}/{name}_gt.png", "overwrite=true")
    assert check.main(["--config", "c.yml", "mine.labels=gt/{split}/{name}_gt.png", "--split", "target_train"]) == 0
    assert partly in capsys.readouterr().out
    os.rename("d/gt/0", "d/gt/train/0_gt.PNG")
    monkeypatch.setattr(sys, "argv", ["eval.py", "--config", "c.yml", "n.pth", "mine.labels=gt/{split}/{name}_gt.png"])
    assert eval_script.run() == 0 and "left out: 2 (the first: " in capsys.readouterr().err


# ---- patterns of the configuration -----------------------------------------------------------------------------------

@pytest.mark.parametrize("images, labels, said", [
    ("rgb/*/{name}.png", "gt/{name}.png", "mine.labels: 'gt/{name}.png' has 0 *, mine.images 1"),
    ("rgb/{name}.png", "gt/*/{name}.png", "mine.labels: 'gt/*/{name}.png' has 1 *, mine.images 0"),
    ("rgb/*/*", "gt/*", "mine.labels"), ("rgb/**/{name}.png", None, "mine.images"),
    ("rgb/a*/{name}.png", None, "mine.images"), ("rgb/{name}*.png", None, "mine.images"),
    ("rgb/{name}/*/x.png", None, "mine.images"), ("rgb/*.png", None, "mine.images"),
    ("{name}/{name}.png", None, "twice"), ("{splt}/{name}.png", None, "'{splt}'"), ("x", "y/{id}.png", "mine.labels"),
    ("x/{}", None, "mine.images"), ("x}", None, "mine.images"), ("x/{name", None, "mine.images"),
])
def test_patterns_that_mean_nothing_are_refused(tmp_path, images, labels, said):
    (tmp_path / "c.yml").write_text(yaml.safe_dump({
        "source": "mine", "target": "mine", "num_classes": 2, "neg_rank_width": 0,
        "mine": {"type": "folder", "data_dir": "d", "images": images, "labels": labels, "classes": ["a", "b"],
                 "input_size": [8, 8]}}))
    with pytest.raises(ConfigError) as error:
        load_config(tmp_path / "c.yml")
    assert said in str(error.value) and "\n" not in str(error.value)


def test_a_star_in_data_dir_is_explained(tmp_path):
    with pytest.raises(DataError, match="mine.data_dir: no folder .* may stand in images and labels only"):
        segmentation.find_samples("mine", DataConfig("folder", f"{tmp_path}/*", images="x"), "train")


# ---- cost ------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("images, labels", [("img", "gt"), ("img/{name}.png", "gt/{name}.png")])
def test_folders_are_listed_once_and_files_are_not_asked_for_one_by_one(tmp_path, monkeypatch, images, labels):
    write(tmp_path / "d", *(f"{folder}/{sub}/{i}.png" for folder in ("img", "gt") for sub in "ab" for i in range(50)))
    calls = {name: [] for name in ("scandir", "stat", "lstat")}

    def count(name, plain):
        def counted(path, *words, **more):
            calls[name].append(str(path))
            return plain(path, *words, **more)
        monkeypatch.setattr(os, name, counted)
    for name in calls:
        count(name, getattr(os, name))
    samples = segmentation.find_samples("mine", section(tmp_path, images, labels), "train")
    monkeypatch.undo()
    assert len(samples) == 100 and all(s.label.is_file() for s in samples)
    assert len(calls["scandir"]) == len(set(calls["scandir"])) <= 7
    assert len(calls["stat"]) + len(calls["lstat"]) < 60

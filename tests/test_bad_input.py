"""What users and strangers get wrong: every case ends with its exit code and one line that names the culprit, and
leaves the disk as it was. Properties and fuzzing are in test_fuzz.py."""
import hashlib
import io
import os
import pickle
import shutil
import struct
import sys
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import eval as eval_script
import run as run_script
import run_so as run_so_script
from dataset import check
from dataset.toy import write_toy_world
from dataset.toy.__main__ import main as toy_main
from model.deeplabv2 import DeepLabV2
from utils.cli import run_stage

TINY = {
    "amp": "off",
    "note": "tiny", "layers": [1, 1, 1, 1], "width": 4, "worker": 0, "screen": False, "device": "cpu", "num_steps": 2,
    "crop_src": 48, "crop_tgt": 48, "tensorboard": False, "init_weight": "net.pth", "val": False,
    **{name: {"data_dir": f"world/{name}", "input_size": [64, 32]} for name in ("gta5", "synthia", "cityscapes")}}
IMAGE = "world/cityscapes/leftImg8bit/val/suderburg/suderburg_000001_000019_leftImg8bit.png"
LABEL = "world/cityscapes/gtFine/val/suderburg/suderburg_000001_000019_gtFine_labelIds.png"
LONG = "x" * 300  # longer than a file name may be


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    root = tmp_path_factory.mktemp("template")
    write_toy_world(root / "world", seed=5, size=(64, 32), source=3, synthia=1, train=2, val=2)
    torch.manual_seed(0)
    torch.save(DeepLabV2(19, (1, 1, 1, 1), 4).state_dict(), root / "net.pth")
    (root / "tiny.yml").write_text(yaml.safe_dump(TINY))
    (root / "secret.png").write_bytes((root / "world/gta5/images/00001.png").read_bytes())
    return root


@pytest.fixture
def here(template, tmp_path, monkeypatch):
    """A folder of its own with a tiny world, network and configuration, as the working directory."""
    shutil.copytree(template, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def tree(root):
    """Path -> content or link target of everything below root."""
    return {p.relative_to(root).as_posix(): os.readlink(p) if p.is_symlink() else
            hashlib.sha256(p.read_bytes()).hexdigest() if p.is_file() else None for p in sorted(root.rglob("*"))}


def call(monkeypatch, script, words):
    """Run a command line in this process; its exit code."""
    words = list(words) if script == "toy" or "--config" in words else ["--config", "tiny.yml", *words]
    monkeypatch.setattr(sys, "argv", [script, *words])
    try:
        return {"run_so": lambda: run_stage(run_so_script.__doc__, "x", run_so_script.run, method="source_only"),
                "run": lambda: run_stage(run_script.__doc__, "x", run_script.run),
                "eval": eval_script.run, "check": lambda: check.main(words), "toy": lambda: toy_main(words)}[script]()
    except SystemExit as stop:  # argparse
        return stop.code


def refused(monkeypatch, capfd, here, script, words, said):
    """Assert exit code 2, one line on stderr (file descriptor 2: libraries in C count) with `said`, nothing changed."""
    before = tree(here.parent)
    capfd.readouterr()
    assert call(monkeypatch, script, words) == 2
    error = capfd.readouterr().err
    assert len(error.splitlines()) == 1 and error.startswith("error: ") and error.endswith("\n"), error
    assert said in error and "Traceback" not in error and len(error) < 2000, error
    assert tree(here.parent) == before


def test_the_unharmed_world_passes(here, monkeypatch, capfd):
    """Without this, a broken fixture would pass for a refusal."""
    assert call(monkeypatch, "eval", ["net.pth"]) == 0
    assert call(monkeypatch, "check", []) == 0
    assert call(monkeypatch, "check", ["source=synthia"]) == 0
    assert call(monkeypatch, "run_so", []) == 0
    assert "error" not in capfd.readouterr().err


# ---- configurations --------------------------------------------------------------------------------------------------

LAUGHS = ", ".join(f"&a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12))
MERGES = "\n".join(f"y{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}" for i in range(1, 12))
OWN = ("source: own\ntarget: own\nnum_classes: 2\nneg_rank_width: 0\n"
       "own: {type: folder, data_dir: world, input_size: [8, 8], ")
CONFIGS = {
    "a list": ("- note\n- x", "key: value"),
    "not YAML": ("note: [1, 2", "not valid YAML"),
    "another encoding": ("note: x".encode("utf-16"), "UTF-8"),
    "an object": ("note: !!python/object/apply:os.system [echo]", "not valid YAML"),
    "a key twice": ("batch_size: 2\nbatch_size: 3", "batch_size"),
    "an unknown key": ("batchsize: 2", "'batch_size'"),
    "a key that is no text": ("1: 2", "'1'"),
    "a date where a number is due": ("seed: 2021-99-99", "seed: expected whole number"),
    "a number of 5000 digits": (f"seed: {'9' * 5000}", "digits"),
    "a tag of another type": ("seed: !!bool x", "not valid YAML"),
    "deep nesting": (f"note: {'[' * 3000}{']' * 3000}", "not valid YAML"),
    "a billion laughs": (f"note: [&a0 [x, x], {LAUGHS}]", "note"),
    "a billion merges": (f"x: &a0 {{a: 1, b: 2}}\n{MERGES}", "unknown key"),
    "a list that holds itself": ("scales: &a [*a]", "scales"),
    "NaN": ("learning_rate: .nan", "learning_rate"),
    "text for a number": ("batch_size: two", "batch_size"),
    "a truth value for a number": ("seed: yes", "seed"),
    "too small": ("num_steps: 0", "num_steps"),
    "too large a network": ("width: 1000000000", "width"),
    "too large an image": ("cityscapes: {input_size: [60000, 60000]}", "cityscapes.input_size"),
    "a note that leaves the folder": ("note: ../x", "note"),
    "a note of two lines": ('note: "a\\nb"', "note"),
    "a choice that is none": ("on_bad_sample: repair", "error or skip"),
    "a section without type": ("mine: {data_dir: x}", "type"),
    "a section without classes": (OWN + "images: a}", "own.classes"),
    "images outside data_dir": (OWN + "images: ../x, classes: [a, b]}", "own.images"),
    "labels outside data_dir": (OWN + "images: x, labels: /etc, classes: [a, b]}", "own.labels"),
    "an id of no class": (OWN + "images: x, classes: [a, b], label_ids: {1: 2}}", "own.label_ids"),
    "the wrong number of classes": ("num_classes: 18", "num_classes"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_configurations(here, monkeypatch, capfd, name):
    text, said = CONFIGS[name]
    Path("bad.yml").write_bytes(text if isinstance(text, bytes) else text.encode())
    refused(monkeypatch, capfd, here, "run_so", ["--config", "bad.yml"], said)


# ---- command lines ---------------------------------------------------------------------------------------------------

COMMANDS = [
    ("run_so", ["--config", "nowhere.yml"], "nowhere.yml"), ("run", ["--config", "world"], "world"),
    ("run_so", ["--config", LONG], "too long"), ("run", ["--config", "a\nb.yml"], "a\\nb.yml"),
    ("run", ["batch_size"], "batch_size"), ("run_so", ["learning_rat=1"], "learning_rate"),
    ("run_so", ["batch_size="], "batch_size"), ("run_so", ["scales=2021-99-99"], "scales"),
    ("run", ["--verbose"], "--verbose"), ("run", ["--config"], "--config"),
    ("run_so", ["device=cuda:77"], "device"), ("run", ["cityscapes.datadir=x"], "data_dir"),
    ("run", ["method=source_only"], "method"), ("run", ["init_weight=None"], "init_weight"),
    ("run", ["method=be", "batch_size=1"], "batch_size"), ("run", ["init_weight=gone.pth"], "gone.pth"),
    ("run", ["init_weight=world"], "world"), ("run", [f"init_weight={LONG}"], "no such checkpoint"),
    ("run_so", ["gta5.data_dir=nowhere"], "gta5.data_dir"), ("run_so", ["gta5.data_dir=net.pth"], "gta5.data_dir"),
    ("run_so", [f"gta5.data_dir={LONG}"], "gta5.data_dir"), ("run_so", ["gta5.data_dir=world"], "gta5"),
    ("run", ["cityscapes.data_dir=nowhere"], "cityscapes.data_dir"),
    ("eval", [], "CKPT"), ("eval", ["note=x"], "checkpoints"), ("eval", ["net.pth", "net.pth"], "net.pth"),
    ("eval", ["net.pth", "gone.pth"], "gone.pth"), ("eval", [LONG + "=1"], "unknown key"),
    ("eval", ["tiny.yml"], "tiny.yml"), ("eval", ["net.pth", "--json", "net.pth/where.json"], "net.pth"),
    ("eval", ["net.pth", "--json", "world"], "--json"),
    ("eval", ["net.pth", "--figure", "figure.txt"], "--figure"), ("eval", ["net.pth", "--images", "0"], "--images"),
    ("eval", ["net.pth", "--images", "few"], "--images"), ("eval", ["net.pth", "num_classes=16"], "num_classes"),
    ("eval", ["net.pth", "layers=1,1,2,1"], "layers"), ("eval", ["net.pth", "width=8"], "net.pth"),
    ("check", ["--split", "source_val"], "--split"), ("check", ["batchsize=2"], "batch_size"),
    ("check", ["--config", "nowhere.yml"], "nowhere.yml"), ("check", ["cityscapes"], "key=value"),
    ("toy", [], "--root"), ("toy", ["--root", "."], "toy.json"), ("toy", ["--root", "net.pth"], "net.pth"),
    ("toy", ["--root", "net.pth/deeper"], "net.pth"), ("toy", ["--root", "new", "--size", "8", "8"], "--size"),
    ("toy", ["--root", "new", "--size", "64", "100000"], "--size"), ("toy", ["--root", "new", "--val", "-1"], "--val"),
    ("toy", ["--root", "new", "--source", "1000000000000"], "--source"), ("toy", ["--root", LONG], "cannot be made"),
    ("toy", ["--root", "new", "--strength", "nan"], "--strength"), ("toy", ["--root", "new", "--seed", "x"], "--seed"),
]


@pytest.mark.parametrize("script, words, said", COMMANDS, ids=lambda v: v if isinstance(v, str) else " ".join(v)[:40])
def test_command_lines(here, monkeypatch, capfd, script, words, said):
    refused(monkeypatch, capfd, here, script, words, said)


# ---- lists and folders -----------------------------------------------------------------------------------------------

def link(path, target):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).unlink(missing_ok=True)
    Path(path).symlink_to(Path(target).resolve())


LISTS = {
    "a folder": (None, "gta5.data_list", lambda: Path("list.txt").mkdir()),
    "a device that never ends": (None, "gta5.data_list", lambda: Path("list.txt").symlink_to("/dev/zero")),
    "not there": (None, "gta5.data_list", lambda: None),
    "another encoding": ("00001.png\n".encode("utf-16"), "gta5.data_list", None),
    "empty": ("\n  \n", "list.txt", None),
    "an absolute path": ("00001.png\n/etc/passwd", "list.txt, line 2", None),
    "a way up": ("../../../secret.png", "list.txt, line 1", None),
    "a way up and down": ("00001.png\nx/../../labels/00001.png", "list.txt, line 2", None),
    "a way up behind the folder": ("images/../../secret.png", "list.txt, line 1", None),
    "a link out": ("leak.png", "secret.png", lambda: link("world/gta5/images/leak.png", "secret.png")),
    "a linked folder out": ("out/secret.png", "secret.png", lambda: link("world/gta5/images/out", ".")),
    "a dangling link out": ("leak.png", "leak.png", lambda: link("world/gta5/images/leak.png", "nowhere.png")),
    "a label that is a link out": ("00001.png", "labels/00001.png",
                                   lambda: link("world/gta5/labels/00001.png", "secret.png")),
    "another kind of file": ("00001.png\n00002.txt", "list.txt, line 2", None),
    "no name": (".png", "list.txt, line 1", None),
    "the folder itself": ("images/", "list.txt, line 1", None),
    "an image that is not there": ("00009.png", "00009.png", None),
    "an image twice": ("00001.png\n./00001.png", "00001.png", None),
    "a name of 300 letters": (f"{LONG}.png", "list.txt", None),
    "a zero byte": ("00001.png\n\0.png", "list.txt, line 2", None),
    "terminal codes": ("\x1b[31mred.png", "\\x1b[31mred.png", None),
}


@pytest.mark.parametrize("name", LISTS)
def test_lists(here, monkeypatch, capfd, name):
    content, said, prepare = LISTS[name]
    if content is not None:
        Path("list.txt").write_bytes(content if isinstance(content, bytes) else content.encode())
    if prepare:
        prepare()
    refused(monkeypatch, capfd, here, "run_so", ["gta5.data_list=list.txt"], said)


@pytest.mark.parametrize("script, words, said, prepare", [
    ("run_so", [], "labels/00002.png", lambda: Path("world/gta5/labels/00002.png").unlink()),
    ("run_so", [], "labels/00001.png", lambda: shutil.rmtree("world/gta5/labels")),
    ("run_so", [], "gta5", lambda: shutil.rmtree("world/gta5/images")),
    ("run", [], "cityscapes", lambda: shutil.rmtree("world/cityscapes/leftImg8bit/train")),
    ("run", ["val=True"], LABEL, lambda: Path(LABEL).unlink()),
    ("eval", ["net.pth"], "labels", lambda: shutil.rmtree("world/cityscapes/gtFine")),
    ("eval", ["net.pth", "cityscapes.data_list_val=list.txt"], "line 1",
     lambda: Path("list.txt").write_text("/x_leftImg8bit.png")),
], ids=["one label missing", "all labels missing", "no images", "no target", "a val label missing", "no val labels",
        "val list"])
def test_folders(here, monkeypatch, capfd, script, words, said, prepare):
    prepare()
    refused(monkeypatch, capfd, here, script, words, said)


def test_links_that_are_allowed(here, monkeypatch, capfd):
    """The data folder, the image folder, and, in a folder that is scanned, anything may be linked into place."""
    os.rename("world/gta5/images", "images_moved")
    link("world/gta5/images", "images_moved")
    os.rename("world/cityscapes", "far")
    link("world/cityscapes", "far")
    os.rename("far/leftImg8bit/val/suderburg", "city")
    link("far/leftImg8bit/val/suderburg", "city")
    link("city/round", "far/leftImg8bit/val")  # a loop
    Path("list.txt").write_text("00001.png\nimages/00002.png some_word\n", encoding="utf-8-sig")
    assert call(monkeypatch, "check", ["gta5.data_list=list.txt"]) == 0
    out = capfd.readouterr().out
    assert "(gta5): 2 images, 2 labels" in out and "target_val (cityscapes): 2 images, 2 labels" in out


# ---- images and labels -----------------------------------------------------------------------------------------------

def png(width, height, depth, colour, data=b""):
    """A PNG of that header around `data`."""
    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def two_headers():
    small = png(64, 32, 16, 2, bytes(32 * (1 + 64 * 6)))
    return png(30000, 30000, 16, 2)[:33] + small[8:]


def encoded(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def with_wrong_byte(content):
    """A byte in the middle, where the pixels are."""
    data = bytearray(content)
    data[len(data) // 2] ^= 0xFF
    return bytes(data)


GREY = Image.fromarray(np.full((32, 64), 7, np.uint8))
FILES = {
    **{f"{kind} bomb of {depth} bits, colour type {colour}": (path, lambda d=depth, c=colour: png(60000, 60000, d, c))
       for kind, path in (("image", IMAGE), ("label", LABEL))
       for depth, colour in ((8, 2), (8, 0), (8, 3), (16, 0), (16, 2))},
    "image bomb below Pillow's own error": (IMAGE, lambda: png(12000, 12000, 8, 2)),
    "label bomb below Pillow's own error": (LABEL, lambda: png(12000, 12000, 16, 2)),
    "label of two headers": (LABEL, two_headers),
    "image cut short": (IMAGE, lambda: Path(IMAGE).read_bytes()[:2000]),
    "label cut short": (LABEL, lambda: Path(LABEL).read_bytes()[:100]),
    "16-bit label cut short": (LABEL, lambda: png(64, 32, 16, 2, bytes(32 * 385))[:60]),
    "16-bit label with a wrong byte": (
        LABEL, lambda: with_wrong_byte(png(64, 32, 16, 2, bytes(range(256)) * 48 + bytes(32)))),
    "label of too few rows": (LABEL, lambda: png(64, 32, 16, 0, bytes(100))),
    "image of no bytes": (IMAGE, lambda: b""),
    "label of no bytes": (LABEL, lambda: b""),
    "image of text": (IMAGE, lambda: b"not an image"),
    "image with a wrong byte": (IMAGE, lambda: with_wrong_byte(Path(IMAGE).read_bytes())),
    "label with a wrong byte": (LABEL, lambda: with_wrong_byte(Path(LABEL).read_bytes())),
    "image of no pixels": (IMAGE, lambda: png(0, 0, 8, 2)),
    "image that is a PostScript program": (IMAGE, lambda: encoded(Image.new("RGB", (64, 32)), "EPS")),
    "image of 16 bits": (IMAGE, lambda: encoded(Image.fromarray(np.zeros((32, 64), np.uint16)), "PNG")),
    "label as JPEG": (LABEL, lambda: encoded(GREY, "JPEG")),
    "label in colour": (LABEL, lambda: encoded(GREY.convert("RGB"), "PNG")),
    "label of negative ids": (LABEL, lambda: encoded(Image.fromarray(np.full((32, 64), -1, np.int32)), "TIFF")),
    "label of ids beyond 16 bits": (
        LABEL, lambda: encoded(Image.fromarray(np.full((32, 64), 70000, np.int32)), "TIFF")),
    "label of another size": (LABEL, lambda: encoded(GREY.resize((63, 32)), "PNG")),
}


@pytest.mark.parametrize("name", FILES)
def test_images_and_labels(here, monkeypatch, capfd, name):
    path, content = FILES[name]
    Path(path).write_bytes(content())
    refused(monkeypatch, capfd, here, "eval", ["net.pth"], path)
    before = tree(here)
    assert call(monkeypatch, "check", ["--split", "target_val"]) == 1
    out, error = capfd.readouterr()
    assert error == "" and tree(here) == before
    assert [path in line for line in out.splitlines() if "error: " in line] == [True]


# ---- checkpoints -----------------------------------------------------------------------------------------------------

class Harmful:
    def __reduce__(self):
        return open, ("harm.txt", "w")


def itself():
    content = {}
    content["model"] = content
    return content


def rezipped(state):
    torch.save(state, "bad.pth")
    stored = zipfile.ZipFile("bad.pth")
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as packed:
        for entry in stored.infolist():
            packed.writestr(entry.filename, stored.read(entry))
    return buffer.getvalue()


STEM = "conv1.weight"
CHECKPOINTS = {  # state dict -> bytes of a file, or something for torch.save; the second: what must be said
    "no bytes": (lambda s: b"", "bad.pth"),
    "text": (lambda s: b"note: tiny\n", "bad.pth"),
    "an image": (lambda s: Path(IMAGE).read_bytes(), "bad.pth"),
    "cut short": (lambda s: Path("net.pth").read_bytes()[:20000], "bad.pth"),
    "compressed": (rezipped, "compressed"),
    "a pickle that opens a file": (lambda s: pickle.dumps({**s, "x": Harmful()}), "bad.pth"),
    "one that torch saved": (lambda s: {**s, "x": Harmful()}, "open"),
    "a whole network": (lambda s: DeepLabV2(19, (1, 1, 1, 1), 4), "DeepLabV2"),
    "an object of another class": (lambda s: {"state_dict": s, "cfg": io.StringIO()}, "StringIO"),
    "a list": (lambda s: [1, 2], "no tensors"),
    "no tensors": (lambda s: {"epoch": 3}, "no tensors"),
    "itself inside": (lambda s: itself(), "wrappers"),
    "names that are numbers": (lambda s: {**s, 1: s[STEM]}, "no tensors"),
    "another network": (lambda s: {"encoder.weight": torch.zeros(3)}, "fits nothing"),
    "a classifier alone": (lambda s: {"fc.weight": torch.zeros(3, 3)}, "fits nothing"),
    "a tensor missing": (lambda s: {k: v for k, v in s.items() if k != "bn1.running_var"}, "bn1.running_var"),
    "another number of classes": (lambda s: DeepLabV2(16, (1, 1, 1, 1), 4).state_dict(), "num_classes"),
    "another shape": (lambda s: {**s, STEM: s[STEM][:, :, :3]}, STEM),
    "NaN": (lambda s: {**s, STEM: s[STEM] * float("nan")}, STEM),
    "beyond float32": (lambda s: {**s, STEM: s[STEM].double() + 1e300}, STEM),
    "negative variance": (lambda s: {**s, "bn1.running_var": -s["bn1.running_var"]}, "bn1.running_var"),
    "whole numbers": (lambda s: {**s, STEM: torch.ones_like(s[STEM], dtype=torch.int32)}, "int32"),
    "complex numbers": (lambda s: {**s, STEM: s[STEM].to(torch.complex64)}, "complex64"),
    "float8": (lambda s: {**s, STEM: s[STEM].to(torch.float8_e4m3fn)}, "float8"),
    "a fractional counter": (lambda s: {**s, "bn1.num_batches_tracked": torch.tensor(1.5)}, "num_batches_tracked"),
    "a sparse tensor": (lambda s: {**s, STEM: s[STEM].to_sparse()}, "sparse"),
    "a tensor without content": (lambda s: {**s, STEM: s[STEM].to("meta")}, STEM),
    "one number for a trillion": (lambda s: {**s, STEM: torch.zeros(1).expand(10**6, 10**6)}, STEM),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CHECKPOINTS)
def test_checkpoints(here, monkeypatch, capfd, name):
    make, said = CHECKPOINTS[name]
    content = make(torch.load("net.pth", weights_only=True))
    torch.save(content, "bad.pth") if not isinstance(content, bytes) else Path("bad.pth").write_bytes(content)
    refused(monkeypatch, capfd, here, "run", ["init_weight=bad.pth"], said)

"""Properties: whatever is written into a configuration or a list ends in a value or in one clear error. Fuzzing: so
does every mutation of a valid image, label or checkpoint."""
import io
import os
import struct
import zipfile
import zlib

import numpy as np
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from dataset import files, labels, segmentation
from dataset.toy.files import png_rgb16
from model.deeplabv2 import DeepLabV2
from model.weights import load_weights
from utils.config import KEYS, SECTION_DEFAULTS, SECTION_KEYS, load_config, to_yaml
from utils.config_keys import find_class
from utils.errors import CheckpointError, ConfigError, DataError

# The same examples on every run; the folder of a test is shared by its examples.
settings.register_profile("ldbe", derandomize=True, database=None, deadline=None, max_examples=120,
                          suppress_health_check=list(HealthCheck))
settings.load_profile("ldbe")
FUZZ = settings(max_examples=1500)


# ---- configurations --------------------------------------------------------------------------------------------------

TEXT = st.one_of(st.text(max_size=20), st.from_regex(r"[-\[\]{}:,&*!|>'\"%@`#?0-9a-z .=~]{0,20}", fullmatch=True))
NUMBERS = st.one_of(st.integers(), st.floats(), st.integers(0, 300))
WORDS = st.sampled_from(["true", "no", "None", "~", "1e-4", "0x1f", "0b_", "1:30", "2021-99-99", "<<", "=", "!!bool x",
                         ".inf"])
VALUES = st.recursive(st.one_of(st.none(), st.booleans(), NUMBERS, TEXT, WORDS, st.dates()), lambda inner: st.one_of(
    st.lists(inner, max_size=5), st.dictionaries(st.one_of(TEXT, NUMBERS), inner, max_size=4)), max_leaves=8)
KEY_NAMES = [*KEYS, *SECTION_DEFAULTS, *(f"{s}.{k}" for s in SECTION_DEFAULTS for k in SECTION_KEYS)]
NAMES = st.one_of(st.sampled_from(KEY_NAMES), TEXT)


def round_trip(path, words=()):
    """Load; if that works, the resolved configuration must read back to an equal one."""
    try:
        cfg = load_config(path, words)
    except ConfigError as error:
        assert len(str(error)) < 5000
        return False
    path.write_text(to_yaml(cfg), encoding="utf-8")
    assert load_config(path) == cfg
    return True


@given(st.sampled_from(KEY_NAMES), st.integers(0, 3), st.data())
def test_words_are_read_or_refused(tmp_path, name, kind, data):
    path = tmp_path / "c.yml"
    path.write_text("# nothing\n")
    value = data.draw((WORDS, TEXT, NUMBERS, VALUES)[kind])
    round_trip(path, [f"{name}={value}"])


@given(st.lists(TEXT, max_size=3))
def test_any_words_are_read_or_refused(tmp_path, words):
    path = tmp_path / "c.yml"
    path.write_text("# nothing\n")
    round_trip(path, words)


@given(st.dictionaries(st.one_of(NAMES, NUMBERS, st.none()), st.one_of(VALUES, st.dictionaries(
    st.one_of(st.sampled_from([*SECTION_KEYS]), TEXT), VALUES, max_size=4)), max_size=3))
def test_files_are_read_or_refused(tmp_path, tree):
    path = tmp_path / "c.yml"
    path.write_text(yaml.safe_dump(tree, allow_unicode=True), encoding="utf-8")
    round_trip(path)


LINE = st.builds("{}: {}".format, st.sampled_from(KEY_NAMES), WORDS)


@given(st.one_of(LINE.map(str.encode), st.binary(max_size=60), TEXT.map(str.encode),
                 st.lists(TEXT, max_size=4).map("\n".join).map(str.encode)))
def test_bytes_are_read_or_refused(tmp_path, content):
    path = tmp_path / "c.yml"
    path.write_bytes(content)
    round_trip(path)


def valid(key):
    """Values within the declared limits of a key."""
    kind = key.kind[0] if isinstance(key.kind, list) else key.kind
    if key.choices:
        one = st.sampled_from(key.choices)
    elif key.pattern:
        one = st.sampled_from(["auto", "cpu", "cuda", "cuda:3"])
    elif kind is bool:
        one = st.booleans()
    elif kind is str:
        one = st.text(st.characters(exclude_categories=("C", "Z")), min_size=1, max_size=12).filter(
            lambda t: t.lower() not in ("none", "null", "~", ".", "..") and not set(t) & set("/\\")
            and not (key.path and t.startswith("~")))
    else:
        low, high = (key.low if key.low is not None else -1e9), (key.high if key.high is not None else 1e9)
        one = st.integers(int(low), int(high)) if kind is int else st.floats(
            low, high, exclude_min=key.above, exclude_max=key.below, allow_subnormal=False)
    if isinstance(key.kind, list):
        return st.lists(one, min_size=key.length or 1, max_size=key.length or 5)
    return one


FREE = {k: key for keys in (KEYS, *(cls.keys for cls in (find_class("method", "be"), find_class("model", "deeplab"))))
        for k, key in keys.items()
        if k not in ("multigpu", "resume", "restore_from", "source", "target", "fix_seed", "method", "model")}


@given(st.data())
def test_valid_values_arrive_and_read_back(tmp_path, data):
    names = data.draw(st.lists(st.sampled_from([*FREE]), unique=True, max_size=5))
    tree = {name: data.draw(valid(FREE[name]), label=name) for name in names}
    fits = {"num_classes": 19, "neg_rank_width": 3, "batch_size": 2, "round_start": 0}  # these depend on others
    tree = {k: fits.get(k, v) for k, v in tree.items()}
    path = tmp_path / "c.yml"
    path.write_text(yaml.safe_dump({"method": "be", "batch_size": 2, **tree}, allow_unicode=True), encoding="utf-8")
    cfg = load_config(path)
    for name, value in tree.items():
        assert cfg.value(name) == (tuple(value) if isinstance(value, list) else value)
    assert round_trip(path)


# ---- lists -----------------------------------------------------------------------------------------------------------

PARTS = st.sampled_from(["a", "b", "..", ".", "", "/", "images", "~", "\0", "a.png", ".png", "é", "link", "out",
                         "\u2028"])
LINES = st.one_of(st.lists(PARTS, max_size=5).map("/".join),
                  st.lists(PARTS, max_size=4).map(lambda p: "/".join(p) + ".png"),
                  st.sampled_from(["a/a.png", "b.png", "link/a.png", "out.png", "out/b.png", "out/a/a.png", "c/b.png",
                                   "images/b.png"]), st.text(max_size=20))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A data set whose image folder holds images, a link within it and two links out of it; its labels of `c`
    are a link out as well."""
    root = tmp_path_factory.mktemp("lists")
    for path in ("data/images/a/a.png", "data/images/b.png", "data/images/c/b.png", "outside/b.png", "outside/a/a.png"):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(root / path)
    (root / "data/images/link").symlink_to("a")
    (root / "data/images/out").symlink_to(root / "outside")
    (root / "data/labels").mkdir()
    (root / "data/labels/c").symlink_to(root / "outside")
    (root / "data/images/out.png").symlink_to(root / "outside/b.png")
    return root


@given(st.one_of(st.lists(LINES, max_size=4).map("\n".join).map(str.encode), st.binary(max_size=40)), st.booleans(),
       st.sampled_from(["images/{name}.png", "images", "{name}.png"]))
def test_names_of_lists_stay_inside(folder, content, complete, pattern):
    (folder / "list.txt").write_bytes(content)
    (folder / "c.yml").write_text(yaml.safe_dump({
        "source": "own", "target": "own", "num_classes": 2, "neg_rank_width": 0,
        "own": {"type": "folder", "data_dir": str(folder / "data"), "data_list": str(folder / "list.txt"),
                "images": pattern, "labels": "labels", "classes": ["x", "y"], "input_size": [8, 8]}}))
    try:
        section = load_config(folder / "c.yml").target_data
        samples = segmentation.find_samples("own", section, "train", complete=complete)
    except DataError:
        return
    assert samples and len({s.name for s in samples}) == len(samples)
    for sample in samples:
        for root, path in ((folder / "data", sample.image), (folder / "data", sample.label),
                           (folder / "plabel", folder / "plabel" / f"{sample.name}.png")):
            assert os.path.realpath(path).startswith(f"{root}/") and "\0" not in str(path)
        assert sample.image.is_file() or not complete


@given(st.lists(st.sampled_from(["a/a.png", "b.png", "link/a.png"]), unique=True, min_size=1), st.booleans(),
       st.sampled_from(["\n", "\r\n", "\n\n"]))
def test_valid_lists_are_read_in_full(folder, names, with_folder, ending):
    prefix = "images/" if with_folder else ""
    (folder / "list.txt").write_bytes(ending.join(f"{prefix}{name} label.png" for name in names).encode())
    (folder / "c.yml").write_text(yaml.safe_dump(
        {"gta5": {"data_dir": str(folder / "data"), "data_list": str(folder / "list.txt")}}))
    samples = segmentation.find_samples("gta5", load_config(folder / "c.yml").source_data, "train")
    assert [s.image for s in samples] == [folder / "data/images" / name for name in names]


# ---- damaged files ---------------------------------------------------------------------------------------------------

MUTATIONS = st.lists(st.tuples(st.sampled_from(["set", "flip", "cut", "insert", "remove", "repeat"]),
                               st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=6)


def mutate(content, mutations):
    data = bytearray(content)
    for kind, where, value in mutations:
        at = int(where * len(data))
        if kind == "set":
            data[at:at + 1] = bytes([value])
        elif kind == "flip":
            data[at:at + 1] = bytes(b ^ (1 << value % 8) for b in data[at:at + 1])
        elif kind == "cut":
            del data[at:]
        elif kind == "insert":
            data[at:at] = bytes([value]) * (value % 9)
        elif kind == "remove":
            del data[at:at + value % 9]
        else:
            data[at:at] = data[at:at + value]
    return bytes(data)


def with_checksums(png):
    """The same PNG with every chunk's checksum made right, so that decoders look further than that."""
    out, at = bytearray(png[:8]), 8
    while at + 8 <= len(png):
        length, = struct.unpack(">I", png[at:at + 4])
        body = png[at + 4:at + 8 + length]
        out += png[at:at + 4] + body + struct.pack(">I", zlib.crc32(body))
        at += 12 + length
    return bytes(out)


def encoded(array, kind="PNG", **options):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, kind, **options)
    return buffer.getvalue()


NOISE = np.random.default_rng(0).integers(0, 20, (12, 16, 3), dtype=np.uint8)
IMAGES = [encoded(NOISE), encoded(NOISE[..., 0]), encoded(NOISE, "JPEG"), encoded(NOISE, "TIFF"),
          encoded(NOISE, "WEBP"), encoded(NOISE[..., 0].astype(np.uint16)), png_rgb16(NOISE.astype(np.uint16)),
          encoded(NOISE[..., 0], "BMP"), encoded(NOISE[..., 0].astype(np.int32), "TIFF")]


@pytest.mark.slow
@FUZZ
@given(st.sampled_from(IMAGES), MUTATIONS, st.booleans())
def test_damaged_images_and_labels_are_read_or_refused(tmp_path, content, mutations, fix_checksums):
    path = tmp_path / "x.png"
    content = mutate(content, mutations)
    path.write_bytes(with_checksums(content) if fix_checksums and content.startswith(b"\x89PNG") else content)
    table = labels.lookup_table({1: 0})
    for read in (files.read_image, lambda p: files.read_label(p, table)):
        try:
            read(path)
        except DataError as error:
            assert str(path) in str(error)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return DeepLabV2(2, (1, 1, 1, 1), 1)


def checkpoints(network):
    """The valid files to start from: torch's archive and its older format."""
    for new in (True, False):
        buffer = io.BytesIO()
        torch.save(network.state_dict(), buffer, _use_new_zipfile_serialization=new)
        yield buffer.getvalue()


def with_pickle(archive, change):
    """The archive with its pickle changed and every checksum right."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as old, zipfile.ZipFile(buffer, "w") as new:
        for entry in old.infolist():
            content = old.read(entry)
            new.writestr(entry.filename, change(content) if entry.filename.endswith("data.pkl") else content)
    return buffer.getvalue()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@FUZZ
@given(st.sampled_from(["archive", "pickle", "old"]), MUTATIONS)
def test_damaged_checkpoints_are_read_or_refused(tmp_path, network, kind, mutations):
    path, (archive, old) = tmp_path / "x.pth", checkpoints(network)
    path.write_bytes(with_pickle(archive, lambda p: mutate(p, mutations)) if kind == "pickle" else
                     mutate(archive if kind == "archive" else old, mutations))
    before = {k: v.clone() for k, v in network.state_dict().items()}
    try:
        load_weights(network, path)
    except CheckpointError as error:
        assert str(path) in str(error)
        assert all(v.equal(before[k]) for k, v in network.state_dict().items())
    assert all(v.isfinite().all() for v in network.state_dict().values())
    network.load_state_dict(before)

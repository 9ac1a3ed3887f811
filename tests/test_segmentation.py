"""The data sets in their real file formats, and what happens to damaged ones."""
import multiprocessing
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from dataset import class_sets, labels, loaders, missing_labels, segmentation
from utils.config import load_config
from utils.errors import DataError

RNG = np.random.default_rng(0)


def png16(path, pixels):
    """Write uint16 [H, W, 3] as a 16-bit RGB PNG, with the filters that real encoders choose among."""
    height, width, _ = pixels.shape
    rows, previous = [], np.zeros(width * 6, np.uint8)
    for y in range(height):
        row = np.frombuffer(pixels[y].astype(">u2").tobytes(), np.uint8)
        left = np.concatenate([np.zeros(6, np.uint8), row[:-6]])
        filtered = (row, row - left, row - previous)[y % 3]  # none, sub, up
        rows.append(bytes([y % 3]) + filtered.tobytes())
        previous = row
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0))
                     + chunk(b"IDAT", zlib.compress(b"".join(rows))) + chunk(b"IEND", b""))


def save(path, array, palette=False):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(array)
    if palette:
        image = image.convert("L")
        image.putpalette(list(range(256)) * 3)
    image.save(path)


def picture(height=20, width=36):
    return RNG.integers(0, 256, (height, width, 3), dtype=np.uint8)


def config(tmp_path, text=""):
    path = tmp_path / "config.yml"
    path.write_text(text)
    return load_config(path)


# ---- id tables -------------------------------------------------------------------------------------------------------

def test_cityscapes_and_synthia_tables():
    """Against the specification's words: train ids by name."""
    by_name = {"road": (7, 3), "sidewalk": (8, 4), "building": (11, 2), "wall": (12, 21), "fence": (13, 5),
               "pole": (17, 7), "light": (19, 15), "sign": (20, 9), "vegetation": (21, 6), "terrain": (22, 16),
               "sky": (23, 1), "person": (24, 10), "rider": (25, 17), "car": (26, 8), "truck": (27, 18),
               "bus": (28, 19), "train": (31, 20), "motorcycle": (32, 12), "bicycle": (33, 11)}
    for position, table in enumerate((labels.CITYSCAPES_IDS, labels.SYNTHIA_IDS)):
        for num_classes in (19, 16, 13):
            lut = labels.street_table(table, num_classes)
            names = labels.street_class_set(num_classes).names
            expected = np.full(65536, 255, np.uint8)
            for name, ids in by_name.items():
                if name in names:
                    expected[ids[position]] = names.index(name)
            assert (lut == expected).all()


# ---- layouts and label formats ---------------------------------------------------------------------------------------

def test_gta5_palette_labels(tmp_path):
    ids = RNG.integers(0, 35, (20, 36), dtype=np.uint8)
    save(tmp_path / "images/00001.png", picture())
    save(tmp_path / "labels/00001.png", ids, palette=True)
    assert Image.open(tmp_path / "labels/00001.png").mode == "P"
    cfg = config(tmp_path, f"gta5: {{data_dir: {tmp_path}}}")
    (sample,) = segmentation.find_samples("gta5", cfg.section("gta5"), "train")
    assert sample.name == "00001"
    table = segmentation.label_table(cfg.section("gta5"), 19)
    _, label = segmentation.read_pair(sample, table)
    assert (label == [[labels.CITYSCAPES_IDS.get(i, 255) for i in row] for row in ids.tolist()]).all()


def test_synthia_16_bit_labels(tmp_path):
    ids = RNG.integers(0, 23, (20, 36), dtype=np.uint16)
    instances = RNG.integers(0, 65536, (20, 36), dtype=np.uint16)
    save(tmp_path / "RGB/0000000.png", picture())
    (tmp_path / "GT/LABELS").mkdir(parents=True)
    png16(tmp_path / "GT/LABELS/0000000.png", np.stack([ids, instances, instances * 0], axis=2))
    cfg = config(tmp_path, f"synthia: {{data_dir: {tmp_path}}}")
    (sample,) = segmentation.find_samples("synthia", cfg.section("synthia"), "train")
    _, label = segmentation.read_pair(sample, segmentation.label_table(cfg.section("synthia"), 19))
    assert (label == [[labels.SYNTHIA_IDS.get(i, 255) for i in row] for row in ids.tolist()]).all()


@pytest.mark.parametrize("split", ["train", "val"])
def test_cityscapes_layout(tmp_path, split):
    for city, name in (("ulm", "ulm_000001_000019"), ("bonn", "bonn_000000_000019")):
        save(tmp_path / f"leftImg8bit/{split}/{city}/{name}_leftImg8bit.png", picture())
        save(tmp_path / f"gtFine/{split}/{city}/{name}_gtFine_labelIds.png", np.full((20, 36), 26, np.uint8))
        save(tmp_path / f"gtFine/{split}/{city}/{name}_gtFine_color.png", picture())
    cfg = config(tmp_path, f"cityscapes: {{data_dir: {tmp_path}}}")
    samples = segmentation.find_samples("cityscapes", cfg.section("cityscapes"), split)
    assert [s.name for s in samples] == ["bonn/bonn_000000_000019", "ulm/ulm_000001_000019"]
    assert missing_labels.has_labels(samples)
    _, label = segmentation.read_pair(samples[1], segmentation.label_table(cfg.section("cityscapes"), 19))
    assert (label == 13).all()


FOLDER = """
source: mine
target: mine
num_classes: 2
neg_rank_width: 0
mine:
  type: folder
  data_dir: {root}
  images: "{images}"
  labels: "{labels}"
  classes: [a, b]
  label_ids: {{7: 0, 300: 1}}
  input_size: [36, 20]
"""


@pytest.mark.parametrize("images, labels_, image_file, label_file", [
    ("images/{split}", "labels/{split}", "images/train/x/1.jpg", "labels/train/x/1.png"),
    ("{split}/rgb/{name}_rgb.png", "{split}/gt/{name}_gt.png", "train/rgb/x/1_rgb.png", "train/gt/x/1_gt.png"),
    ("all", "all_labels", "all/x/1.png", "all_labels/x/1.png"),
])
def test_folder_patterns(tmp_path, images, labels_, image_file, label_file):
    ids = np.array([[7, 300, 8]] * 4, np.uint16)
    save(tmp_path / "d" / image_file, picture(4, 3))
    save(tmp_path / "d" / label_file, ids)  # 16-bit grey
    cfg = config(tmp_path, FOLDER.format(root=tmp_path / "d", images=images, labels=labels_))
    (sample,) = segmentation.find_samples("mine", cfg.target_data, "train")
    assert sample.name == "x/1"
    _, label = segmentation.read_pair(sample, segmentation.label_table(cfg.target_data, 2))
    assert (label == [[0, 1, 255]] * 4).all()
    assert class_sets.label_classes(cfg.target_data, 2).names == ("a", "b")


# ---- lists -----------------------------------------------------------------------------------------------------------

@pytest.fixture
def gta5(tmp_path):
    """Four labelled images and a function that gives the configuration with a list of the given lines."""
    for i in range(1, 5):
        save(tmp_path / f"gta5/images/0000{i}.png", picture())
        save(tmp_path / f"gta5/labels/0000{i}.png", np.full((20, 36), 7, np.uint8))

    def find(lines=None):
        text = f"gta5: {{data_dir: {tmp_path / 'gta5'}"
        if lines is not None:
            (tmp_path / "list.txt").write_text("\n".join(lines))
            text += f", data_list: {tmp_path / 'list.txt'}"
        cfg = config(tmp_path, text + "}\nworker: 0\ncrop_src: 8\nbatch_size: 2\ncityscapes: {data_dir: x}")
        return cfg, segmentation.find_samples("gta5", cfg.section("gta5"), "train")
    return find


def test_list_lines_with_and_without_folder_and_second_field(gta5):
    for lines in (["00003.png", "images/00001.png", "", "00002.png\tmore"],
                  ["00003.png labels/00003.png", "images/00001.png\tlabels/00001.png", "", "00002.png 00002.png"]):
        _, samples = gta5(lines)
        assert [s.name for s in samples] == ["00003", "00001", "00002"]
        assert [s.label.name for s in samples] == ["00003.png", "00001.png", "00002.png"]


@pytest.mark.parametrize("line, said", [("../secret.png", "outside"), ("/etc/passwd", "outside"),
                                        ("00009.png", "not there"), ("00001.bmp", "does not end in"),
                                        ("00002.png", "share the name")])
def test_bad_list_lines_are_named(gta5, line, said):
    with pytest.raises(DataError, match=said):
        gta5(["00002.png", line])


def test_empty_lists_and_folders(gta5, tmp_path):
    with pytest.raises(DataError, match="list.txt' is empty"):
        gta5(["", " "])
    cfg, _ = gta5()
    with pytest.raises(DataError, match="no image matches"):
        segmentation.find_samples("cityscapes", load_config(tmp_path / "config.yml", [
            f"cityscapes.data_dir={tmp_path}"]).section("cityscapes"), "val")
    with pytest.raises(DataError, match="cityscapes.data_dir: no folder 'x'"):
        segmentation.find_samples("cityscapes", cfg.section("cityscapes"), "train")


# ---- damaged files ---------------------------------------------------------------------------------------------------

def damage(kind, image, label):
    if kind == "truncated image":
        image.write_bytes(image.read_bytes()[: image.stat().st_size // 2])
    elif kind == "text for an image":
        image.write_text("not an image")
    elif kind == "truncated label":
        label.write_bytes(label.read_bytes()[:40])
    elif kind == "size":
        save(label, np.zeros((10, 10), np.uint8))
    elif kind == "colour label":
        save(label, picture())
    elif kind == "missing label":
        label.unlink()


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind, culprit", [
    ("truncated image", "images/00003.png"), ("text for an image", "images/00003.png"),
    ("truncated label", "labels/00003.png"), ("size", "labels/00003.png"), ("colour label", "labels/00003.png"),
    ("missing label", "labels/00003.png")])
def test_damaged_files_are_named_and_never_replaced(gta5, tmp_path, kind, culprit, workers):
    damage(kind, tmp_path / "gta5/images/00003.png", tmp_path / "gta5/labels/00003.png")
    gta5()
    cfg = load_config(tmp_path / "config.yml", [f"worker={workers}", "num_steps=4"])
    samples = segmentation.find_samples("gta5", cfg.source_data, "train")
    assert len(samples) == 4
    with pytest.raises(DataError) as error:
        for _ in loaders.source_loader(cfg, samples):
            pass
    assert culprit in str(error.value) and "\n" not in str(error.value)
    assert not multiprocessing.active_children()  # who reads has ended with the error, at once


def test_a_strip_that_would_become_huge_is_named(gta5, tmp_path):
    gta5()
    for path in (tmp_path / "gta5/images/00003.png", tmp_path / "gta5/labels/00003.png"):
        pixels = np.zeros((8, 5003, 3), np.uint8)
        save(path, pixels if "images" in str(path) else pixels[..., 0])
    cfg = load_config(tmp_path / "config.yml", ["worker=0", "num_steps=4", "scales=[1.5]"])
    samples = segmentation.find_samples("gta5", cfg.source_data, "train")
    with pytest.raises(DataError, match="00003.png: 5003x8 would be resized to"):
        list(loaders.source_loader(cfg, samples))


def test_labels_all_some_none(gta5, tmp_path):
    cfg, samples = gta5()
    assert missing_labels.has_labels(samples)
    samples[1].label.unlink()
    with pytest.raises(DataError, match="00002.png"):
        missing_labels.has_labels(samples)
    for s in samples:
        s.label.unlink(missing_ok=True)
    assert not missing_labels.has_labels(samples)
    with pytest.raises(DataError, match="this step needs them"):
        missing_labels.require_labels("gta5", cfg.source_data, "train", samples)


# ---- views and loaders -----------------------------------------------------------------------------------------------

def test_crops_are_functions_of_seed_and_key_whatever_the_workers(gta5, tmp_path):
    gta5()
    batches = {}
    for workers in (0, 2, 3):
        cfg = load_config(tmp_path / "config.yml", [f"worker={workers}", "num_steps=5"])
        samples = segmentation.find_samples("gta5", cfg.source_data, "train")
        batches[workers] = list(loaders.source_loader(cfg, samples))
    assert len(batches[0]) == 5 and batches[0][0]["image"].shape == (2, 8, 8, 3)
    for workers in (2, 3):
        for a, b in zip(batches[0], batches[workers], strict=True):
            assert a["name"] == b["name"] and a["image"].equal(b["image"]) and a["label"].equal(b["label"])


def test_target_crops_have_their_own_size_and_change_with_the_round(gta5, tmp_path):
    gta5()
    cfg = load_config(tmp_path / "config.yml", ["target=gta5", "crop_tgt=12", "input_tgt=20", "scales=[1.0]"])
    samples = segmentation.find_samples("gta5", cfg.target_data, "train")
    first, again, second = (next(iter(loaders.round_loader(cfg, samples, 1, r))) for r in (0, 0, 1))
    assert first["image"].shape == (2, 12, 12, 3) and first["label"].shape == (2, 12, 12)
    assert first["image"].equal(again["image"]) and not first["image"].equal(second["image"])
    # At scale 1 the crop holds pixels of the image as they are: its shorter edge is input_tgt already.
    whole = np.asarray(Image.open(next(s.image for s in samples if s.name == first["name"][0])))
    crop = first["image"][0].numpy()
    windows = np.lib.stride_tricks.sliding_window_view(np.concatenate([whole, whole[:, ::-1]], 1), (12, 12), (0, 1))
    assert (windows.transpose(0, 1, 3, 4, 2) == crop).all((2, 3, 4)).any()


def test_keys_are_permutations_epoch_by_epoch():
    keys = loaders.crop_keys(7, 1, 5, 13)
    assert len(keys) == 13 and {k[0] for k in keys} == {1}
    assert sorted(k[2] for k in keys[:5]) == sorted(k[2] for k in keys[5:10]) == list(range(5))
    assert [k[1] for k in keys] == [0] * 5 + [1] * 5 + [2] * 3
    assert loaders.crop_keys(7, 1, 5, 13) == keys
    assert keys != loaders.crop_keys(8, 1, 5, 13) and keys != [(1, *k[1:]) for k in loaders.crop_keys(7, 2, 5, 13)]


def test_whole_images_are_resized_and_labels_are_not(gta5, tmp_path):
    cfg, samples = gta5()
    items = list(loaders.whole_image_loader(cfg, "gta5", samples, True))
    assert [i["name"] for i in items] == [s.name for s in samples]
    assert items[0]["image"].shape == (1, 720, 1280, 3) and items[0]["label"].shape == (20, 36)
    assert tuple(items[0]["size"]) == (20, 36)
    assert "label" not in next(iter(loaders.whole_image_loader(cfg, "gta5", samples, False)))


@pytest.mark.parametrize("images, batch, epochs, num_steps, steps", [
    (2975, 3, 1, 5000, 991), (51, 4, 4, 1000, 51), (300, 4, 3, 100, 100), (1, 4, 1, 10, 1)])
def test_round_length(tmp_path, images, batch, epochs, num_steps, steps):
    cfg = config(tmp_path, f"batch_size: {batch}\nepochs: {epochs}\nnum_steps: {num_steps}")
    assert loaders.round_steps(cfg, images, epochs) == steps

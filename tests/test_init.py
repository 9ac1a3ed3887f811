"""dataset.init finds what is in a folder; what it writes is read, checked and run as it is."""
import os
import random
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import run as run_script
from dataset import check, init, segmentation, sizing, survey
from dataset.class_sets import described
from dataset.labels import CITYSCAPES_CLASSES, CITYSCAPES_IDS
from dataset.template import TEMPLATE
from model.build import build_model
from model.deeplabv2 import DeepLabV2
from model.folder_writing import save_folder
from model.weights import save_weights
from tests.imagefiles import tiff
from utils.cli import run_stage
from utils.config import load_config, parse_config
from utils.config_keys import recognise
from utils.errors import CheckpointError

SIZE = (64, 48)  # (width, height)


def photo(path, size=SIZE, seed=0, mode="RGB"):
    rng = np.random.default_rng([seed, *map(ord, Path(path).stem[-3:])])
    shape = (size[1], size[0]) if mode == "L" else (size[1], size[0], 3)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 256, shape, np.uint8), mode).save(path)


def label(path, ids, size=SIZE, palette=False):
    """A label of vertical stripes of the ids."""
    stripes = np.repeat(np.asarray(ids, np.uint8), -(-size[0] // len(ids)))[: size[0]]
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.tile(stripes, (size[1], 1)), "P" if palette else "L")
    if palette:
        image.putpalette([*range(256)] * 3)
        image.putpalette(np.random.default_rng(0).integers(0, 256, 768, np.uint8).tolist())
    image.save(path)


@pytest.fixture(scope="module")
def net(tmp_path_factory):
    """Checkpoints of small networks: number of classes -> file."""
    root, found = tmp_path_factory.mktemp("nets"), {}
    for count in (2, 3, 19):
        torch.manual_seed(count)
        network = DeepLabV2(count, (1, 1, 1, 1), 4)
        for i, conv in enumerate(network.layer5.conv2d_list):
            torch.nn.init.normal_(conv.weight, 0, 0.05 + 0.01 * i)  # as if it had been trained
        found[count] = str(root / f"net{count}.pth")
        save_weights(network, found[count])
    return found


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def written(capsys, *words):
    """The configuration that a command line writes, and its remarks."""
    capsys.readouterr()
    assert init.main(["--memory", "4", *words]) == 0
    return capsys.readouterr()


def run(monkeypatch, text, *words):
    """Check the configuration and run it, short and in this process."""
    Path("mine.yml").write_text(text, encoding="utf-8")
    quick = ("worker=0", "screen=False", "tensorboard=False", "num_steps=1", "score_images=0", "device=cpu")
    assert check.main(["--config", "mine.yml", "worker=0", "screen=False"]) == 0
    monkeypatch.setattr(sys, "argv", ["run.py", "--config", "mine.yml", *quick, *words])
    assert run_stage("", "mine.yml", run_script.run) == 0


# ---- a family of folders ---------------------------------------------------------------------------------------------

def flat(root):
    for i in range(3):
        photo(root / f"{i}.jpg")
    return root, None, "."


def split(root):
    for i, part in enumerate(("train", "train", "val")):
        photo(root / part / f"{i}.png")
    return root, None, "{split}"


def nested(root):
    for city, part in (("a b", "train"), ("ü", "train"), ("c", "val")):
        photo(root / "leftImg8bit" / part / city / f"{city}_1_leftImg8bit.png")
    return root / "leftImg8bit", None, "{split}"


def weather_first(root):
    for weather in ("fog", "night"):
        for part in ("train", "val"):
            photo(root / "rgb" / weather / part / f"{weather}1_rgb.png")
            label(root / "gt" / weather / part / f"{weather}1_gt_labelTrainIds.png", [0, 1, 255])
            photo(root / "gt" / weather / part / f"{weather}1_gt_color.png")
    return root / "rgb", root / "gt", "rgb/*/{split}/{name}_rgb.png"


def beside_with_endings(root):
    for i in range(3):
        photo(root / f"frame {i}.png")
        label(root / f"frame {i}_label.png", [0, 1, 2])
    return root, root, "."


def same_stems(root):
    for i in range(3):
        photo(root / f"{i}.jpg")
        label(root / f"{i}.png", [0, 1, 2], palette=True)
    return root, root, "."


def split_outside(root):
    for i, part in enumerate(("train", "train", "val")):
        photo(root / part / "images" / f"{i}.jpg")
        label(root / part / "masks" / f"{i}.png", [0, 1, 2])
    return root, root, "{split}/images"


def two_folders(root):
    for i in range(3):
        photo(root / "Images" / "a" / f"{i}.png")
        label(root / "Labels" / "a" / f"{i}.png", [0, 1, 2])
    return root, root, "Images/a"


def prefixes(root):
    for i in range(12):
        photo(root / "in" / f"img_{i}.png")
        label(root / "out" / f"mask_{i}.png", [0, 1, 2])
    return root / "in", root / "out", "in/img_{name}.png"


def portrait(root):
    for i in range(3):
        photo(root / f"{i}.png", (48, 96))
    return root, None, "."


def mixed(root):
    for i, size in enumerate(((64, 48), (100, 60), (64, 48), (80, 200))):
        photo(root / f"{i}.png", size)
    return root, None, "."


def grey(root):
    for i in range(3):
        photo(root / f"{i}.png", mode="L")
    return root, None, "."


def deep(root):
    root.mkdir()
    for i in range(3):
        values = np.random.default_rng(i).integers(1000, 5000, (48, 64))
        (root / f"{i}.tif").write_bytes(tiff(values, 16))
    return root, None, "."


FAMILY = (flat, split, nested, weather_first, beside_with_endings, same_stems, split_outside, two_folders,
          prefixes, portrait, mixed, grey, deep)
ODD = ("plain", "a b", "Straße ü", "a: b", "it's \"x\" #1", "- {x}*", "~", "yes", "100%", "[a b]", "!t", "&x |")


@pytest.mark.parametrize("kind", FAMILY, ids=lambda kind: kind.__name__)
def test_what_is_written_is_checked_and_run(kind, net, here, monkeypatch, capsys):
    images, labels, pattern = kind(here / "data")
    count = 19 if kind is weather_first else 3
    words = ["--images", str(images), "--checkpoint", net[count], *(["--labels", str(labels)] if labels else [])]
    out, _ = written(capsys, *words)
    cfg = parse_config(out, "mine.yml")
    assert cfg.target_data.images == pattern and cfg.num_classes == count
    run(monkeypatch, out)
    said = capsys.readouterr().out
    assert ("mIoU" in said) == bool(labels) and "nothing in the data would stop a run" in said
    assert "warning" not in said.replace("warning: classes never seen", "")


@pytest.mark.parametrize("name", ODD)
def test_odd_names_are_quoted(name, net, here, monkeypatch, capsys):
    """Of folders and files, given as relative paths."""
    photo(here / name / "train" / f"{name}.png")
    Path("names.txt").write_text(f"{name} 1\n{name}.\n\n1\n", encoding="utf-8")
    out, _ = written(capsys, "--images", f"./{name}", "--checkpoint", net[3], "--classes", "names.txt")
    assert yaml.safe_load(out)["mine"]["classes"] == [f"{name} 1", f"{name}.", "1"]
    cfg = parse_config(out, "mine.yml")
    assert [s.image.name for s in segmentation.find_samples("mine", cfg.target_data, "train")] == [f"{name}.png"]
    assert os.path.samefile(cfg.target_data.data_dir, here / name)


def test_the_settings_are_those_of_own_config(net, here, capsys):
    flat(here / "data")
    out, _ = written(capsys, "--images", "data", "--checkpoint", net[19])
    mine, template = yaml.safe_load(out), yaml.safe_load(TEMPLATE.read_text())
    found = {"init_weight", "input_tgt", "crop_tgt", "epochs", "num_steps", "batch_size", "mine"}
    assert mine.keys() - template.keys() == {"layers", "width"}  # of the small network
    assert {k: v for k, v in mine.items() if k in template.keys() - found} == \
           {k: v for k, v in template.items() if k not in found}
    assert mine["mine"] == {**template["mine"], "data_dir": "./data", "images": ".", "input_size": [64, 64]}
    comments = [line for line in TEMPLATE.read_text().splitlines() if line.startswith("# Three quarters of")]
    assert comments and comments[0] in out


def test_a_large_world_keeps_the_template_s_sizes(net, here, capsys):
    for i in range(200):
        photo(here / "data" / f"{i}.png", (8, 4))
    out, _ = written(capsys, "--images", "data", "--checkpoint", net[19])
    cfg = parse_config(out, "mine.yml")
    assert (cfg.options["epochs"], cfg.num_steps, cfg.batch_size) == (2, 100, 4)


# ---- what cannot be read ---------------------------------------------------------------------------------------------

def empty(root):
    root.mkdir()


def videos(root):
    root.mkdir()
    (root / "it's a clip.MP4").write_bytes(b"video")


def heic(root):
    root.mkdir()
    (root / "a.heic").write_bytes(b"picture")


def broken(root):
    root.mkdir()
    (root / "a.png").write_bytes(b"text")


def only_labels(root):
    for i in range(5):
        label(root / f"{i}.png", [0, 1, 2])


def mostly_photos(root):
    for i in range(5):
        photo(root / "images" / f"{i}.png")
        label(root / "labels" / f"{i}.png", [0, 1, 2])


@pytest.mark.parametrize("kind, said", [
    (empty, ("data", "no image", ".png")), (videos, ("ffmpeg -i", "it'\\''s a clip.MP4", "%06d.png")),
    (heic, ("a.heic", "PNG or JPEG")), (broken, ("a.png", "cannot be read")),
    (only_labels, ("--images", "look like labels", "--labels")), (mostly_photos, ("look like labels", "labels/")),
    (lambda root: None, ("no folder",)), (lambda root: root.write_text("x"), ("is a file",))])
def test_one_line_says_what_is_wrong_with_the_images(kind, said, here, capsys):
    kind(here / "data")
    refused(capsys, ["--images", str(here / "data")], said)


def refused(capsys, words, said):
    capsys.readouterr()
    assert init.main(words) == 2
    out, error = capsys.readouterr()
    assert out == "" and len(error.splitlines()) == 1 and error.startswith("error: ")
    assert all(word in error for word in said), error


def test_one_line_says_what_is_wrong_with_the_rest(net, here, capsys):
    flat(here / "data")
    (here / "clip.avi").write_bytes(b"video")
    (here / "other").mkdir()
    label(here / "masks" / "x.png", [0, 1])
    for i in range(3):
        photo(here / "colours" / f"{i}.png")
    (here / "bad.pth").write_bytes(b"nothing")
    for words, said in ((["--images", "clip.avi"], ("is a video", "ffmpeg -i 'clip.avi'")),
                        (["--images", "data", "--labels", "other"], ("--labels", "no label in")),
                        (["--images", "data", "--labels", "nowhere"], ("--labels", "no folder")),
                        (["--images", "data", "--labels", "masks"], ("fits an image", "x.png", "0.jpg")),
                        (["--images", "data", "--labels", "colours"], ("cannot be read as a label", "ids as a grey")),
                        (["--images", "data", "--checkpoint", "gone.pth"], ("gone.pth", "no such checkpoint")),
                        (["--images", "data", "--checkpoint", "bad.pth"], ("bad.pth",)),
                        (["--images", "data", "--checkpoint", net[3], "--classes", "a", "b"], ("2 names", "3 classes")),
                        (["--images", "data", "--classes", "gone.txt"], ("--classes", "no file 'gone.txt'")),
                        (["--images", "data", "--memory", "-1"], ("--memory", "above 0")),
                        (["--images", "data", "--model", "deeplap"], ("deeplap",))):
        refused(capsys, words, said)


def test_folders_that_no_pattern_can_name(here, net, capsys):
    photo(here / "a{b}" / "1.png")
    label(here / "gt" / "1.png", [0, 1])
    refused(capsys, ["--images", "a{b}", "--labels", "gt"], ("a{b}", "rename"))
    for odd in ("two\nlines", os.fsdecode(b"not \xff utf8")):
        photo(here / odd / "1.png")
        refused(capsys, ["--images", odd], ("rename the folder",))
    photo(here / "lists" / "training" / "a\tb.png")
    photo(here / "lists" / "validation" / "c.png")
    refused(capsys, ["--images", "lists", "--lists", "out"], ("cannot be named in a list",))
    assert not Path("out").exists()


def test_the_split_beside_is_named(here, net, capsys):
    split(here / "data")
    out, error = written(capsys, "--images", "data/train", "--checkpoint", net[3])
    assert parse_config(out, "mine.yml").target_data.images == "." and "--images" in error and "takes both" in error
    out, _ = written(capsys, "--images", "data/val", "--checkpoint", net[3])
    (here / "data/train").rename(here / "data/other")
    out, _ = written(capsys, "--images", "data", "--checkpoint", net[3])
    assert parse_config(out, "mine.yml").target_data.images == "val"


def test_remarks_go_to_stderr_and_name_what_is_left_to_do(here, capsys):
    flat(here / "data")
    out, error = written(capsys, "--images", "data")
    assert "init_weight" in error and "SET THIS" in out
    (here / "data" / "3.jpg").write_bytes(b"text")
    out, error = written(capsys, "--images", "data")
    assert "3.jpg" in error and "3.jpg" not in out


# ---- labels ----------------------------------------------------------------------------------------------------------

def test_a_guess_of_what_ids_mean_and_missing_names_are_said(here, net, capsys):
    flat(here / "data")
    for i in range(3):
        label(here / "gt" / f"{i}.png", [0, 1, 2, 3])
    out, error = written(capsys, "--images", "data", "--labels", "gt", "--checkpoint", net[3])
    for text in (error, " ".join(line.strip(" #") for line in out.splitlines())):
        assert "if 3 is no class and 0 to 2 are the classes, delete label_ids" in text
    assert "names of the classes are not known" in error and "SET THIS: their names" in out
    _, error = written(capsys, "--images", "data", "--checkpoint", net[3], "--classes", "a", "b", "c")
    assert "classes are not known" not in error


def found_ids(**pixels):
    return survey.Labels(1, 1, [], survey.Counter({int(k[1:]): n for k, n in pixels.items()}))


@pytest.mark.parametrize("ids, count, expected", [
    ((0, 1, 2, 255), None, (3, None)), ((0, 1, 2), 19, (19, None)), ((0, 255), None, (2, {0: 0, 255: 1})),
    ((0, 255), 2, (2, {0: 0, 255: 1})), ((1, 2, 3), 3, (3, {0: 255, 1: 0, 2: 1, 3: 2})),
    ((0, 1, 2, 3), 3, (3, {0: 255, 1: 0, 2: 1, 3: 2})), ((10, 20, 30), None, (3, {10: 0, 20: 1, 30: 2})),
    ((10, 20, 30), 3, (3, {10: 0, 20: 1, 30: 2})), ((10, 20, 30), 19, None), ((255,), None, None),
    ((0, 1, 3), None, (4, None)), (tuple(range(19)), None, (19, None)), ((7, 11, 26, 33, 0), None, (19, "street")),
    ((7, 11, 26, 33, 40), 19, None)])
def test_what_ids_mean(ids, count, expected):
    found = survey.meaning(found_ids(**{f"i{i}": 10 if i else 1 for i in ids}), count)
    if expected is None:
        assert found is None
        return
    if expected[1] == "street":
        assert {i: t for i, t in found.label_ids.items() if t != 255} == CITYSCAPES_IDS
        assert found.label_ids.keys() == {*range(34)} and found.names == CITYSCAPES_CLASSES
    else:
        assert (found.count, found.label_ids) == expected
    assert all(i == 255 or i in (found.label_ids or range(found.count)) for i in ids)


def test_labels_of_a_part_of_the_images_need_a_list(net, here, monkeypatch, capsys):
    flat(here / "data")
    label(here / "gt" / "1.png", [0, 1, 2])
    words = ["--images", "data", "--labels", "gt", "--checkpoint", net[3]]
    out, error = written(capsys, *words)
    assert "labels" not in yaml.safe_load(out)["mine"] and "1 of 3 images" in error and "--lists" in error
    assert not list(here.glob("**/*.txt"))
    out, _ = written(capsys, *words, "--lists", "lists")
    assert Path("lists/val.txt").read_text() == "data/1.jpg\n"
    run(monkeypatch, out)
    assert "mIoU" in capsys.readouterr().out


def test_the_folder_of_a_network_of_ones_own_needs_its_name(here, monkeypatch, capsys):
    flat(here / "data")
    Path("net.py").write_text("from torch import nn\ndef build():\n    return nn.Sequential(nn.Conv2d(3, 4, 1), "
                              "nn.BatchNorm2d(4))\n")
    Path("net.yml").write_text("model: net.py:build\nnum_classes: 3\noutput_channels: [0, 1, 3]\nsize_multiple: 16\n"
                               "target: own\nsource: own\nown: {type: folder, data_dir: data, images: ., "
                               "classes: [a, b, c], input_size: [64, 32]}\n")
    cfg = load_config("net.yml")
    save_folder("stage", build_model(cfg, torch.device("cpu"))[0], cfg, described(cfg), {})
    assert init.main(["--images", "data", "--checkpoint", "stage"]) == 2 and "model=" in capsys.readouterr().err
    text, remarks = written(capsys, "--images", "data", "--checkpoint", "stage", "--model", "net.py:build")
    mine = yaml.safe_load(text)
    assert remarks == "" and mine["model"] == "net.py:build" and mine["init_weight"] == "stage"
    assert mine["output_channels"] == [0, 1, 3] and mine["size_multiple"] == 16
    assert mine["mine"]["classes"] == ["a", "b", "c"]
    run(monkeypatch, text)


def test_folders_called_training_and_validation(net, here, capsys):
    for i, part in enumerate(("training", "training", "validation", "testing")):
        photo(here / "data" / part / f"{i}.png")
    out, error = written(capsys, "--images", "data", "--checkpoint", net[3])
    assert parse_config(out, "mine.yml").target_data.images == "." and "--lists" in error
    out, _ = written(capsys, "--images", "data", "--checkpoint", net[3], "--lists", "lists")
    section = parse_config(out, "mine.yml").target_data
    names = {part: [s.name for s in segmentation.find_samples("mine", section, part)] for part in ("train", "val")}
    assert names == {"train": ["training/0", "training/1"], "val": ["validation/2"]}


def test_labels_of_other_classes_than_the_network_s_are_left_out(net, here, monkeypatch, capsys):
    flat(here / "data")
    for i in range(3):
        label(here / "gt" / f"{i}.png", [5, 6, 40, 60])
    out, error = written(capsys, "--images", "data", "--labels", "gt", "--checkpoint", net[3])
    assert "protocols" in error and "5: 25.0%" in out and "labels" not in yaml.safe_load(out)["mine"]
    run(monkeypatch, out)


@pytest.mark.parametrize("seed", range(6))
def test_affixes_of_names_are_found(seed, here, net, capsys):
    """Images and labels with any text before and behind the common part, and folders below."""
    rng = random.Random(seed)
    affix = [rng.choice(["", "", "left_", "x-", "cam1."]) for _ in range(2)], \
            [rng.choice(["", "_a", "-rgb", "_leftImg8bit"]) for _ in range(2)]
    number = rng.choice([3, 12])
    for i in range(number):
        below = f"{'train' if i else 'val'}/{rng.choice(['', 'city/'])}"
        photo(here / "in" / f"{below}{affix[0][0]}{i:02}{affix[1][0]}.jpg")
        label(here / "gt" / f"{below}{affix[0][1]}{i:02}{affix[1][1]}.png", [0, 1, 2])
    out, _ = written(capsys, "--images", "in", "--labels", "gt", "--checkpoint", net[3])
    section = parse_config(out, "mine.yml").target_data
    samples = [s for part in ("train", "val") for s in segmentation.find_samples("mine", section, part)]
    assert len(samples) == number and all(s.label.is_file() for s in samples)
    assert all(s.image.stem[len(affix[0][0]):][:2] == s.label.stem[len(affix[0][1]):][:2] for s in samples)


def test_values_of_deep_images(here, net, capsys):
    deep(here / "data")
    out, _ = written(capsys, "--images", "data", "--checkpoint", net[3])
    low, high = parse_config(out, "mine.yml").target_data.value_range
    assert 990 <= low <= 1100 and 4900 <= high <= 5010


# ---- checkpoints and sizes -------------------------------------------------------------------------------------------

@pytest.mark.parametrize("layers, width, count", [((1, 1, 1, 1), 4, 5), ((1, 2, 3, 1), 8, 19), ((2, 1, 1, 2), 16, 2)])
@pytest.mark.parametrize("trained", [2, 4])
def test_a_deeplab_is_recognised(layers, width, count, trained, here):
    torch.manual_seed(0)
    network = DeepLabV2(count, layers, width)
    for conv in list(network.layer5.conv2d_list)[:trained]:
        torch.nn.init.normal_(conv.weight, 0, 0.1)
    torch.save({"state_dict": {f"module.{k}": v for k, v in network.state_dict().items()}}, "net.pth")
    found = recognise("net.pth")
    branches = {"head_branches": trained} if trained < 4 else {}
    assert found.keys == {"model": "deeplab", "init_weight": "net.pth", "num_classes": count, "layers": list(layers),
                          "width": width, **branches}
    assert 0 < found.weight < 0.2


def test_other_checkpoints(here, capsys):
    flat(here / "data")
    torch.save({"encoder.a.weight": torch.ones(3), "decoder.b.weight": torch.ones(3)}, "other.pth")
    out, error = written(capsys, "--images", "data", "--checkpoint", "other.pth")
    assert "another network than deeplab" in error and "segmentation_models_pytorch" in error and "SET THIS" in out
    out, _ = written(capsys, "--images", "data", "--checkpoint", "other.pth", "--model", "smp/Unet:resnet18")
    cfg = parse_config(out, "mine.yml")
    assert (cfg.model, cfg.init_weight) == ("smp/Unet:resnet18", "other.pth")
    assert out.count("SET THIS") == 1 and re.search("num_classes: 19 .*SET THIS", out)
    Path("hf").mkdir()
    Path("hf/config.json").write_text('{"model_type": "segformer", "id2label": {"0": "a", "1": "b"}}')
    out, _ = written(capsys, "--images", "data", "--model", "hf/hf")
    cfg = parse_config(out, "mine.yml")
    assert (cfg.model, cfg.init_weight, cfg.target_data.classes) == ("hf/hf", None, ("a", "b"))
    torch.save({k: v for k, v in DeepLabV2(2, (1, 1, 1, 1), 4).state_dict().items() if "layer5" not in k}, "start.pth")
    with pytest.raises(CheckpointError, match="head"):
        recognise("start.pth")
    with pytest.raises(CheckpointError, match=r"config\.json"):
        recognise("data")


def test_sizes_fit_images_and_memory():
    rng = random.Random(0)
    for _ in range(300):
        width, height = (round(2 ** rng.uniform(5, 13)) for _ in range(2))
        count = rng.randrange(1, 4)
        memory = 2 ** rng.uniform(30, 37)
        sizes = sizing.sizes_for(survey.Counter({(width, height): count, (1, 1): count - 1}), memory)
        w, h = sizes.input_size
        assert w % 32 == h % 32 == sizes.crop_tgt % 32 == 0 and sizes.crop_tgt <= min(w, h) == sizes.input_tgt
        scale = min(1, (1024 * 512 / (width * height)) ** 0.5)
        assert abs(w - max(32, width * scale)) <= 16 and abs(h - max(32, height * scale)) <= 16
        assert not sizes.fits or sizes.memory <= memory
        more = sizing.sizes_for(survey.Counter({(width, height): count, (1, 1): count - 1}), 2 * memory)
        assert more.batch_size * more.crop_tgt**2 >= sizes.batch_size * sizes.crop_tgt**2 or sizes.checkpointing
    assert sizing.input_size(survey.Counter({(2048, 1024): 5})) == (1024, 512)
    assert sizing.input_size(survey.Counter({(1920, 1080): 5})) == (960, 544)


@pytest.mark.parametrize("images", [1, 3, 10, 50, 200, 5000])
def test_steps_for_a_number_of_images(images):
    epochs, steps = sizing.steps_for(images, 4)
    assert 2 <= epochs <= 20 and 1 <= steps <= 100 and steps <= max(1, epochs * images // 4)
    assert steps == 100 or epochs == 20


def test_memory_as_given_decides(here, net, capsys):
    for i in range(2):
        photo(here / "data" / f"{i}.png", (640, 480))
    sizes = []
    for gib in ("1.2", "3", "64"):
        assert init.main(["--images", "data", "--memory", gib]) == 0
        out, error = capsys.readouterr()
        cfg = parse_config(out, "mine.yml")
        sizes.append(cfg.batch_size * cfg.crop_tgt**2)
        assert ("more than is there" in error) == (gib == "1.2") and cfg.checkpointing == (gib == "1.2")
    assert sizes == sorted(set(sizes))


def test_little_memory_is_run_as_well(here, net, monkeypatch, capsys):
    flat(here / "data")
    out, error = written(capsys, "--images", "data", "--checkpoint", net[3], "--memory", "0.5")
    assert parse_config(out, "mine.yml").checkpointing and "more than is there" in error
    run(monkeypatch, out)

"""predict.py end to end, in-process: files of all kinds, what is written, resuming, wrong words; and the official
Cityscapes evaluation of its label ids."""
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from imagefiles import png, saved, tiff
from PIL import Image
from test_bad_input import tree

import eval as eval_script
import predict as predict_script
from dataset import outputs
from dataset.class_sets import described
from dataset.files import Bands, read_image, read_label_ids
from dataset.inputs import find_inputs
from dataset.labels import CITYSCAPES_IDS, CITYSCAPES_PALETTE
from dataset.toy import write_toy_world
from dataset.transforms import resize_image
from model.build import build_model
from model.folder_writing import save_folder
from model.segmenter import Segmenter
from utils.config import load_config
from utils.errors import CheckpointError, ConfigError, DataError

ROOT = Path(__file__).parent.parent
TINY = {
    "amp": "off",
    "model": "net.py:Net", "model_args": {"classes": 5}, "worker": 0, "screen": False, "device": "cpu",
    "init_weight": "net.pth", "source": "mine", "target": "mine", "num_classes": 5,
    "mine": {"type": "folder", "data_dir": "no", "images": ".", "classes": ["a", "b", "c", "d", "e"],
             "label_ids": {3: 0, 5: 1, 0: 2, 200: 3, 7: 4, 9: 255}, "input_size": [48, 40], "value_range": [0, 4095]}}


NET = """from torch import nn

class Net(nn.Sequential):
    def __init__(self, classes):
        super().__init__(nn.Conv2d(3, 8, 5, 4, 2), nn.ReLU(), nn.BatchNorm2d(8), nn.Conv2d(8, classes, 3, 1, 1))
"""


def save_network(path, classes, seed=0):
    """Weights of a small network that predicts every class somewhere."""
    torch.manual_seed(seed)
    names = {}
    exec(NET, names)
    network = names["Net"](classes)
    torch.nn.init.normal_(network[3].weight)
    torch.save(network.state_dict(), path)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with a network, its configuration and images in `shots`, as the working directory."""
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(NET)
    save_network("net.pth", 5)
    Path("tiny.yml").write_text(yaml.safe_dump(TINY))
    shots(tmp_path / "shots")
    return tmp_path


def noise(*shape, top=256, seed=0):
    """Pixels that are alike over 8 x 8."""
    rng = np.random.default_rng([seed, *shape])
    small = rng.integers(0, top, (-(-shape[0] // 8), -(-shape[1] // 8), *shape[2:]))
    return small.repeat(8, 0).repeat(8, 1)[:shape[0], :shape[1]]


def shots(folder):
    """Images of several kinds and sizes, one in a sub-folder, and hidden ones."""
    (folder / "dusk" / ".trash").mkdir(parents=True)
    colour = noise(33, 47, 3).astype(np.uint8)
    exif = Image.Exif()
    exif[274] = 6
    files = {"turned.jpg": saved(Image.fromarray(colour), "JPEG", exif=exif),
             "grey.png": png(noise(61, 40), 8, 0), "deep.tif": tiff(noise(20, 90, top=4096), 16),
             "alpha.png": png(noise(41, 48, 4), 8, 6), "dusk/höhe 1.PNG": png(noise(40, 48, 3), 8, 2),
             "tiny.png": png(noise(1, 2, 3), 8, 2), "._turned.jpg": b"x", "dusk/.trash/x.png": b"x", "list.txt": b"x"}
    for name, content in files.items():
        (folder / name).write_bytes(content)


NAMES = ["alpha", "deep", "dusk/höhe 1", "grey", "tiny", "turned"]
SIZES = {"alpha": (41, 48), "deep": (20, 90), "dusk/höhe 1": (40, 48), "grey": (61, 40), "tiny": (1, 2),
         "turned": (47, 33)}


def call(monkeypatch, *words, config="tiny.yml", checkpoint="net.pth"):
    """Run the command line; its exit code."""
    monkeypatch.setattr(sys, "argv", ["predict.py", "--config", config, "--checkpoint", checkpoint, *words])
    try:
        return predict_script.run()
    except SystemExit as stop:  # argparse
        return stop.code


def street_network():
    """street.pth and street.yml, for the 19 classes of Cityscapes."""
    save_network("street.pth", 19)
    street = {k: v for k, v in TINY.items() if k != "mine"} | {
        "source": "cityscapes", "target": "cityscapes", "num_classes": 19, "model_args": {"classes": 19},
        "cityscapes": {"data_dir": "world/cityscapes", "input_size": [64, 32]}}
    Path("street.yml").write_text(yaml.safe_dump(street))


def names_in(folder):
    return sorted(p.relative_to(folder).as_posix().removesuffix(".png") for p in Path(folder).rglob("*.png"))


def expected_scores(name, size=(48, 40)):
    """Logits of an image by evaluation's way: read, resized, one pass, upsampled."""
    cfg = load_config("tiny.yml")
    network, _ = build_model(cfg, torch.device("cpu"), "net.pth")
    path = next(p for p in Path("shots").rglob("*") if p.relative_to("shots").with_suffix("").as_posix() == name)
    image = read_image(path, Bands(3, (0, 4095)))
    with torch.no_grad():
        x = network.eval().prepare(torch.from_numpy(resize_image(image, size[::-1]))[None])
        return network(x, image.shape[:2])[0], image


# ---- what is written -------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("worker", [0, 2])
def test_every_image_of_a_folder_is_predicted_as_evaluation_would(here, monkeypatch, capsys, worker):
    assert call(monkeypatch, "--input", "shots", "--output", "out", "--save", "ids,color", "overlay", "confidence",
                f"worker={worker}") == 0
    printed = capsys.readouterr()
    assert printed.out.splitlines()[-1] == ("predicted 6 images: out/ids, out/color, out/overlay, out/confidence")
    assert "hidden files" in printed.err
    palette = np.array(outputs.legend(load_config("tiny.yml"), "train").palette)
    for kind in outputs.KINDS:
        assert names_in(f"out/{kind}") == NAMES
    seen = set()
    for name in NAMES:
        logits, photo = expected_scores(name)
        ids, confidence = logits.max(0).indices.numpy(), logits.double().softmax(0).amax(0).numpy()
        pictures = {kind: Image.open(f"out/{kind}/{name}.png") for kind in outputs.KINDS}
        found = {kind: np.array(picture) for kind, picture in pictures.items()}
        assert pictures["ids"].mode == "P" and found["ids"].shape == SIZES[name] == photo.shape[:2]
        assert (found["ids"] == ids).all() and (read_label_ids(Path(f"out/ids/{name}.png")) == ids).all()
        assert (np.array(pictures["ids"].convert("RGB")) == palette[ids]).all()
        assert pictures["color"].mode == "RGB" and (found["color"] == palette[ids]).all()
        assert np.abs(found["overlay"] - (photo.astype(float) + palette[ids]) / 2).max() <= 1
        assert pictures["confidence"].mode == "L" and np.abs(found["confidence"] - 255 * confidence).max() < 0.51
        seen |= set(ids.flat)
    assert len(seen) > 2  # the network says more than one thing
    assert json.loads(Path("out/classes.json").read_text()) == [
        {"id": c, "name": "abcde"[c], "color": palette[c].tolist()} for c in range(5)]


def test_ids_of_label_files(here, monkeypatch):
    assert call(monkeypatch, "--input", "shots", "--output", "out", "--ids", "label", "--save", "ids", "color") == 0
    assert call(monkeypatch, "--input", "shots", "--output", "plain", "--save", "ids", "color") == 0
    by_class = np.array([3, 5, 0, 200, 7])
    for name in NAMES:
        plain, label = (Image.open(f"{folder}/ids/{name}.png") for folder in ("plain", "out"))
        assert (by_class[np.array(plain)] == np.array(label)).all()
        assert (np.array(plain.convert("RGB")) == np.array(label.convert("RGB"))).all()
        assert Path(f"out/color/{name}.png").read_bytes() == Path(f"plain/color/{name}.png").read_bytes()
    assert [row["id"] for row in json.loads(Path("out/classes.json").read_text())] == by_class.tolist()


def test_cityscapes_ids_and_colours_are_the_published_ones():
    for count, kept in ((19, range(19)), (16, [c for c in range(19) if c not in (9, 14, 16)])):
        found = outputs.legend(load_config(ROOT / "config/ldbe_config.yml", [f"num_classes={count}"]), "label")
        inverse = {train: label for label, train in CITYSCAPES_IDS.items()}
        assert found.ids == tuple(inverse[c] for c in kept)
        assert found.palette == tuple(CITYSCAPES_PALETTE[c] for c in kept)


@pytest.mark.parametrize("ids, said", [
    ("{3: 0, 4: 0, 5: 1, 0: 2, 200: 3, 7: 4}", "the class 'a' has the ids 3, 4"),
    ("{3: 0, 5: 1, 0: 2, 200: 3}", "the class 'e' has no id"),
    ("{3: 0, 5: 1, 0: 2, 300: 3, 7: 4}", "the class 'd' has the id 300, and an indexed PNG holds 0..255")])
def test_label_ids_that_cannot_be_written_are_refused_by_name(here, monkeypatch, capsys, ids, said):
    before = tree(here)
    assert call(monkeypatch, "--input", "shots", "--output", "out", "--ids", "label", f"mine.label_ids={ids}") == 2
    assert said in capsys.readouterr().err and tree(here) == before


def test_label_ids_of_another_class_set_are_refused(here):
    cfg = load_config("tiny.yml", ["num_classes=3", "mine.network_classes=[x, y, z]",
                                   "mine.protocols={two: {a: [x], b: [y, z]}}"])
    assert outputs.legend(cfg, "train").names == ("x", "y", "z")
    with pytest.raises(ConfigError, match="network's classes are not those of the labels"):
        outputs.legend(cfg, "label")


@pytest.mark.parametrize("words", [["--batch", "4"], ["--batch", "3", "worker=2"]])
def test_batches_give_the_same_ids(here, monkeypatch, words):
    """But for ties within float32's rounding, which these images do not have."""
    assert call(monkeypatch, "--input", "shots", "--output", "one") == 0
    assert call(monkeypatch, "--input", "shots", "--output", "many", *words) == 0
    for name in NAMES:
        assert Path(f"one/ids/{name}.png").read_bytes() == Path(f"many/ids/{name}.png").read_bytes()


def test_size_and_augmentation_reach_the_network(here, monkeypatch):
    seen = []
    plain = Segmenter.score_map
    monkeypatch.setattr(Segmenter, "score_map", lambda self, x: seen.append(tuple(x.shape)) or plain(self, x))
    words = ("--input", "shots/grey.png", "--output")
    assert call(monkeypatch, *words, "a", "--size", "64", "32", "--scales", "1", "1.5", "--flip") == 0
    assert seen == [(1, 3, 32, 64)] * 2 + [(1, 3, 48, 96)] * 2
    seen.clear()
    assert call(monkeypatch, *words, "b", "--scales", "0.5,1") == 0
    assert seen == [(1, 3, 20, 24), (1, 3, 40, 48)]
    seen.clear()
    assert call(monkeypatch, "--input", "shots", "--output", "c", "--tile", "32", "--batch", "5") == 0
    assert {shape[2:] for shape in seen} >= {(32, 32), (20, 32), (1, 2)}
    assert {name: np.array(Image.open(f"c/ids/{name}.png")).shape for name in NAMES} == SIZES


def test_eval_and_predict_say_the_same_with_augmentation(here, monkeypatch, capsys):
    """IoU by eval.py, and of the files that predict.py has written."""
    write_toy_world(Path("world"), seed=5, size=(64, 32), source=1, synthia=1, train=1, val=2)
    street_network()
    scores = {}
    for name, words in (("plain", []), ("augmented", ["--scales", "1", "0.75", "--flip"])):
        monkeypatch.setattr(sys, "argv", ["eval.py", "--config", "street.yml", "street.pth", "--json", f"{name}.json",
                                          *words])
        assert eval_script.run() == 0
        scores[name] = json.loads(Path(f"{name}.json").read_text())["street"]["19 classes"]["iou"]
        assert call(monkeypatch, "--input", "world/cityscapes/leftImg8bit/val", "--output", name, "--ids", "label",
                    *words, config="street.yml", checkpoint="street.pth") == 0
        confusion = np.zeros((256, 256), int)
        for path in Path(name, "ids").rglob("*.png"):
            label = path.name.replace("leftImg8bit", "gtFine_labelIds")
            truth = read_label_ids(next(Path("world/cityscapes/gtFine/val").rglob(label)))
            np.add.at(confusion, (truth.ravel(), read_label_ids(path).ravel()), 1)
        confusion = confusion[list(CITYSCAPES_IDS)][:, list(CITYSCAPES_IDS)]
        for c, value in enumerate(scores[name].values()):
            union = confusion[c].sum() + confusion[:, c].sum() - confusion[c, c]
            assert value == (pytest.approx(100 * confusion[c, c] / union, abs=1e-9) if union else None)
    assert scores["plain"] != scores["augmented"]


def test_the_official_evaluation_gives_the_same_iou(here, monkeypatch):
    """cityscapesscripts' own program, on the label ids, in a folder laid out as it asks."""
    write_toy_world(Path("world"), seed=5, size=(64, 32), source=1, synthia=1, train=1, val=3)
    street_network()
    monkeypatch.setattr(sys, "argv", ["eval.py", "--config", "street.yml", "street.pth", "--json", "ours.json"])
    assert eval_script.run() == 0
    ours = json.loads(Path("ours.json").read_text())["street"]["19 classes"]["iou"]
    assert call(monkeypatch, "--input", "world/cityscapes/leftImg8bit/val", "--output", "out", "--save", "ids", "color",
                "--ids", "label", config="street.yml", checkpoint="street.pth") == 0
    for label in Path("world/cityscapes/gtFine/val").rglob("*_labelIds.png"):  # it reads these too
        ids = np.asarray(Image.open(label)).astype(np.uint16)
        Image.fromarray(ids).save(str(label).replace("labelIds", "instanceIds"))
    Path("scores").mkdir()
    environment = {**os.environ, "CITYSCAPES_DATASET": "world/cityscapes", "CITYSCAPES_RESULTS": "out/ids",
                   "CITYSCAPES_EXPORT_DIR": "scores", "MPLBACKEND": "Agg"}
    program = ("import numpy, runpy; numpy.in1d = numpy.isin\n"  # it uses a name that NumPy no longer has
               "runpy.run_module('cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling', run_name='__main__')")
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    theirs = json.loads(Path("scores/resultPixelLevelSemanticLabeling.json").read_text())["classScores"]
    names = {"light": "traffic light", "sign": "traffic sign"}
    compared = 0
    for name, value in ours.items():
        official = theirs[names.get(name, name)]
        assert np.isnan(official) if value is None else abs(value / 100 - official) < 1e-6, name
        compared += bool(value)
    assert compared > 5  # of classes that are seen and predicted


# ---- which files -----------------------------------------------------------------------------------------------------

def test_words_mean_folders_files_and_patterns(here):
    def found(*words, outputs=()):
        samples, _ = find_inputs(words, [Path(o) for o in outputs])
        return sorted(s.name for s in samples)
    assert found("shots") == found("shots/") == found(str(here / "shots")) == found("shots/**/*") == NAMES
    assert found("shots/grey.png", "shots/dusk") == ["grey", "höhe 1"]
    assert found("shots/*.png") == ["alpha", "grey", "tiny"] and found("*/dusk/*") == ["shots/dusk/höhe 1"]
    assert found("shots/grey.png", "shots/grey.png", "shots/./grey.png") == ["grey"]
    assert found(str(here / "sh*" / "*.png")) == ["shots/alpha", "shots/grey", "shots/tiny"]
    (here / "shots/[1] a=b.png").write_bytes((here / "shots/grey.png").read_bytes())
    assert found("shots/[1] a=b.png") == ["[1] a=b"] and "[1] a=b" in found("shots")
    (here / "link").symlink_to(here / "shots/dusk")
    assert found("link") == ["höhe 1"]
    assert found("shots", outputs=["shots/dusk"]) == sorted({*NAMES, "[1] a=b"} - {"dusk/höhe 1"})


@pytest.mark.parametrize("words, said", [
    (["gone"], "'gone' is not there"), (["shots/*.webp"], "no image in 'shots/\\*.webp'"),
    (["empty"], "no image in 'empty'"), (["shots", "shots/dusk", "other"], "share the name 'grey'"),
    (["other"], "share the name 'grey'"), (["shots/**"], "")])
def test_words_that_mean_no_image_or_two_of_a_name(here, words, said):
    (here / "empty").mkdir()
    (here / "other").mkdir()
    for name in ("grey.jpg", "grey.png"):
        (here / "other" / name).write_bytes((here / "shots/grey.png").read_bytes())
    if said:
        with pytest.raises(DataError, match=said):
            find_inputs(words, [])
    else:
        assert find_inputs(words, [])


@pytest.mark.parametrize("output", ["shots", "shots/predicted", "."])
def test_outputs_in_the_input_folder_are_no_inputs(here, monkeypatch, capsys, output):
    """Nor is any input overwritten, however often it is called."""
    (here / "shots/ids").mkdir()
    (here / "shots/ids/own.png").write_bytes((here / "shots/grey.png").read_bytes())
    before = tree(here / "shots")
    for words, done in (([], 6), (["--overwrite"], 6), ([], 0)):
        assert call(monkeypatch, "--input", "shots", "--output", output, "--save", "ids", "color", *words) == 0
        printed = capsys.readouterr()
        done += (output != "shots") * (done > 0)  # own.png is an image like others, unless the ids go to its folder
        assert f"predicted {done} images" in printed.out
        assert output != "shots" or "files in the output folder are left out" in printed.err
    assert names_in(f"{output}/color") == sorted([*NAMES, *["ids/own"] * (output != "shots")])
    after = tree(here / "shots")
    assert {path: after[path] for path in before} == before


def test_a_file_in_the_output_folder_is_refused(here, monkeypatch, capsys):
    assert call(monkeypatch, "--input", "shots", "--output", "out") == 0
    assert call(monkeypatch, "--input", "out/ids/grey.png", "--output", "out") == 2
    assert "out/ids/grey.png: lies in the output folder" in capsys.readouterr().err


# ---- going on --------------------------------------------------------------------------------------------------------

def test_what_is_done_is_skipped_and_what_has_changed_is_done_again(here, monkeypatch, capsys):
    words = ("--input", "shots", "--output", "out", "--save")
    assert call(monkeypatch, *words, "ids") == 0
    before = {p: p.stat().st_mtime_ns for p in Path("out/ids").rglob("*.png")}
    for path in ("out/ids/grey.png", "out/ids/deep.png"):
        Path(path).unlink()
    Path("out/ids/tiny.png").write_bytes(b"cut short")
    image = Path("shots/alpha.png")
    image.write_bytes(png(noise(9, 9, 3), 8, 2))
    capsys.readouterr()
    assert call(monkeypatch, *words, "ids") == 0
    assert capsys.readouterr().out == "predicted 4 images, 2 were there already: out/ids\n"
    again = {p: p.stat().st_mtime_ns for p in Path("out/ids").rglob("*.png")}
    assert {p.stem for p in before if before[p] == again[p]} == {"turned", "höhe 1"}
    assert np.array(Image.open("out/ids/alpha.png")).shape == (9, 9)
    assert call(monkeypatch, *words, "ids") == 0
    assert capsys.readouterr().out == "predicted 0 images, 6 were there already: out/ids\n"
    assert call(monkeypatch, *words, "ids", "overlay") == 0  # one kind more: all images again
    assert "predicted 6 images: " in capsys.readouterr().out
    assert call(monkeypatch, *words, "overlay") == 0
    assert "predicted 0 images, 6 were" in capsys.readouterr().out


@pytest.mark.parametrize("words, said", [
    (["--ids", "label"], "other ids"), (["--scales", "1", "2"], "other scales ([1.0]; now [1.0, 2.0])"),
    (["--flip"], "other flip (false; now true)"), (["--size", "64", "32"], "other size ([48, 40]; now [64, 32])"),
    (["--tile", "64"], "other size ([48, 40]; now null)"), (["mine.value_range=[0,255]"], "other value_range"),
    (["mine.classes=[a,b,c,d,z]"], "other classes"), (["amp=bf16"], "other amp")])
def test_predictions_made_otherwise_are_refused_with_the_difference(here, monkeypatch, capsys, words, said):
    given = ("--input", "shots", "--output", "out")
    assert call(monkeypatch, *given) == 0
    before = tree(here)
    assert call(monkeypatch, *given, *words) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert said in error and "--overwrite" in error and tree(here) == before
    assert call(monkeypatch, *given, "--batch", "2", "worker=1", "print_freq=1") == 0  # these change nothing
    assert call(monkeypatch, *given, *words, "--overwrite") == 0
    assert call(monkeypatch, *given, *words) == 0 and "6 were there already" in capsys.readouterr().out


def test_predictions_of_another_checkpoint_are_refused_and_the_same_one_elsewhere_is_not(here, monkeypatch, capsys):
    given = ("--input", "shots", "--output", "out")
    assert call(monkeypatch, *given) == 0
    state = torch.load("net.pth")
    torch.save({"model": state}, "copy.pth")
    assert call(monkeypatch, *given, checkpoint="copy.pth") == 0
    assert "6 were there already" in capsys.readouterr().out
    state["3.bias"] += 1
    torch.save(state, "other.pth")
    assert call(monkeypatch, *given, checkpoint="other.pth") == 2
    assert "made with other weights" in capsys.readouterr().err


def test_a_model_folder_goes_on_where_its_checkpoint_file_was_stopped(here, monkeypatch, capsys):
    given = ("--input", "shots", "--output", "out")
    assert call(monkeypatch, *given) == 0
    cfg = load_config("tiny.yml")
    save_folder("folder", build_model(cfg, torch.device("cpu"), "net.pth")[0], cfg, described(cfg), {})
    Path("tiny.yml").rename("gone.yml")
    monkeypatch.setattr("sys.argv", ["predict.py", "--checkpoint", "folder", *given, "worker=0", "device=cpu",
                                     f"model={here / 'net.py'}:Net"])
    capsys.readouterr()
    assert predict_script.run() == 0 and "6 were there already" in capsys.readouterr().out


def test_an_image_that_changes_while_it_is_predicted_is_predicted_again(here, monkeypatch, capsys):
    given, write = ("--input", "shots", "--output", "out"), outputs.write_png

    def write_late(path, picture):
        if path.stem == "grey":
            Path("shots/grey.png").write_bytes(png(noise(50, 40, seed=9), 8, 0))
        return write(path, picture)
    Path("shots/grey.png").write_bytes(png(noise(50, 40), 8, 0))
    with monkeypatch.context() as patch:
        patch.setattr(outputs, "write_png", write_late)
        assert call(monkeypatch, *given) == 0
    capsys.readouterr()
    assert call(monkeypatch, *given) == 0 and "predicted 1 image, 5 were there already" in capsys.readouterr().out


def test_predictions_of_another_folders_images_are_not_overwritten_unasked(here, monkeypatch, capsys):
    words = ("--output", "out", "--input")
    assert call(monkeypatch, *words, "shots") == 0
    for name, seed in (("grey", 1), ("new", 2)):
        Path("other").mkdir(exist_ok=True)
        Path(f"other/{name}.png").write_bytes(png(noise(20, 30, seed=seed), 8, 0))
    before = tree(here)
    assert call(monkeypatch, *words, "other") == 2
    assert "holds the prediction of another image named 'grey', " in capsys.readouterr().err and tree(here) == before
    assert call(monkeypatch, *words, "other/new.png") == 0
    Path("shots").rename("moved")  # the same files at another place
    assert call(monkeypatch, *words, "moved") == 0
    assert "6 were there already" in capsys.readouterr().out
    assert call(monkeypatch, *words, "other", "--overwrite") == 0


def test_files_of_others_are_not_overwritten_unasked(here, monkeypatch, capsys):
    Path("out/ids").mkdir(parents=True)
    Path("out/ids/grey.png").write_bytes(b"mine")
    before = tree(here)
    assert call(monkeypatch, "--input", "shots", "--output", "out") == 2
    assert "out/ids/grey.png is there already" in capsys.readouterr().err and tree(here) == before
    assert call(monkeypatch, "--input", "shots", "--output", "out", "--overwrite") == 0


KILLED = """
import os, signal, sys
from pathlib import Path
from dataset import outputs
from dataset.class_sets import described
import predict

plain, written = outputs.write_atomically, []

def write(path, content):
    written.append(path)
    if len(written) == {count}:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).with_name("." + path.name + ".1.tmp").write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGKILL)
    plain(path, content)

outputs.write_atomically = write
sys.argv = ["predict.py", *{words}]
predict.run()
"""


@pytest.mark.parametrize("count", [5, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 2, 12))])
def test_a_killed_prediction_goes_on_where_it_was(here, monkeypatch, capsys, count):
    words = ["--input", "shots", "--save", "ids", "color", "--output"]
    assert call(monkeypatch, *words, "whole") == 0
    given = ["--config", "tiny.yml", "--checkpoint", "net.pth", *words, "out"]
    done = subprocess.run([sys.executable, "-c", KILLED.format(count=count, words=given)],
                          env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    with open("out/predict.jsonl", "ab") as file:
        file.write(b'{"name": "gre')  # a line that was being written
    capsys.readouterr()
    assert call(monkeypatch, *words, "out") == 0
    assert 6 - int(capsys.readouterr().out.split()[1]) <= count // 2
    whole, found = (({p: c for p, c in tree(Path(f)).items() if p.endswith(".png")}) for f in ("whole", "out"))
    assert whole == found and not list(Path("out").rglob(".*.tmp"))
    assert call(monkeypatch, *words, "out") == 0 and "6 were there already" in capsys.readouterr().out


def test_a_signal_ends_it_at_once_and_it_goes_on(here, monkeypatch, capsys):
    """Ctrl-C after the second image."""
    plain, seen = Segmenter.score_map, []

    def score_map(self, x):
        seen.append(x)
        if len(seen) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return plain(self, x)
    monkeypatch.setattr(Segmenter, "score_map", score_map)
    assert call(monkeypatch, "--input", "shots", "--output", "out") == 130
    assert capsys.readouterr().err == "stopped: what had been saved before is kept\n"
    assert len(names_in("out/ids")) <= 2
    assert call(monkeypatch, "--input", "shots", "--output", "out") == 0
    assert names_in("out/ids") == NAMES


def test_a_second_process_on_the_same_folder_is_refused(here, monkeypatch, capsys):
    assert call(monkeypatch, "--input", "shots/grey.png", "--output", "out") == 0
    code = ("import fcntl, sys; file = open('out/.lock', 'a+b'); fcntl.lockf(file, fcntl.LOCK_EX); print(flush=True); "
            "sys.stdin.read()")
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        assert call(monkeypatch, "--input", "shots", "--output", "out") == 2
        assert "--output: 'out' is in use by another process" in capsys.readouterr().err
        other.stdin.close()


# ---- what goes wrong -------------------------------------------------------------------------------------------------

def test_images_that_cannot_be_read_are_named_and_the_others_predicted(here, monkeypatch, capsys):
    Path("shots/cut.png").write_bytes(Path("shots/grey.png").read_bytes()[:90])
    Path("shots/five.tif").write_bytes(tiff(noise(8, 8, 5), 8))
    for worker in ("worker=0", "worker=2"):
        assert call(monkeypatch, "--input", "shots", "--output", worker, "--batch", "3", worker) == 2
        printed = capsys.readouterr()
        assert printed.out.splitlines()[-1] == f"predicted 6 images, 2 failed: {worker}/ids"
        errors = [line for line in printed.err.splitlines() if "shots/" in line and "hidden" not in line]
        assert len(errors) == 2 and "cut.png: cannot be read" in errors[0] and "five.tif: has 5 bands" in errors[1]
        assert names_in(f"{worker}/ids") == NAMES
    Path("shots/cut.png").unlink()
    Path("shots/five.tif").unlink()
    assert call(monkeypatch, "--input", "shots", "--output", "worker=0") == 0


def test_numbers_that_are_not_finite_are_no_prediction(here, monkeypatch, capsys):
    plain = Segmenter.score_map
    monkeypatch.setattr(Segmenter, "score_map", lambda self, x: plain(self, x) * (float("nan") if x.mean() < 0 else 1))
    Path("black").mkdir()
    Image.new("RGB", (48, 40)).save("black/black.png")
    for words in ([], ["--tile", "32"]):
        assert call(monkeypatch, "--input", "black", "--output", "out", *words, "--overwrite") == 2
        assert "black/black.png: the network's outputs are not finite" in capsys.readouterr().err
        assert names_in("out") == []


@pytest.mark.parametrize("words, said", [
    (["--input", "gone"], "--input: 'gone' is not there"),
    (["--input", "shots", "--save", "colour"], "--save: expected ids, color, overlay, confidence, found 'colour' (did"),
    (["--input", "shots", "--scales", "big"], "argument --scales: expected numbers, found 'big'"),
    (["--input", "shots", "--scales", "0"], "expected scales from 0.1 to 4, found 0"),
    (["--input", "shots", "--scales", "nan"], "expected scales from 0.1 to 4, found nan"),
    (["--input", "shots", "--ids", "both"], "argument --ids"), (["--input", "shots", "--size", "4", "4"], "--size"),
    (["--input", "shots", "--size", "64"], "--size"), (["--input", "shots", "--batch", "0"], "--batch"),
    (["--input", "shots", "--batch", "x"], "argument --batch: invalid whole number value: 'x'"),
    (["--input", "shots", "--tile", "100"], "--tile: expected a multiple of 32"),
    (["--input", "shots", "--tile", "64", "--overlap", "5"], "--overlap: expected a multiple of 32"),
    (["--input", "shots", "--overlap", "32"], "--overlap: has no effect without --tile"),
    (["--input", "shots", "--tile", "64", "--size", "64", "64"], "--size: has no effect with --tile"),
    (["--input", "shots", "num_clases=5"], "'num_classes'"), (["num_clases=5", "--input", "shots"], "'num_classes'"),
    (["--input", "shots", "mine.input_size=0"], "mine.input_size"), (["x.png", "--input", "shots"], "'x.png'"),
    (["--input", "~nobody1/x"], "the home folder ~nobody1"), (["--input", "key=value"], "'key'"),
    (["--input", "shots", "device=cuda:77"], "device"), (["--save", "ids"], "--input")])
def test_wrong_words_are_one_line_and_nothing_is_written(here, monkeypatch, capfd, words, said):
    before = tree(here)
    assert call(monkeypatch, "--output", "out", *words) == 2
    error = capfd.readouterr().err
    assert error.count("\n") == 1 and error.startswith("error: ") and said in error and tree(here) == before


@pytest.mark.parametrize("checkpoint", ["gone.pth", "tiny.yml", "part.pth"])
def test_wrong_checkpoints_are_one_line_and_nothing_is_written(here, monkeypatch, capfd, checkpoint):
    torch.save({k: v for k, v in torch.load("net.pth").items() if k != "3.bias"}, "part.pth")
    before = tree(here)
    assert call(monkeypatch, "--input", "shots", "--output", "out", checkpoint=checkpoint) == 2
    error = capfd.readouterr().err
    assert error.count("\n") == 1 and error.startswith("error: ") and checkpoint in error and tree(here) == before


def test_an_output_that_is_a_file_is_one_line(here, monkeypatch, capfd):
    for output in ("tiny.yml", "tiny.yml/out"):
        assert call(monkeypatch, "--input", "shots", "--output", output) == 2
        error = capfd.readouterr().err
        assert "tiny.yml" in error.splitlines()[-1] and error.splitlines()[-1].startswith("error: ")


def test_a_full_disk_ends_it_with_one_line(here, monkeypatch, capfd):
    def full(path, write):
        raise CheckpointError(f"{path}: cannot be written (No space left on device)")
    monkeypatch.setattr(outputs, "write_atomically", full)
    assert call(monkeypatch, "--input", "shots", "--output", "out") == 2
    assert "No space left" in capfd.readouterr().err.splitlines()[-1]


# ---- memory ----------------------------------------------------------------------------------------------------------

LARGE = """
import sys
import predict
from bench.harness import resident

sys.argv = ["predict.py", *sys.argv[1:]]
code = predict.run()
print("peak", resident("VmHWM") / 1024)  # GiB; not ru_maxrss, which begins with the parent's
sys.exit(code)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("words, limit", [
    ([], 1.5), (["--batch", "4", "--save", "ids", "overlay", "confidence", "worker=1"], 2)], ids=["plain", "all"])
def test_tiles_of_a_large_image_take_little_memory(here, words, limit):
    """6000 x 4000 pixels and 19 classes, of which the whole image's scores would take 1.7 GiB."""
    from torchvision.models.segmentation import lraspp_mobilenet_v3_large
    network = lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=19)
    torch.save(network.state_dict(), "light.pth")
    street = {"model": "torchvision/lraspp_mobilenet_v3_large", "init_weight": "None", "device": "cpu", "worker": 0,
              "screen": False}
    Path("light.yml").write_text(yaml.safe_dump(street))
    Path("large").mkdir()
    Image.fromarray(noise(40, 60, 3).astype(np.uint8)).resize((6000, 4000)).save("large/large.png", compress_level=1)
    done = subprocess.run([sys.executable, "-c", LARGE, "--config", "light.yml", "--checkpoint", "light.pth", "--input",
                           "large", "--output", "out", "--tile", "512", *words],
                          env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert Image.open("out/ids/large.png").size == (6000, 4000)
    assert float(done.stdout.split("peak")[1]) < limit

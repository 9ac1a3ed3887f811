"""Classes that the labels never show: training, adapting and scoring say so, by name and beside the figure."""
import itertools
import sys

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from tiers import mostly_slow

import eval as eval_script
import run as run_script
import run_so as run_so_script
from dataset import check, inspection, segmentation
from model.deeplabv2 import DeepLabV2
from trainer.methods import source_only
from utils.cli import run_stage
from utils.config import parse_config

NAMES = ["ground", "thing", "sky"]


@pytest.fixture
def world(tmp_path, monkeypatch):
    """A function that writes a folder data set whose labels hold `ids` in vertical stripes, and its configuration."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)

    def write(ids, classes=3, label_ids=None, val_ids=None):
        rng = np.random.default_rng(0)
        for split, stripes in (("train", ids), ("val", ids if val_ids is None else val_ids)):
            for i in range(3):
                label = np.array(stripes, np.uint8)[np.arange(64) * len(stripes) // 64][None].repeat(32, 0)
                image = rng.integers(0, 256, (32, 64, 3), dtype=np.uint8)
                for folder, pixels in (("images", image), ("labels", label)):
                    path = tmp_path / "d" / folder / split / f"{i}.png"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(pixels).save(path)
        section = {"type": "folder", "data_dir": "d", "images": "images/{split}", "labels": "labels/{split}",
                   "input_size": [64, 32], "classes": NAMES[:classes], "label_ids": label_ids or "None"}
        (tmp_path / "c.yml").write_text(yaml.safe_dump({
            "note": "t", "source": "mine", "target": "mine", "num_classes": classes, "layers": [1, 1, 1, 1], "width": 4,
            "worker": 0, "screen": False, "device": "cpu", "num_steps": 3, "batch_size": 2, "round": 1, "crop_src": 32,
            "crop_tgt": 32, "input_src": 32, "input_tgt": 32, "scales": [1.0], "tensorboard": False,
            "init_weight": "None", "mine": section}))
        torch.save(DeepLabV2(classes, (1, 1, 1, 1), 4).state_dict(), "net.pth")
    return write


def warnings(monkeypatch, capsys, script, *words):
    """The lines that warn of classes, of a script that must end well, and all that it printed."""
    monkeypatch.setattr(sys, "argv", ["script", "--config", "c.yml", *words])
    capsys.readouterr()
    fixed = {"method": "source_only"} if script is run_so_script else {}
    assert (script.run() if script is eval_script else run_stage("", "c.yml", script.run, **fixed)) == 0
    printed = "".join(capsys.readouterr())
    return [line for line in printed.splitlines() if line.startswith("warning: classes never seen")], printed


@pytest.mark.parametrize("present", [p for n in (1, 2, 3) for p in itertools.combinations(range(3), n)])
def test_every_script_names_exactly_the_classes_that_are_missing(world, monkeypatch, capsys, present):
    world(present)
    missing = ", ".join(name for c, name in enumerate(NAMES) if c not in present)
    for script, words in ((run_so_script, ()), (run_script, ("init_weight=net.pth",)), (eval_script, ("net.pth",))):
        lines, _ = warnings(monkeypatch, capsys, script, *words)
        assert bool(lines) == bool(missing)
        assert all(f"classes never seen: {missing}: no pixel" in line for line in lines)
        assert len(lines) == len(set(lines)) <= 3


def test_masks_of_0_and_255_do_not_pass_for_a_perfect_score(world, monkeypatch, capsys):
    world([0, 255], classes=2)
    for script, words in ((run_so_script, ()), (run_script, ("init_weight=net.pth",))):
        lines, printed = warnings(monkeypatch, capsys, script, *words)
        assert lines and all("thing" in line and "label_ids: {0: 0, 255: 1}" in line for line in lines)
        assert "mIoU 100.00 (2 classes)" not in printed
    world([0, 255], classes=2, label_ids={0: 0, 255: 1})
    for script, words in ((run_so_script, ()), (run_script, ("init_weight=net.pth",)), (eval_script, ("net.pth",))):
        assert warnings(monkeypatch, capsys, script, *words)[0] == []


def test_a_score_over_fewer_classes_says_so_beside_the_figure(world, monkeypatch, capsys):
    """The network is made to predict one class alone, so that another occurs in neither labels nor predictions."""
    world([0], classes=2)
    state = torch.load("net.pth", weights_only=True)
    state["layer5.conv2d_list.0.bias"] += torch.tensor([1e3, 0])
    torch.save(state, "net.pth")
    _, printed = warnings(monkeypatch, capsys, run_script, "init_weight=net.pth", "train=False")
    assert "mIoU 100.00 (1 of 2 classes)" in printed
    _, printed = warnings(monkeypatch, capsys, eval_script, "net.pth")
    table = [line.split() for line in printed.splitlines()]
    assert ["classes", "1/2"] in table and ["mIoU", "100.0"] in table


def test_validation_labels_alone_count_for_validation(world, monkeypatch, capsys):
    world([0, 1, 2], val_ids=[0, 1])
    lines, _ = warnings(monkeypatch, capsys, run_so_script)
    assert len(lines) == 1 and "never seen: sky: no pixel of them in the validation labels" in lines[0]
    lines, _ = warnings(monkeypatch, capsys, run_so_script, "val=False")
    assert lines == []


def test_stage_0_says_it_once_however_often_it_looks(world, monkeypatch, capsys):
    world([0])
    for enough in (1, 4, 1000):
        monkeypatch.setattr(source_only, "ENOUGH_CROPS", enough)
        lines, _ = warnings(monkeypatch, capsys, run_so_script, "val=False")
        assert len(lines) == 1 and "thing, sky" in lines[0]


@pytest.mark.parametrize("name, names, advice", [
    ("gta5", ["terrain"], "check gta5.data_dir and"), ("synthia", ["terrain", "bus"], "check synthia.data_dir and"),
    ("synthia", ["terrain", "truck"], "SYNTHIA has none of them; num_classes=16 leaves them out")])
def test_the_advice_for_street_sets_names_no_key_of_other_sets(name, names, advice):
    said = inspection.never_seen(parse_config("", "-"), name, names, "these labels")
    assert said.startswith(f"classes never seen: {', '.join(names)}: no pixel of them in these labels; {advice}")
    assert "label_ids" not in said and f"{name}.classes" not in said


def test_the_check_says_it_in_the_same_words_and_lists_the_ids(world, monkeypatch, capsys):
    world([0, 255], classes=2)
    lines, _ = warnings(monkeypatch, capsys, run_so_script)
    assert check.main(["--config", "c.yml", "method=source_only", "--split", "source_train"]) == 0
    notes = [line.strip() for line in capsys.readouterr().out.splitlines() if line.startswith("  note: ")]
    words = lines[0].removeprefix("warning: ").partition(" in the ")
    assert notes[0].startswith(f"note: {words[0]}") and words[2].partition("; ")[2] in notes[0]
    assert notes[0].endswith("; ids that they hold: 0 (3072 pixels), 255 (3072 pixels)")


@pytest.mark.parametrize("ids, label_ids, unknown", [
    ([0, 1, 2], None, ""), ([0, 1, 2, 255], None, ""), ([0, 1, 2, 7], None, "7"), ([0, 1, 2, 19, 254], None, "19, 254"),
    ([7, 8, 11], {7: 0, 8: 1, 11: 2}, ""), ([7, 8, 11, 0], {7: 0, 8: 1, 11: 2}, "0"),
    ([7, 8, 11, 0], {7: 0, 8: 1, 11: 2, 0: 255}, ""), ([7, 8, 11, 0, 3], {7: 0, 8: 1, 11: 2, 0: 255}, "3"),
    ([0, 1, 2, *range(100, 109)], None, "100, 101, 102, 103, 104, 105 and 3 more")])
@pytest.mark.parametrize("words", mostly_slow(["", "on_bad_sample=skip"]))
def test_ids_that_the_table_does_not_know_are_named_before_the_run(world, monkeypatch, capsys, ids, label_ids, unknown,
                                                                   words):
    world(ids, label_ids=label_ids)
    for script, start in ((run_so_script, ()), (run_script, ("init_weight=net.pth",)), (eval_script, ("net.pth",))):
        _, printed = warnings(monkeypatch, capsys, script, *start, *words.split())
        lines = [line for line in printed.splitlines() if "not in the table" in line]
        labels = 2 if script is run_so_script else 1  # its own, and validation's
        assert len(lines) == (labels if unknown else 0)
        assert all(line.startswith("warning: d/labels/") and f"label ids {unknown} are not" in line for line in lines)
        assert all(f"{unknown.split(',')[0]}: 255 says that this is meant" in line for line in lines)


def test_labels_that_cannot_be_read_are_named_by_their_reader_alone(world, monkeypatch, capsys):
    world([0, 1, 2, 9])
    for split in ("train", "val"):
        with open(f"d/labels/{split}/0.png", "wb") as file:
            file.write(b"no image")
    cfg = parse_config(open("c.yml", encoding="utf-8").read(), "c.yml", method="source_only")
    samples = segmentation.find_samples("mine", cfg.section("mine"), "train")
    (line,) = inspection.unknown_ids(cfg, "mine", samples)
    assert "1.png: label ids 9 are not" in line
    assert inspection.unknown_ids(cfg, "mine", samples[:1]) == inspection.unknown_ids(cfg, "mine", []) == []


@pytest.mark.parametrize("count", [1, 7, 8, 9, 100])
def test_a_few_labels_spread_over_the_samples_are_looked_at(world, monkeypatch, count):
    world([0])
    cfg = parse_config(open("c.yml", encoding="utf-8").read(), "c.yml", method="source_only")
    seen = []
    monkeypatch.setattr(inspection.files, "read_label_ids",
                        lambda path: seen.append(path) or np.zeros((2, 2), np.uint8))
    samples = [segmentation.Sample(str(i), i, i) for i in range(count)]
    assert inspection.unknown_ids(cfg, "mine", samples) == []
    assert min(count, 5) <= len(seen) <= 8 and seen == sorted(seen) and seen[-1] >= count * 3 // 4 - 1

"""--dry-run does every part of a run, counts as the run does, raises what the run raises, and leaves nothing."""
import hashlib
import itertools
import json
import os
import random
import re
import shutil
import signal
import sys
from collections import namedtuple
from pathlib import Path

import pytest
import torch
import yaml

import run as run_script
import run_so as run_so_script
from dataset.toy import write_toy_world
from model.deeplabv2 import DeepLabV2
from model.weights import save_weights
from trainer import forecast, stopwatch, trial
from trainer.loop import Trainer
from utils.checkpoint import RunLock, StateFolder
from utils.cli import run_stage
from utils.config import load_config

TINY = {
    "amp": "off",
    "note": "tiny", "layers": [1, 1, 1, 1], "width": 4, "fixbn": False, "batch_size": 2, "worker": 0, "screen": False,
    "input_src": 32, "input_tgt": 32, "crop_src": 32, "crop_tgt": 32, "num_steps": 5, "epochs": 2, "round": 2,
    "val_freq": 3, "save_freq": 2, "init_weight": "net.pth", "device": "cpu", "score_images": 2, "candidate_freq": 2,
    "tensorboard": False, "method": "ld",
    **{name: {"data_dir": f"world/{name}", "input_size": [64, 32]} for name in ("gta5", "synthia", "cityscapes")}}
IMAGE = "world/cityscapes/leftImg8bit/val/suderburg/suderburg_000001_000019_leftImg8bit.png"


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    root = tmp_path_factory.mktemp("template")
    write_toy_world(root / "world", seed=5, size=(64, 32), source=4, synthia=1, train=5, val=2)
    torch.manual_seed(0)
    save_weights(DeepLabV2(19, (1, 1, 1, 1), 4), root / "net.pth")
    (root / "tiny.yml").write_text(yaml.safe_dump(TINY))
    return root


@pytest.fixture
def here(template, tmp_path, monkeypatch):
    shutil.copytree(template, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(trial, "ENOUGH", 0.01)
    monkeypatch.setattr(stopwatch, "ENOUGH", 0.01)
    return tmp_path / "here"


def tree(root):
    return {p.relative_to(root).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() if p.is_file() else None
            for p in sorted(root.rglob("*"))}


def call(monkeypatch, *words, script=run_script):
    monkeypatch.setattr(sys, "argv", ["script", "--config", "tiny.yml", *words])
    fixed = {"method": "source_only"} if script is run_so_script else {}
    return run_stage(script.__doc__, "tiny.yml", script.run, **fixed)


def parts(out):
    """Title -> count of the time table."""
    return {m[1].strip(): int(m[2]) for m in re.finditer(r"^(\S.*?)  +(\d+)  +[\d.]+ (?:ms|s|min|h)\b.*$", out, re.M)}


@pytest.mark.parametrize("method", ["ld", pytest.param("be", marks=pytest.mark.slow), "bn_adapt", "source_only"])
def test_it_counts_as_the_run_does_and_leaves_nothing(method, here, monkeypatch, capsys):
    """The counts are those of the events of a real run."""
    script = run_so_script if method == "source_only" else run_script
    words = (() if script is run_so_script else (f"method={method}",))
    before = tree(here)
    assert call(monkeypatch, "--dry-run", *words, script=script) == 0
    out = capsys.readouterr().out
    assert tree(here) == before
    for said in ("images: ", "classes: 19, scored as 19 classes", "network: deeplab, ", "memory: ", "whole run",
                 "results", "are free below ", "nothing of this dry run is kept"):
        assert said in out
    assert "warning" not in out.replace("warning: the scale", "")

    saves, save = [], StateFolder.save
    monkeypatch.setattr(StateFolder, "save", lambda *a: saves.append(a) or save(*a))
    assert call(monkeypatch, *words, script=script) == 0
    events = [json.loads(line) for line in Path(f"log/tiny/{method}.jsonl").read_text().splitlines()]
    count = {kind: sum(e["event"] == kind for e in events) for kind in ("candidate", "val", "pseudo_label")}
    found = parts(out)
    assert found.get("references", 0) + found.get("candidates", 0) == count["candidate"]
    assert found["validation, images"] == 2 * count["val"] and found["saved states"] == len(saves)
    assert found.get("labelling, images", 0) == 5 * count["pseudo_label"]
    steps = [a[1]["position"]["global_step"] for a in saves][-1]
    assert found["steps"] == steps


@pytest.mark.parametrize("words, title", [(("bn_source=0.5", "bn_stats=running"), "statistics, images"),
                                          (("score_images=0",), None), (("train=false",), None),
                                          (("select_by=miou",), "references")])
def test_other_runs(words, title, here, monkeypatch, capsys):
    before = tree(here)
    assert call(monkeypatch, "--dry-run", *words) == 0
    found = parts(capsys.readouterr().out)
    assert tree(here) == before and (title is None or title in found)
    if "train=false" in words:
        assert found.keys() == {"start", "validation, images"}
    if "score_images=0" in words:
        assert not found.keys() & {"references", "candidates"}
    if "select_by=miou" in words:
        assert found["validation, images"] == 2 * (5 + found["references"] + found["candidates"])


def test_beside_a_run_of_the_same_note(here, monkeypatch, capsys):
    """The lock of the run is neither taken nor waited for; its states are a warning, unless the run would resume."""
    cfg = load_config("tiny.yml")
    run = Trainer(cfg)
    run.save_state()
    lock, locked = [], RunLock.__init__
    monkeypatch.setattr(RunLock, "__init__", lambda self, folder: lock.append(folder) or locked(self, folder))
    before = tree(here)
    assert call(monkeypatch, "--dry-run") == 0
    assert "warning: the run would stop at once: note: " in capsys.readouterr().out
    assert call(monkeypatch, "--dry-run", "--resume") == 0
    assert "would stop" not in capsys.readouterr().out
    assert tree(here) == before and not any("tiny.state" in str(f) or str(f) == "snapshot/tiny" for f in lock)
    run.log.close()
    run.folder.release()


def truncated(here):
    Path(IMAGE).write_bytes(Path(IMAGE).read_bytes()[:20])


@pytest.mark.parametrize("spoil, words, said", [
    (truncated, (), ("suderburg_000001", "cannot be read")),
    (lambda here: None, ("init_weight=gone.pth",), ("gone.pth", "no such checkpoint")),
    (lambda here: None, ("method=ld", "init_weight=None"), ("such as ./snapshot/tiny/source_only.pth",)),
    (lambda here: None, ("cityscapes.data_dir=gone",), ("gone",)),
    (lambda here: None, ("learning_rate=1e30",), ("not finite",)),
    (lambda here: (here / "snapshot").write_text("x"), (), ("snapshot", "no folder")),
    (lambda here: None, ("method=source_only",), ("run_so.py",))])
def test_errors_are_one_line_and_leave_nothing(spoil, words, said, here, monkeypatch, capsys):
    spoil(here)
    before = tree(here)
    assert call(monkeypatch, "--dry-run", *words) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1 and all(word in error for word in said), error
    assert tree(here) == before


@pytest.mark.parametrize("part, number", [("_read_headers", signal.SIGINT), ("_prepare_round", signal.SIGTERM),
                                          ("_take_steps", signal.SIGINT), ("_save", signal.SIGINT)])
def test_a_signal_leaves_nothing(part, number, here, monkeypatch, capsys):
    before, original = tree(here), getattr(trial.Trial, part)

    def struck(self):
        original(self)
        os.kill(os.getpid(), number)
    monkeypatch.setattr(trial.Trial, part, struck)
    assert call(monkeypatch, "--dry-run") == 130
    assert len(capsys.readouterr().err.splitlines()) == 1 and tree(here) == before


def test_a_full_disk_is_told_before(here, monkeypatch, capsys):
    usage = namedtuple("usage", "total used free")(2**20, 2**20 - 9000, 9000)
    monkeypatch.setattr(forecast.shutil, "disk_usage", lambda path: usage)
    assert call(monkeypatch, "--dry-run", "plabel=elsewhere/plabel") == 0
    out = capsys.readouterr().out
    assert "8.79 KiB are free below" in out and "warning: the disk below " in out
    assert "elsewhere/plabel" in out.split("warning: the disk below ")[1]


# ---- the forecast ----------------------------------------------------------------------------------------------------

def simulated(rounds, every, val_freq, trains, begun, added, spared, keep_all):
    """(looks, validations, most weights) of a run, step by step as `Trainer.train` and `run_steps` go."""
    looks, validated, held, most, step = 0, set(), begun, begun, 0
    for total in rounds:
        freq = (every or -(-total // 4)) if trains else total
        for position in range(1, total + 1):
            step += 1
            if position % freq == 0 and position < total:
                looks, held = looks + 1, held + added
                most = max(most, held)
            if step % val_freq == 0:
                validated.add(step)
        looks, held = looks + 1, held + added
        most = max(most, held)
        validated.add(step)
        held = held if keep_all else min(held, begun + spared)
    return looks, len(validated), most


def test_counts_are_those_of_a_simulated_run():
    rng = random.Random(0)
    for _ in range(500):
        rounds = [rng.randrange(1, 30) for _ in range(rng.randrange(1, 4))]
        every, val_freq, trains = rng.choice([None, 1, 3, 7, 100]), rng.randrange(1, 40), rng.random() < 0.8
        begun, added, keep_all = rng.randrange(1, 5), rng.randrange(1, 7), rng.random() < 0.3
        looks = [forecast.looks(n, every, trains) for n in rounds]
        found = (sum(looks), forecast.validations(rounds, val_freq),
                 forecast.most_weights(looks, begun, added, 6, keep_all))
        assert found == simulated(rounds, every, val_freq, trains, begun, added, 6, keep_all)


@pytest.mark.parametrize("seconds, text", [(0, "0 ms"), (0.0123, "12.3 ms"), (0.85, "850 ms"), (1.94, "1.9 s"),
                                           (12.4, "12 s"), (99.4, "99 s"), (99.6, "1 min 40 s"), (3599, "59 min 59 s"),
                                           (3600, "1 h 00 min"), (7500, "2 h 05 min")])
def test_durations(seconds, text):
    assert forecast.duration(seconds) == text


@pytest.mark.parametrize("size, text", [(0, "0 B"), (999, "999 B"), (1024, "1 KiB"), (1.5 * 2**30, "1.5 GiB"),
                                        (2**50, "1.02e+03 TiB")])
def test_amounts(size, text):
    assert forecast.amount(size) == text


def test_the_table_adds_up():
    rng = random.Random(1)
    table = [forecast.Part(f"part {i}", rng.randrange(1, 9), rng.uniform(100, 900)) for i in range(5)]
    last = forecast.time_table(table)[-1]
    assert last.startswith("whole run") and last.endswith(forecast.duration(sum(p.count * p.seconds for p in table)))


def test_batches_come_again_with_the_time_that_they_were_waited_for(monkeypatch):
    clock = itertools.count()
    monkeypatch.setattr(trial.time, "perf_counter", lambda: next(clock))
    found = list(itertools.islice(trial._again(["a", "b", "c"]), 7))
    assert [item for item, _ in found] == [*"abcabca"]
    assert [waited for _, waited in found] == [0, 1, 1, 0, 1, 1, 0]
    assert list(trial._again([])) == []

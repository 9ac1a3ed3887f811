"""Whole runs in several processes, started by torchrun: one set of files, stops, kills, restarts, refusals."""
import dataclasses
import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
import yaml
from test_pipeline import TINY, call, weights
from torchrun import ROOT, torchrun

import run as run_script
import run_so as run_so_script
from dataset.toy import write_toy_world
from trainer import agreement, run_state
from trainer.dry_run import try_out
from utils import distributed
from utils.checkpoint import StateFolder
from utils.config import load_config
from utils.errors import ConfigError, NothingToDo, PeerLost, TrainingError
from utils.interrupt import Interrupt, signals_end

LD = ("run.py", "method=ld", "init_weight=snapshot/tiny/source_only.pth", "epochs=5")  # 2 rounds of 6 steps
BE = ("run.py", "method=be", "init_weight=snapshot/tiny/ld.pth", "epochs=5")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with the tiny world, its configuration, and the first two stages done by one process."""
    root = tmp_path_factory.mktemp("several")
    write_toy_world(root / "world", seed=5, size=(128, 64), source=6, synthia=0, train=5, val=3)
    (root / "tiny.yml").write_text(yaml.safe_dump({**TINY, "save_freq": 2, "tensorboard": False}))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        assert call(patch, run_so_script) == 0
        assert call(patch, run_script, *LD[1:]) == 0
    return root


def several(world, processes, words, plan=(), options=()):
    """A stage in several processes, to which the plan happens (tests/several.py). Returns the CompletedProcess."""
    return torchrun(processes, ROOT / "tests/several.py", json.dumps(dict(plan)), *words, folder=world, options=options)


def done(world, processes, words, **named):
    result = several(world, processes, words, **named)
    assert result.returncode == 0, result.stdout + result.stderr
    return result


def known(world):
    """What each process knew at each saved state, as lines; the files are removed."""
    files = sorted(world.glob("known-*.txt"))
    found = [file.read_text().splitlines() for file in files]
    for file in files:
        file.unlink()
    return found


def outcome(world, note, stage):
    """The results of a run: weights, pseudo labels, log without times, scores, and the names of all files."""
    events = map(json.loads, (world / f"log/{note}/{stage}.jsonl").read_text().splitlines())
    checkpoints = sorted((world / f"snapshot/{note}").glob(f"{stage}*.pth"))
    return {"weights": {p.name: {k: v.numpy().tobytes() for k, v in weights(p).items()} for p in checkpoints},
            "labels": {str(p.relative_to(world / f"plabel/{note}")): p.read_bytes()
                       for p in sorted((world / f"plabel/{note}/{stage}").rglob("*.png"))},
            "log": [{**e, "seconds": 0} for e in events if e["event"] not in ("machine", "cost")],
            "verdict": (world / f"snapshot/{note}/{stage}_verdict.json").read_text(),
            "scores": (world / f"miou_result/{note}/{stage}.json").read_text(),
            "files": sorted(str(p.relative_to(world / top / note)) for top in ("snapshot", "log", "plabel")
                            for p in (world / top / note).rglob("*"))}


@pytest.fixture(scope="module")
def whole(world):
    """LD and BE that nothing happens to, in two processes: {stage: (outcome, what was known, what was printed)}."""
    found = {}
    for stage, words in (("ld", LD), ("be", BE)):
        result = done(world, 2, [*words, "note=whole"])
        found[stage] = outcome(world, "whole", stage), known(world), result.stdout
    return found


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["ld", "be"])
def test_processes_hold_the_same_state_and_the_first_alone_writes(whole, stage):
    """At every saved state each process has the same weights, teacher, optimiser, statistics and candidates."""
    found, (first, second), output = whole[stage]
    assert first == second and len(first) == len(set(first)) >= 9
    assert found["weights"].keys() == {f"{stage}.pth", f"{stage}_chosen.pth"} and len(found["labels"]) == 2 * 5
    assert [e["step"] for e in found["log"] if e["event"] == "val"] == [4, 6, 8, 12]
    assert output.count(f"stage {stage}: 5 images") == 1 and output.count("verdict: ") == 2
    assert "2 processes: a step takes 4 images" in output
    assert not [name for name in found["files"] if "tmp" in name or "shared" in name or "candidates" in name]


@pytest.mark.slow
def test_a_killed_process_ends_the_job_and_a_restart_resumes_exactly(world, whole):
    plan = {"rank": 1, "step": 8, "do": "SIGKILL"}
    result = done(world, 2, [*LD, "note=killed"], plan=plan, options=["--max_restarts", "1"])
    assert "resumed from snapshot/killed/ld.state/00000006-round01-step.pth" in result.stdout
    assert outcome(world, "killed", "ld") == whole["ld"][0]
    first, second = known(world)
    assert set(first) == set(second) == set(whole["ld"][1][0])


@pytest.mark.slow
def test_a_signal_to_one_process_stops_all_at_the_same_step_and_a_resumed_run_has_the_same_bits(world, whole):
    result = several(world, 2, [*BE, "note=one"], plan={"rank": 1, "step": 9, "do": "SIGUSR1"})
    assert result.returncode == 1 and result.stderr.count("exitcode  : 75") == 2
    said = [line for line in result.stderr.splitlines() if "stopped by" in line]
    assert said == ["process 0: stopped by SIGUSR1 at step 9: its state is in snapshot/one/be.state/"
                    "00000009-round01-step.pth; the same command with --resume goes on."]
    first, second = known(world)
    assert first == second and first[-1].startswith("9 ")
    assert "resumed from" in done(world, 2, [*BE, "note=one", "--resume"]).stdout
    assert outcome(world, "one", "be") == whole["be"][0]
    known(world)


@pytest.mark.slow
def test_a_signal_to_torchrun_stops_all_and_another_number_of_processes_goes_on_between_rounds_alone(world, whole):
    plan = {"rank": 1, "step": 9, "do": "launcher:SIGTERM"}
    result = several(world, 2, [*LD, "note=all"], plan=plan)
    said = [line for line in result.stderr.splitlines() if "stopped by" in line]
    assert result.returncode and len(said) == 1 and "SIGTERM at step" in said[0] and "--resume" in said[0]
    first, second = known(world)
    assert first == second
    state = max((world / "snapshot/all/ld.state").glob("*.pth"))
    assert state.name in said[0] and 9 <= int(state.name[:8]) < 12
    refused = several(world, 3, [*LD, "note=all", "--resume"])
    error, = [line for line in refused.stderr.splitlines() if "error:" in line]
    assert "processes: 2 with accumulate: 1; now these are 3 and 1" in error and "round01-start.pth" in error
    assert refused.stderr.count("exitcode  : 2") == 3

    shutil.copytree(world / "snapshot/all", world / "snapshot/three")
    shutil.copytree(world / "plabel/all", world / "plabel/three")
    shutil.copytree(world / "log/all", world / "log/three")
    for path in (world / "snapshot/three/ld.state").glob("*-step.pth"):
        path.unlink()
    configured(world / "snapshot/three/ld.state", note="three")
    assert "round01-start.pth" in done(world, 3, [*LD, "note=three", "--resume"]).stdout
    assert len(set(map(tuple, known(world)))) == 1

    done(world, 2, [*LD, "note=all", "--resume"])
    assert outcome(world, "all", "ld") == whole["ld"][0]
    known(world)


def configured(folder, note):
    """Give the states of a folder another note."""
    for path in folder.glob("*.pth"):
        state = torch.load(path, weights_only=True)
        torch.save({**state, "config": state["config"].replace("note: all\n", f"note: {note}\n")}, path)


@pytest.mark.slow
def test_an_error_in_one_process_ends_the_job_and_is_shown(world):
    result = several(world, 2, [*LD, "note=error"], plan={"rank": 1, "step": 3, "do": "ZeroDivisionError"})
    assert result.returncode == 1
    lines = [line for line in result.stderr.splitlines() if line.startswith("process ")]
    assert len(lines) == 2 and any("process 1: error: unexpected ZeroDivisionError" in line for line in lines)
    assert any(line.startswith("process 0: error: process 0 of 2 has lost the others") for line in lines)
    known(world)


@pytest.mark.slow
def test_processes_that_were_started_differently_are_refused_by_name(world):
    before = sorted(world.rglob("*"))
    result = several(world, 2, [*LD, "note=differs"], plan={"rank": 1, "words": ["momentum=0.5", "worker=1"]})
    error, = [line for line in result.stderr.splitlines() if "error:" in line]
    assert "momentum: 0.9 in process 0, 0.5 in process 1: start" in error and "worker" not in error
    listed = world / "world/shorter.txt"
    listed.write_text("".join(f"{name}\n" for name in sorted(
        p.name for p in (world / "world/cityscapes/leftImg8bit/train").rglob("*.png"))[:4]))
    result = several(world, 2, [*LD, "note=differs"],
                     plan={"rank": 1, "words": [f"cityscapes.data_list={listed}"]})
    listed.unlink()
    error, = [line for line in result.stderr.splitlines() if "error:" in line]
    assert "the training images (names and sizes): '5 images, " in error and "'4 images, " in error
    assert "validation" not in error and result.stderr.count("exitcode  : 2") == 2
    assert sorted(world.rglob("*")) == before

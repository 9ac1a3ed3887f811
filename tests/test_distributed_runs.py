"""Whole runs in several processes, started by torchrun: one set of files, stops, kills, restarts, refusals."""
import json
import os
import re
import shutil
import signal
import threading
import time
from pathlib import Path

import pytest
import torch
import yaml
from test_pipeline import TINY, call, weights
from torchrun import MAIN_REFUSES, ROOT, torchrun

import run as run_script
import run_so as run_so_script
from dataset.toy import write_toy_world
from trainer import agreement, run_state
from trainer.dry_run import try_out
from utils import distributed
from utils.checkpoint import StateFolder
from utils.config import load_config
from utils.errors import ConfigError, NothingToDo, TrainingError
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
        result = done(world, 2, [*words, f"note=whole_{stage}"])
        found[stage] = outcome(world, f"whole_{stage}", stage), known(world), result.stdout
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
    plan = {"rank": 1, "step": 8, "do": "SIGKILL", "end": 1}  # within which torchrun sends SIGTERM
    result = done(world, 2, [*LD, "note=killed"], plan=plan, options=["--max_restarts", "1"])
    assert "resumed from snapshot/killed/ld.state/0000000" in result.stdout
    assert "process 0: error: process 0 of 2 has lost the others" in result.stderr
    assert outcome(world, "killed", "ld") == whole["ld"][0]
    first, second = known(world)
    assert first == second and set(first) <= set(whole["ld"][1][0]) and first[-1] == whole["ld"][1][0][-1]


@pytest.mark.slow
def test_a_signal_to_one_process_stops_all_at_the_same_step_and_a_resumed_run_has_the_same_bits(world, whole):
    result = several(world, 2, [*BE, "note=one"], plan={"rank": 1, "step": 9, "do": "SIGUSR1"})
    codes = set(re.findall(r"exitcode +: (-?\d+)", result.stderr))
    assert result.returncode == 1 and "75" in codes and codes <= {"75", "-15"}  # -15: torchrun was faster
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
    assert state.name in said[0] and int(state.name[:8]) == 9
    refused = several(world, 3, [*LD, "note=all", "--resume"])
    error, = [line for line in refused.stderr.splitlines() if "error:" in line]
    assert "processes: 2 with accumulate: 1; now these are 3 and 1" in error and "round01-start.pth" in error
    assert MAIN_REFUSES in refused.stderr

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
    plan = {"rank": 1, "step": 3, "do": "ZeroDivisionError", "end": 1}
    result = several(world, 2, [*LD, "note=error", "fix_seed=False"], plan=plan)
    assert result.returncode == 1
    lines = [line for line in result.stderr.splitlines() if line.startswith("process ")]
    assert len(lines) == 2 and any("process 1: error: unexpected ZeroDivisionError" in line for line in lines)
    assert any(line.startswith("process 0: error: process 0 of 2 has lost the others") for line in lines)
    first, second = known(world)
    assert first == second and first  # the seed was drawn for both


@pytest.mark.slow
def test_processes_that_were_started_differently_are_refused_by_name(world):
    before = sorted(world.rglob("*"))
    result = several(world, 2, [*LD, "note=differs"], plan={"rank": 1, "words": ["momentum=0.5", "worker=1"]})
    error, = [line for line in result.stderr.splitlines() if "error:" in line]
    assert "momentum: 0.9 in process 0, 0.5 in process 1: start" in error and "worker" not in error
    listed = world / "world/shorter.txt"
    images = world / "world/cityscapes/leftImg8bit/train"
    names = sorted(p.relative_to(images).as_posix() for p in images.rglob("*.png"))
    listed.write_text("".join(f"{name}\n" for name in names[:4]))
    result = several(world, 2, [*LD, "note=differs"],
                     plan={"rank": 1, "words": [f"cityscapes.data_list={listed}"]})
    alone = several(world, 2, [*LD, "note=differs"], plan={"rank": 1, "words": [f"snapshot={world}/world"]})
    listed.unlink()
    blind, = [line for line in alone.stderr.splitlines() if "error:" in line]
    assert "snapshot" in blind and "of process 0 is not what process 1 sees there" in blind
    error, = [line for line in result.stderr.splitlines() if "error:" in line]
    assert "the training images (names and sizes): '5 images, " in error and "'4 images, " in error
    assert "validation" not in error and MAIN_REFUSES in result.stderr
    assert sorted(world.rglob("*")) == before


# ---- what needs no torchrun ------------------------------------------------------------------------------------------


@pytest.fixture
def cfg(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("tiny.yml").write_text(yaml.safe_dump(TINY))
    return load_config("tiny.yml", ["method=ld", "init_weight=there.pth"])


def facts(cfg, *words):
    cfg = load_config("tiny.yml", ["method=ld", "init_weight=there.pth", *words])
    return agreement.of_configuration(cfg, torch.device("cpu"))


@pytest.mark.parametrize("word", ["batch_size=3", "seed=5", "round=3", "layers=1,1,2,1", "cityscapes.input_size=64,32",
                                  "resume=true", "note=other", "accumulate=2", "amp=bf16", "method=cbst"])
def test_what_decides_the_results_is_compared(cfg, word):
    found = agreement.differences([facts(cfg), facts(cfg, word), facts(cfg)])
    key = word.partition("=")[0]
    one, = [line for line in found if line.startswith(f"{key}: ")]
    assert " in processes 0, 2, " in one and one.endswith(" in process 1")
    assert word == "method=cbst" or len(found) == 1


@pytest.mark.parametrize("word", ["device=cpu", "worker=3", "score_budget=1", "screen=true", "log=there",
                                  "cityscapes.data_dir=there", "gta5.input_size=64,32"])
def test_what_a_machine_may_have_of_its_own_is_not_compared(cfg, word):
    assert not agreement.differences([facts(cfg), facts(cfg, word)])


def test_a_seed_that_is_to_be_drawn_is_drawn_once_for_all(cfg, monkeypatch):
    monkeypatch.setattr(distributed, "launched", lambda: True)
    assert not agreement.differences([facts(cfg, "fix_seed=False"), facts(cfg, "fix_seed=False", "seed=5")])
    assert agreement.differences([facts(cfg), facts(cfg, "seed=5")])


def test_many_processes_are_named_in_short():
    line, = agreement.differences([{"a": (rank > 0) and list(range(1000))} for rank in range(64)])
    assert line.startswith("a: False in process 0, [0, 1, 2, ") and len(line) < 120
    assert line.endswith(" in processes 1, 2, 3, 4, 5, 6, 7, 8 and 55 more")


def test_a_fact_that_some_lack_is_named():
    assert agreement.differences([{"a": 1}, {}, {"a": 1}]) == ["a: 1 in processes 0, 2, nothing in process 1"]
    assert agreement.differences([{"a": None}, {}]) == ["a: None in process 0, nothing in process 1"]


def test_a_users_own_code_is_compared_wherever_it_lies(cfg, tmp_path):
    plain = "from trainer.methods.ld import LabelDenoising as Mine\n"
    for folder, code in (("a", plain), ("b", plain), ("c", plain + "# changed\n")):
        Path(folder).mkdir()
        Path(folder, "mine.py").write_text(code)
    a, b, c = (facts(cfg, f"method={tmp_path}/{folder}/mine.py:Mine") for folder in "abc")
    assert not agreement.differences([a, b])
    assert [line.partition(":")[0] for line in agreement.differences([a, c])] == ["the file of method"]


def saved(cfg, states, step, prepared=True, processes=1):
    position = run_state.Position(1, step, prepared, 6 + step)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distributed, "size", lambda: processes)
        return states.save(run_state.saved_state(cfg, run_state.fingerprint([]), None, position, {}))


def newest(cfg, states, *words):
    cfg = load_config("tiny.yml", ["method=ld", "init_weight=there.pth", *words])
    return run_state.newest_state(cfg, states, [], lambda state: True, [])[0]


def test_another_number_of_processes_or_batches_resumes_between_rounds_alone(cfg, monkeypatch):
    states = StateFolder(Path("states"), 9)
    start, middle = saved(cfg, states, 0, False, processes=2), saved(cfg, states, 3, processes=2)
    for processes, words, same in ((2, (), True), (3, (), False), (1, (), False), (2, ("accumulate=2",), False),
                                   (1, ("accumulate=2",), False)):
        monkeypatch.setattr(distributed, "size", lambda processes=processes: processes)
        if same:
            assert newest(cfg, states, "resume=true", *words) == middle
        else:
            with pytest.raises(ConfigError, match=r"processes: 2 with accumulate: 1.*round01-start.pth"):
                newest(cfg, states, "resume=true", *words)
    middle.unlink()
    for processes, words in ((1, ()), (3, ()), (1, ("accumulate=2",))):
        monkeypatch.setattr(distributed, "size", lambda processes=processes: processes)
        assert newest(cfg, states, "resume=true", *words) == start
    with pytest.raises(ConfigError, match="batch_size: was 2, is 3"):
        newest(cfg, states, "resume=true", "batch_size=3")


def test_a_state_of_an_earlier_program_is_one_of_a_single_process(cfg):
    states = StateFolder(Path("states"), 9)
    path = saved(cfg, states, 3)
    state = torch.load(path, weights_only=True)
    state["config"] = "".join(line for line in state["config"].splitlines(True) if not line.startswith("accumulate"))
    torch.save({name: value for name, value in state.items() if name != "processes"}, path)
    assert newest(cfg, states, "resume=true") == path


def test_a_restart_resumes_the_run_that_it_restarts_and_no_earlier_one(cfg, monkeypatch):
    states = StateFolder(Path("states"), 9)
    path = saved(cfg, states, 3)
    states.note_launchers(["another machine 5 77", "this machine 5 77"])
    monkeypatch.setattr(distributed, "launcher", lambda: "this machine 5 99")
    monkeypatch.setattr(distributed, "restarted", lambda: True)
    with pytest.raises(ConfigError, match="unfinished run"):  # what the first start said, or would have said
        newest(cfg, states)
    assert newest(cfg, states, "overwrite=true") is None
    states.note_launchers(["this machine 5 99"])
    assert newest(cfg, states) == newest(cfg, states, "overwrite=true") == path
    monkeypatch.setattr(distributed, "restarted", lambda: False)
    assert newest(cfg, states, "overwrite=true") is None
    states.finish()
    assert newest(cfg, states) is None
    monkeypatch.setattr(distributed, "restarted", lambda: True)
    with pytest.raises(NothingToDo):
        newest(cfg, states)
    states.clear()
    assert newest(cfg, states) is None and not list(Path("states").iterdir())


def test_the_launcher_is_the_parent_and_no_other_process():
    first, again = distributed.launcher(), distributed.launcher()
    assert first == again and f" {os.getppid()} " in first


@pytest.mark.parametrize("stopped", range(3))
@pytest.mark.parametrize("ended", range(3))
def test_all_stop_where_one_does_and_uneven_batches_are_refused(monkeypatch, stopped, ended):
    monkeypatch.setattr(distributed, "size", lambda: 2)
    monkeypatch.setattr(distributed, "total", lambda own: torch.tensor([stopped, ended]))
    if stopped or ended in (0, 2):
        assert agreement.stop_requested(False, False) == (stopped > 0)
    else:
        with pytest.raises(TrainingError, match="1 of 2 processes have no more batches"):
            agreement.stop_requested(False, False)


@pytest.mark.parametrize("counts", [[3, 3], [3, 4]])
def test_processes_must_have_as_many_batches(monkeypatch, counts):
    monkeypatch.setattr(distributed, "gathered", lambda own: counts)
    if counts == [3, 3]:
        agreement.require_as_many(3)
    else:
        with pytest.raises(TrainingError, match="the processes have 3, 4 batches in this round"):
            agreement.require_as_many(3)


def test_a_restart_that_another_machine_alone_has_counted_is_one(cfg, monkeypatch):
    states = StateFolder(Path("states"), 9)
    path = saved(cfg, states, 3)
    states.note_launchers([distributed.launcher()])
    answers = iter([True, False])  # whether any was restarted, whether any finds the state unusable
    monkeypatch.setattr(distributed, "any_of", lambda flag: next(answers))
    assert newest(cfg, states) == path


def test_one_process_asks_nobody(monkeypatch):
    monkeypatch.setattr(distributed, "total", None)
    assert [agreement.stop_requested(here, ended) for here in (False, True) for ended in (False, True)] == [
        False, False, True, True]


@pytest.mark.parametrize("missing", [0, 2])
def test_a_folder_that_another_process_does_not_see_is_refused_and_nothing_is_left(cfg, tmp_path, monkeypatch, missing):
    folder = tmp_path.joinpath(*("ab"[:missing]))
    seen = []
    monkeypatch.setattr(distributed, "gathered", lambda value: seen.append(value) or [value, True])
    agreement.require_shared("plabel", folder)
    monkeypatch.setattr(distributed, "gathered", lambda value: seen.append(value) or [value, False, False])
    with pytest.raises(ConfigError, match="plabel: .* of process 0 is not what processes 1, 2 see there"):
        agreement.require_shared("plabel", folder)
    assert seen == [True, True] and [p.name for p in tmp_path.iterdir()] == ["tiny.yml"]


def test_after_a_stop_that_all_know_of_no_signal_ends_the_process():
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)}
    try:
        with signals_end():
            with Interrupt() as interrupt:
                signal.raise_signal(signal.SIGTERM)
                assert interrupt.requested == "SIGTERM"
            interrupt.ignore_more()
            for number in before:
                signal.raise_signal(number)
        for number in before:
            signal.raise_signal(number)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_what_runs_in_one_process_refuses_several(cfg, monkeypatch):
    import ldbe
    monkeypatch.setattr(distributed, "size", lambda: 2)
    with pytest.raises(ConfigError, match="--dry-run: .*without torchrun"):
        try_out(cfg)
    with pytest.raises(ConfigError, match="adapt: .*without torchrun"):
        ldbe.adapt(torch.nn.Conv2d(3, 2, 1), "frames", 2)


@pytest.mark.parametrize("late", [0, 1, 2])
def test_processes_that_start_again_agree_on_a_name_of_this_start(monkeypatch, late):
    """The store has the keys of earlier starts, and one process comes later than the others."""
    store, own, names = torch.distributed.HashStore(), threading.local(), []
    monkeypatch.setattr(distributed, "rank", lambda: own.rank)
    monkeypatch.setattr(distributed, "size", lambda: 3)

    def process(rank):
        own.rank = rank
        time.sleep(0.2 * (rank == late))
        found[rank] = distributed._start(store)
    for _ in range(3):
        found = {}
        threads = [threading.Thread(target=process, args=(rank,)) for rank in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert len(found) == 3 and len(set(found.values())) == 1
        names.append(found[0])
    assert len(set(names)) == 3

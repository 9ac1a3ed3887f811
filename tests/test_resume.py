"""No work is lost: kills, signals, full disks, states of other runs, second processes, numbers that are not finite."""
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from test_pipeline import TINY, call, weights
from tiers import mostly_slow

import run as run_script
import run_so as run_so_script
from dataset import loaders
from dataset.segmentation import find_samples
from dataset.toy import write_toy_world
from trainer import evaluate
from trainer.loop import Trainer
from trainer.methods import known
from utils import checkpoint, machine
from utils.cli import EXIT_STOPPED
from utils.config import load_config
from utils.errors import CheckpointError

LD = ("method=ld", "init_weight=snapshot/tiny/source_only.pth")
BE = ("method=be", "init_weight=snapshot/tiny/ld.pth")
ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A folder with the tiny world, its configuration, the first two stages done, and the third under another note."""
    root = tmp_path_factory.mktemp("resume")
    write_toy_world(root / "world", seed=5, size=(128, 64), source=6, synthia=0, train=5, val=3)
    (root / "tiny.yml").write_text(yaml.safe_dump({**TINY, "save_freq": 2, "tensorboard": False}))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        assert call(patch, run_so_script) == 0
        assert call(patch, run_script, *LD) == 0
        assert call(patch, run_script, *BE, "note=whole") == 0
    return root


@pytest.fixture
def world(prepared, tmp_path, monkeypatch):
    shutil.copytree(prepared, tmp_path / "run")
    monkeypatch.chdir(tmp_path / "run")
    for stage in ("source_only", "ld"):  # their weights alone, as if copied from another folder
        shutil.rmtree(f"snapshot/tiny/{stage}.state")
    shutil.rmtree("plabel")
    return Path(".")


def crash(folder, methods, trials, seed):
    done = subprocess.run([sys.executable, ROOT / "tests/crash.py", folder, ",".join(methods), str(trials), str(seed)],
                          capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("equal") == trials * len(methods) and "killed" in done.stdout
    return sum(int(line.split("killed ")[1].split()[0]) for line in done.stdout.splitlines())


@pytest.mark.slow
def test_killed_runs_of_every_method_end_with_the_same_bits(world):
    assert crash(world.resolve(), known(), 2, 1) >= 2 * len(known())


MINE = """
import random
import numpy as np
import torch
from trainer.methods.base import Method
from utils.config_values import key


class Mine(Method):
    \"\"\"Minimises the spread of the logits.\"\"\"

    spread: float = key(0.5, "weight of the spread", low=0)

    def losses(self, batch, rng):
        noisy = batch.images + float(rng.normal()) * torch.randn_like(batch.images) * random.random()
        return {"spread": self.spread * self.network(noisy).std(1).mean() * np.random.rand()}
"""


@pytest.mark.slow
def test_a_method_from_a_file_of_its_own_is_killed_and_ends_with_the_same_bits(world):
    Path("mine.py").write_text(MINE)
    assert MINE.strip().count("\n") < 15
    assert crash(world.resolve(), ["mine.py:Mine"], 3, 1) >= 3
    assert yaml.safe_load(Path("snapshot/tiny/Mine.yml").read_text())["spread"] == 0.5
    before, after = weights("snapshot/tiny/source_only.pth"), weights("snapshot/tiny/Mine.pth")
    assert not before["layer5.conv2d_list.0.weight"].equal(after["layer5.conv2d_list.0.weight"])


@pytest.mark.slow
def test_a_users_file_that_has_changed_is_named_when_its_run_is_resumed(world, monkeypatch, capsys):
    Path("mine.py").write_text(MINE)
    words = ("method=mine.py:Mine", "init_weight=snapshot/tiny/source_only.pth", "epochs=2")
    for step, changed in ((2, False), (1, True)):
        with monkeypatch.context() as patch:
            kill_at(patch, Trainer, step)
            assert call(patch, run_script, *words, "--resume") == EXIT_STOPPED
        capsys.readouterr()
        Path("mine.py").write_text(MINE + "# changed\n" * changed)
    assert call(monkeypatch, run_script, *words, "--resume") == 0
    said = [line for line in capsys.readouterr().out.splitlines() if "has changed since" in line]
    assert len(said) == 1 and said[0].startswith("warning: mine.py:Mine: the file has changed")


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("method", known())
def test_many_killed_runs_end_with_the_same_bits(world, method):
    assert crash(world.resolve(), [method], 20, 2) >= 25


def kill_at(monkeypatch, trainer, step, number=signal.SIGTERM):
    """The process signals itself in the middle of that step."""
    plain, count = trainer.step, [0]
    def watched(self, *arguments):
        count[0] += 1
        if count[0] == step:
            os.kill(os.getpid(), number)
        return plain(self, *arguments)
    monkeypatch.setattr(trainer, "step", watched)


@pytest.mark.parametrize("number", mostly_slow([signal.SIGTERM, signal.SIGINT, signal.SIGUSR1]))
def test_a_signal_finishes_the_step_saves_and_says_how_to_go_on(world, monkeypatch, capsys, number):
    before = signal.getsignal(number)
    with monkeypatch.context() as patch:
        kill_at(patch, Trainer, 3, number)
        assert call(patch, run_script, *BE, "save_freq=100", "worker=2") == EXIT_STOPPED
    error = capsys.readouterr().err
    assert number.name in error and "step 3" in error and "--resume" in error and error.count("\n") == 1
    assert signal.getsignal(number) == before
    assert not Path("snapshot/tiny/be.pth").exists()
    assert call(monkeypatch, run_script, *BE, "--resume") == 0
    a, b = weights("snapshot/whole/be.pth"), weights("snapshot/tiny/be.pth")
    assert all(a[k].equal(b[k]) for k in a)
    records = [[{**event, "seconds": 0}
                for event in map(json.loads, Path(f"log/{note}/be.jsonl").read_text().splitlines())
                if event["event"] not in ("machine", "cost")] for note in ("whole", "tiny")]
    assert records[0] == records[1]


@pytest.mark.parametrize("val_freq", mostly_slow([2, 100]))  # a validation within the first round, or after it
def test_a_signal_in_a_validation_that_a_resumed_run_makes_up_for_loses_nothing(world, monkeypatch, capsys, val_freq):
    """The state that is saved there is whole: it has the run's own teacher, and knows its pseudo labels."""
    words = (f"val_freq={val_freq}", "epochs=2")
    assert call(monkeypatch, run_script, *BE, "note=whole", *words) == 0
    with monkeypatch.context() as patch:
        plain = evaluate.confusion_matrix
        patch.setattr(evaluate, "confusion_matrix", lambda *a: (os.kill(os.getpid(), signal.SIGTERM), plain(*a))[1])
        for resume in ((), ("--resume",)):
            assert call(patch, run_script, *BE, *words, *resume) == EXIT_STOPPED
    assert call(monkeypatch, run_script, *BE, *words, "--resume") == 0
    assert "done again" not in capsys.readouterr().out
    a, b = weights("snapshot/whole/be.pth"), weights("snapshot/tiny/be.pth")
    assert all(a[k].equal(b[k]) for k in a)


def test_a_finished_stage_has_nothing_to_resume(world, monkeypatch, capsys):
    assert call(monkeypatch, run_script, *BE) == 0
    before = Path("snapshot/tiny/be.pth").read_bytes()
    assert sorted(p.name for p in Path("snapshot/tiny/be.state").iterdir()) == ["finished"]
    assert call(monkeypatch, run_script, *BE, "--resume") == 0
    assert "nothing to resume" in capsys.readouterr().out and Path("snapshot/tiny/be.pth").read_bytes() == before
    assert call(monkeypatch, run_script, *BE) == 0  # starts over, as it is finished


def stopped(monkeypatch, *words, step=3):
    with monkeypatch.context() as patch:
        kill_at(patch, Trainer, step)
        assert call(patch, run_script, *BE, *words) == EXIT_STOPPED


def tree():
    return {p: p.read_bytes() for p in sorted(Path(".").rglob("*")) if p.is_file()}


@pytest.mark.parametrize("words, said", mostly_slow([
    (["--resume", "batch_size=3"], "batch_size: was 2, is 3"), (["--resume", "ema_alpha=0.5"], "ema_alpha"),
    (["--resume", "seed=5", "round=3"], "seed"), (["--resume", "cityscapes.input_size=96,48"], "cityscapes.input_size"),
    ([], "overwrite=true"), (["--resume", "num_classes=16"], "num_classes"),
], lambda case: case[1] in ("batch_size: was 2, is 3", "overwrite=true")))
def test_another_run_is_not_resumed_and_none_is_overwritten_unasked(world, monkeypatch, capsys, words, said):
    stopped(monkeypatch)
    capsys.readouterr()
    before = tree()
    assert call(monkeypatch, run_script, *BE, *words) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert tree() == before
    assert "overwrite=true to start over" in error or "with overwrite=true and without resume" in error
    if said == "overwrite=true" or "batch_size" in said:  # the advice works
        assert call(monkeypatch, run_script, *BE, *words[1:], "overwrite=true") == 0


def test_changed_data_are_not_resumed(world, monkeypatch, capsys):
    stopped(monkeypatch)
    image = sorted(Path("world/cityscapes/leftImg8bit/train").rglob("*.png"))[0]
    image.unlink()
    assert call(monkeypatch, run_script, *BE, "--resume") == 2
    assert "training images' names or sizes (4 now)" in capsys.readouterr().err


def test_keys_that_change_no_result_may_change(world, monkeypatch):
    stopped(monkeypatch)
    Path("world").rename("moved")
    Path("snapshot/tiny/ld.pth").unlink()  # only the start needs it
    assert call(monkeypatch, run_script, *BE, "--resume", "worker=1", "print_freq=1", "checkpointing=true", "keep=1",
                "cityscapes.data_dir=moved/cityscapes", "score_budget=0", "log=another") == 0
    a, b = weights("snapshot/whole/be.pth"), weights("snapshot/tiny/be.pth")
    assert all(a[k].equal(b[k]) for k in a)


@pytest.mark.parametrize("step, harm", mostly_slow(  # in the first and in the second round
    [(step, harm) for step in (1, 3) for harm in ("label", "manifest", "all")], lambda case: case == (3, "all")))
def test_lost_or_foreign_pseudo_labels_are_made_again(world, monkeypatch, capsys, harm, step):
    stopped(monkeypatch, step=step)
    folder = sorted(Path("plabel/tiny/be").iterdir())[-1]
    if harm == "label":
        sorted(folder.rglob("*.png"))[0].write_bytes(b"")
    elif harm == "manifest":
        (folder / "manifest.jsonl").write_text("{}")
    else:
        shutil.rmtree(folder)
    capsys.readouterr()
    assert call(monkeypatch, run_script, *BE, "--resume") == 0
    assert "the round is done again" in capsys.readouterr().out
    a, b = weights("snapshot/whole/be.pth"), weights("snapshot/tiny/be.pth")
    assert all(a[k].equal(b[k]) for k in a)


@pytest.mark.parametrize("harm", mostly_slow([lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"\0" * len(b)]))
def test_a_damaged_state_falls_back_to_the_one_before(world, monkeypatch, capsys, harm):
    stopped(monkeypatch, "keep=3")
    newest = checkpoint.StateFolder(Path("snapshot/tiny/be.state"), 3).paths()[-1]
    newest.write_bytes(harm(newest.read_bytes()))
    assert call(monkeypatch, run_script, *BE, "--resume") == 0
    assert newest.name in capsys.readouterr().out
    a, b = weights("snapshot/whole/be.pth"), weights("snapshot/tiny/be.pth")
    assert all(a[k].equal(b[k]) for k in a)


@pytest.mark.parametrize("version", [None, 1, 2, 99])
def test_states_of_another_version_are_refused_and_kept(world, monkeypatch, capsys, version):
    """Resuming from one would change the results; ignoring it would lose the work."""
    stopped(monkeypatch)
    paths = checkpoint.StateFolder(Path("snapshot/tiny/be.state"), 3).paths()
    for path in paths:
        state = torch.load(path, weights_only=True)
        del state["version"]
        # The first states had no version, and their step count at the top.
        torch.save({**state, **({"global_step": 3} if version is None else {"version": version})}, path)
    before = [path.read_bytes() for path in paths]
    capsys.readouterr()
    assert call(monkeypatch, run_script, *BE, "--resume") == 2
    error = capsys.readouterr().err
    assert f"a state of version {version or 1}, this program" in error and "overwrite=true and without resume" in error
    assert [path.read_bytes() for path in paths] == before


def test_no_code_in_a_state_is_run(world, monkeypatch, capsys):
    class Evil:
        def __reduce__(self):
            return os.mkdir, ("evil",)
    stopped(monkeypatch)
    for path in checkpoint.StateFolder(Path("snapshot/tiny/be.state"), 3).paths():
        torch.save({"model": Evil()}, path)
    assert call(monkeypatch, run_script, *BE, "--resume") == 0
    assert "nothing in it was run" in capsys.readouterr().out and not Path("evil").exists()


def test_the_newest_states_stay(tmp_path):
    states = checkpoint.StateFolder(tmp_path / "s", 2)
    def save(global_step, r, step, prepared):
        states.save({"position": {"global_step": global_step, "round": r, "step": step, "prepared": prepared}})
    def names():
        return [p.stem for p in states.paths()]
    save(0, 0, 0, True), save(2, 0, 2, True), save(4, 0, 4, True)
    assert names() == ["00000002-round00-step", "00000004-round00-step"]
    save(5, 1, 0, False), save(5, 1, 0, True), save(7, 1, 2, True), save(9, 1, 4, True)
    assert names() == ["00000005-round01-start", "00000007-round01-step", "00000009-round01-step"]
    save(10, 2, 0, False), save(10, 2, 0, True)
    assert names() == ["00000010-round02-start", "00000010-round02-step"]


def test_a_full_disk_leaves_the_old_file_whole(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    def fail(_):
        raise OSError(28, "No space left on device")
    for call_that_fails in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(checkpoint.os, call_that_fails, lambda *_: fail(None))
            with pytest.raises(CheckpointError, match="No space left"):
                checkpoint.write_atomically(path, lambda file: file.write(b"new"))
    with pytest.raises(CheckpointError, match="No space left"):
        checkpoint.write_atomically(path, fail)
    assert path.read_bytes() == b"old" and [p.name for p in tmp_path.iterdir()] == ["file"]
    checkpoint.write_atomically(path, lambda file: file.write(b"new"))
    assert path.read_bytes() == b"new"


def test_a_state_that_cannot_be_saved_is_a_warning_and_training_goes_on(world, monkeypatch, capsys):
    plain, saved = checkpoint.StateFolder.save, []
    def full_at_the_second(self, state):
        saved.append(state["position"]["global_step"])
        if len(saved) == 2:
            with monkeypatch.context() as patch:
                patch.setattr(checkpoint.os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left")))
                return plain(self, state)
        return plain(self, state)
    monkeypatch.setattr(checkpoint.StateFolder, "save", full_at_the_second)
    assert call(monkeypatch, run_script, *BE) == 0
    assert "warning: " in capsys.readouterr().out and len(saved) > 3


def test_a_state_that_is_written_beside_the_next_step_is_that_of_its_own(world, monkeypatch, capsys):
    """Writing is held up until the next step has moved the weights, and the run is broken off there: the state is
    written before the run ends, and from it on the bits are those of a run that was never stopped."""
    moved, begun, held = threading.Event(), threading.Event(), []
    save, step = checkpoint.StateFolder.save, Trainer.step

    def late(self, state):
        if threading.current_thread() is not threading.main_thread():
            held.append(state["position"]["global_step"])
            begun.set()
            assert moved.wait(60)
        return save(self, state)

    def broken_off(self, item):
        losses = step(self, item)
        if self.position.global_step == 1:  # this is the second
            assert begun.wait(60)
            moved.set()
            raise KeyboardInterrupt
        return losses
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.StateFolder, "save", late)
        patch.setattr(Trainer, "step", broken_off)
        assert call(patch, run_script, *BE, "save_freq=1") == 130
    newest = checkpoint.StateFolder(Path("snapshot/tiny/be.state"), 3).paths()[-1]
    assert held == [1] and newest.stem.startswith("00000001-")
    assert call(monkeypatch, run_script, *BE, "--resume") == 0
    whole, resumed = weights("snapshot/whole/be.pth"), weights("snapshot/tiny/be.pth")
    assert all(whole[k].equal(resumed[k]) for k in whole)


def test_amp_auto_goes_on_in_the_precision_that_it_began_with(world, monkeypatch, capsys):
    """On a machine for which auto is another."""
    monkeypatch.setattr(machine, "computes_in_bf16", lambda device: True)
    with monkeypatch.context() as patch:
        kill_at(patch, Trainer, 3)
        assert call(patch, run_script, *BE, "amp=auto") == EXIT_STOPPED
    assert ", amp bf16, " in capsys.readouterr().out
    monkeypatch.setattr(machine, "computes_in_bf16", lambda device: False)
    assert call(monkeypatch, run_script, *BE, "amp=off", "--resume") == 2
    assert re.search("amp: .*bf16.*off", capsys.readouterr().err)
    assert call(monkeypatch, run_script, *BE, "amp=auto", "--resume") == 0
    assert ", amp bf16, " in capsys.readouterr().out
    assert yaml.safe_load(Path("snapshot/tiny/be.yml").read_text())["amp"] == "bf16"


def test_a_second_process_on_the_same_note_is_refused(world, monkeypatch, capsys):
    code = "import sys, time; sys.path.insert(0, sys.argv[1])\n" \
           "from pathlib import Path\nfrom utils.checkpoint import RunLock\n" \
           "held = RunLock(Path('snapshot/tiny')); print('held', flush=True); time.sleep(600)"
    other = subprocess.Popen([sys.executable, "-c", code, str(ROOT)], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "held\n"
        before = tree()
        for words in ((), ("--resume",), ("overwrite=true",)):
            assert call(monkeypatch, run_script, *BE, *words) == 2
            assert "in use by another process" in capsys.readouterr().err and tree() == before
    finally:
        other.kill()
        other.wait()
    assert call(monkeypatch, run_script, *BE) == 0  # the lock of a dead process is released


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_numbers_that_are_not_finite_stop_before_the_optimiser_moves(world, monkeypatch, capsys, where):
    method = load_config("tiny.yml", method="source_only").method_class
    plain, moved = method.losses, []
    def broken(self, batch, rng):
        losses = plain(self, batch, rng)
        if self.position.global_step < 3:
            return losses
        moved.append({k: v.clone() for k, v in self.network.named_parameters()})
        bad = next(self.network.parameters()).sum()
        # sqrt(0 * x) is 0, its gradient 0 / 0
        return {**losses, "bad": bad * float("inf") if where == "loss" else (0 * bad).sqrt()}
    monkeypatch.setattr(method, "losses", broken)
    stages = []
    plain_init = Trainer.__init__
    monkeypatch.setattr(Trainer, "__init__",
                        lambda self, cfg: (plain_init(self, cfg), stages.append(self))[0])
    assert call(monkeypatch, run_so_script, "note=other") == 2
    error = capsys.readouterr().err
    for word in ("step 3", f"the {where} is not finite", "cross_entropy", "learning rates", "head", "images ['0000",
                 "00000002-round00-step.pth"):
        assert word in error, word
    after = dict(stages[0].network.named_parameters())
    assert all(moved[0][k].equal(after[k]) for k in after)


def test_batches_do_not_depend_on_the_workers_or_on_where_a_run_began(world):
    cfg = load_config("tiny.yml", ["num_steps=9"])
    samples = find_samples("gta5", cfg.source_data, "train")
    def batches(first, worker):
        words = ["num_steps=9", f"worker={worker}"]
        return list(loaders.source_loader(load_config("tiny.yml", words), samples, first))
    whole = batches(0, 0)
    assert len(whole) == 9
    for first, worker in ((0, 2), (0, 4), (4, 0), (7, 2)):
        part = batches(first, worker)
        assert len(part) == 9 - first
        for a, b in zip(whole[first:], part):
            assert a["name"] == b["name"] and a["image"].equal(b["image"]) and a["label"].equal(b["label"])


@pytest.mark.slow
def test_readers_that_ignore_one_signal_do_not_outlive_the_run(world):
    """An iterator that is still open when the process ends, as in a traceback."""
    code = ("import multiprocessing, os, signal, sys; sys.path.insert(0, sys.argv[1])\n"
            "from dataset import loaders, segmentation\n"
            "from utils.config import load_config\ncfg = load_config('tiny.yml', ['worker=2', 'num_steps=200'])\n"
            "samples = segmentation.find_samples('gta5', cfg.source_data, 'train')\n"
            "sys.keep = iter(loaders.source_loader(cfg, samples)); next(sys.keep)\n"
            "readers = multiprocessing.active_children()\n"
            "for reader in readers:\n    os.kill(reader.pid, signal.SIGTERM); os.kill(reader.pid, signal.SIGINT)\n"
            "for _ in range(20):\n    next(sys.keep)\n"
            "print('read on after the signals', len(readers), flush=True)")
    done = subprocess.run([sys.executable, "-c", code, str(ROOT)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "read on after the signals 2" in done.stdout, done.stderr


@pytest.mark.parametrize("words", mostly_slow([
    "cb_prop=1 portion_step=0", "cb_prop=1e-9 portion_step=0 select_image=False", "batch_size=7",
    "crop_tgt=8 input_tgt=8", "cityscapes.input_size=8,8"], lambda words: "crop" in words))
def test_extreme_but_valid_numbers_run(world, monkeypatch, words):
    init_weight = "init_weight=snapshot/tiny/source_only.pth"
    assert call(monkeypatch, run_script, "method=ld", init_weight, "note=x", *words.split()) == 0
    assert call(monkeypatch, run_script, "method=be", "init_weight=snapshot/x/ld.pth", "note=x", *words.split()) == 0


def test_the_smallest_crop_leaves_batch_norm_enough(world, monkeypatch, capsys):
    assert call(monkeypatch, run_so_script, "crop_src=8", "batch_size=1", "note=x") == 0
    assert call(monkeypatch, run_so_script, "crop_src=7", "batch_size=1", "note=y") == 2
    assert "crop_src: expected whole number at least 8" in capsys.readouterr().err


def test_a_target_of_one_image(world, monkeypatch):
    for path in sorted(Path("world/cityscapes/leftImg8bit/train").rglob("*.png"))[1:]:
        path.unlink()
    assert call(monkeypatch, run_script, *LD, "note=x") == 0
    assert call(monkeypatch, run_script, "method=be", "init_weight=snapshot/x/ld.pth", "note=x") == 0


def test_a_second_signal_is_not_ignored():
    from utils.interrupt import Interrupt
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    try:
        with pytest.raises(KeyboardInterrupt), Interrupt() as interrupt:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)
            assert interrupt.requested == "SIGINT"
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)
    finally:
        signal.signal(signal.SIGINT, before)


def test_no_handlers_outside_the_main_thread():
    from utils.interrupt import Interrupt
    seen = []
    def work():
        with Interrupt() as interrupt:
            interrupt.check()
            seen.append(True)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [True]


def test_a_digest_knows_names_values_and_types():
    base = {"a": torch.arange(3.0), "b": torch.tensor(1)}
    assert checkpoint.digest(base) == checkpoint.digest({k: v.clone() for k, v in base.items()})
    for other in ({"c": base["a"], "b": base["b"]}, {**base, "a": torch.tensor([0, 1, np.nextafter(2, 3)])}):
        assert checkpoint.digest(base) != checkpoint.digest(other)

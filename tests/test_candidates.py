"""Candidates of a run: what is kept, scored and handed back, on the tiny toy world."""
import json
import os
import shutil
import signal
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from test_pipeline import TINY, call, toy_world, weights  # noqa: F401 (a fixture)
from test_resume import kill_at

import run as run_script
import run_so as run_so_script
from trainer import label_free
from trainer.loop import Trainer
from utils.cli import EXIT_STOPPED, EXIT_USER_ERROR

START = "init_weight=snapshot/tiny/source_only.pth"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, toy_world):  # noqa: F811
    root = tmp_path_factory.mktemp("candidates")
    shutil.copytree(toy_world, root / "world")
    (root / "tiny.yml").write_text(yaml.safe_dump({**TINY, "save_freq": 2, "tensorboard": False, "epochs": 2,
                                                  "score_images": 2, "candidate_freq": "None"}))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        assert call(patch, run_so_script) == 0
    return root


@pytest.fixture
def world(prepared, tmp_path, monkeypatch):
    shutil.copytree(prepared, tmp_path / "run")
    monkeypatch.chdir(tmp_path / "run")


def verdict(stage, note="tiny"):
    return json.loads(Path(f"snapshot/{note}/{stage}_verdict.json").read_text())


def same(a, b):
    return a.keys() == b.keys() and all(a[k].equal(b[k]) for k in a)


REFERENCES = ["untouched", "adapted statistics", "half-adapted statistics", "mixed statistics"]
ENDS = ("", " refreshed", " half-refreshed")


@pytest.mark.parametrize("method, steps, titles", [
    ("ld", [2, 4, 5, 7, 9, 10], [""]), ("mean_teacher", [2, 4, 5], ["", " teacher"]), ("bn_adapt", [5], [""])])
def test_what_a_run_keeps_and_hands_back(world, monkeypatch, capsys, method, steps, titles):
    assert call(monkeypatch, run_script, f"method={method}", START, "keep_candidates=true") == 0
    said = capsys.readouterr().out
    found = verdict(method)
    names = [f"step {step}{title}{end}" for step in steps for title in titles for end in ENDS]
    assert [c["name"] for c in found["candidates"]] == REFERENCES + names
    assert f"verdict: {found['verdict']}" in said and "snapshot/tiny/" + method + "_chosen.pth" in said
    folder = Path(f"snapshot/tiny/{method}.candidates")
    files = {c["name"]: folder / c["file"] for c in found["candidates"]}
    assert sorted(folder.iterdir()) == sorted(f.with_suffix(end) for f in files.values() for end in (".npy", ".pth"))
    assert same(weights(files["untouched"].with_suffix(".pth")), weights("snapshot/tiny/source_only.pth"))
    last = f"step {steps[-1]}"
    assert found["last"] == last
    assert same(weights(files[last].with_suffix(".pth")), weights(f"snapshot/tiny/{method}.pth"))
    assert same(weights(files[found["chosen"]].with_suffix(".pth")), weights(f"snapshot/tiny/{method}_chosen.pth"))
    for c in found["candidates"]:
        assert list(c["scores"]) == list(label_free.SCORES) and sum(c["histogram"]) == pytest.approx(1)
        assert np.load(files[c["name"]].with_suffix(".npy")).shape == (2, 19, *label_free.grid_size((64, 128)))


def test_scoring_changes_nothing_that_is_trained(world, monkeypatch):
    for words in (("candidate_freq=1",), ("score_images=0", "note=without")):
        for method in ("ld", "mean_teacher", "bn_adapt"):
            assert call(monkeypatch, run_script, f"method={method}", START, *words) == 0
    for method in ("ld", "mean_teacher", "bn_adapt"):
        assert same(weights(f"snapshot/tiny/{method}.pth"), weights(f"snapshot/without/{method}.pth"))
    assert sorted(p.name for p in Path("snapshot/without").iterdir() if "_" in p.name) == [
        f"{method}{end}" for method in ("bn_adapt", "mean_teacher") for end in ("", ".pth", ".state", ".yml")]
    assert not list(Path("snapshot").rglob("*.candidates"))


@pytest.mark.slow
def test_statistics_of_references_and_refreshed_states(world, monkeypatch):
    """Adapted ones are bn_adapt's, others are mixed with the untouched network's; nothing else differs."""
    for method in ("bn_adapt", "entmin"):
        assert call(monkeypatch, run_script, f"method={method}", START, "keep_candidates=true",
                    "score_images=64") == 0
    def states(method):
        return {c["name"]: weights(f"snapshot/tiny/{method}.candidates/{c['file']}.pth")
                for c in verdict(method)["candidates"]}
    source, trained = states("bn_adapt"), states("entmin")
    for found, name, target, alpha in (
            (source, "adapted statistics", source["step 5"], 0), (source, "mixed statistics", source["step 5"], 0.8),
            (source, "half-adapted statistics", source["step 5"], 0.5),
            (source, "step 5 refreshed", source["step 5"], 0), (source, "step 5 half-refreshed", source["step 5"], 0.5),
            (trained, "step 5 half-refreshed", trained["step 5 refreshed"], 0.5)):
        for key, value in found[name].items():
            if "running" in key:
                torch.testing.assert_close(value, alpha * source["untouched"][key] + (1 - alpha) * target[key])
            elif "num_batches" not in key:
                assert value.equal(found[name if name in REFERENCES else "step 5"][key])
    assert not trained["step 5 refreshed"]["bn1.running_mean"].equal(trained["step 5"]["bn1.running_mean"])


@pytest.mark.slow
def test_pruned_candidates_leave_no_weights_and_a_finished_run_no_folder(world, monkeypatch):
    seen = []
    plain = Trainer.validate
    def watched(self):
        folder = Path("snapshot/tiny/ld.candidates")
        seen.append((len(list(folder.glob("*.npy"))), len(list(folder.glob("*.pth")))))
        plain(self)
    monkeypatch.setattr(Trainer, "validate", watched)
    assert call(monkeypatch, run_script, "method=ld", START, "candidate_freq=1", "round=3") == 0
    predictions, kept = max(seen)
    assert predictions == 4 + 3 * 15 and kept <= 4 + 5 + 1
    assert not Path("snapshot/tiny/ld.candidates").exists()


def test_a_signal_while_candidates_are_scored_loses_nothing(world, monkeypatch, capsys):
    assert call(monkeypatch, run_script, "method=be", START, "note=whole") == 0
    plain, at = label_free.image_sums, iter([3, 9, 12, 30])
    for resume in ((), ("--resume",), ("--resume",), ("--resume",)):
        left = [next(at)]
        def watched(*arguments, left=left):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGTERM)
            return plain(*arguments)
        with monkeypatch.context() as patch:
            patch.setattr(label_free, "image_sums", watched)
            assert call(patch, run_script, "method=be", START, *resume) == EXIT_STOPPED
    assert call(monkeypatch, run_script, "method=be", START, "--resume") == 0
    for name in ("be", "be_chosen"):
        assert same(weights(f"snapshot/whole/{name}.pth"), weights(f"snapshot/tiny/{name}.pth"))
    assert verdict("be") == verdict("be", "whole")


@pytest.mark.slow
@pytest.mark.parametrize("harm", ["gone", "changed"])
def test_candidates_that_are_gone_or_changed_are_made_again(world, monkeypatch, capsys, harm):
    assert call(monkeypatch, run_script, "method=ld", START, "note=whole") == 0
    with monkeypatch.context() as patch:
        kill_at(patch, Trainer, 8)
        assert call(patch, run_script, "method=ld", START) == EXIT_STOPPED
    file = Path("snapshot/tiny/ld.candidates/004.npy")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.unlink() if harm == "gone" else file.write_bytes(content)
    capsys.readouterr()
    assert call(monkeypatch, run_script, "method=ld", START, "--resume") == 0
    assert "its candidates" in capsys.readouterr().out
    assert same(weights("snapshot/whole/ld_chosen.pth"), weights("snapshot/tiny/ld_chosen.pth"))
    assert verdict("ld") == verdict("ld", "whole")


def test_networks_without_batch_norm_have_no_refreshed_candidates(world, monkeypatch):
    Path("plain.py").write_text("from torch import nn\ndef build():\n    "
                                "return nn.Sequential(nn.Conv2d(3, 8, 3, 1, 1), nn.ReLU(), nn.Conv2d(8, 19, 1))\n")
    words = ("model=plain.py:build", "backbone_lr_mult=1")
    assert call(monkeypatch, run_so_script, *words, "note=plain") == 0
    assert call(monkeypatch, run_script, "method=entmin", *words, "init_weight=snapshot/plain/source_only.pth") == 0
    assert [c["name"] for c in verdict("entmin")["candidates"]] == ["untouched", "step 2", "step 4", "step 5"]


@pytest.mark.parametrize("images", [1, 2, 3])
def test_few_images(world, monkeypatch, images):
    """Fewer than a batch, too: a round has one step then."""
    names = sorted(Path("world/cityscapes/leftImg8bit/train").rglob("*.png"))[:images]
    Path("few.txt").write_text("\n".join(str(n.relative_to("world/cityscapes/leftImg8bit/train")) for n in names))
    assert call(monkeypatch, run_script, "method=ld", START, "cityscapes.data_list=few.txt", "batch_size=4",
                "epochs=1") == 0
    assert [c["name"] for c in verdict("ld")["candidates"]][4:] == [f"step {i}{end}" for i in (1, 2) for end in ENDS]


def test_selection_by_labels_takes_labels_and_takes_the_best(world, monkeypatch, capsys):
    assert call(monkeypatch, run_script, "method=ld", START, "select_by=miou") == 0
    found = {c["name"]: c["scores"]["miou"] for c in verdict("ld")["candidates"]}
    assert found[verdict("ld")["chosen"]] == max(found.values())
    capsys.readouterr()
    assert call(monkeypatch, run_script, "method=ld", START, "select_by=miou", "val=false", "note=b") == EXIT_USER_ERROR
    error = capsys.readouterr().err
    assert error.startswith("error: select_by: miou") and error.count("\n") == 1 and not Path("snapshot/b").exists()


def test_the_last_state_can_be_asked_for(world, monkeypatch):
    assert call(monkeypatch, run_script, "method=ld", START, "select_by=last") == 0
    found = verdict("ld")
    if found["verdict"] != "reject":
        assert found["chosen"] == found["last"] == "step 10"
        assert same(weights("snapshot/tiny/ld.pth"), weights("snapshot/tiny/ld_chosen.pth"))


def test_memory_does_not_grow_with_the_candidates(tmp_path):
    rng = np.random.default_rng(0)
    peaks = []
    for count in (4, 40):
        files = []
        for i in range(count):
            files.append(tmp_path / f"{i}.npy")
            np.save(files[-1], rng.integers(0, 256, (16, 19, 32, 64), np.uint8))
        opened = [np.load(file, mmap_mode="r") for file in files]
        tracemalloc.start()
        label_free.agreements(opened, [[*range(count)], [0]])
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0]

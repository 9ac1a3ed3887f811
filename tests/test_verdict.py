"""The verdict: what has drifted is left out, the best of the rest is chosen, and harm is said."""
import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from test_pipeline import call, evaluate, weights

import run as run_script
import run_so as run_so_script
from trainer import label_free, verdict
from trainer.verdict import NEAR, REFERENCES, decide

# ---- on predictions made for the purpose -----------------------------------------------------------------------------

CLASSES = 4


def predictions(rng, wrong, base):
    """Sure predictions of the labels `base` [n, h, w], of which the share `wrong` is another class."""
    label = np.where(rng.random(base.shape) < wrong, rng.integers(0, CLASSES, base.shape), base)
    return (np.eye(CLASSES, dtype=np.uint8)[label] * 255).transpose(0, 3, 1, 2)


def record(name, consistency, step=0, trained=False, histogram=None, kept=True):
    own = {**dict.fromkeys(label_free.OWN_SCORES, 0.5), "consistency": consistency}
    return {"name": name, "step": step, "trained": trained, "kept": kept, "scores": own,
            "histogram": histogram or [1 / CLASSES] * CLASSES}


@pytest.fixture
def candidates():
    """Records and predictions: untouched is 30% wrong, adapted statistics 20%, the state 10%."""
    rng = np.random.default_rng(0)
    base = rng.integers(0, CLASSES, (3, 24, 24))
    records = [record(REFERENCES[0], 0.5), record(REFERENCES[1], 0.6), record("step 5", 0.7, 5, True)]
    return records, [predictions(rng, wrong, base) for wrong in (0.3, 0.2, 0.1)], rng, base


def test_the_best_is_kept(candidates):
    records, found, *_ = candidates
    result = decide(records, found, "trust")
    assert (result.verdict, result.chosen, result.last, result.collapsed) == ("keep", "step 5", "step 5", False)
    assert result.ranking == ["step 5", *reversed(REFERENCES[:2])]
    for c in result.candidates:
        own = c["scores"]
        assert own["trust"] == pytest.approx((own["agreement"] + own["consistency"] + own["information"]) / 3)
        assert not c["drifted"] and c["lost"] == 0
    assert "consistency 0.500 -> 0.700" in result.why


def test_what_has_drifted_is_neither_chosen_nor_in_the_ensemble(candidates):
    """However many agree with each other, and however consistent they are."""
    records, found, rng, base = candidates
    before = decide(records, found, "trust")
    elsewhere = predictions(rng, 0.0, (base + 1) % CLASSES)
    for step in range(6, 12):
        records.append(record(f"step {step}", 1.0, step, True, [0.5, 0.5, 0, 0]))
        found.append(elsewhere)
    result = decide(records, found, "trust")
    assert (result.verdict, result.chosen, result.last, result.collapsed) == ("keep", "step 5", "step 11", True)
    assert "collapsed" in result.why and result.ranking == before.ranking
    assert [c["scores"]["agreement"] for c in result.candidates[:3]] == [
        c["scores"]["agreement"] for c in before.candidates]
    assert all(c["drifted"] and c["scores"]["nearest"] < NEAR for c in result.candidates[3:])
    for select_by in ("consistency", "last"):
        assert decide(records, found, select_by).chosen in (REFERENCES[0], "step 5")
    assert decide(records, found, "last").verdict == "reject"


@pytest.mark.parametrize("consistency, information, said", [
    (0.55, 0.5, "keep"), (0.53, 0.5, "doubtful"), (0.45, 0.58, "doubtful"), (0.47, 0.5, "doubtful"),
    (0.5, 0.45, "reject"), (0.3, 0.6, "reject")])
def test_the_verdict_compares_with_the_untouched_network(candidates, consistency, information, said):
    records, found, *_ = candidates
    records[1]["scores"]["consistency"] = -1
    records[2]["scores"].update(consistency=consistency, information=information)
    result = decide(records, found, "agreement")
    assert result.ranking[0] == "step 5" and result.verdict == said
    assert result.chosen == ("untouched" if said == "reject" else "step 5")
    assert result.why.startswith("step 5, the best of the others: consistency 0.500 -> ") == (said == "reject")


def test_scores_that_are_not_finite_and_weights_that_are_gone_are_not_chosen(candidates):
    records, found, *_ = candidates
    records[2]["kept"] = False
    assert decide(records, found, "trust").chosen == REFERENCES[1]
    records[1]["scores"] = dict.fromkeys(label_free.OWN_SCORES)
    result = decide(records, found, "trust")
    assert (result.chosen, result.verdict) == ("untouched", "reject")
    assert result.candidates[1]["drifted"] and result.candidates[1]["scores"]["trust"] is None
    assert "-" in verdict.table(result) and "verdict: reject" in verdict.table(result)


def test_an_untouched_network_whose_numbers_are_not_finite_is_worse_than_any_other(candidates):
    records, found, *_ = candidates
    records[0]["scores"] = dict.fromkeys(label_free.OWN_SCORES)
    result = decide(records, found, "trust")
    assert (result.verdict, result.chosen) == ("keep", "step 5")


def test_a_collapse_is_drift_without_a_good_word(candidates):
    """What has drifted but is surer, more varied and more consistent, with all its classes, may be an improvement."""
    records, found, rng, base = candidates
    found.append(predictions(rng, 0.0, (base + 1) % CLASSES))
    for own, histogram, collapsed in (
            ({"consistency": 0.5, "information": 0.55}, None, False), ({"consistency": 0.5}, None, True),
            ({"consistency": 0.9, "information": 0.9}, [0.5, 0.5, 0, 0], True)):
        records[3:] = [record("step 6", 0.5, 6, True, histogram)]
        records[3]["scores"].update(own)
        result = decide(records, found, "trust")
        assert result.candidates[3]["drifted"] and result.collapsed == collapsed and result.chosen == "step 5"


def test_labels_decide_where_they_are_asked_for(candidates):
    records, found, *_ = candidates
    for r, value in zip(records, (41.0, 40.0, 39.0)):
        r["scores"]["miou"] = value
    assert decide(records, found, "miou").verdict == "reject"
    records[2]["scores"]["miou"] = 42.0
    result = decide(records, found, "miou")
    assert (result.verdict, result.chosen) == ("keep", "step 5")


def test_classes_vanish_if_every_reference_had_them():
    many = [[0.5, 0.3, 0.1, 0.1], [0.6, 0.3, 0.001, 0.099]]
    state = record("step 1", 0.5, histogram=[0.7, 0.29, 0.009, 0.001])
    assert verdict.lost([record("a", 0, histogram=h) for h in many], state) == [(3, 0.099, 0.001)]
    assert verdict.lost([record("a", 0, histogram=many[0])], state) == [(2, 0.1, 0.009), (3, 0.1, 0.001)]


# ---- on runs of a small network --------------------------------------------------------------------------------------

COLOURS = np.array([[200, 60, 60], [60, 190, 70], [70, 80, 200], [190, 180, 60], [120, 120, 120]], float)
NET = """
from torch import nn


def build():
    def block(i, o):
        return nn.Sequential(nn.Conv2d(i, o, 3, 1, 1), nn.ReLU())
    return nn.Sequential(block(3, 16), block(16, 16), nn.Conv2d(16, 5, 1))
"""
SECTION = {"type": "folder", "images": "images/{split}", "labels": "labels/{split}", "classes": [*"abcde"],
           "input_size": [64, 48]}
RATE = 0.03
CONFIG = {"note": "c", "source": "s", "target": "t", "num_classes": 5, "model": "net.py:build", "init_weight": "None",
          "learning_rate": RATE, "backbone_lr_mult": 1, "head_lr_mult": 1, "fixbn": False, "num_steps": 60,
          "batch_size": 4, "input_src": 48, "input_tgt": 48, "crop_src": 32, "crop_tgt": 32, "worker": 0,
          "screen": False, "tensorboard": False, "overwrite": True, "round": 1, "epochs": 10, "cb_prop": 0.2,
          "s": {**SECTION, "data_dir": "source"}, "t": {**SECTION, "data_dir": "target"}}


def write_image(folder, split, number, darker):
    """Rectangles in the colour of their class, with noise; darker and bluer in the target."""
    rng = np.random.default_rng([darker, split == "val", number])
    label = np.zeros((48, 64), np.uint8)
    for _ in range(12):
        (y, x), (h, w) = rng.integers(0, (40, 52)), rng.integers(8, 24, 2)
        label[y:y + h, x:x + w] = rng.integers(0, 5)
    image = (COLOURS[label] + rng.normal(0, 25, (48, 64, 3)) + rng.normal(0, 12, 3)).clip(0, 255)
    if darker:
        image = (image / 255)**1.15 * np.array([0.85, 0.9, 1]) * 255 + rng.normal(0, 6, image.shape)
    for kind, pixels in (("images", image.clip(0, 255).astype(np.uint8)), ("labels", label)):
        path = Path(folder, kind, split, f"{number}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)


@pytest.fixture(scope="module")
def colours(tmp_path_factory):
    root = tmp_path_factory.mktemp("colours")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        for folder, darker in (("source", False), ("target", True)):
            for split, count in (("train", 24), ("val", 12)):
                for number in range(count):
                    write_image(folder, split, number, darker)
        Path("net.py").write_text(NET)
        Path("tiny.yml").write_text(yaml.safe_dump(CONFIG))
        assert call(patch, run_so_script, "learning_rate=0.05", "num_steps=300") == 0
        for note, factor in (("good", 1), ("ruined", 30), ("stopped", 30)):
            stop = ["stop_when=collapse"] if note == "stopped" else []
            assert call(patch, run_script, "init_weight=snapshot/c/source_only.pth", f"note={note}",
                        f"learning_rate={RATE * factor}", *stop) == 0
    return root


@pytest.fixture
def results(colours, monkeypatch):
    """note -> (verdict, true mIoU of the untouched, the last and the chosen network)."""
    monkeypatch.chdir(colours)
    found = {}
    for note in ("good", "ruined", "stopped"):
        files = ["snapshot/c/source_only.pth", f"snapshot/{note}/ld.pth", f"snapshot/{note}/ld_chosen.pth"]
        assert evaluate(monkeypatch, *files, "--json", "scores.json") == 0
        scores = [s["5 classes"]["miou"] for s in json.loads(Path("scores.json").read_text()).values()]
        found[note] = json.loads(Path(f"snapshot/{note}/ld_verdict.json").read_text()), *scores
    return found


def test_a_ruined_run_is_rejected_and_a_good_one_kept(results):
    said, untouched, last, chosen = results["good"]
    assert said["verdict"] == "keep" and not said["collapsed"] and min(last, chosen) > untouched + 3
    said, untouched, last, chosen = results["ruined"]
    assert said["verdict"] == "reject" and said["collapsed"] and said["chosen"] == "untouched"
    assert last < untouched - 20 and chosen == untouched
    ruined, start = weights("snapshot/ruined/ld_chosen.pth"), weights("snapshot/c/source_only.pth")
    assert all(ruined[name].equal(start[name]) for name in start)


def test_a_collapse_may_end_the_run(results):
    steps = {note: int(said["last"].removeprefix("step ")) for note, (said, *_) in results.items()}
    assert steps["good"] == steps["ruined"] == 60 > steps["stopped"]
    assert results["stopped"][0]["verdict"] == "reject"


def test_a_later_stage_and_eval_know_the_verdict(colours, monkeypatch, capsys):
    monkeypatch.chdir(colours)
    for name, told in (("ld", True), ("ld_chosen", False)):
        assert call(monkeypatch, run_script, f"init_weight=snapshot/ruined/{name}.pth", "method=entmin", "note=after",
                    "epochs=1") == 0
        said = capsys.readouterr().out
        assert ("that stage's verdict was reject" in said) == told
    assert evaluate(monkeypatch, "snapshot/good/ld.pth", "snapshot/ruined/ld.pth", "snapshot/c/source_only.pth") == 0
    assert capsys.readouterr().out.splitlines()[-1].split() == ["verdict", "keep", "reject", "-"]

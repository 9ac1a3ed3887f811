"""The stage scripts end to end, in-process, on a tiny toy world."""
import copy
import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import yaml
from tiers import mostly_slow

import eval as eval_script
import run as run_script
import run_so as run_so_script
from dataset import loaders
from dataset.toy import write_toy_world
from model.segmenter import Segmenter
from trainer import comparison
from trainer.loop import Trainer
from utils.cli import run_stage
from utils.config import load_config

TINY = {
    "amp": "off",
    "note": "tiny", "layers": [1, 1, 1, 1], "width": 8, "fixbn": False, "batch_size": 2, "worker": 0, "screen": False,
    "input_src": 64, "input_tgt": 64, "crop_src": 48, "crop_tgt": 48, "learning_rate": 0.005, "backbone_lr_mult": 1.0,
    "num_steps": 6, "epochs": 1, "round": 2, "cb_prop": 0.2, "val_freq": 4, "print_freq": 2, "init_weight": "None",
    "device": "cpu", "score_images": 1, "candidate_freq": 1000, "pictures": 0,
    "gta5": {"data_dir": "world/gta5", "input_size": [128, 64]},
    "synthia": {"data_dir": "world/synthia", "input_size": [128, 64]},
    "cityscapes": {"data_dir": "world/cityscapes", "input_size": [128, 64]},
}


@pytest.fixture
def world(tmp_path, monkeypatch, toy_world):
    """A folder of its own with a tiny toy world and configuration, as the working directory."""
    shutil.copytree(toy_world, tmp_path / "world")
    (tmp_path / "tiny.yml").write_text(yaml.safe_dump(TINY))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def toy_world(tmp_path_factory):
    root = tmp_path_factory.mktemp("toy") / "world"
    write_toy_world(root, seed=5, size=(128, 64), source=6, synthia=4, train=5, val=3)
    return root


def call(monkeypatch, script, *words):
    """Run a stage script as the command line would; its exit code."""
    monkeypatch.setattr(sys, "argv", ["script", "--config", "tiny.yml", *words])
    fixed = {"method": "source_only"} if script is run_so_script else {}
    return run_stage(script.__doc__, "tiny.yml", script.run, **fixed)


def weights(path):
    return torch.load(path, weights_only=True)


def all_stages(monkeypatch, *words):
    assert call(monkeypatch, run_so_script, *words) == 0
    assert call(monkeypatch, run_script, "method=ld", "init_weight=snapshot/tiny/source_only.pth", *words) == 0
    assert call(monkeypatch, run_script, "method=be", "init_weight=snapshot/tiny/ld.pth", *words) == 0


@pytest.fixture(scope="module")
def all_done(tmp_path_factory, toy_world):
    root = tmp_path_factory.mktemp("done")
    shutil.copytree(toy_world, root / "world")
    (root / "tiny.yml").write_text(yaml.safe_dump(TINY))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        all_stages(patch)
    return root


@pytest.fixture
def trained(all_done, tmp_path, monkeypatch):
    """`world` with all three stages done."""
    shutil.copytree(all_done, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_three_stages_need_no_source_after_0_and_no_target_labels(world, monkeypatch, capsys):
    assert call(monkeypatch, run_so_script) == 0
    shutil.rmtree("world/gta5")
    assert call(monkeypatch, run_script, "method=ld", "init_weight=snapshot/tiny/source_only.pth") == 0
    assert "validation skipped" not in capsys.readouterr().out
    shutil.rmtree("world/cityscapes/gtFine")
    assert call(monkeypatch, run_script, "method=be", "init_weight=snapshot/tiny/ld.pth") == 0
    assert "validation skipped: cityscapes has no labels" in capsys.readouterr().out

    stages = {s: weights(f"snapshot/tiny/{s}.pth") for s in ("source_only", "ld", "be")}
    for before, after in (("source_only", "ld"), ("ld", "be")):
        assert stages[before].keys() == stages[after].keys()
        assert not stages[before]["layer5.conv2d_list.0.weight"].equal(stages[after]["layer5.conv2d_list.0.weight"])
    assert all(torch.isfinite(t).all() for s in stages.values() for t in s.values() if t.is_floating_point())
    for stage, method in (("source_only", "source_only"), ("ld", "ld"), ("be", "be")):
        assert yaml.safe_load(Path(f"snapshot/tiny/{stage}.yml").read_text())["method"] == method


def test_records_of_a_run(trained):
    for stage in ("source_only", "ld", "be"):
        events = [json.loads(line) for line in Path(f"log/tiny/{stage}.jsonl").read_text().splitlines()]
        kinds = {e["event"] for e in events}
        assert {"train", "val"} <= kinds and list(Path(f"log/tiny/{stage}").glob("events.out.tfevents.*"))
        train = next(e for e in events if e["event"] == "train")
        assert train["loss"]["total"] == pytest.approx(sum(v for k, v in train["loss"].items() if k != "total"))
        assert train["lr"]["head"] == pytest.approx(10 * train["lr"]["backbone"])
        assert {"19 classes", "16 classes", "13 classes"} <= [e for e in events if e["event"] == "val"][-1].keys()
        if stage != "source_only":
            rounds = [e for e in events if e["event"] == "pseudo_label"]
            assert [e["round"] for e in rounds] == [0, 1]
            assert [e["portion"] for e in rounds] == pytest.approx([0.2, 0.25])
            for e in rounds:
                assert 0 < e["coverage"]["all"] <= 1 and 0 <= e["accuracy"]["all"] <= 1
                assert e["threshold"].keys() == set(e["coverage"]) - {"all"}
                # at least the class rule's share; the image rule adds to it
                assert e["coverage"]["all"] >= e["portion"] - 0.02
    pngs = sorted(p.relative_to("plabel").as_posix() for p in Path("plabel").rglob("*.png"))
    assert len(pngs) == 2 * 2 * 5 and pngs[0].startswith("tiny/be/round0/")


@pytest.mark.slow
def test_same_seed_same_checkpoints_bit_by_bit(trained, monkeypatch):
    found = {}
    # The number of workers and the frequency of printing and validation must not matter.
    for run, words in (("a", None), ("b", ["worker=2", "print_freq=1", "val_freq=3"]), ("c", ["seed=9"])):
        if words:
            for folder in ("snapshot", "plabel", "log", "miou_result"):
                shutil.rmtree(folder)
            all_stages(monkeypatch, *words)
        found[run] = {s: weights(f"snapshot/tiny/{s}.pth") for s in ("source_only", "ld", "be")}
    for stage in found["a"]:
        a, b, c = (found[run][stage] for run in "abc")
        assert all(a[k].equal(b[k]) for k in a), stage
        assert not all(a[k].equal(c[k]) for k in a), stage


def evaluate(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["eval.py", "--config", "tiny.yml", *words])
    return eval_script.run()


def test_eval_prints_and_writes_every_protocol(trained, monkeypatch, capsys):
    files = [f"snapshot/tiny/{s}.pth" for s in ("source_only", "ld", "be")]
    capsys.readouterr()
    assert evaluate(monkeypatch, *files, "worker=1", "--json", "out.json", "--figure", "grid.png") == 0
    printed = capsys.readouterr().out
    scores = json.loads(Path("out.json").read_text())
    assert list(scores) == ["source-only", "LD", "LDBE"]
    for stage, name in zip(("source_only", "ld", "be"), scores):
        assert scores[name] == json.loads(Path(f"miou_result/tiny/{stage}.json").read_text())
        assert list(scores[name]) == ["19 classes", "16 classes", "13 classes"]
        assert f"{scores[name]['13 classes']['miou']:.1f}" in printed.splitlines()[-2]
    said = [json.loads(Path(f"snapshot/tiny/{stage}_verdict.json").read_text())["verdict"] for stage in ("ld", "be")]
    assert printed.splitlines()[-1].split() == ["verdict", "-", *said]
    assert Path("grid.png").stat().st_size > 1000


def test_sixteen_classes_from_synthia(world, monkeypatch):
    words = ("source=synthia", "num_classes=16")
    all_stages(monkeypatch, *words)
    scores = json.loads(Path("miou_result/tiny/be.json").read_text())
    assert list(scores) == ["16 classes", "13 classes"]
    assert weights("snapshot/tiny/be.pth")["layer5.conv2d_list.0.bias"].shape == (16,)


@pytest.mark.parametrize("method, start, key", mostly_slow([
    *(("ld", "source_only", key) for key in (
        "bn_stats=running", "entropy_on=unselected", "select_image=False", "fixbn=True", "neg_rank_width=0",
        "portion_step=0.3", "round_lr_decay=4", "scales=[1.0]", "entropy=shannon", "head_branches=2")),
    *(("be", "ld", key) for key in ("bn_stats=running", "select_image=False", "ema_alpha=0.5", "conf_thresh=0.1"))],
    lambda case: not case[2].endswith("e=False") and case[2] not in ("fixbn=True", "scales=[1.0]", "head_branches=2")))
def test_every_method_key_reaches_the_result(trained, monkeypatch, method, start, key):
    plain = weights(f"snapshot/tiny/{method}.pth")
    assert call(monkeypatch, run_script, f"method={method}", f"init_weight=snapshot/tiny/{start}.pth",
                "score_images=0", key) == 0
    changed = weights(f"snapshot/tiny/{method}.pth")
    assert any(not plain[k].equal(changed[k]) for k in plain)


@pytest.mark.parametrize("bn_stats", ["batch", "running"])
def test_labelling_moves_the_running_statistics_with_bn_stats_batch_alone(trained, monkeypatch, bn_stats):
    cfg = load_config("tiny.yml", ["init_weight=snapshot/tiny/source_only.pth", f"bn_stats={bn_stats}"])
    trainer = Trainer(cfg)
    before = {name: buffer.clone() for name, buffer in trainer.network.named_buffers()}
    trainer.method.prepare_round(0)
    moved = {name for name, buffer in trainer.network.named_buffers() if not buffer.equal(before[name])}
    assert moved == (set(before) if bn_stats == "batch" else set())


def test_stage_0_equals_the_plain_loop(world, monkeypatch):
    """Momentum, weight decay, poly rate and head factor, written out; a validation on the way changes nothing. In
    float64: batch norm over a few pixels amplifies float32's rounding step by step."""
    plain = Segmenter.prepare
    monkeypatch.setattr(Segmenter, "prepare", lambda self, pixels: plain(self, pixels).double())
    cfg = load_config("tiny.yml", ["num_steps=5", "val_freq=2", "fixbn=True", "learning_rate=0.001",
                                   "weight_decay=0.5"], method="source_only")
    trainer = Trainer(cfg)
    trainer.network.double()
    model = copy.deepcopy(trainer.network.network).train()
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    velocity = {name: torch.zeros_like(p) for name, p in trainable.items()}
    for step, batch in enumerate(loaders.source_loader(cfg, trainer.samples)):
        loss = F.cross_entropy(model(trainer.network.prepare(batch["image"])), batch["label"].long(), ignore_index=255)
        gradients = torch.autograd.grad(loss, list(trainable.values()))
        rate = 0.001 * (1 - step / 5) ** 0.9
        with torch.no_grad():
            for (name, p), gradient in zip(trainable.items(), gradients):
                velocity[name] = 0.9 * velocity[name] + gradient + 0.5 * p
                p -= rate * (10 if name.startswith("layer5") else 1) * velocity[name]
    start = copy.deepcopy(trainer.network.state_dict())
    trainer.run()
    found = trainer.network.state_dict()
    for name, expected in model.state_dict().items():
        moved = (expected - start[name]).abs().max()
        assert (found[name] - expected).abs().max() <= 1e-6 * moved, name
        assert not found[name].equal(start[name]) or name not in trainable and "running" not in name, name


def test_validation_uses_and_keeps_the_running_statistics(world):
    trainer = Trainer(load_config("tiny.yml", method="source_only"))
    before = {name: buffer.clone() for name, buffer in trainer.network.named_buffers()}
    trainer.network.train()
    trainer.validate()
    assert trainer.validation.scores
    assert all(b.equal(before[name]) for name, b in trainer.network.named_buffers())


def test_train_false_only_validates(world, monkeypatch):
    assert call(monkeypatch, run_so_script) == 0
    before = weights("snapshot/tiny/source_only.pth")
    assert call(monkeypatch, run_script, "method=ld", "init_weight=snapshot/tiny/source_only.pth", "train=False") == 0
    assert not Path("snapshot/tiny/ld.pth").exists()
    assert Path("miou_result/tiny/ld.json").read_text() == Path("miou_result/tiny/source_only.json").read_text()
    assert all(before[k].equal(v) for k, v in weights("snapshot/tiny/source_only.pth").items())


@pytest.mark.parametrize("script, words, said", [
    (run_script, ["method=ld"], "init_weight"),
    (run_script, ["method=ld", "init_weight=nowhere.pth"], "nowhere.pth"),
    (run_script, ["method=source_only"], "method"),
    (run_script, ["method=ld", "init_weight=tiny.yml"], "tiny.yml"),
    (run_so_script, ["gta5.data_dir=nowhere"], "gta5.data_dir"),
    (run_so_script, ["cityscapes.data_dir=nowhere"], "cityscapes.data_dir"),
    (run_so_script, ["gta5.data_list=nowhere.txt"], "gta5.data_list"),
    (run_so_script, ["learning_rat=1"], "learning_rate"),
    (run_so_script, ["batch_size=two"], "batch_size"),
    (run_so_script, ["device=cuda:77"], "device"),
])
def test_what_a_user_gets_wrong_is_one_line_and_nothing_is_written(world, monkeypatch, capsys, script, words, said):
    before = sorted(p.as_posix() for p in world.rglob("*"))
    assert call(monkeypatch, script, *words) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ") and said in error and "\n" not in error and "Traceback" not in error
    assert sorted(p.as_posix() for p in world.rglob("*")) == before


def test_keys_without_effect_and_a_missing_method_are_said_by_the_scripts(world, monkeypatch, capsys):
    assert call(monkeypatch, run_so_script, "lamb=1") == 0
    said = capsys.readouterr().out
    assert "no effect on LDBE, ignored: lamb" in said
    assert "no effect on method source_only with model deeplab: " in said and "epochs (of " in said
    assert call(monkeypatch, run_script, "init_weight=snapshot/tiny/source_only.pth", "train=False") == 0
    assert "method is not given, ld is run" in capsys.readouterr().out


def test_eval_refuses_the_same_file_twice_and_missing_ones(trained, monkeypatch, capsys):
    assert evaluate(monkeypatch, "snapshot/tiny/source_only.pth", "snapshot/tiny/source_only.pth") == 2
    assert evaluate(monkeypatch, "snapshot/tiny/source_only.pth", "gone.pth") == 2
    assert "gone.pth" in capsys.readouterr().err


def test_eval_refuses_what_it_could_not_write_before_it_scores(trained, monkeypatch, capsys):
    checkpoint = "snapshot/tiny/source_only.pth"
    capsys.readouterr()
    for words, said in ((["--json", "tiny.yml/out.json"], "tiny.yml"), (["--figure", "tiny.yml/out.png"], "tiny.yml"),
                        (["--figure", "out.text"], "out.text")):
        assert evaluate(monkeypatch, checkpoint, *words) == 2
        printed = capsys.readouterr()
        assert printed.err.startswith("error: ") and said in printed.err and printed.err.count("\n") == 1
        assert printed.out == ""
    with pytest.raises(SystemExit):
        evaluate(monkeypatch, checkpoint, "--images", "0")
    assert evaluate(monkeypatch, checkpoint, "--json", "new/out.json", "--figure", "new/out.png") == 0
    assert sorted(p.name for p in Path("new").iterdir()) == ["out.json", "out.png"]


@pytest.mark.parametrize("checkpoints, expected", [
    (["a/source_only.pth", "a/ld.pth", "a/be.pth"], ["source-only", "LD", "LDBE"]), (["a/ld.pth#net"], ["LD"]),
    (["a/x_1.5.pth", "a/y.pth#state.teacher"], ["x_1.5", "y"]), (["a/x.pth", "b/x.pth"], ["a/x", "b/x"]),
    (["a/x.pth#net", "a/x.pth#ema"], ["a/x.pth#net", "a/x.pth#ema"]),
    (["a/run#1.pth", "a/run#2.pth"], ["run#1", "run#2"])])
def test_headings(checkpoints, expected):
    assert comparison.headings(checkpoints) == expected


def test_an_error_of_eval_is_its_only_line_and_remarks_stand_above_the_table(trained, monkeypatch, capsys):
    state = weights("snapshot/tiny/source_only.pth")
    torch.save(state | {k.replace("layer5", "layer6"): v for k, v in state.items() if "layer5" in k}, "two.pth")
    val = next(Path("world/cityscapes/leftImg8bit/val").iterdir())
    (val / "._x_leftImg8bit.png").write_bytes(b"")
    order = []
    monkeypatch.setattr(sys.stderr, "write", lambda text: order.append(("err", text)))
    monkeypatch.setattr(sys.stdout, "write", lambda text: order.append(("out", text)))
    assert evaluate(monkeypatch, "two.pth") == 0
    first = [stream for stream, text in order if "hidden files" in text or "two.pth: two heads, " in text]
    table = next(i for i, (stream, text) in enumerate(order) if "mIoU" in text)
    assert first == ["err"] * 2 and order[table][0] == "out"
    assert max(i for i, (_, text) in enumerate(order) if "two.pth" in text) < table
    order.clear()
    assert evaluate(monkeypatch, "two.pth", "gone.pth") == 2
    assert "".join(text for _, text in order).count("\n") == 1


def test_eval_refuses_an_initialisation_without_a_head(trained, monkeypatch, capsys):
    state = weights("snapshot/tiny/source_only.pth")
    torch.save({f"Scale.{k}": v for k, v in state.items()}, "caffe.pth")
    assert evaluate(monkeypatch, "caffe.pth") == 2
    assert "caffe.pth: is an initialisation without a head" in capsys.readouterr().err


@pytest.mark.parametrize("key", ["snapshot", "log", "plabel", "result"])
def test_a_folder_that_cannot_be_made_is_one_line(trained, monkeypatch, capsys, key):
    capsys.readouterr()
    assert call(monkeypatch, run_script, "init_weight=snapshot/tiny/source_only.pth", f"{key}=tiny.yml") == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: tiny.yml/tiny") and "\n" not in error


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_three_stages_on_a_gpu(world, monkeypatch):
    all_stages(monkeypatch, "device=cuda")
    assert evaluate(monkeypatch, "snapshot/tiny/be.pth", "device=cuda") == 0


def test_a_broken_training_image_ends_a_run_or_is_left_out_and_logged(world, monkeypatch, capsys):
    image = Path("world/gta5/images/00002.png")
    image.write_bytes(image.read_bytes()[:300])
    assert call(monkeypatch, run_so_script) == 2
    assert str(image) in capsys.readouterr().err
    assert call(monkeypatch, run_so_script, "on_bad_sample=skip", "overwrite=true") == 0
    said = capsys.readouterr().out
    assert f"on_bad_sample: {image}" in said and "1 of 6 training samples of gta5 left out" in said
    assert "stage source_only: 5 images" in said

"""The stages on networks of every family, and what must hold for a network that is not DeepLabV2: exact resume with
dropout, recomputation, several bands, an evaluation of what was written."""
import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
import yaml
from test_pipeline import TINY, call, toy_world, weights  # noqa: F401 (a fixture)
from tiers import mostly_slow

import eval as eval_script
import run as run_script
import run_so as run_so_script
from trainer.loop import Trainer
from utils.cli import EXIT_STOPPED

NETS = """
import torch
from torch import nn
import torch.nn.functional as F
from utils.colour import to_grey   # the file's own `utils`, not the project's


class Net(nn.Module):
    def __init__(self, outputs, norm, dropout=0.3):
        super().__init__()
        make = {"batch": nn.BatchNorm2d, "group": lambda n: nn.GroupNorm(4, n)}[norm]
        def block(i, o):
            return nn.Sequential(nn.Conv2d(i, o, 3, 2, 1, bias=False), make(o), nn.ReLU(), nn.Dropout2d(dropout))
        self.blocks = nn.Sequential(block(3, 8), block(8, 16))
        self.classes = nn.Conv2d(16, outputs, 1)
        self.grids = {}  # positions by height, made when first needed

    def forward(self, x):
        assert to_grey(x).shape[1] == 1
        features = self.blocks(x)
        height = features.shape[-2]
        if height not in self.grids:
            self.grids[height] = torch.linspace(0.9, 1.1, height).view(-1, 1)
        scores = self.classes(features * self.grids[height])
        return {"logits": F.interpolate(scores, x.shape[-2:], mode="bilinear", align_corners=False)}


def twenty(norm="batch"):
    return Net(20, norm)


def groups():
    return Net(19, "group")
"""
USER = "model=nets/mynet.py:"
NETWORKS = {
    "torchvision": ["model=torchvision/lraspp_mobilenet_v3_large"],
    "smp": ["model=smp/unet:mobilenet_v2"],
    "segformer": ["model=hf/segformer"],
    "twenty outputs": [f"{USER}twenty", f"output_channels={[*range(19)]}", "input_max=255", "input_mean=[120,120,120]",
                       "input_std=[60,60,60]"],
    "group norm": [f"{USER}groups", "head=[classes]"],
}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, toy_world):  # noqa: F811
    """A folder with a tiny world, a user's network in a file beside its own `utils`, a SegFormer's configuration."""
    root = tmp_path_factory.mktemp("networks")
    (root / "world").symlink_to(toy_world)
    keys = {k: v for k, v in TINY.items() if k not in ("layers", "width")}
    changed = {"tensorboard": False, "num_steps": 2, "val_freq": 100, "save_freq": 1, "learning_rate": 0.001}
    (root / "tiny.yml").write_text(yaml.safe_dump({**keys, **changed}))
    (root / "nets/utils").mkdir(parents=True)
    (root / "nets/mynet.py").write_text(NETS)
    (root / "nets/utils/__init__.py").write_text("")
    (root / "nets/utils/colour.py").write_text("def to_grey(x):\n    return x.mean(1, keepdim=True)\n")
    transformers = pytest.importorskip("transformers")
    transformers.SegformerConfig(depths=[1] * 4, hidden_sizes=[8, 8, 16, 16], num_attention_heads=[1, 1, 2, 2],
                                 decoder_hidden_size=8, num_labels=19).save_pretrained(root / "segformer")
    return root


@pytest.fixture
def world(prepared, tmp_path, monkeypatch):
    shutil.copytree(prepared, tmp_path / "run", symlinks=True)
    monkeypatch.chdir(tmp_path / "run")


def stage(monkeypatch, method, start, *words):
    script = run_so_script if method == "source_only" else run_script
    return call(monkeypatch, script, *([f"method={method}"] if start else []), f"init_weight={start}", *words)


@pytest.mark.parametrize("name", mostly_slow(NETWORKS, lambda name: name in ("twenty outputs", "group norm")))
def test_the_three_stages_and_bn_adapt_run_on(name, world, monkeypatch, capsys):
    words, folder = NETWORKS[name], "snapshot/tiny"
    assert stage(monkeypatch, "source_only", None, *words) == 0
    assert stage(monkeypatch, "ld", f"{folder}/source_only.pth", *words) == 0
    assert stage(monkeypatch, "be", f"{folder}/ld.pth", *words) == 0
    said = capsys.readouterr()
    assert "Traceback" not in said.err and ("no batch norm" in said.out) == (name == "group norm")
    adapted = stage(monkeypatch, "bn_adapt", f"{folder}/source_only.pth", *words)
    assert adapted == (2 if name == "group norm" else 0)
    assert ("the network has none" in capsys.readouterr().err) == (name == "group norm")
    before, ld, be = (weights(f"{folder}/{method}.pth") for method in ("source_only", "ld", "be"))
    assert before.keys() == ld.keys() == be.keys() and all(v.isfinite().all() for v in be.values())
    trained = [k for k, v in before.items() if v.is_floating_point() and "running" not in k]
    assert sum(not before[k].equal(ld[k]) for k in trained) > len(trained) / 2
    assert any(not ld[k].equal(be[k]) for k in trained)
    files = [f"{folder}/{method}.pth" for method in ("source_only", "ld", "be")]
    monkeypatch.setattr("sys.argv", ["eval.py", "--config", "tiny.yml", *words, *files, "--json", "s.json", "--figure",
                                     "f.png"])
    assert eval_script.run() == 0 and Path("f.png").stat().st_size > 1000
    scores = json.loads(Path("s.json").read_text())
    for heading, method in (("source-only", "source_only"), ("LD", "ld"), ("LDBE", "be")):
        assert scores[heading] == json.loads(Path(f"miou_result/tiny/{method}.json").read_text())


def test_training_can_use_tensors_that_the_network_made_while_it_labelled(world, monkeypatch):
    words = [*NETWORKS["twenty outputs"], "cityscapes.input_size=[96,48]"]  # crops are as high
    assert stage(monkeypatch, "source_only", None, *words) == 0
    for method in ("ld", "be"):
        assert stage(monkeypatch, method, "snapshot/tiny/source_only.pth", *words) == 0


def kill_at(monkeypatch, step):
    plain, count = Trainer.step, [0]

    def watched(self, item):
        count[0] += 1
        if count[0] == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return plain(self, item)
    monkeypatch.setattr(Trainer, "step", watched)


@pytest.mark.parametrize("method, start", mostly_slow([("mean_teacher", "source_only"), ("be", "ld")]))
def test_dropout_is_the_same_after_a_resume_and_when_it_is_computed_again(world, monkeypatch, capsys, method, start):
    """torch's generator is a function of seed, round and step, and recomputation draws the same masks."""
    words, folder = [*NETWORKS["twenty outputs"], "num_steps=4", "epochs=2"], "snapshot/tiny"
    assert stage(monkeypatch, "source_only", None, *words) == 0
    assert stage(monkeypatch, "ld", f"{folder}/source_only.pth", *words) == 0
    start = f"{folder}/{start}.pth"
    found = {}
    for note in ("whole", "stopped", "recomputed"):
        more = [*words, f"note={note}", *(["checkpointing=true"] if note == "recomputed" else [])]
        if note == "stopped":
            with monkeypatch.context() as patch:
                kill_at(patch, 2)
                assert stage(patch, method, start, *more) == EXIT_STOPPED
            more.append("--resume")
        assert stage(monkeypatch, method, start, *more) == 0
        found[note] = weights(f"snapshot/{note}/{method}.pth")
    for note in ("stopped", "recomputed"):
        assert all(found["whole"][k].equal(v) for k, v in found[note].items()), note
    assert stage(monkeypatch, method, start, *words, "note=other", "seed=3") == 0
    other = weights(f"snapshot/other/{method}.pth")
    assert any(not found["whole"][k].equal(v) for k, v in other.items())


def test_a_run_goes_on_when_the_networks_file_has_moved_and_no_file_that_its_state_names_is_run(world, monkeypatch,
                                                                                                capsys):
    words = NETWORKS["group norm"]
    assert stage(monkeypatch, "source_only", None, *words, "note=whole") == 0
    with monkeypatch.context() as patch:
        kill_at(patch, 1)
        assert stage(patch, "source_only", None, *words) == EXIT_STOPPED
    os.rename("nets", "moved")
    os.mkdir("nets")
    Path("nets/mynet.py").write_text("open('ran', 'w')\n")
    capsys.readouterr()
    assert stage(monkeypatch, "source_only", None, "model=moved/mynet.py:twenty", "head=[classes]", "output_channels="
                 f"{[*range(19)]}", "--resume") == 2
    assert "these differ: model: was nets/mynet.py:groups, is moved/mynet.py:twenty" in capsys.readouterr().err
    assert stage(monkeypatch, "source_only", None, *words, "model=moved/mynet.py:groups", "--resume") == 0
    one, other = (weights(f"snapshot/{note}/source_only.pth") for note in ("whole", "tiny"))
    assert not Path("ran").exists() and all(one[k].equal(v) for k, v in other.items())


@pytest.mark.parametrize("words", [["amp=bf16"], pytest.param(["compile=true"], marks=pytest.mark.slow),
                                   ["bn_stats=running"], ["channels_last=false"]])
def test_speed_keys_run_on_a_foreign_network(world, monkeypatch, words):
    if "compile=true" in words and not shutil.which("c++"):
        pytest.skip("no compiler")
    network = [*NETWORKS["twenty outputs"], *words]
    assert stage(monkeypatch, "source_only", None, *network) == 0
    assert stage(monkeypatch, "ld", "snapshot/tiny/source_only.pth", *network) == 0
    assert all(v.isfinite().all() for v in weights("snapshot/tiny/ld.pth").values())


def test_labelling_and_the_teacher_leave_dropout_alone(world, monkeypatch):
    """Pseudo labels of a network with dropout are those of its evaluation mode but for the batch norms."""
    words = NETWORKS["twenty outputs"]
    assert stage(monkeypatch, "source_only", None, *words) == 0
    seen = []
    plain = torch.nn.Dropout2d.forward
    monkeypatch.setattr(torch.nn.Dropout2d, "forward",
                        lambda self, x: (seen.append((self.training, torch.is_grad_enabled())), plain(self, x))[1])
    assert stage(monkeypatch, "be", "snapshot/tiny/source_only.pth", *words) == 0
    assert {training for training, with_grad in seen if not with_grad} == {False}
    assert {training for training, with_grad in seen if with_grad} == {True}


def test_a_network_of_other_bands_than_the_images_is_named(world, monkeypatch, capsys):
    words = [f"{USER}twenty", f"output_channels={[*range(19)]}", "input_mean=[0.5]", "input_std=[0.2]"]
    assert stage(monkeypatch, "source_only", None, *words) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "band" in error

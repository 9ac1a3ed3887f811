"""A training step never waits for a GPU. It is shown on torch's `meta` device, whose tensors have no values: whatever
would have to read one raises an error there. Where there is a GPU, tests/test_cuda.py asks CUDA itself."""
import contextlib
from pathlib import Path

import pytest
import torch
import yaml
from test_pipeline import TINY, toy_world  # noqa: F401 (a fixture)
from torch.utils._python_dispatch import TorchDispatchMode

from model.build import build_model
from model.weights import save_weights
from trainer import checks, prediction
from trainer.loop import Trainer
from trainer.methods import find, known
from trainer.optimisation import Optimisation
from utils.config import load_config

pytestmark = pytest.mark.slow
META = torch.device("meta")


@pytest.fixture(scope="module")
def world(tmp_path_factory, toy_world):  # noqa: F811
    root = tmp_path_factory.mktemp("waits")
    (root / "world").symlink_to(toy_world)
    (root / "tiny.yml").write_text(yaml.safe_dump({**TINY, "tensorboard": False, "val": False, "score_images": 0,
                                                   "init_weight": "start.pth"}))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        save_weights(build_model(load_config("tiny.yml", ["init_weight=None"]), torch.device("cpu"))[0], "start.pth")
        yield root


@pytest.fixture
def trainer(world, monkeypatch):
    """A function that makes a trainer of a method whose tensors are all on a GPU without values."""
    def make(name, *words):
        made = Trainer(load_config("tiny.yml", [f"note={name}", *words], method=name))
        made.device = META
        made.network.to(META)
        made.method = made.new_method(made.samples)
        if made.alpha_bn:
            made.alpha_bn.source = [tuple(t.to(META) for t in pair) for pair in made.alpha_bn.source]
        if made.method.trains:
            made.optimisation = Optimisation(made.cfg, made.network, META)
            made.optimisation._fused = made.optimisation.optimizer._step_supports_amp_scaling = True
        made.folder.release()
        return made
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())  # which knows no such device
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
    monkeypatch.setattr(torch.optim.SGD, "step", lambda *_: None)  # one kernel on a GPU, and none here
    monkeypatch.setattr(checks, "host_copy", lambda found: lambda: torch.zeros(2, dtype=torch.bool))
    return make


def item(count, side=48):
    label = torch.randint(0, 19, (count, side, side)).byte()
    return {"image": torch.zeros(count, side, side, 3, dtype=torch.uint8), "label": label, "name": ["x"] * count}


class Copies(TorchDispatchMode):
    """Counts the copies to the device for which the CPU would wait."""

    def __init__(self):
        super().__init__()
        self.waited = []

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        named = named or {}
        moved = function is torch.ops.aten._to_copy.default and named.get("device") == META
        filled = function is torch.ops.aten.copy_.default and arguments[0].device == META
        source = arguments[filled] if moved or filled else None
        if source is not None and source.device.type == "cpu" and not named.get("non_blocking"):
            self.waited.append(function)
        return function(*arguments, **named)


@pytest.mark.parametrize("name", known())
def test_a_step_of_a_method_waits_for_nothing(trainer, name):
    made = trainer(name, *(["jitter_probability=1", "blur_probability=1"] if name == "mean_teacher" else []))
    for _ in range(2):  # in the first, constants go to the device
        with Copies() as copies:
            found = made.step(item(2 if made.method.trains else 1))
        assert bool(found) == made.method.trains == find(name).trains
    assert copies.waited == []


@pytest.mark.parametrize("batch", [1, 2])
def test_predicting_waits_for_nothing(trainer, monkeypatch, batch):
    """Writing the pictures does, in threads of its own."""
    made, written = trainer("ld"), []
    monkeypatch.setattr(prediction.Background, "submit", lambda self, call, item, *found: written.append(found))
    request = prediction.Request(("world",), Path("out"), ("ids", "confidence"), batch=batch)
    images = prediction.InputImages(made.samples, (128, 64), (1.0,))
    with Copies() as copies:
        failed = prediction._predict(made.network, made.cfg, request, images, None, None, None, 0)
    assert failed == {} and len(written) == len(made.samples) and copies.waited == []
    assert all(part().device == META for found in written for part in found)


@pytest.mark.parametrize("words", [["amp=fp16"], ["bn_source=0.5"], ["fixbn=true"]])
def test_no_key_makes_it_wait(trainer, words):
    made = trainer("ld", *words)
    made.step(item(2))


def test_what_waits_is_seen(trainer, monkeypatch):
    made = trainer("entmin")
    plain = made.method.losses
    monkeypatch.setattr(made.method, "losses", lambda *a: {k: v * v.item() for k, v in plain(*a).items()})
    with pytest.raises(RuntimeError, match="meta"):
        made.step(item(2))
    with Copies() as copies:
        torch.ones(3).to(META), torch.ones(3, device=META).copy_(torch.ones(3)), torch.ones(3).to(META, torch.float64)
        torch.ones(3).to(META, non_blocking=True), torch.ones(3, device=META).clone(), torch.ones(3).to(torch.float64)
    assert len(copies.waited) == 3

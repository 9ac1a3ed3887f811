"""The project from Python: `ldbe.adapt` is run.py with a network given as an object."""
import random
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch import nn

import ldbe
import run as run_script
from ldbe import adapt
from trainer.loop import Trainer
from utils.config import load_config
from utils.errors import ConfigError, TrainingError, UserError

ROOT = Path(__file__).parent.parent
CLASSES = ["road", "car", "sky"]
FAST = {"batch_size": 2, "num_steps": 3, "worker": 0, "tensorboard": False, "quiet": True, "device": "cpu",
        "crop_tgt": 32, "score_images": 2, "candidate_freq": 100}


class Tiny(nn.Module):
    """One scale, one batch norm, three classes."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.BatchNorm2d(6), nn.ReLU())
        self.classifier = nn.Conv2d(6, 3, 1)

    def forward(self, x):
        return {"out": self.classifier(self.features(x))}


@pytest.fixture
def network():
    torch.manual_seed(0)
    return Tiny()


@pytest.fixture
def frames(tmp_path, monkeypatch):
    """A folder of five images, the working directory beside it."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    folder = tmp_path / "frames"
    for name in ("a.png", "b é.jpg", "below/c d.png", "below/#e.png", "f{name}.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (50, 70, 3), dtype=np.uint8)).save(folder / name)
    return folder


def states(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def equal(first, second):
    return first.keys() == second.keys() and all(value.equal(second[name]) for name, value in first.items())


def test_it_gives_back_an_adapted_copy_and_changes_nothing_else(network, frames):
    before, mode = states(network), network.training
    generators = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    result = adapt(network, frames, CLASSES, **FAST)
    assert equal(states(network), before) and network.training == mode
    now = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    assert now[:2] == generators[:2] and now[2].equal(generators[2])
    assert type(result.network) is Tiny and not result.network.training and result.network is not network
    assert result.verdict == result.report["verdict"] and result.why == result.report["why"]
    assert result.scores is None and result.folder is None
    assert [p.name for p in Path.cwd().iterdir()] == ["frames"]
    chosen = result.report["chosen"]
    assert equal(states(result.network), before) == (chosen == "untouched")


def test_it_is_run_py(network, frames):
    """The same weights, bit for bit, as by the script with a function that builds the network."""
    result = adapt(network, frames, CLASSES, folder="here", method="ld", **FAST)
    torch.save({"state_dict": network.state_dict()}, "tiny.pth")
    tree = yaml.safe_load(Path("here/snapshot/mine/ld.yml").read_text())
    tree |= {"model": f"{Path(__file__)}:Tiny", "init_weight": "tiny.pth", "snapshot": "there"}
    Path("mine.yml").write_text(yaml.safe_dump(tree))
    run_script.run(load_config("mine.yml", ["overwrite=true"]))
    for name in ("ld.pth", "ld_chosen.pth"):
        found = torch.load(f"there/mine/{name}", weights_only=True)
        assert equal(found, torch.load(f"here/snapshot/mine/{name}", weights_only=True)), name
    assert equal(states(result.network), found)


def test_a_list_of_files_is_adapted_to(network, frames):
    files = sorted(frames.rglob("*.*"))
    whole = adapt(network, str(frames), 3, folder="whole", **FAST)
    listed = adapt(network, files, 3, folder="listed", **FAST)
    assert equal(states(whole.network), states(listed.network))
    part = adapt(network, files[:2], 3, folder="part", method="bn_adapt", **FAST)
    assert len(Path("part/images.txt").read_text().splitlines()) == 2
    assert part.config.target_data.classes == ("class 0", "class 1", "class 2")


def test_keys_reach_the_run(network, frames):
    rate = {"learning_rate": 0.25, "input_size": (48, 32), "value_range": (0, 255), "entropy_weight": 0.5}
    cfg = adapt(network, frames, CLASSES, method="entmin", **rate, **FAST).config
    assert (cfg.learning_rate, cfg.target_data.input_size, cfg.options["entropy_weight"]) == (0.25, (48, 32), 0.5)
    assert cfg.input_tgt == 32 and cfg.target_data.value_range == (0, 255)


@pytest.mark.parametrize("size, expected", [((70, 50), (64, 64)), ((4000, 3000), (1024, 768)), ((9, 9), (32, 32)),
                                            ((500, 2000), (256, 1024))])
def test_the_size_that_is_not_given(size, expected):
    assert tuple(ldbe._input_size(*size)) == expected


def test_without_candidates_it_gives_the_last_state(network, frames):
    result = adapt(network, frames, CLASSES, folder="here", **{**FAST, "score_images": 0})
    assert (result.verdict, result.why, result.report) == ("", "", None)
    assert equal(states(result.network), torch.load("here/snapshot/mine/ld.pth", weights_only=True))


def test_quiet_prints_nothing_and_else_the_verdict_is_shown(network, frames, capsys):
    adapt(network, frames, CLASSES, **FAST)
    assert capsys.readouterr().out == ""
    adapt(network, frames, CLASSES, **{**FAST, "quiet": False})
    assert "verdict: " in capsys.readouterr().out


def test_a_finished_call_has_nothing_to_resume(network, frames):
    first = adapt(network, frames, CLASSES, folder="here", **FAST)
    with pytest.raises(UserError, match="finished, nothing to resume. Its networks are in here; without resume"):
        adapt(network, frames, CLASSES, folder="here", resume=True, **FAST)
    assert equal(states(adapt(network, frames, CLASSES, folder="here", **FAST).network), states(first.network))


def test_a_compiled_network_is_adapted_by_its_own_names(network, frames):
    compiled = torch.compile(network, backend="eager")
    result = adapt(compiled, frames, CLASSES, folder="here", **FAST)
    plain = adapt(network, frames, CLASSES, **FAST)
    assert equal(states(result.network._orig_mod), states(plain.network))
    assert network.load_state_dict(torch.load("here/snapshot/mine/ld.pth", weights_only=True))


def test_two_calls_at_once_are_refused(network, frames, monkeypatch):
    said = []

    def meanwhile(cfg):
        with pytest.raises(UserError, match="another call runs in this process") as refused:
            adapt(Tiny(), frames, CLASSES, **FAST)
        said.append(refused.value)
        return run(cfg)
    run = run_script.run
    monkeypatch.setattr(run_script, "run", meanwhile)
    adapt(network, frames, CLASSES, **FAST)
    assert len(said) == 1 and len(adapt(network, frames, CLASSES, **FAST).verdict) and len(said) == 2


def test_paths_arrays_and_tensors_are_values(network, frames):
    result = adapt(network, frames, np.int64(3), log=Path("logs"), input_mean=np.array([0.25, 0.5, 0.75]),
                   input_std=torch.full((3,), 0.5), learning_rate=np.float32(0.5), input_size=[np.int64(64), 32],
                   **{**FAST, "num_steps": 1})
    values = result.config.options["input_mean"], result.config.options["input_std"]
    assert values == ((0.25, 0.5, 0.75), (0.5, 0.5, 0.5)) and result.config.learning_rate == 0.5
    assert result.config.target_data.classes == ("class 0", "class 1", "class 2") and Path("logs/mine").is_dir()


@pytest.mark.parametrize("arguments, words", [
    ({"lerning_rate": 1}, "unknown key 'lerning_rate' (did you mean 'learning_rate'?)"),
    ({"batch_size": "many"}, "adapt: batch_size: expected whole number"),
    ({"method": "ldd"}, "no method 'ldd'"),
    ({"method": "source_only"}, "run_so.py"),
    ({"init_weight": "x.pth"}, "init_weight: the run starts from the given network"),
    ({"model": "deeplab"}, "model: the run starts from the given network"),
    ({"images": "nowhere"}, "no folder 'nowhere'"),
    ({"images": []}, "images is an empty list"),
    ({"images": ["nowhere/a.png"]}, "nowhere"),
    ({"images": [np.zeros((4, 4, 3))]}, "images: expected a folder or paths of image files, found ndarray"),
    ({"images": None}, "images: expected a folder or paths of image files, found NoneType"),
    ({"folder": "frames/a.png"}, "folder: 'frames/a.png' is a file"),
    ({"method": UserError}, "method: <class 'utils.errors.UserError'> is no number, text, list or mapping"),
    ({"classes": "sky"}, "classes: expected a list of names or their number, found 'sky'"),
    ({"classes": 4}, "4 classes, but the network gives 3 channels"),
    ({"network": torch.jit.ScriptModule()}, "network is a TorchScript module"),
    ({"network": "tiny.pth"}, "network is a str, expected a torch.nn.Module"),
], ids=lambda value: "-".join(value) if isinstance(value, dict) else "")
def test_bad_input_is_one_error_and_leaves_nothing(network, frames, arguments, words):
    given = {"network": network, "images": frames, "classes": CLASSES, **FAST, **arguments}
    with pytest.raises(UserError, match=re.escape(words)):
        adapt(given.pop("network"), given.pop("images"), given.pop("classes"), **given)
    assert [p.name for p in Path.cwd().iterdir()] == ["frames"] and ldbe._given == []


def test_a_call_that_is_resumed_with_another_network_says_so(network, frames, monkeypatch, capsys):
    words = {**FAST, "folder": "here", "quiet": False}
    with monkeypatch.context() as patch, pytest.raises(TrainingError):
        patch.setattr(Trainer, "save", broken)
        adapt(network, frames, CLASSES, **words)
    warned = "other weights than the one that this run began with"
    assert warned not in capsys.readouterr().out
    with monkeypatch.context() as patch, pytest.raises(TrainingError):
        patch.setattr(Trainer, "save", broken)
        adapt(network, frames, CLASSES, resume=True, **words)
    assert warned not in capsys.readouterr().out
    other = Tiny()
    adapt(other, frames, CLASSES, resume=True, **words)
    assert warned in capsys.readouterr().out


def broken(*_):
    raise TrainingError("broken")


def test_the_saved_configuration_says_that_the_network_was_an_object(network, frames):
    adapt(network, frames, CLASSES, folder="here", **FAST)
    with pytest.raises(ConfigError, match=r"given as an object .ldbe.adapt.: name a function"):
        run_script.run(load_config("here/snapshot/mine/ld.yml", ["overwrite=true"]))


def test_the_lines_of_the_documentation_run(frames, monkeypatch):
    """docs/python.md, with the network of docs/contributing.md."""
    def block(page, name):
        text = (ROOT / "docs" / page).read_text(encoding="utf-8")
        return re.search(rf"```python\n(# {name}\n.*?)```", text, re.DOTALL)[1]
    Path("mynet.py").write_text(block("contributing.md", "mynet.py"))
    lines = block("python.md", "example.py")
    assert len([line for line in lines.splitlines() if line and not line.startswith("#")]) <= 10
    Path("example.py").write_text(lines)
    monkeypatch.syspath_prepend(str(Path.cwd()))
    from mynet import build
    torch.save(build(classes=3).state_dict(), "mynet.pth")
    assert subprocess.run([sys.executable, "example.py"], env={"PYTHONPATH": str(ROOT), "PATH": ""}).returncode == 0
    assert torch.load("adapted.pth").keys() == torch.load("mynet.pth").keys()

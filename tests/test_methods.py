"""Properties of every method: its keys, two rounds of training, its state, its random numbers."""
import io
import math
from pathlib import Path

import pytest
import torch
import yaml
from test_pipeline import TINY, call, toy_world, weights  # noqa: F401 (a fixture)
from tiers import mostly_slow

import run as run_script
from model.build import build_model
from trainer.loop import Trainer
from trainer.methods import find, known
from utils.config import KEYS, config_help, config_remarks, load_config, parse_config, to_yaml
from utils.config_values import UNUSED, Declares, key
from utils.errors import CheckpointError, ConfigError, Stopped, TrainingError

RANDOM = sorted(set(known()) - {"bn_adapt"})  # the others draw random crops


@pytest.fixture(scope="module")
def world(tmp_path_factory, toy_world):  # noqa: F811
    """A folder with a tiny world and the source-only network; the working directory."""
    root = tmp_path_factory.mktemp("methods")
    (root / "world").symlink_to(toy_world)
    (root / "tiny.yml").write_text(yaml.safe_dump({**TINY, "tensorboard": False, "val": False}))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        train("source_only", "init_weight=None", "note=source")
        yield root


def train(name, *words):
    """A finished trainer; two rounds where the method has rounds, else two passes."""
    longer = [] if "round" in find(name).keys or "epochs" not in find(name).keys else ["epochs=2"]
    start = "init_weight=snapshot/source/source_only.pth"
    trainer = Trainer(load_config("tiny.yml", [start, *longer, *words], method=name))
    trainer.run()
    return trainer


@pytest.fixture(scope="module")
def trained(world):
    return {name: train(name) for name in known()}


def same(a, b):
    """Whether two states hold the same bits."""
    if isinstance(a, torch.Tensor):
        return a.equal(b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    return a == b


@pytest.mark.parametrize("name", known())
def test_a_run_has_moved_the_network_and_nothing_is_broken(trained, name):
    before, after = weights("snapshot/source/source_only.pth"), weights(f"snapshot/tiny/{name}.pth")
    assert all(after[k].isfinite().all() for k in after)
    moved = {k for k in before if not before[k].equal(after[k])}
    assert moved & {"bn1.running_mean"} and trained[name].position.global_step >= 4
    assert ("layer1.0.conv1.weight" in moved) == (name != "bn_adapt")
    assert ("layer5.conv2d_list.0.weight" in moved) == (name not in ("bn_adapt", "infomax"))
    if name == "bn_adapt":
        assert all(k.endswith(("running_mean", "running_var", "num_batches_tracked")) for k in moved)


@pytest.mark.parametrize("name", mostly_slow(known(), lambda name: name in ("be", "ld", "mean_teacher", "infomax")))
def test_the_same_seed_gives_the_same_bits_and_another_seed_others(trained, name):
    first, again = weights(f"snapshot/tiny/{name}.pth"), train(name, "note=again").network.state_dict()
    assert same(first, dict(again))
    other = train(name, "note=other", "seed=77").network.state_dict()
    assert same(first, dict(other)) == (name not in RANDOM)


@pytest.mark.parametrize("name", known())
def test_state_survives_a_file_and_another_object(trained, name):
    """The state of `parts` is plain tensors and values, and a new object has all of it after `load_state_dict`."""
    trainer = trained[name]
    file = io.BytesIO()
    torch.save({part: value.state_dict() for part, value in trainer.method.parts().items()}, file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    start = "init_weight=snapshot/source/source_only.pth"
    words = [start] if name != "source_only" else ["init_weight=None"]
    fresh = Trainer(load_config("tiny.yml", [*words, "note=fresh", "overwrite=true"], method=name))
    try:
        parts = fresh.method.parts()
        assert state.keys() == parts.keys()
        for part, value in parts.items():
            value.load_state_dict(state[part])
            assert same(dict(value.state_dict()), dict(state[part]))
    finally:
        fresh.folder.release()


@pytest.mark.parametrize("name", known())
def test_keys_are_in_the_help_and_in_the_saved_configuration(trained, name):
    text, saved = config_help(), yaml.safe_load(Path(f"snapshot/tiny/{name}.yml").read_text())
    for k, declared in find(name).keys.items():
        lines = text.split("\n")
        own = declared.help_line(k).split("\n")
        at = [i + len(own) for i in range(len(lines)) if lines[i:i + len(own)] == own]
        assert any(name in lines[i].partition("of: ")[2].split(", ") for i in at), k
        assert k in saved and saved[k] == trained[name].cfg.options[k]
    others = {k for cls in known().values() for k in cls.keys} - set(find(name).keys)
    assert not others & set(saved)


@pytest.mark.parametrize("name", known())
def test_a_key_of_another_method_gives_one_remark(world, name):
    others = {k: d.default for cls in known().values() for k, d in cls.keys.items() if k not in find(name).keys}
    for k, default in others.items():
        cfg = load_config("tiny.yml", [f"{k}={default}"], method=name)
        lines = [line for line in config_remarks(cfg) if f" {k} (" in line]
        assert len(lines) == 1 and f"no effect on method {name}" in lines[0]
        named = lines[0].partition(f" {k} (of ")[2].partition(")")[0].removesuffix(" and others").split(", ")
        assert named and all(k in find(owner).keys for owner in named)
        assert k not in cfg.options
    assert not [line for line in config_remarks(load_config("tiny.yml", [], method=name)) for k in find(name).keys
                if f" {k} (" in line]


NETWORK = """
import torch
from torch import nn


def build():
    torch.manual_seed(5)  # the weights are the same in every call, as loaded ones are
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.GroupNorm(2, 8), nn.ReLU(), nn.Conv2d(8, 19, 1))
"""


@pytest.mark.parametrize("name", known())
def test_a_users_network_without_batch_norm(world, name):
    """All methods run, except the one that needs a batch norm, which says so."""
    Path("small.py").write_text(NETWORK)
    words = ["model=small.py:build", f"note=small_{name}", "init_weight=None"]
    words += ["conf_thresh=0"] if "conf_thresh" in find(name).keys else []
    if name == "bn_adapt":
        with pytest.raises(ConfigError, match="bn_adapt moves batch-norm statistics, and the network has none"):
            train(name, *words)
        assert not Path(f"snapshot/small_{name}").exists()  # refused before anything is written
        return
    cfg = load_config("tiny.yml", words, method=name)
    torch.manual_seed(cfg.seed)
    before = build_model(cfg, torch.device("cpu"))[0].state_dict()
    after = train(name, *words).network.state_dict()
    moved = {k for k in before if not before[k].equal(after[k])}
    assert before.keys() == after.keys() and moved == {k for k in before if name != "infomax" or not k.startswith("3.")}


def test_a_method_that_refuses_leaves_an_earlier_runs_files_alone(world):
    Path("small.py").write_text(NETWORK)
    train("bn_adapt", "note=earlier")
    before = {p: p.read_bytes() for p in Path(".").rglob("earlier/**/*") if p.is_file()}
    with pytest.raises(ConfigError, match="has none"):
        train("bn_adapt", "note=earlier", "model=small.py:build", "init_weight=None", "overwrite=true")
    assert len(before) >= 4 and {p: p.read_bytes() for p in Path(".").rglob("earlier/**/*") if p.is_file()} == before


METHOD = """
from trainer import losses
from trainer.methods.base import Method
from utils.errors import Stopped


class Mine(Method):
    def losses(self, batch, rng):
        loss = losses.entropy(self.network(batch.images))
        return {returned}

    def after_step(self, batch):
        if {stop} and self.position.global_step:
            raise Stopped("SIGTERM")

    def parts(self):
        return {parts}
"""


def own_method(returned='{"entropy": loss}', stop=False, parts="{}", resume=False):
    """A trainer of a user's method, which may be stopped after a step or resumed."""
    Path("mine.py").write_text(METHOD.format(returned=returned, stop=stop, parts=parts))
    words = ["init_weight=snapshot/source/source_only.pth", "note=mine", "save_freq=1", f"resume={resume}",
             f"overwrite={not resume}"]
    return Trainer(load_config("tiny.yml", words, method="mine.py:Mine"))


def test_wrong_losses_of_a_users_method_are_one_error(world):
    with pytest.raises(TrainingError, match=r"method: mine.py:Mine: losses returned a tensor \[\] of float32"):
        own_method(returned="loss").run()


def test_a_users_method_whose_state_has_changed_is_not_resumed(world):
    with pytest.raises(Stopped):
        own_method(stop=True).run()
    with pytest.raises(CheckpointError, match="holds the parts .*, expected .*, more: method mine.py:Mine has changed"):
        own_method(parts='{"more": self.network}', resume=True).run()
    own_method(resume=True).run()
    assert Path("snapshot/mine/Mine.pth").exists()


def test_a_users_network_whose_shapes_have_changed_is_not_resumed(world):
    words = ["model=mine_net.py:build", "init_weight=None", "note=mine_net", "val=False"]
    fixed = "import torch\n" + NETWORK.replace("():\n", "():\n    torch.manual_seed(0)  # counts as trained\n")
    Path("mine_net.py").write_text(fixed)
    Path("mine.py").write_text(METHOD.format(returned='{"entropy": loss}', stop=True, parts="{}"))
    with pytest.raises(Stopped):
        Trainer(load_config("tiny.yml", words, method="mine.py:Mine")).run()
    Path("mine_net.py").write_text(fixed.replace("3, 2, 1)", "5, 2, 2)"))
    with pytest.raises(CheckpointError, match="resume: .* does not fit .*size mismatch.*mine_net.py:build has changed"):
        Trainer(load_config("tiny.yml", [*words, "resume=True"], method="mine.py:Mine")).run()


def test_a_users_method_without_losses_is_one_error(world):
    Path("mine.py").write_text("from trainer.methods.base import Method\nclass Mine(Method): pass\n")
    words = ["init_weight=snapshot/source/source_only.pth", "note=without", "val=False"]
    with pytest.raises(ConfigError, match="method: Mine has no losses: define losses"):
        Trainer(load_config("tiny.yml", words, method="mine.py:Mine")).run()


def test_methods_have_distinct_titles_and_short_files():
    classes = known()
    assert len({cls.title for cls in classes.values()}) == len(classes)
    assert all(cls.title and cls.__doc__ for cls in classes.values())
    assert all(k not in KEYS for cls in classes.values() for k in cls.keys)
    for name in classes:
        text = Path(__file__).parent.parent.joinpath("trainer", "methods", f"{name}.py").read_text()
        assert text.count("\nclass ") <= 2 and len(text.split("\n")) <= 75


def test_a_method_without_losses_has_no_optimiser(trained, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(torch.optim, "SGD", None)
        train("bn_adapt", "note=plain")
    events = Path("log/tiny/bn_adapt.jsonl").read_text()
    assert '"lr"' not in events and '"loss"' not in events
    assert all(not p.requires_grad or p.grad is None for p in trained["bn_adapt"].network.parameters())


def test_a_key_that_is_unused_in_a_class_is_unused_in_its_subclasses():
    class A(Declares):
        x: int = key(1, "x")
        y: int = key(2, "y")

    class B(A):
        x = UNUSED
        y = 3

    class D(B):
        z: int = key(4, "z")

    class Mixed(D, A):
        pass
    assert {k: d.default for k, d in D.keys.items()} == {"y": 3, "z": 4}
    assert {k: d.default for k, d in Mixed.keys.items()} == {"x": 1, "y": 3, "z": 4}
    assert vars(D({"y": 5, "z": math.pi})) == {"y": 5, "z": math.pi}


def test_an_unknown_method_is_refused_with_the_nearest_name(world):
    with pytest.raises(ConfigError, match="no method 'bnadapt'.*bn_adapt"):
        load_config("tiny.yml", ["method=bnadapt"])


DEFAULTS = """
from collections.abc import Mapping
from trainer.methods.base import Method
from utils.config_values import key

class Mine(Method):
    ratio: float = key(3, "a ratio", low=0)
    names: tuple[str, ...] = key(["yes", "b"], "names")
    weights: Mapping[int, float] = key({1: 2}, "weights")
    needed: str = key(None, "a text that you choose")

class Wrong(Method):
    ratio: float = key(-1, "a ratio", low=0)

class Section(Method):
    gta5: float = key(1, "named as a section")
"""


def test_defaults_of_a_users_keys_are_read_as_yaml_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("defaults.py").write_text(DEFAULTS)
    made = parse_config("needed: text", "c.yml", ["method=defaults.py:Mine"])
    assert made.options["names"] == ("yes", "b") and parse_config(to_yaml(made), "saved.yml") == made
    for name, expected in (("Mine", "needed: missing; set it: a text that you choose"),
                           ("Wrong", "ratio: default: expected number at least 0, found -1"),
                           ("Section", "declares the key 'gta5', which exists already")):
        with pytest.raises(ConfigError, match=expected):
            parse_config("", "c.yml", [f"method=defaults.py:{name}"])


@pytest.mark.parametrize("name", ["batches", "title", "check", "keys"])
def test_a_key_cannot_have_the_name_of_a_hook(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    Path("hook.py").write_text("from trainer.methods.base import Method\nfrom utils.config_values import key\n\n"
                               f"class Mine(Method):\n    {name}: int = key(1, 'a number')\n")
    with pytest.raises(ConfigError, match=f"hook.py, line 4: TypeError: Mine.{name}: .* rename the key"):
        parse_config("", "c.yml", ["method=hook.py:Mine"])


PARTS = """
import torch
from trainer.methods.base import Method

class Named(Method):
    state = {}
    def losses(self, batch, rng):
        return {"mean": self.network(batch.images).mean() + self.bonus}
    def parts(self):
        return {"network": self}
    def state_dict(self):
        return self.state

class Odd(Named):
    state = {"module": torch.nn.ReLU()}
    def parts(self):
        return {"odd": self}
"""


@pytest.mark.parametrize("name, said", [("Named", "parts has 'network', which the saved state has already"),
                                        ("Odd", "the state of its part 'odd' holds more than plain tensors")])
def test_parts_that_could_not_be_restored_are_refused_before_anything_is_written(world, name, said):
    Path("parts.py").write_text(PARTS)
    with pytest.raises(TrainingError, match=f"method: parts.py:{name}: {said}"):
        train(f"parts.py:{name}", "note=parts")
    assert not Path("snapshot/parts").exists()


def test_an_error_in_a_users_method_names_its_line(world, monkeypatch, capsys):
    Path("fails.py").write_text(PARTS.replace('{"network": self}', "{}"))
    assert call(monkeypatch, run_script, "method=fails.py:Named", "init_weight=snapshot/source/source_only.pth") == 2
    error, = capsys.readouterr().err.splitlines()
    assert error.startswith(f"error: {Path('fails.py').resolve()}, line 8: AttributeError: 'Named' object has no")


@pytest.mark.parametrize("name", ["source_only", "be"])
def test_a_users_method_cannot_have_the_name_of_one_that_is_here(world, name):
    Path("named.py").write_text(f"from trainer.methods.base import Method\nclass {name}(Method): pass\n")
    with pytest.raises(ConfigError, match=f"method: named.py:{name}: a method of that name is here already"):
        load_config("tiny.yml", [f"method=named.py:{name}"])


def test_a_file_of_the_same_name_in_another_folder_is_another_method(tmp_path, monkeypatch):
    found = []
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        monkeypatch.chdir(tmp_path / folder)
        Path("mine.py").write_text(f"from trainer.methods.base import Method\n\nclass Mine(Method):\n"
                                   f"    title = {folder!r}\n    def losses(self, batch, rng):\n        return {{}}\n")
        found += [find("mine.py:Mine"), find("mine.py:Mine")]
    assert found[0] is found[1] and found[2] is found[3] and [cls.title for cls in found] == [*"aabb"]

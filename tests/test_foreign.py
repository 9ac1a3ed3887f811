"""Checkpoints of other projects: wrappers, prefixes, heads, inputs, kinds of files. The advice in messages is tried."""
import argparse
import collections
import copy
import datetime
import io
import itertools
import json
import pathlib
import pickle
import random
import re
import struct
import sys
import tarfile
import types
import zipfile

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from safetensors.torch import save_file
from torch import nn

import eval as eval_script
import run as run_script
import run_so as run_so_script
from dataset.toy import write_toy_world
from model.checkpoint_file import read_content
from model.conversion import convert_input, recognise_input, untrained_branches
from model.deeplabv2 import DeepLabV2
from model.foreign import find_network
from model.interface import Interface
from model.networks import DEEPLAB
from model.weights import load_weights, save_weights
from utils.cli import run_stage
from utils.constants import HOUSE_INPUT, INPUTS
from utils.errors import CheckpointError


def net(num_classes=3, layers=(1, 1, 1, 1), width=2, seed=0, **more):
    torch.manual_seed(seed)
    return DeepLabV2(num_classes, layers, width, **more)


STATE = net(seed=1).state_dict()
LEFT = net(seed=2).state_dict()


def under(prefix, state):
    return {prefix + name: tensor for name, tensor in state.items()}


def loads(source, state=STATE, **more):
    """Load into a network of the state's size; every tensor must equal the state's."""
    model = net(state["layer5.conv2d_list.0.weight"].shape[0], width=state["conv1.weight"].shape[0])
    report = load_weights(model, source, **more)
    assert all(tensor.equal(state[name]) for name, tensor in model.state_dict().items())
    assert report.initialised == () and report.loaded == len(state)
    return report


def refusal(source, model=None, **more):
    model = model or net()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(CheckpointError) as error:
        load_weights(model, source, **more)
    assert all(before[name].equal(tensor) for name, tensor in model.state_dict().items())
    assert str(error.value).startswith(str(source).split("#")[0]) and "\n" not in str(error.value)
    return str(error.value)


# ---- wrappers and prefixes -------------------------------------------------------------------------------------------

WRAPPERS = ["state_dict", "model_state_dict", "model", "model_state", "net", "network", "params", "weights", "ema",
            "model_ema", "ema_state_dict", "state_dict_ema", "ema_model", "teacher", "student", "generator", "module",
            "shadow", "params_ema"]
PREFIXES = ["module.", "_orig_mod.", "model.", "net.", "network.", "ema_model.", "teacher.", "generator.", "student."]
LAYERS = [lambda s: {"state_dict": s, "epoch": 3}, lambda s: {"model": s, "best": torch.tensor(0.5)},
          lambda s: {"net": s, "optimizer": {"state": {0: {"momentum_buffer": torch.zeros(2)}}, "param_groups": []}},
          lambda s: {"ema": s, "decay": 0.99, "num_updates": 7},
          lambda s: {"shadow": s, "num_updates": torch.tensor(7)},
          *(lambda s, p=p: under(p, s) if is_flat(s) else {p.rstrip("."): s} for p in (
              "module.", "_orig_mod.", "model.", "ema_model."))]


def is_flat(state):
    return isinstance(next(iter(state.values())), torch.Tensor)


def test_every_stack_of_up_to_three_wrappers_and_prefixes_is_opened():
    state = {name: tensor for name, tensor in STATE.items() if name.startswith(("conv1", "layer1.0.conv1", "layer5"))}
    stacks = [stack for depth in range(4) for stack in itertools.product(LAYERS, repeat=depth)]
    assert len(stacks) == 1 + 9 + 81 + 729
    for stack in stacks:
        content = state
        for layer in stack:
            content = layer(content)
        found = find_network(content, "x.pth").tensors
        assert found.keys() == state.keys() and all(found[k] is state[k] for k in state)


@pytest.mark.parametrize("name", [*WRAPPERS, *PREFIXES])
def test_every_usual_word_is_known(name):
    content = under(name, STATE) if name.endswith(".") else {name: STATE, "epoch": 1}
    assert find_network(content, "x.pth").tensors.keys() == STATE.keys()
    if name != "_orig_mod.":
        assert find_network({name.rstrip(".").title(): STATE}, "x.pth").tensors.keys() == STATE.keys()


def formats(path, content):
    """A content in every format that holds it."""
    torch.save(content, path / "new.pth")
    torch.save(content, path / "old.pth", _use_new_zipfile_serialization=False)
    if is_flat(content):
        save_file(content, path / "x.safetensors")
        save_file(content, path / "named_otherwise.bin", {"format": "pt"})
    return sorted(path.iterdir())


@pytest.mark.parametrize("stack", ["plain", "module._orig_mod.", "state_dict model.", "ema shadow", "net module.",
                                   "model_state_dict state_dict net."])
def test_files_of_every_format_load(tmp_path, stack):
    content = {name.replace("layer1.0", "layer1.0._orig_mod"): t for name, t in STATE.items()}
    for word in reversed(stack.split()):
        content = under(word, content) if word.endswith(".") else content if word == "plain" else {word: content}
    for path in formats(tmp_path, content):
        report = loads(path)
        assert report.dropped == () and report.format == "one head"


def test_what_lies_beside_a_network_does_not_matter_and_is_named(tmp_path):
    optimizer = torch.optim.SGD(net().parameters(), 0.1, 0.9)
    beside = {"optimizer": optimizer.state_dict(), "epoch": 3, "args": argparse.Namespace(lr=0.1),
              "miou": np.float64(3), "classes": ("a", "b"), "rng_state": torch.get_rng_state(),
              "criterion": {"weight": torch.ones(3)},
              "discriminator": nn.Sequential(nn.Conv2d(3, 4, 3)).state_dict(), "model_name": "deeplab"}
    torch.save({"model": STATE, **beside}, tmp_path / "a.pth")
    assert set(loads(tmp_path / "a.pth").dropped) == {"rng_state", "criterion.weight", "discriminator.0.weight",
                                                      "discriminator.0.bias"}
    counters = {"n_averaged": torch.tensor(5), **under("module.", STATE)}  # torch's AveragedModel
    flops = {f"{name.rpartition('.')[0]}.total_ops": torch.zeros(1, dtype=torch.float64) for name in STATE}
    torch.save({**counters, **under("module.", flops), "module.total_params": torch.zeros(1)}, tmp_path / "b.pth")
    assert {"n_averaged", "module.total_params", "module.conv1.total_ops"} <= set(loads(tmp_path / "b.pth").dropped)
    torch.save({**STATE, "best_miou": torch.tensor(45.0), "epoch": 2}, tmp_path / "c.pth")
    assert loads(tmp_path / "c.pth").dropped == ("best_miou",)
    torch.save({"state_dict": {**under("model.", STATE), "criterion.weight": torch.ones(3)}}, tmp_path / "d.pth")
    assert loads(tmp_path / "d.pth").dropped == ("criterion.weight",)
    torch.save({**STATE, "layer7.weight": torch.ones(3)}, tmp_path / "e.pth")
    assert "layer7.weight" in refusal(tmp_path / "e.pth")


SEVERAL = {  # content, and the name of each network in it
    "UniMatch-V2": ({"model": STATE, "model_ema": LEFT, "epoch": 1}, "model", "model_ema"),
    "DAFormer": ({"state_dict": {**under("model.", STATE), **under("ema_model.", LEFT), **under("imnet_model.", {
        k: v for k, v in LEFT.items() if not k.startswith("layer5")})}}, "state_dict.model", "state_dict.ema_model"),
    "DDP of two": ({"student": under("module.", STATE), "teacher": under("module.", LEFT)}, "student", "teacher"),
    "Lightning": ({"state_dict": {**under("net._orig_mod.", STATE), **under("teacher.", LEFT)}}, "net", "teacher"),
    "a name of its own": ({"state_dict": STATE, "my_best": LEFT}, "state_dict", "my_best"),
    "one inside another": ({**STATE, **under("ema_model.", LEFT)}, "", "ema_model"),
    "names with dots": ({"best.model": STATE, "last.model": LEFT}, "best.model", "last"),
    "a list": ([{"model": STATE}, {"model": LEFT}], "0", "1.model"),
}


@pytest.mark.parametrize("name", SEVERAL)
def test_of_several_networks_one_is_to_be_named(tmp_path, name):
    content, first, second = SEVERAL[name]
    torch.save(content, tmp_path / "a#b.pth")
    said = refusal(tmp_path / "a#b.pth")
    assert "several networks" in said and all(word.split(".")[-1] in said for word in (first, second))
    loads(f"{tmp_path}/a#b.pth#{first}", STATE)
    loads(f"{tmp_path}/a#b.pth#{second}", LEFT)
    load_weights(net(), re.search(r"such as (\S+)\.$", said)[1])  # the advice works
    said = refusal(f"{tmp_path}/a#b.pth#nobody")
    assert "nobody" in said and second in said


def test_a_name_asked_of_a_file_with_one_nameless_network(tmp_path):
    torch.save(STATE, tmp_path / "x.pth")
    said = refusal(f"{tmp_path}/x.pth#model")
    assert "'model'" in said
    loads(re.search(r"give (\S+)\.$", said)[1])  # the advice works


@pytest.mark.parametrize("content, words", [
    ({"my_wrapper": STATE, "epoch": 3}, "my_wrapper"), (under("backbone2.", STATE), "backbone2"),
    ({"state_dict": under("odd.", STATE)}, "state_dict.odd"), ([STATE], "0")])
def test_an_unknown_wrapper_is_named_with_what_to_do(tmp_path, content, words):
    torch.save(content, tmp_path / "x.pth")
    said = refusal(tmp_path / "x.pth")
    assert words in said and (not isinstance(content, dict) or next(iter(content)).split(".")[0] in said)
    loads(re.search(r"give (\S+)\.$", said)[1])


def test_names_and_shapes_of_a_file_cannot_stall_the_search():
    deep, wide = {}, {}
    for i in range(2000):
        deep = {"model": deep, "x": [deep, deep]}
        wide[f"w{i}"] = wide
    strange = [{**under("_orig_mod.", STATE), **STATE}, {"a\nb": STATE}, {"\n\x1b[31m": torch.zeros(2)}]
    for content in (deep, wide, {"model": wide}, [[[[]]]] * 99, *strange):
        with pytest.raises(CheckpointError) as error:
            find_network(content, "x.pth")
        assert str(error.value).isprintable()


# ---- heads -----------------------------------------------------------------------------------------------------------

def heads(state, first, second):
    """The state with the heads layer5 and layer6: each the network's own, its double, one on layer3's channels, or
    none."""
    own = {name.removeprefix("layer5."): tensor for name, tensor in state.items() if name.startswith("layer5.")}
    kinds = {"own": own, "double": {k: 2 * v for k, v in own.items()}, None: {},
             "auxiliary": {k: v[:, : v.shape[1] // 2].clone() if v.ndim == 4 else v for k, v in own.items()}}
    return {**{k: v for k, v in state.items() if not k.startswith("layer5.")},
            **under("layer5.", kinds[first]), **under("layer6.", kinds[second])}


@pytest.mark.parametrize("width", [1, 2, 8])
@pytest.mark.parametrize("first, second, dropped", [
    ("own", None, None), (None, "own", None), ("auxiliary", "own", "layer5."), ("own", "double", "layer6.")])
def test_the_head_that_is_evaluated_is_taken(tmp_path, width, first, second, dropped):
    state = net(num_classes=width + 2, width=width).state_dict()
    for wrap in (lambda s: s, lambda s: {"state_dict": under("module.", s)}):
        torch.save(wrap(heads(state, first, second)), tmp_path / "x.pth")
        report = loads(tmp_path / "x.pth", state)
        assert len(report.dropped) == (8 if dropped else 0) and all(k.startswith(dropped) for k in report.dropped)
        assert not dropped or f"not used: {dropped}" in str(report)


def test_the_sum_of_two_heads_on_request(tmp_path):
    """CLAN's evaluation adds the score maps of two heads on the same features."""
    state = net(width=4).state_dict()
    torch.save({"model": heads(state, "own", "double")}, tmp_path / "x.pth")
    torch.save({"model": heads(state, "own", "double")}, tmp_path / "x#1.pth")
    for given in ("x.pth", "x.pth#model", "x#1.pth", "x#1.pth#model"):
        said = str(loads(f"{tmp_path}/{given}", state))
        source = re.search(r"give (\S+)$", said)[1]
        loads(source, {k: 3 * v if k.startswith("layer5") else v for k, v in state.items()})
    torch.save(heads(state, "auxiliary", "own"), tmp_path / "y.pth")
    assert "no two heads" in refusal(f"{tmp_path}/y.pth#layer5+layer6", net(width=4))
    another = {f"layer6.{k}": 5 * v for k, v in net(num_classes=5, width=4).layer5.state_dict().items()}
    torch.save(heads(state, "own", None) | another, tmp_path / "z.pth")
    assert "CLAN" not in str(loads(tmp_path / "z.pth", state))  # a head of other classes cannot be added
    unused = heads(state, "own", "own")
    unused |= {k: 0.01 * torch.randn_like(v) for k, v in unused.items() if k.startswith("layer6")}
    torch.save(unused, tmp_path / "authors.pth")
    assert "CLAN" not in str(loads(tmp_path / "authors.pth", state))


@pytest.mark.parametrize("trained", [1, 2, 3, 4])
def test_untrained_branches_of_two_heads_are_seen_in_their_sum(tmp_path, trained):
    model = net(width=8)
    state = heads(model.state_dict(), "own", "own")
    for name in [n for n in state if n.endswith(".weight") and "conv2d_list" in n]:
        state[name] = 0.01 * torch.randn_like(state[name])
        if int(name.split(".")[2]) < trained:
            state[name] += 0.05
    torch.save(state, tmp_path / "x.pth")
    for source in (tmp_path / "x.pth", f"{tmp_path}/x.pth#layer5+layer6"):
        said = [w for w in load_weights(model, source).warnings if "head_branches" in w]
        assert len(said) == (trained != 4) and all(w.endswith(f"set head_branches={trained}") for w in said)


def start(generator, shape):
    return 0.01 * torch.randn(shape, generator=generator)


@pytest.mark.parametrize("classes, channels, heads_drawn", [(2, 32, 200), (3, 256, 200), (19, 512, 20)])
def test_untrained_branches_are_distinguished_from_trained_ones(classes, channels, heads_drawn):
    """Trained branches share the movement of their centre taps; of the outer ones they may have any part, the later
    ones none where the images are small."""
    generator, shape = torch.Generator().manual_seed(0), (classes, channels, 3, 3)
    for draw in range(heads_drawn):
        assert untrained_branches([start(generator, shape) for _ in range(4)]) == [True] * 4
        size = 10 ** (3 * torch.rand(1, generator=generator).item() - 4)  # of the movement: 1e-4 to 0.1
        movement = size * torch.randn(classes, channels, 1, 1, generator=generator)
        part = torch.rand(4, 3, 3, generator=generator)
        part[2:] *= draw % 2
        part[:, 1, 1] = 1
        branches = untrained_branches([start(generator, shape) + movement * p for p in part])
        assert False not in branches or True not in branches
        movement = 0.06 * torch.randn(classes, channels, 1, 1, generator=generator)
        two = [start(generator, shape) + movement * p for p in part[:2]] + [start(generator, shape) for _ in range(2)]
        assert untrained_branches(two) == [False, False, True, True]
    assert True not in untrained_branches([torch.zeros(shape), torch.ones(shape), 0.02 + start(generator, shape)])


@pytest.mark.parametrize("trained", [1, 2, 3, 4])
@pytest.mark.parametrize("used", [1, 2, 3, 4])
def test_branches_that_do_not_fit_the_key_are_warned_of(tmp_path, trained, used):
    state = dict(STATE)
    for i in range(trained):
        state[f"layer5.conv2d_list.{i}.weight"] = 5 * state[f"layer5.conv2d_list.{i}.weight"]
    torch.save(state, tmp_path / "x.pth")
    said = [w for w in load_weights(net(head_branches=used), tmp_path / "x.pth").warnings if "head_branches" in w]
    assert len(said) == (trained != used) and all(f"set head_branches={trained}" in w for w in said)
    assert load_weights(net(head_branches=trained), tmp_path / "x.pth").facts == load_weights(
        net(head_branches=used), tmp_path / "x.pth").facts


# ---- input conventions -----------------------------------------------------------------------------------------------

def fed(convention, seed=0, width=4, steps=3):
    """A network that has seen smooth random images in a convention: its first layer's statistics are real."""
    model = net(seed=seed, width=width).double()
    generator = torch.Generator().manual_seed(seed)
    model.train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # plain average
    for _ in range(steps):
        small = torch.randint(0, 256, (4, 3, 6, 8), generator=generator).float()
        images = F.interpolate(small, (64, 80), mode="bilinear").permute(0, 2, 3, 1).byte()
        with torch.no_grad():
            model(Interface(convention).prepared(images).double())
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.1
    return model


@pytest.mark.parametrize("given", INPUTS)
@pytest.mark.parametrize("wanted", INPUTS)
@pytest.mark.parametrize("train", [False, True])
def test_a_converted_network_gives_the_originals_logits(given, wanted, train):
    """Zero padding stands for another colour in each convention: the original is given the other's colour there."""
    original, converted = fed(INPUTS[given]), net(width=4).double()
    converted.load_state_dict(convert_input(original.state_dict(), INPUTS[given], INPUTS[wanted]))
    images = torch.randint(0, 256, (2, 40, 48, 3), generator=torch.Generator().manual_seed(5), dtype=torch.uint8)

    def wide(pixels, convention):  # by the definition
        x = (pixels.double() / 255 * convention.maximum).permute(0, 3, 1, 2)
        x = x.flip(1) if convention.order == "bgr" else x
        mean, std = (torch.tensor(v, dtype=torch.float64).view(3, 1, 1) for v in (convention.mean, convention.std))
        return (x - mean) / std
    colour = torch.tensor(INPUTS[wanted].mean, dtype=torch.float64) * 255 / INPUTS[wanted].maximum
    colour = colour.flip(0) if INPUTS[wanted].order == "bgr" else colour
    padded = colour.expand(2, 46, 54, 3).clone()
    padded[:, 3:-3, 3:-3] = images.double()
    original.conv1.padding = (0, 0)
    with torch.no_grad():
        expected = original.train(train).score_map(wide(padded, INPUTS[given]))
        found = converted.train(train).score_map(wide(images, INPUTS[wanted]))
    assert expected.std() > 1e-6 and torch.allclose(found, expected, rtol=1e-9, atol=1e-9 * expected.abs().max())


@pytest.mark.parametrize("convention", INPUTS)
def test_network_input_is_what_the_convention_says(convention):
    rgb = torch.randint(0, 256, (2, 5, 7, 3), dtype=torch.uint8)
    found, c = Interface(INPUTS[convention]).prepared(rgb), INPUTS[convention]
    assert found.dtype == torch.float32 and found.shape == (2, 3, 5, 7) and found.is_contiguous()
    for channel in range(3):
        pixels = rgb[..., 2 - channel if c.order == "bgr" else channel].double() * c.maximum / 255
        expected = (pixels - c.mean[channel]) / c.std[channel]
        assert torch.allclose(found[:, channel].double(), expected, atol=1e-5 * c.maximum)
    assert DEEPLAB.prepared(rgb).equal(Interface(HOUSE_INPUT).prepared(rgb))


@pytest.mark.parametrize("width", [2, 4, 16])
@pytest.mark.parametrize("convention", INPUTS)
def test_inputs_are_told_by_the_first_layers_scale(tmp_path, convention, width):
    for seed in range(3):
        state = fed(INPUTS[convention], seed, width, 1).state_dict()
        assert recognise_input(state) == convention
        for factor in (0.1, 10):  # the weights' own scale does not matter
            scaled = {**state, "conv1.weight": state["conv1.weight"] * factor,
                      "bn1.running_var": state["bn1.running_var"] * factor**2}
            assert recognise_input(scaled) == convention
    torch.save({"state_dict": state}, tmp_path / "x.pth")
    model = net(width=width)
    report = load_weights(model, tmp_path / "x.pth")
    expected = convert_input(state, INPUTS[convention])
    assert report.converted == ("" if convention == "bgr255" else convention)
    assert ("converted from rgb01" in str(report)) == (convention == "rgb01")
    assert all(torch.allclose(expected[k].to(v.dtype), v) for k, v in model.state_dict().items())
    assert recognise_input(model.state_dict()) == "bgr255" and not any("input" in w for w in report.warnings)
    other = next(k for k in INPUTS if k != convention)
    said = load_weights(model, tmp_path / "x.pth", other)  # the key decides, and is contradicted
    assert said.converted == ("rgb01" if other == "rgb01" else "") and f"looks like {convention}" in str(said)


def test_an_unclear_input_is_left_alone_and_said(tmp_path):
    for seed in range(20):
        torch.save(net(seed=seed, width=1 + seed % 5).state_dict(), tmp_path / "x.pth")
        model = net(width=1 + seed % 5, seed=99)
        report = load_weights(model, tmp_path / "x.pth")
        assert report.converted == "" and "set init_input=rgb01" in str(report)
        assert model.conv1.weight.equal(net(seed=seed, width=1 + seed % 5).conv1.weight)
        for value in INPUTS:
            assert load_weights(model, tmp_path / "x.pth", value).warnings == ()


@pytest.mark.parametrize("scale", [1e-8, 1e-3, 1, 1e3, 1e8])
@pytest.mark.parametrize("first", INPUTS)
def test_our_own_files_are_converted_no_second_time_whatever_their_scale(tmp_path, first, scale):
    """Twice by the same key, and by `auto` where the scale would say anything: few steps, dark images."""
    state = fed(INPUTS[first]).state_dict()
    state["bn1.running_var"] *= scale
    torch.save(state, tmp_path / "theirs.pth")
    model, again = net(width=4), net(width=4, seed=7)
    load_weights(model, tmp_path / "theirs.pth", first)
    save_weights(model, tmp_path / "ours.pth")
    for given in ("auto", *INPUTS):
        report = load_weights(again, tmp_path / "ours.pth", given)
        assert report.converted == "" and report.warnings == () and not report.remarkable
        assert all(tensor.equal(model.state_dict()[name]) for name, tensor in again.state_dict().items())
    other = torch.load(tmp_path / "ours.pth", weights_only=True)
    assert net(width=4).load_state_dict(other) and set(other) == set(state)  # a plain state dict as before
    torch.save({"state_dict": dict(other)}, tmp_path / "copied.pth")
    assert load_weights(again, tmp_path / "copied.pth", "rgb01").converted == "rgb01"


@pytest.mark.parametrize("metadata", [
    None, 3, {"": 3}, {"": {"input": ["bgr255"]}}, {"": {"input": "unknown"}}, {"a": {}}, {"": {"version": 1}}])
def test_any_other_metadata_states_nothing(tmp_path, metadata):
    content = net(seed=1).state_dict()
    content._metadata = metadata
    torch.save(content, tmp_path / "x.pth")
    assert "set init_input=rgb01" in str(loads(tmp_path / "x.pth"))


# ---- kinds of files --------------------------------------------------------------------------------------------------

BESIDE = {
    "numpy numbers": [np.float64(3), np.int64(2), np.bool_(True), np.float32(1)],
    "numpy arrays": [np.arange(3), np.array(["a"]), np.array([1, "x"], dtype=object)],
    "numpy types": [np.dtype("f4"), np.float32, np.random.get_state()],
    "arguments": argparse.Namespace(lr=1, path=pathlib.Path("/x")), "a simple namespace": types.SimpleNamespace(a=[1]),
    "paths": [pathlib.Path("/x"), pathlib.PurePosixPath("a"), pathlib.PureWindowsPath("a")],
    "collections": [collections.defaultdict(list, {1: [2]}), collections.deque([1, 2], 3), collections.Counter("aab"),
                    collections.OrderedDict(a=1)],
    "times": [datetime.datetime(2020, 1, 2), datetime.date(2020, 1, 2), datetime.timedelta(1)],
    "builtins": [frozenset([1]), slice(1, 2), range(3), {1}, b"x", 1j, list, float],
    "torch": [torch.__version__, torch.float32, torch.device("cuda"), torch.Size([1])],
}


@pytest.mark.parametrize("name", BESIDE)
@pytest.mark.parametrize("new", [True, False])
def test_harmless_objects_beside_the_weights_do_not_stop_loading(tmp_path, name, new):
    before = set(torch.serialization.get_safe_globals())
    torch.save({"state_dict": STATE, "x": BESIDE[name]}, tmp_path / "x.pth", _use_new_zipfile_serialization=new)
    loads(tmp_path / "x.pth")
    assert set(torch.serialization.get_safe_globals()) == before
    with pytest.raises(pickle.UnpicklingError):  # outside, torch allows what it did
        torch.save({"x": argparse.Namespace()}, tmp_path / "y.pth")
        torch.load(tmp_path / "y.pth", weights_only=True)


class Calls:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("new", [True, False])
@pytest.mark.parametrize("call", [
    lambda ran: Calls(open, ran, "w"), lambda ran: Calls(eval, f"open({ran!r}, 'w')"),
    lambda ran: Calls(getattr, pathlib.Path(ran), "touch"), lambda ran: Calls(pathlib.Path.touch, pathlib.Path(ran)),
    lambda ran: Calls(np.save, ran, 1), lambda ran: Calls(pickle.loads, pickle.dumps(Calls(open, ran, "w"))),
    lambda ran: collections.defaultdict(Calls), lambda ran: Calls(torch.save, 1, ran),
    lambda ran: Calls(collections.namedtuple, "a", "b"), lambda ran: Calls(np.memmap, ran, "u1", "w+", 0, (1,))])
def test_nothing_is_run_for_the_harmless_classes_either(tmp_path, call, new):
    ran = str(tmp_path / "ran")
    torch.save({"state_dict": STATE, "a": argparse.Namespace(x=call(ran))}, tmp_path / "x.pth",
               _use_new_zipfile_serialization=new)
    before = set(torch.serialization.get_safe_globals())
    said = refusal(tmp_path / "x.pth")
    assert "nothing in it was run" in said and "weights_only=False" in said and "trust" in said
    assert not (tmp_path / "ran").exists() and set(torch.serialization.get_safe_globals()) == before


def test_harmless_classes_are_stand_ins(tmp_path, monkeypatch):
    """Not even their own constructors run: a stored object of one leaves no trace of the real class."""
    torch.save({"a": argparse.Namespace(x=1), "b": np.float64(3), "c": pathlib.Path("/x")}, tmp_path / "x.pth")
    content = read_content(tmp_path / "x.pth")
    real = (argparse.Namespace, np.generic, pathlib.PurePath)
    assert content.keys() == {"a", "b", "c"} and not any(isinstance(v, real) for v in content.values())


def test_the_command_in_a_refusal_does_what_it_says(tmp_path, monkeypatch):
    lightning = {"state_dict": STATE, "hyper_parameters": io.StringIO()}
    for name, content in {"whole.pth": net(seed=1), "lightning.ckpt": lightning}.items():
        torch.save(content, tmp_path / name)
        said = refusal(tmp_path / name)
        exec(re.search(r"python -c '(.*)'`", said)[1], {})
        loads(tmp_path / f"{pathlib.Path(name).stem}_plain.pth")


@pytest.mark.filterwarnings("ignore")
def test_a_torchscript_file_is_refused_with_a_command_that_works(tmp_path):
    torch.jit.save(torch.jit.trace(net(seed=1).eval(), torch.zeros(1, 3, 32, 32)), tmp_path / "x.pt")
    said = refusal(tmp_path / "x.pt")
    assert "TorchScript" in said
    exec(re.search(r"python -c '(.*)'`", said)[1], {})
    loads(tmp_path / "x_plain.pth")


def zipped(names):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            archive.writestr(name, b"x")
    return buffer.getvalue()


def tarred():
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("net.pth"))
    return buffer.getvalue()


def arrays():
    buffer = io.BytesIO()
    np.savez(buffer, a=np.zeros(2))
    return buffer.getvalue()


INDEX = json.dumps({"metadata": {}, "weight_map": {"conv1.weight": "model-00001-of-00002.safetensors"}}).encode()
KINDS = {  # file name: (bytes, words of the refusal)
    "lfs.pth": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n", "git-lfs", "git lfs pull"),
    "page.pth": (b"\n<!DOCTYPE html><html><body>Sign in</body></html>", "web page", "download"),
    "page2.pth": ("\ufeff<HTML lang=de>für</HTML>".encode(), "web page"),
    "xml.pth": (b"<?xml version='1.0'?><Error/>", "web"),
    "text.pth": (b"404: Not Found", "404: Not Found"), "yaml.pth": (b"note: a\nround: 2\n", "note: a"),
    "empty.pth": (b"", "empty"), "x.h5": (b"\x89HDF\r\n\x1a\n" + bytes(99), "HDF5", "convert"),
    "renamed.pth": (b"\x89HDF\r\n\x1a\n" + bytes(99), "HDF5"), "a.npz": (arrays(), "NumPy"),
    "b.pth": (arrays(), "NumPy"),
    "c.npy": (b"\x93NUMPY\x01\x00" + bytes(99), "NumPy"),
    "k.keras": (zipped(["config.json", "model.weights.h5"]), "Keras"),
    "m.onnx": (b"\x08\x07\x12\x07pytorch\x1a\x051.8.0", "ONNX"),
    "m.pth": (b"\x08\x07\x12\x07pytorch\x1a\x051.8.0", "ONNX"),
    "t.tflite": (b"\x1c\0\0\0TFL3" + bytes(99), "TensorFlow Lite"), "g.gguf": (b"GGUF\x03\0\0\0", "GGUF"),
    "f.pb": (b"\x0a\x1b\x01\x02" + bytes(99), "TensorFlow"), "n.caffemodel": (b"\x0a\x1bRes" + bytes(99), "Caffe"),
    "z.zip": (zipped(["a/one.pth", "a/two.pth"]), "a/one.pth", "unpack"), "z.pth": (zipped(["net.ckpt"]), "unpack"),
    "z.tar": (tarred(), "tar archive", "unpack"), "z.tar.gz": (b"\x1f\x8b\x08" + bytes(50), "gzip", "unpack"),
    "p.pt2": (zipped(["p/archive_format", "p/models/model.json"]), "torch.export", "state_dict()"),
    "old.pt2": (zipped(["serialized_exported_program.json"]), "torch.export"),
    "s.pt": (zipped(["s/data.pkl", "s/constants.pkl", "s/code/x.py"]), "TorchScript", "torch.jit.load"),
    "model.safetensors.index.json": (INDEX, "several files", "join"), "index.pth": (INDEX, "several files"),
    "model-00001-of-00002.safetensors": (bytes(64), "one part", "join"), "i.png": (b"\x89PNG\r\n\x1a\n", "an image"),
    "short.safetensors": (b"\x10\0\0", "safetensors"),
    "bomb.safetensors": (struct.pack("<Q", 2**40) + b"{" * 9, "safetensors"),
    "bomb.pth": (struct.pack("<Q", 2**40) + b'{"a"', "safetensors"),
    "junk.safetensors": (bytes(range(1, 90)), "safetensors"),
    "plain.pkl": (pickle.dumps({"a": [1]}), "plain.pkl"), "noise.pth": (random.Random(0).randbytes(999), "noise.pth"),
}


@pytest.mark.parametrize("name", KINDS)
def test_other_kinds_of_files_are_refused_by_name(tmp_path, name):
    content, *words = KINDS[name]
    (tmp_path / name).write_bytes(content)
    said = refusal(tmp_path / name)
    assert all(word in said for word in words) and said.isprintable() and said.endswith(".")


def test_folders_and_missing_files_are_said(tmp_path):
    assert "is a folder" in refusal(tmp_path)
    (tmp_path / "__0_0.distcp").touch()
    assert "dcp_to_torch" in refusal(tmp_path)
    assert "no such checkpoint" in refusal(f"{tmp_path}/run#3/net.pth")
    assert "no such checkpoint" in refusal(f"{tmp_path}/gone.pth#model")


def safetensors_of(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


@pytest.mark.parametrize("content", [
    safetensors_of({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}),
    safetensors_of({"a": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 8]}}, bytes(8)),
    safetensors_of({"a": {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}}, bytes(8)),
    safetensors_of({"a": {"dtype": "X9", "shape": [2], "data_offsets": [0, 8]}}, bytes(8)),
    safetensors_of({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 8]}}, bytes(8)),
    safetensors_of({"a": 3}), safetensors_of(b"{" * 1000), safetensors_of(b'{"a": NaN}'), safetensors_of({}),
    safetensors_of({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, bytes(8)) + b"more"])
def test_damaged_safetensors_are_one_line(tmp_path, content):
    (tmp_path / "x.safetensors").write_bytes(content)
    assert refusal(tmp_path / "x.safetensors").isprintable()


def test_safetensors_cut_anywhere_are_refused(tmp_path):
    save_file(STATE, tmp_path / "x.safetensors")
    whole = (tmp_path / "x.safetensors").read_bytes()
    for length in [0, 1, 7, 8, 9, 100, *range(1000, len(whole), len(whole) // 20), len(whole) - 1]:
        (tmp_path / "y.safetensors").write_bytes(whole[:length])
        refusal(tmp_path / "y.safetensors")


# ---- what does not fit -----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("seed", range(12))
def test_a_network_of_another_size_is_told_by_keys_that_then_load_it(tmp_path, seed):
    draw = random.Random(seed)
    def size():
        return {"num_classes": draw.choice([2, 3, 16]), "layers": tuple(draw.choice([1, 2]) for _ in range(4)),
                "width": draw.choice([1, 2, 3])}
    theirs, ours = size(), size()
    ours["width"] += theirs == ours
    state = {k: v for k, v in net(**theirs).state_dict().items() if seed % 2 or not k.endswith("num_batches_tracked")}
    if seed % 3 == 0:
        state = {f"Scale.{k}": v for k, v in state.items()}
        theirs["num_classes"] = ours["num_classes"]  # an initialisation's head is not used
        ours["width"] += theirs == ours
    torch.save({"model": under("module.", state)}, tmp_path / "x.pth")
    said = refusal(tmp_path / "x.pth", net(**ours))
    advised = {k: tuple(map(int, v.strip("[]").split(","))) if "[" in v else int(v)
               for k, v in re.findall(r"(\w+)=(\S+)", said.split(": set ")[1].rstrip("."))}
    assert advised == {k: v for k, v in theirs.items() if v != ours[k]}
    assert len(load_weights(net(**ours | advised), tmp_path / "x.pth").initialised) == (0 if seed % 3 else 8)


def names(text):
    return dict.fromkeys(text.split(), torch.zeros(2))


@pytest.mark.parametrize("content, words", [
    ({k: v for k, v in STATE.items() if not k.startswith("layer5")}, ["no head"]),
    ({k: v for k, v in STATE.items() if not k.startswith("layer5.conv2d_list.3")}, ["no head", "not all of it"]),
    (under("backbone.", {k: v for k, v in STATE.items() if not k.startswith("layer5")}) | names("classifier.4.weight"),
     ["fits nothing", "backbone.conv1.weight", "DeepLabV3"]),
    (names("segformer.encoder.patch_embeddings.0.proj.weight decode_head.classifier.weight"),
     ["fits nothing", "looks like"]),
    (names("transition1.0.0.weight stage2.0.branches.0.0.conv1.weight"), ["fits nothing", "HRNet"]),
    (names("features.0.weight features.2.bias"), ["fits nothing", "VGG"]), (names("a.b c.d"), ["fits nothing", "a.b"]),
    ({**{k: v for k, v in STATE.items() if "conv3" not in k}, "fc.weight": torch.zeros(2, 2)}, ["ResNet-18"]),
    ({k: torch.zeros(2) for k in STATE}, ["fits nothing"]),
    ({**STATE, "conv1.weight": torch.zeros(2, 4, 7, 7)}, ["conv1.weight (2, 4, 7, 7) for (2, 3, 7, 7)"]),
    ({**STATE, "layer2.0.conv2.weight": torch.zeros(1)}, ["layer2.0.conv2.weight"]),
    (heads(STATE, "auxiliary", None), ["layer5.conv2d_list.0.weight"]),
    ({k: v.int() if v.ndim else v for k, v in STATE.items()}, ["int32", "floating-point"])])
def test_what_does_not_fit_is_described(tmp_path, content, words):
    torch.save(content, tmp_path / "x.pth")
    said = refusal(tmp_path / "x.pth")
    assert all(word in said for word in words), said
    has = re.search(r"it has (\d+) classes.*the configuration (\d+)", said)
    assert not has or has[1] != has[2]


@pytest.mark.parametrize("shape", [(), (1,)])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64", "int32", "uint8"])
def test_counters_of_any_type_load(tmp_path, dtype, shape):
    """As `.half()` over a whole state dict leaves them, averages of buffers, and writers without scalars."""
    state = {k: v + 7 if k.endswith("num_batches_tracked") else v for k, v in STATE.items()}
    counters = {k: v.to(getattr(torch, dtype)).reshape(shape) for k, v in state.items() if k.endswith("tracked")}
    torch.save(state | counters, tmp_path / "x.pth")
    loads(tmp_path / "x.pth", state)


def test_half_precision_and_double_files_load(tmp_path):
    small = {**fed(INPUTS["rgb01"], width=2).state_dict()}  # conversion in half precision would lose its small weights
    torch.save({k: v.half() if v.is_floating_point() else v for k, v in small.items()}, tmp_path / "h.pth")
    model = net()
    assert load_weights(model, tmp_path / "h.pth").converted == "rgb01"
    expected = convert_input({k: v.half().double() for k, v in small.items()}, INPUTS["rgb01"])
    assert all(torch.allclose(v.double(), expected[k], rtol=1e-6, atol=0) for k, v in model.state_dict().items())
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        state = {k: v.to(dtype) if v.is_floating_point() else v for k, v in STATE.items()}
        torch.save(state, tmp_path / "x.pth")
        loads(tmp_path / "x.pth", {k: v.float() if v.is_floating_point() else v for k, v in state.items()})


# ---- through the scripts ---------------------------------------------------------------------------------------------

TINY = {"amp": "off",
        "note": "tiny", "layers": [1, 1, 1, 1], "width": 2, "batch_size": 2, "score_images": 1, "worker": 0,
        "screen": False, "round": 1,
        "input_src": 64, "input_tgt": 64, "crop_src": 48, "crop_tgt": 48, "num_steps": 2, "init_weight": "None",
        "device": "cpu", "tensorboard": False, "overwrite": True, "checkpointing": True, "head_branches": 2,
        "gta5": {"data_dir": "world/gta5", "input_size": [128, 64]},
        "cityscapes": {"data_dir": "world/cityscapes", "input_size": [128, 64]}}


def test_the_stages_take_such_files_say_so_and_leave_unused_branches_alone(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_toy_world(tmp_path / "world", seed=5, size=(128, 64), source=2, synthia=1, train=2, val=1)
    (tmp_path / "tiny.yml").write_text(yaml.safe_dump(TINY))
    def stage(script, *words, **fixed):
        monkeypatch.setattr(sys, "argv", ["script", "--config", "tiny.yml", *words])
        return run_stage(script.__doc__, "tiny.yml", script.run, **fixed), capsys.readouterr().out
    def unused(path):
        state = torch.load(path, weights_only=True)
        return {k: v for k, v in state.items() if k.startswith(("layer5.conv2d_list.2", "layer5.conv2d_list.3"))}
    assert stage(run_so_script, method="source_only")[0] == 0
    first = unused("snapshot/tiny/source_only.pth")
    assert all(tensor.any() for tensor in first.values())

    state = torch.load("snapshot/tiny/source_only.pth", weights_only=True)
    for i in range(2):
        state[f"layer5.conv2d_list.{i}.weight"] *= 9
    crst = convert_input(state, INPUTS["bgr255"], INPUTS["rgb01"])
    torch.save({"model": under("module.", crst), "model_ema": under("module.", state), "args": argparse.Namespace()},
               "x.pth")
    for method, weights in (("ld", "x.pth#model"), ("be", "snapshot/tiny/ld.pth")):
        code, said = stage(run_script, f"method={method}", f"init_weight={weights}")
        assert code == 0 and ("converted from rgb01 input" in said) == (method == "ld") and "head_branches" not in said
        assert f"\nweights: {weights}: one head" in said
        last = unused(f"snapshot/tiny/{method}.pth")
        assert all(torch.allclose(last[k], v, rtol=1e-6) for k, v in first.items())

    def scored(*words):
        monkeypatch.setattr(sys, "argv", ["eval.py", "--config", "tiny.yml", *words])
        return eval_script.run(), capsys.readouterr()
    code, printed = scored("x.pth#model", "x.pth#model_ema", "--json", "out.json", "head_branches=4")
    assert code == 0 and printed.err.count("set head_branches=2") == 2
    assert printed.err.count("converted from rgb01") == 1
    first, second = ([s["miou"] for s in scores.values()] for scores in json.loads(
        pathlib.Path("out.json").read_text()).values())
    assert first == pytest.approx(second, abs=1) and max(first) > 0
    code, printed = scored("x.pth")
    assert code == 2 and "several networks" in printed.err and printed.err.count("\n") == 1
    pathlib.Path("lr=0.1").mkdir()  # a folder as experiment managers name them
    pathlib.Path("x.pth").rename("lr=0.1/x.pth")
    code, printed = scored("lr=0.1/x.pth#model", "lr=0.1/x.pth#model_ema", "head_branches=2", "--json", "out.json")
    assert code == 0 and "head_branches" not in printed.err
    assert list(json.loads(pathlib.Path("out.json").read_text())) == ["lr=0.1/x.pth#model", "lr=0.1/x.pth#model_ema"]
    for words in ((), ("init_input=rgb01",)):  # a key that was set for another project's file
        code, printed = scored("snapshot/tiny/source_only.pth", "snapshot/tiny/ld.pth", "snapshot/tiny/be.pth", *words)
        assert code == 0  # no remarks on our own checkpoints, except that the two labels of this world lack classes
        assert [line for line in printed.err.splitlines() if not line.startswith("warning: classes never seen: ")] == []

"""Model folders: every family of networks comes back bit by bit, other programs load them, and a hostile one is
refused in one line and runs nothing."""
import copy
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_networks import CPU, USER, config, images
from test_pipeline import TINY, call
from tiers import mostly_slow

import run as run_script
from dataset.class_sets import described
from dataset.toy import write_toy_world
from model.build import build_model
from model.folder import file_sha256, folder_config, is_folder, read_folder
from model.folder_writing import save_folder
from model.weights import load_weights, read_network, save_weights
from trainer import comparison
from utils.errors import CheckpointError, ConfigError, UserError, one_line

ROOT = Path(__file__).parent.parent
SHAPE = {"depths": [1, 1, 1, 1], "hidden_sizes": [8, 8, 16, 16], "num_attention_heads": [1, 1, 2, 2],
         "decoder_hidden_size": 16}
TINY_DEEPLAB = {"layers": [1, 1, 1, 1], "width": 4}


def keys_of(family, folder):
    """Keys of a small network of each family; what it is made of is written below `folder`."""
    if family == "hf":
        transformers = pytest.importorskip("transformers")
        torch.manual_seed(0)
        made = transformers.SegformerForSemanticSegmentation(transformers.SegformerConfig(**SHAPE, num_labels=7))
        made.save_pretrained(folder / "segformer")
        (folder / "segformer/preprocessor_config.json").write_text(json.dumps({"image_mean": [0.1, 0.2, 0.3]}))
        return {"model": f"hf/{folder}/segformer", "output_channels": [6, 5, 4, 3, 2]}
    (folder / "mynet.py").write_text(USER)
    return {
        "deeplab": {**TINY_DEEPLAB, "head_branches": 2},
        "torchvision": {"model": "torchvision/lraspp_mobilenet_v3_large", "input_order": "bgr"},
        "smp": {"model": "smp/unet:resnet18", "model_args": {"decoder_channels": [16, 8, 8, 4, 4]}},
        "user": {"model": f"{folder}/mynet.py:build", "model_args": {"outputs": 5, "norm": "group"}, "input_max": 255.0,
                 "output_align_corners": True, "size_multiple": 4}}[family]


def network_of(keys):
    """(configuration, network in evaluation mode), whose batch norms have seen images."""
    torch.manual_seed(1)
    cfg = config(**keys)
    network, _ = build_model(cfg, CPU)
    with torch.no_grad():
        for _ in range(20):
            network.train()(torch.randn(2, 3, 64, 64))
    return cfg, network.eval()


def ids(network, x):
    """Predicted classes, of scores without their mean, as an untrained network predicts one class everywhere."""
    with torch.no_grad():
        scores = network(x)
    return (scores - scores.mean((0, 2, 3), keepdim=True)).argmax(1)


FAMILIES = ["smp", "user", "deeplab", "torchvision", "hf"]


@pytest.mark.parametrize("family", mostly_slow(FAMILIES, lambda family: family == "user"))
def test_every_family_comes_back_bit_by_bit_and_as_from_a_pth_file(tmp_path, family):
    keys = keys_of(family, tmp_path)
    cfg, network = network_of(keys)
    save_folder(tmp_path / "net", network, cfg, described(cfg), {"note": "x"})
    save_weights(network, tmp_path / "net.pth")
    trusted = [f"model={keys['model']}"] if family == "user" else []
    shutil.rmtree(tmp_path / "segformer", ignore_errors=True)  # the folder has all that it needs

    found = folder_config(tmp_path / "net", trusted)
    again, report = build_model(found, CPU)
    assert report.loaded == report.total and not report.initialised and not report.warnings
    assert again.interface == network.interface
    assert all(tensor.equal(again.state_dict()[name]) for name, tensor in network.state_dict().items())
    target = found.target_data
    assert (target.input_size, target.classes, target.bands) == ((64, 64), cfg.target_data.classes, 3)
    assert described(found) == described(cfg)

    from_pth = build_model(found, CPU, str(tmp_path / "net.pth"))[0].eval()
    for size in ((65, 47), (33, 97), (64, 64)):
        x = images(2, 3, *size)
        assert ids(again.eval(), x).equal(ids(from_pth, x)) and ids(again, x).equal(ids(network, x))
        assert len(ids(again, x).unique()) > 1

    before = {p: p.read_bytes() for p in (tmp_path / "net").rglob("*") if p.is_file()}
    if family != "hf":  # whose own folder is gone
        save_folder(tmp_path / "net", network, cfg, described(cfg), {"note": "x"})
        assert {p: p.read_bytes() for p in (tmp_path / "net").rglob("*") if p.is_file()} == before


@pytest.mark.parametrize("name", mostly_slow(["unet:resnet18", "fpn:resnet18", "segformer:mit_b0"]))
def test_smp_alone_loads_its_network_with_its_upsampling(tmp_path, name):
    smp = pytest.importorskip("segmentation_models_pytorch")
    cfg, network = network_of({"model": f"smp/{name}"})
    save_folder(tmp_path / "net", network, cfg, described(cfg), {})
    alone, x = smp.from_pretrained(str(tmp_path / "net/smp")).eval(), images(1, 3, 64, 96)
    assert (tmp_path / "net/smp/model.safetensors").samefile(tmp_path / "net/model.safetensors")
    with torch.no_grad():
        assert alone(x).shape == (1, 5, 64, 96)
        torch.testing.assert_close(alone(x), network(x), rtol=1e-4, atol=1e-4)
    os.remove(tmp_path / "net/smp/config.json")  # a file of the same weights stays readable by itself
    assert load_weights(network, tmp_path / "net/smp/model.safetensors").loaded


@pytest.mark.parametrize("all_classes", [True, False])
def test_transformers_alone_loads_its_network_with_the_classes_names(tmp_path, all_classes):
    transformers = pytest.importorskip("transformers")
    keys = keys_of("hf", tmp_path)
    cfg, network = network_of({**keys, "classes": 7, "output_channels": None} if all_classes else keys)
    moved = {k: v + 0.01 if v.is_floating_point() else v for k, v in network.state_dict().items()}
    save_folder(tmp_path / "net", network, cfg, described(cfg), {}, moved)
    alone = transformers.AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "net/transformers").eval()
    assert alone.config.id2label[0] == ("class 0" if all_classes else "LABEL_0")
    assert network.network.config.id2label[0] == "LABEL_0"
    network.load_state_dict(moved)
    x = images(1, 3, 64, 96)
    with torch.no_grad():
        logits = alone(x).logits
        torch.testing.assert_close(logits if all_classes else logits[:, [6, 5, 4, 3, 2]], network.score_map(x))
    assert json.loads((tmp_path / "net/transformers/preprocessor_config.json").read_text()) == {
        "image_mean": [0.1, 0.2, 0.3]}
    assert sorted(p.name for p in (tmp_path / "net").iterdir()) == ["config.json", "model.safetensors", "transformers"]


def test_tied_and_strided_tensors_are_written_under_each_name(tmp_path):
    (tmp_path / "tied.py").write_text("""
import torch
from torch import nn
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 5, 1), nn.Conv2d(3, 5, 1)
        self.b.weight = self.a.weight
        self.register_buffer("part", torch.arange(12.).view(3, 4)[:, 1])
    def forward(self, x):
        return self.a(x) + self.b(x)
""")
    cfg, network = network_of({"model": f"{tmp_path}/tied.py:Net"})
    save_folder(tmp_path / "net", network, cfg, described(cfg), {})
    again, _ = build_model(folder_config(tmp_path / "net", [f"model={tmp_path}/tied.py:Net"]), CPU)
    assert all(tensor.equal(again.state_dict()[name]) for name, tensor in network.state_dict().items())


def test_arguments_that_would_download_are_not_written_and_a_later_network_leaves_no_old_form(tmp_path):
    smp = pytest.importorskip("segmentation_models_pytorch")
    cfg, network = network_of({"model": "smp/unet:resnet18", "model_args": {"encoder_weights": None, "in_channels": 3}})
    save_folder(tmp_path / "net", network, cfg, described(cfg), {})
    assert json.loads((tmp_path / "net/config.json").read_text())["network"]["model_args"] == {"in_channels": 3}
    assert json.loads((tmp_path / "net/smp/config.json").read_text())["encoder_weights"] is None and smp
    cfg, network = network_of(TINY_DEEPLAB)
    save_folder(tmp_path / "net", network, cfg, described(cfg), {})
    assert sorted(p.name for p in (tmp_path / "net").iterdir()) == ["config.json", "model.safetensors"]


# ---- reading what others wrote ---------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def good(tmp_path_factory):
    folder = tmp_path_factory.mktemp("good") / "net"
    cfg, network = network_of(TINY_DEEPLAB)
    save_folder(folder, network, cfg, described(cfg), {"note": "x"})
    return folder


def changed(good, to, *path, value):
    """A copy of the folder `good` with one value in its config.json replaced, or, with `...`, removed."""
    shutil.copytree(good, to, dirs_exist_ok=True)
    content = part = json.loads((good / "config.json").read_text())
    for name in path[:-1]:
        part = part[name]
    if value is ...:
        del part[path[-1]]
    else:
        part[path[-1]] = value
    (to / "config.json").write_text(json.dumps(content))
    return to


def refusal(folder, *words):
    with pytest.raises(UserError) as caught:
        build_model(folder_config(folder, words), CPU)
    text = str(caught.value)
    assert text.endswith(".") and text == one_line(text) and str(folder) in text and len(text) < 1000
    return text


@pytest.mark.parametrize("path, value, said", [
    (("version",), 2, "expected the format 'ldbe-model' of version 1"),
    (("network",), [], "network: expected a mapping"),
    (("network",), ..., "network: expected a mapping"),
    (("network", "model"), "net.py:build", "add model=net.py:build (with the path where it is), or name another"),
    (("network", "model"), "os.path:join", "add model=os.path:join"),
    (("network", "model"), "../net.py:build", "no network that a folder can name"),
    (("network", "model"), "/etc/net.py:build", "no network that a folder can name"),
    (("network", "model"), "hf/../../somewhere", "no network that a folder can name"),
    (("network", "model"), "smp/unet:tu-hf_hub:a/b", "no network that a folder can name"),
    (("network", "model"), ["deeplab"], "network.model: expected a text"),
    (("network", "model"), None, "network.model: expected a text"),
    (("network", "layers"), [10**9] * 4, "layers: expected list of whole number"),
    (("network", "layers"), [999] * 4, "do not belong together"),
    (("network", "width"), 1024, "do not belong together"),
    (("network", "width"), 8, "set width=4"),
    (("network", "num_classes"), 10**400, "num_classes: expected"),
    (("network", "num_classes"), 7, "classes: 5 names for num_classes 7"),
    (("network", "snapshot"), "/tmp", "network has an unknown key 'snapshot'"),
    (("network", "method"), "evil.py:Method", "unknown key 'method'"),
    (("network", "init_input"), "rgb01", "unknown key 'init_input'"),
    (("input", "input_size"), [2**40, 8], "input_size: expected"),
    (("input", "input_size"), ..., "input_size: missing"),
    (("input", "mean"), [0, 0], "input: expected order, maximum, mean and std"),
    (("input", "std"), [1, 1, 0], "input: expected order, maximum, mean and std"),
    (("input", "order"), {"rgb": 1}, "input: expected order, maximum, mean and std"),
    (("input", "bands"), "many", "bands: expected"),
    (("classes",), "road", "classes: expected"),
    (("classes",), ["a\x1b[31m", "b", "c", "d", "e"], "classes: expected"),
    (("palette",), [[1, 2, 300]] * 5, "palette: expected"),
    (("label_ids",), {"7": 99}, "label_ids: 7: 99"),
    (("section",), "target", "section: expected the name of a data set"),
    (("section",), "width", "section: expected the name of a data set"),
    (("section",), "a.b", "section: expected the name of a data set"),
    (("section",), 7, "section: expected the name of a data set"),
    (("section",), "lamb", "section: expected the name of a data set"),
    (("weights", "file"), "../model.safetensors", "weights.file: expected 'model.safetensors'"),
    (("weights", "sha256"), "0" * 64, "their SHA-256 differ"),
    (("weights",), None, "weights: expected a mapping")])
def test_a_config_that_is_wrong_is_refused_in_one_line(good, tmp_path, path, value, said):
    assert said in refusal(changed(good, tmp_path / "net", *path, value=value))


@pytest.mark.parametrize("text, said", [
    ('{"format": "ldbe-model", "version": 1', "cannot be read"),
    ('{"format": "ldbe-model", "format": "ldbe-model"}', "a key is given twice"),
    ('{"format": "ldbe-model", "version": NaN}', "NaN is no number"),
    ('{"format": "ldbe-model", "version": ' + "[" * 100_000 + "]" * 100_000 + "}", "cannot be read"),
    ('{"format": "ldbe-model", "version": ' + "1" * 10_000 + "}", "cannot be read"),
    ('{"format": "ldbe-model", "x": "\\ud800"}', "cannot be read"),
    ('["format": "ldbe-model"]', "cannot be read"),
    ('{"format": "ldbe-model"}' + " " * 2**22, "more than 4194304 bytes"),
    (b'{"format": "ldbe-model", "x": "\xff"}', "cannot be read")])
def test_a_config_that_is_no_json_is_refused_in_one_line(tmp_path, text, said):
    (tmp_path / "config.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    assert is_folder(tmp_path) and said in refusal(tmp_path)


JUNK = st.recursive(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5)
                    | st.sampled_from(["x.py:f", "hf/transformers", "smp/unet:resnet18", "~", "none", "../x"]),
                    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
                    max_leaves=5)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data(), value=JUNK)
def test_any_other_value_anywhere_is_read_or_refused(good, tmp_path_factory, data, value):
    content = part = json.loads((good / "config.json").read_text())
    for _ in range(data.draw(st.integers(0, 2))):
        inner = [v for v in (part.values() if isinstance(part, dict) else part) if isinstance(v, (dict, list)) and v]
        part = data.draw(st.sampled_from(inner)) if inner else part
    part[data.draw(st.sampled_from(list(part) if isinstance(part, dict) else range(len(part))))] = value
    folder = tmp_path_factory.mktemp("fuzz")
    shutil.copy(good / "model.safetensors", folder)
    (folder / "config.json").write_text(json.dumps(content))
    if not is_folder(folder):
        return
    for read in (folder_config, read_folder):
        try:
            read(folder)
        except UserError as error:
            assert one_line(error) == str(error)


@pytest.mark.parametrize("model, args, said", [
    ("smp/unet:resnet18", {"encoder_weights": "imagenet"}, "model_args: 'encoder_weights' is nothing that a folder"),
    ("smp/unet:tu-resnet18", {"checkpoint_path": "/tmp/x.pth"}, "'checkpoint_path' is nothing that a folder"),
    ("torchvision/fcn_resnet50", {"weights_backbone": "DEFAULT"}, "'weights_backbone' is nothing that a folder"),
    ("torchvision/fcn_resnet50", {"weights": "DEFAULT"}, "'weights' is nothing that a folder"),
    ("hf/transformers", {"trust_remote_code": True}, "'trust_remote_code' is nothing that a folder"),
    ("hf/transformers", {"attn_implementation": "someone/kernel"}, "'attn_implementation' is nothing that a folder"),
    ("smp/unet:resnet18", {"decoder_channels": [4096] * 5}, "do not belong together"),
    ("smp/unet:resnet18", "what a program says about itself", "is nothing that a folder")])
def test_arguments_that_run_code_download_or_fill_memory_are_refused(good, tmp_path, model, args, said):
    network = {"model": model, "num_classes": 5, "model_args": args}
    folder = changed(good, tmp_path / "net", "network", value=network)
    assert said in refusal(folder)


TRAP = "open('ran', 'w').close()\nfrom torch import nn\ndef build():\n    return nn.Conv2d(3, 5, 1)\n"
RUNS = """
import os, torch
from model.build import build_model
from model.folder import folder_config
from utils.errors import UserError
for folder, words in (("file", []), ("module", []), ("file", ["model=trap.py:build"])):
    try:
        build_model(folder_config(folder, words), torch.device("cpu"))
    except UserError as error:
        print(os.path.exists("ran"), error)
"""


def test_no_python_is_imported_that_the_command_line_does_not_name(good, tmp_path):
    """Neither a file in or beside the folder nor a module that could be imported from there, in a process of its own.
    The file that is named is run; its network does not fit."""
    for name, model in (("file", "trap.py:build"), ("module", "trap:build")):
        changed(good, tmp_path / name, "network", value={"model": model, "num_classes": 5})
        (tmp_path / name / "trap.py").write_text(TRAP)
    (tmp_path / "trap.py").write_text(TRAP)
    done = subprocess.run([sys.executable, "-c", RUNS], cwd=tmp_path, capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"})
    first, second, third = done.stdout.splitlines()
    assert first.startswith("False file: config.json") and "add model=trap.py:build (" in first
    assert second.startswith("False module: config.json") and "add model=trap:build (" in second
    assert third.startswith("True file: ") and done.stderr == ""


def test_code_in_the_folder_of_transformers_is_not_run(tmp_path, monkeypatch):
    cfg, network = network_of(keys_of("hf", tmp_path))
    save_folder(tmp_path / "net", network, cfg, described(cfg), {})
    inner = tmp_path / "net/transformers"
    content = json.loads((inner / "config.json").read_text())
    content |= {"model_type": "unheard of", "auto_map": {"AutoConfig": "own.Own", "AutoModelForSemanticSegmentation":
                                                         "own.Own"}}
    (inner / "config.json").write_text(json.dumps(content))
    (inner / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Own: pass\n")
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    assert "contains custom" in refusal(tmp_path / "net") and not (tmp_path / "ran").exists()
    for name, value in (("use_pretrained_backbone", True), ("quantization_config", {"quant_method": "x"}),
                        ("attn_implementation", "someone/kernel"), ("backbone", "someone/network"),
                        ("backbone", "hf-hub:someone"), ("backbone_kwargs", {"trust_remote_code": True}),
                        ("model_args", {"checkpoint_path": "x.pth"})):
        told = next(iter(value)) if isinstance(value, dict) and name != "quantization_config" else name
        (inner / "config.json").write_text(json.dumps({**content, "backbone_config": [{name: value}]}))
        assert f"transformers/config.json has {told}=" in refusal(tmp_path / "net")
    (inner / "config.json").write_text(json.dumps({**content, "backbone": "resnet18.a1_in1k"}))
    assert "contains custom" in refusal(tmp_path / "net")  # the name of an architecture fetches nothing


def test_a_half_replaced_folder_is_seen(good, tmp_path, monkeypatch):
    cfg, network = network_of({**TINY_DEEPLAB, "seed": 3})
    shutil.copytree(good, tmp_path / "net")
    before, replace, left = (good / "config.json").read_bytes(), os.replace, [1]

    def cut_off(source, target):
        if not left.pop():
            raise KeyboardInterrupt
        left.append(0)
        replace(source, target)
    monkeypatch.setattr("os.replace", cut_off)
    with torch.no_grad():
        network.network.conv1.weight.add_(1)
    with pytest.raises(KeyboardInterrupt):
        save_folder(tmp_path / "net", network, cfg, described(cfg), {})
    assert (tmp_path / "net/config.json").read_bytes() == before
    assert "their SHA-256 differ" in refusal(tmp_path / "net")
    (tmp_path / "net/model.safetensors").unlink()
    assert "has no model.safetensors" in refusal(tmp_path / "net")
    assert [p.name for p in (tmp_path / "net").iterdir()] == ["config.json"]


def test_broken_weights_are_not_written(tmp_path):
    cfg, network = network_of(TINY_DEEPLAB)
    with torch.no_grad():
        network.network.conv1.weight[0, 0, 0, 0] = float("nan")
    with pytest.raises(CheckpointError, match="not written, conv1.weight hold NaN"):
        save_folder(tmp_path / "net", network, cfg, described(cfg), {})
    assert not (tmp_path / "net").exists()


def test_folders_of_other_libraries_are_kept_apart(good, tmp_path):
    keys = keys_of("hf", tmp_path)
    assert not is_folder(tmp_path / "segformer") and not is_folder(tmp_path) and not is_folder(tmp_path / "gone")
    network = network_of(TINY_DEEPLAB)[1]
    with pytest.raises(CheckpointError, match=r"is a folder of transformers.*model=hf/"):
        load_weights(network, tmp_path / "segformer")
    with pytest.raises(ConfigError, match="is a model folder of this project"):
        build_model(config(model=f"hf/{good}"), CPU)
    (tmp_path / "smp").mkdir()
    (tmp_path / "smp/config.json").write_text('{"_model_class": "Unet"}')
    with pytest.raises(CheckpointError, match="folder of segmentation_models_pytorch"):
        load_weights(network, tmp_path / "smp")
    (tmp_path / "smp/config.json").write_text("{")
    with pytest.raises(CheckpointError, match="is a folder: give the checkpoint file in it"):
        load_weights(network, tmp_path / "smp")
    assert keys


@pytest.mark.parametrize("name", ["none", "~net", "a=b", "net#1", "nét ŋ", "net.pth"])
def test_odd_names_of_folders(good, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(good, name)
    cfg = folder_config(name)
    assert cfg.init_weight == name and build_model(cfg, CPU)[1].loaded == 110
    assert read_network(name).input == "bgr255"


def test_words_go_on_top(good, tmp_path):
    cfg = folder_config(good, ["own.input_size=[32, 16]", "device=cpu", f"init_weight={tmp_path}/x.pth"])
    assert cfg.target_data.input_size == (32, 16) and cfg.init_weight.endswith("x.pth")
    with pytest.raises(ConfigError, match="unknown key 'widht'"):
        folder_config(good, ["widht=8"])


def test_another_input_is_warned_of_and_a_street_network_has_its_label_ids(tmp_path):
    cfg, network = network_of({"model": "smp/unet:resnet18", "input_max": 255})
    save_folder(tmp_path / "net", network, cfg, described(cfg), {})
    network, _ = build_model(config(model="smp/unet:resnet18"), CPU)
    report = load_weights(network, tmp_path / "net")
    assert report.warnings and "trained with rgb 0..255" in report.warnings[0]
    sixteen = described(config(source="gta5", target="cityscapes", classes=16))
    assert sixteen["label_ids"]["7"] == 0 and sixteen["label_ids"]["33"] == 15 and "22" not in sixteen["label_ids"]
    assert len(sixteen["label_ids"]) == len(sixteen["classes"]) == 16 and sixteen["classes"][0] == "road"


# ---- what a run leaves -----------------------------------------------------------------------------------------------

def test_a_stage_leaves_its_folders_from_which_the_next_starts(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_toy_world(tmp_path / "world", seed=5, size=(128, 64), source=1, synthia=0, train=3, val=2)
    tiny = copy.deepcopy({**TINY, "tensorboard": False, "num_steps": 2, "round": 1, "candidate_freq": 1})
    (tmp_path / "tiny.yml").write_text(yaml.safe_dump(tiny))
    cfg, network = network_of({"layers": [1, 1, 1, 1], "width": 8, "classes": 19})
    save_folder("start", network, cfg, described(cfg), {})
    assert call(monkeypatch, run_script, "method=ld", "init_weight=start/", "select_by=last") == 0
    assert "saved snapshot/tiny/ld_chosen.pth and snapshot/tiny/ld_chosen/" in capsys.readouterr().out

    for name in ("ld", "ld_chosen"):
        saved = torch.load(f"snapshot/tiny/{name}.pth", weights_only=True)
        tensors = read_folder(f"snapshot/tiny/{name}")
        assert saved.keys() == tensors.keys() and all(saved[k].equal(v) for k, v in tensors.items())
        content = json.loads(Path(f"snapshot/tiny/{name}/config.json").read_text())
        assert content["classes"][13] == "car" and content["id2label"]["13"] == "car"
        origin, verdict = content["provenance"], json.loads(Path("snapshot/tiny/ld_verdict.json").read_text())
        assert origin["method"] == "ld" and origin["init_weight"] == "start/"
        assert origin["init_weight_sha256"] == file_sha256("start/model.safetensors")
        assert origin["verdict"] == {k: verdict[k] for k in ("verdict", "why", "chosen", "last")}
        assert origin["data"]["images"] == 3 and origin["versions"]["torch"] == torch.__version__
        step = next(c["step"] for c in verdict["candidates"] if c["name"] == verdict["chosen"])
        assert origin["step"] == (step if "chosen" in name else content["provenance"]["step"])
        assert str(tmp_path) not in json.dumps(content)
    assert comparison.headings(["snapshot/tiny/ld/", "snapshot/tiny/ld_chosen"]) == comparison.headings(
        ["snapshot/tiny/ld.pth", "snapshot/tiny/ld_chosen.pth"])
    cfg = folder_config("snapshot/tiny/ld", ["device=cpu", "screen=false"])
    assert build_model(cfg, CPU)[0].num_classes == 19

    assert call(monkeypatch, run_script, "method=ld", "init_weight=start", "model_folder=false") == 0
    assert "ld/" not in capsys.readouterr().out and sorted(p.name for p in Path("snapshot/tiny").iterdir()) == [
        ".lock", "ld.pth", "ld.state", "ld.yml", "ld_chosen.pth", "ld_verdict.json"]


def test_a_resumed_run_names_the_weights_that_it_began_with(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_toy_world(tmp_path / "world", seed=5, size=(128, 64), source=1, synthia=0, train=3, val=2)
    tiny = copy.deepcopy({**TINY, "tensorboard": False, "val": False, "round": 1, "score_images": 0, "save_freq": 1})
    (tmp_path / "tiny.yml").write_text(yaml.safe_dump(tiny))
    save_weights(network_of({"layers": [1, 1, 1, 1], "width": 8, "classes": 19})[1], "start.pth")
    began = file_sha256("start.pth")
    monkeypatch.setattr("trainer.loop.Trainer.save", lambda self: os.kill(os.getpid(), 15) or self.interrupt.check())
    assert call(monkeypatch, run_script, "method=entmin", "init_weight=start.pth") == 75
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    Path("start.pth").write_bytes(b"")
    assert call(monkeypatch, run_script, "method=entmin", "init_weight=start.pth", "--resume") == 0
    found = json.loads(Path("snapshot/tiny/entmin/config.json").read_text())["provenance"]
    assert found["init_weight_sha256"] == began and found["verdict"] is None


def test_the_examples_of_the_page_run(tmp_path, monkeypatch):
    """The Python of docs/checkpoints.md, on folders of the names that it uses."""
    from PIL import Image
    examples = re.findall(r"```python\n(.*?)```", (ROOT / "docs/checkpoints.md").read_text(encoding="utf-8"), re.S)
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (90, 50), (10, 200, 30)).save("photo.jpg")
    expected = []
    for name, keys in (("mine", TINY_DEEPLAB), ("unet", {"model": "smp/fpn:resnet18"})):
        cfg, network = network_of(keys)
        save_folder(f"snapshot/{name}/ld_chosen", network, cfg, described(cfg), {})
        expected.append(network)
    assert len(examples) == 2
    for code, network in zip(examples, expected):
        scope = {}
        exec(code, scope)
        assert scope["ids"].shape == (50, 90)
        pixels = torch.tensor(np.array(Image.open("photo.jpg").resize((64, 64))))[None]
        with torch.no_grad():
            theirs = network(network.prepare(pixels), (50, 90)).argmax(1)[0]
        assert (scope["ids"] == theirs).float().mean() > 0.99

"""`python -m model.weights`: what it says of a checkpoint, what it writes, and that nothing is lost on the way."""
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from test_foreign import fed
from test_networks import CPU, USER, config

from model import weights_command
from model.build import build_model
from model.conversion import LAYOUTS, convert, in_layout
from model.folder import folder_config, read_folder
from model.networks import deeplab
from model.weights import read_network, save_weights
from utils.constants import INPUTS
from utils.errors import CheckpointError

ROOT = Path(__file__).parent.parent


@pytest.fixture
def ours(tmp_path, monkeypatch):
    """A folder with net.pth, a DeepLabV2 of 19 classes, as the working directory; its state dict."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    network = deeplab(19, (1, 1, 2, 1), 4)
    for name, buffer in network.named_buffers():
        buffer.add_(7) if name.endswith("tracked") else buffer.uniform_(0.5, 1.5)
    save_weights(network, "net.pth")
    return network.state_dict()


def run(capsys, *words):
    """(exit code, lines of stdout, stderr)"""
    code = weights_command.run(list(words))
    said = capsys.readouterr()
    return code, said.out.splitlines(), said.err


def equal(first, second):
    return first.keys() == second.keys() and all(
        first[k].dtype == second[k].dtype and first[k].equal(second[k]) for k in first)


def test_what_is_said_of_a_file(ours, capsys):
    code, lines, err = run(capsys, "net.pth")
    assert code == 0 and err == "" and os.listdir() == ["net.pth"]
    numbers = sum(tensor.numel() for tensor in ours.values())
    assert lines[0].startswith(f"net.pth: PyTorch file, 128 tensors (108 float32, 20 int64), {numbers:,} numbers")
    assert lines[1:4] == ["network: deeplab, num_classes=19 layers=[1,1,2,1] width=4", "input: bgr255 (stated)",
                          "head branches: untrained, untrained, untrained, untrained"]
    assert lines[-1] == "loaded: one head, 128 of 128 tensors loaded"


@pytest.mark.parametrize("given, said", [("rgb01", "input: rgb01 (recognised by the first layer), converted to bgr255"),
                                         ("bgr255", "input: bgr255 (recognised by the first layer)"),
                                         (None, "input: bgr255 (assumed)")])
def test_the_input_of_a_file_that_states_none(ours, capsys, given, said):
    torch.save(fed(INPUTS[given]).state_dict() if given else dict(ours), "other.pth")
    code, lines, _ = run(capsys, "other.pth")
    assert code == 0 and said in lines
    assert any(line.startswith("warning: the scale of its first layer does not tell") for line in lines) == (not given)


def test_what_would_be_dropped_and_which_branches_look_trained(ours, capsys):
    state = {**ours, "layer6.x": torch.zeros(3), **{k.replace("layer5", "layer6"): v for k, v in ours.items()
                                                    if "layer5" in k}}
    for name in ("layer5.conv2d_list.0.weight", "layer5.conv2d_list.1.weight"):
        state[name] = state[name] + torch.randn_like(state[name])
    torch.save({"state_dict": state, "epoch": 3}, "field.pth")
    code, lines, _ = run(capsys, "field.pth")
    assert code == 0 and "head branches: trained, trained, untrained, untrained" in lines
    assert any("not used: layer6." in line and "two heads from state_dict" in line for line in lines)
    assert any("set head_branches=2" in line for line in lines)


@pytest.mark.parametrize("names", LAYOUTS)
@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
def test_into_the_fields_names_and_back_is_bit_by_bit(ours, capsys, names, ending):
    assert run(capsys, "net.pth", f"field{ending}", "--names", names)[0] == 0
    assert run(capsys, f"field{ending}", "back.pth")[0] == 0
    assert equal(torch.load("back.pth", weights_only=True), ours)
    assert read_network(f"field{ending}").input == "bgr255"
    before = Path(f"field{ending}").read_bytes()
    assert run(capsys, "net.pth", f"again{ending}", "--names", names)[0] == 0
    if ending == ".safetensors":
        assert equal(read_network("again.safetensors").tensors, read_network(f"field{ending}").tensors)
    else:
        assert names == "own" or not before.startswith(b"PK")  # which PyTorch before 1.6 cannot read


@pytest.mark.parametrize("names, kind, heads", [
    ("own", "one head", {"layer5": 128}), ("authors", "two heads", {"layer5": 128, "layer6": 128}),
    ("advent", "single-level, head layer6", {"layer6": 128}),
    ("multi-level", "multi-level, head layer6 (layer5 is auxiliary)", {"layer5": 64, "layer6": 128})])
def test_the_layouts_are_those_of_the_field(ours, names, kind, heads):
    found = in_layout(ours, names)
    assert convert(found)[0] == kind
    weights = {k.split(".")[0]: v for k, v in found.items() if k.endswith("conv2d_list.0.weight")}
    assert {head: tuple(weight.shape) for head, weight in weights.items()} == {
        head: (19, channels, 3, 3) for head, channels in heads.items()}
    assert equal(in_layout(ours, names), found)  # the unused head is drawn alike
    backbone = {k: v for k, v in ours.items() if not k.startswith("layer5.")}
    assert equal({k: found[k] for k in backbone}, backbone)


def test_from_file_to_folder_to_safetensors_to_file(ours, capsys):
    for source, out in (("net.pth", "net/"), ("net/", "net.safetensors"), ("net.safetensors", "net2"),
                        ("net2", "last.pt")):
        code, lines, err = run(capsys, source, out)
        assert code == 0 and err == "" and lines[-1] == f"written: {out}"
        assert any("assumed: images of 1024 x 512 pixels" in line for line in lines) == (out == "net/" or out == "net2")
    assert equal(torch.load("last.pt", weights_only=True), ours) and equal(
        read_folder("net2"), {k: ours[k] for k in read_folder("net2")})
    cfg = folder_config("net2")
    assert cfg.target_data.classes[:2] == ("road", "sidewalk") and cfg.target_data.input_size == (1024, 512)
    assert cfg.options["layers"] == (1, 1, 2, 1) and cfg.target_data.label_ids[7] == 0
    code, lines, _ = run(capsys, "net/")
    assert lines[0].startswith("net/: model folder, 128 tensors") and "classes: road, sidewalk" in "\n".join(lines)
    assert lines[-1].startswith("converted_from: {'file': 'net.pth', 'sha256': '")


def test_the_classes_of_a_configuration_and_of_none(ours, capsys):
    save_weights(deeplab(3, (1, 1, 1, 1), 2), "three.pth")
    assert run(capsys, "three.pth", "three/")[0] == 0
    assert folder_config("three").target_data.classes == ("class 0", "class 1", "class 2")
    section = {"type": "folder", "data_dir": "x", "images": "{split}", "input_size": [64, 32],
               "classes": ["a", "b", "c"]}
    Path("mine.yml").write_text(yaml.safe_dump({"source": "mine", "target": "mine", "num_classes": 3, "width": 2,
                                                "layers": [1, 1, 1, 1], "mine": section}))
    assert run(capsys, "three.pth", "mine/", "--config", "mine.yml", "mine.input_size=[96, 64]")[0] == 0
    found = folder_config("mine").target_data
    assert found.classes == ("a", "b", "c") and found.input_size == (96, 64)
    assert run(capsys, "mine/", "copy/")[0] == 0 and folder_config("copy").target_data.classes == ("a", "b", "c")


@pytest.mark.parametrize("words", [("model=torchvision/lraspp_mobilenet_v3_large",), ("model=net.py:build",
                                                                                     "model_args={outputs: 5}")])
def test_other_networks_by_words(tmp_path, monkeypatch, capsys, words):
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(USER)
    network, _ = build_model(config(*words, "input_order=bgr"), CPU)
    save_weights(network, "net.pth")
    assert run(capsys, "net.pth", "net.safetensors", *words, "num_classes=5", "input_order=bgr")[0] == 0
    assert run(capsys, "net.safetensors", "net/", *words, "num_classes=5", "input_order=bgr")[0] == 0
    trusted = words[:1] if "py:" in words[0] else ()
    assert run(capsys, "net", "back.pth", *trusted)[0] == 0
    assert equal(torch.load("back.pth", weights_only=True), network.state_dict())
    assert read_network("net.safetensors", {*network.state_dict()}).input == read_network(
        "back.pth", {*network.state_dict()}).input == network.interface.input


def test_nothing_is_overwritten_unasked(ours, capsys):
    Path("old.pth").write_text("precious")
    code, lines, err = run(capsys, "net.pth", "old.pth")
    assert code == 2 and "old.pth: is there already: add --overwrite" in err and lines == []
    assert Path("old.pth").read_text() == "precious"
    assert run(capsys, "net.pth", "old.pth", "--overwrite")[0] == 0
    assert equal(torch.load("old.pth", weights_only=True), ours)
    assert run(capsys, "net.pth", "net.pth", "--overwrite")[0] == 0  # onto itself
    assert equal(torch.load("net.pth", weights_only=True), ours)
    Path("empty").mkdir()
    assert run(capsys, "net.pth", "empty")[0] == 0
    assert "add --overwrite" in run(capsys, "net.pth", "empty")[2]
    assert run(capsys, "net.pth", "empty", "--overwrite")[0] == 0
    assert sorted(os.listdir("empty")) == ["config.json", "model.safetensors"]


@pytest.mark.parametrize("words, said", [
    (("gone.pth",), "gone.pth: no such checkpoint"),
    (("net.pth", "out.onnx"), "out.onnx: expected a name that ends in .pth, .pt or .safetensors"),
    (("net.pth", "full"), "full: is a folder with other files"),
    (("net.pth", "full", "--overwrite"), "full: is a folder with other files"),
    (("net.pth", "full.pth"), "full.pth: is a folder"),
    (("net.pth", "plain"), "plain: is a file"),
    (("net.pth", "x/", "--names", "advent"), "--names: advent is for files of a DeepLabV2"),
    (("net.pth", "x.pth", "num_classes=7"), "set num_classes=19"),
    (("net.pth", "x.pth", "widht=7"), "unknown key 'widht'"),
    (("caffe.pth", "x.pth"), "caffe.pth: not converted: layer5.conv2d_list.0.weight"),
    (("other.pth",), "or name its network, by --config FILE or by words"),
    (("net.pth", "x.pth", "model=smp/unet:resnet18"), "fits nothing of the network"),
    (("net.pth", "a.pth", "b.pth"), "expected IN or IN and OUT, found 3 names"),
    (("net.pth", "plain/x.pth"), "plain/x.pth: cannot be written")])
def test_what_is_wrong_is_one_line_and_nothing_is_written(ours, capsys, words, said):
    Path("full").mkdir()
    Path("full/file").write_text("")
    Path("full.pth").mkdir()
    Path("plain").write_text("")
    torch.save({f"Scale.{k}": v for k, v in ours.items() if "tracked" not in k}, "caffe.pth")
    torch.save({"encoder.a": torch.zeros(3)}, "other.pth")
    before = sorted(Path().rglob("*"))
    try:
        code, _, err = run(capsys, *words)
    except SystemExit as done:
        code, err = done.code, capsys.readouterr().err
    assert code == 2 and said in err and err.startswith("error: ") and err.count("\n") == 1
    assert sorted(Path().rglob("*")) == before


def test_the_module_runs_as_a_program(ours):
    def call(*words):
        return subprocess.run([sys.executable, "-m", "model.weights", *words], capture_output=True, text=True,
                              env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"})
    done = call("net.pth", "é ö.safetensors")
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.endswith("written: é ö.safetensors\n")
    with pytest.raises(CheckpointError):
        read_network("é ö")
    assert equal(read_network("é ö.safetensors").tensors, {k: ours[k] for k in sorted(
        ours, key=list(read_network("é ö.safetensors").tensors).index)})


@pytest.mark.parametrize("stated", ["", "rgb02", "[]", "{\"order\": \"bgr\"}", "{", "7", "\"bgr255\""])
def test_any_other_metadata_of_safetensors_states_nothing(ours, stated):
    import safetensors.torch
    safetensors.torch.save_file({k: v.contiguous() for k, v in ours.items()}, "x.safetensors", {"input": stated})
    assert read_network("x.safetensors").input == ("bgr255" if "bgr255" in stated else "")
    assert json.dumps(stated)

"""One network, handed over in every form: a stage's .pth file, its folder, ONNX and torch.export predict the same."""
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
import yaml
from PIL import Image

import eval as eval_script
import export as export_script
import predict as predict_script
import run as run_script
from model.build import build_model
from utils.config import load_config

SIZES = ((45, 67), (33, 91), (64, 40))  # (height, width)
NETWORKS = {
    "deeplab": {"model": "deeplab", "layers": [1, 1, 1, 1], "width": 8, "init_input": "bgr255"},
    "smp": {"model": "smp/unet:resnet18", "input_mean": [0.4, 0.5, 0.6], "input_std": [0.2, 0.2, 0.3],
            "model_args": {"decoder_channels": [16, 16, 8, 8, 8], "decoder_use_norm": False}},
    "torchvision": {"model": "torchvision/lraspp_mobilenet_v3_large"},
}
TINY = {"amp": "off",
        "note": "golden", "method": "bn_adapt", "source": "mine", "target": "mine", "num_classes": 4, "worker": 0,
        "screen": False, "device": "cpu", "tensorboard": False, "score_images": 1, "init_weight": "start.pth",
        "mine": {"type": "folder", "data_dir": "shots", "images": ".", "classes": ["a", "b", "c", "d"],
                 "input_size": [64, 48]}}


@pytest.fixture(scope="module", params=[pytest.param(name, marks=pytest.mark.slow) for name in NETWORKS])
def world(request, tmp_path_factory):
    """A folder after a run of bn_adapt on images of odd sizes, and the export of its last state."""
    rng, folder = np.random.default_rng(0), tmp_path_factory.mktemp("golden")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        Path("shots").mkdir()
        for height, width in SIZES:
            coarse = rng.integers(0, 256, (-(-height // 8), -(-width // 8), 3), dtype=np.uint8)
            Image.fromarray(coarse.repeat(8, 0).repeat(8, 1)[:height, :width]).save(f"shots/{width}x{height}.png")
        Path("tiny.yml").write_text(yaml.safe_dump({**TINY, **NETWORKS[request.param]}))
        torch.manual_seed(0)
        network, _ = build_model(load_config("tiny.yml", ["init_weight=None"]), torch.device("cpu"))
        for parameter in list(network.parameters())[-2:]:
            torch.nn.init.normal_(parameter, std=0.5)  # it predicts several classes
        torch.save(network.state_dict(), "start.pth")
        run_script.run(load_config("tiny.yml"))
        for ending in ("onnx", "pt2"):
            assert script(patch, export_script, "--checkpoint", "snapshot/golden/bn_adapt", "--output",
                          f"net.{ending}", "--with-preprocessing") == 0
    return folder


@pytest.fixture
def handed_over(world, monkeypatch):
    monkeypatch.chdir(world)


def script(monkeypatch, module, *words):
    monkeypatch.setattr(sys, "argv", [f"{module.__name__}.py", *words])
    return module.run()


def ids_by(monkeypatch, name, *words):
    """Class ids of all images by predict.py, each seen at its own size: {file name: uint8 [H, W]}."""
    for height, width in SIZES:
        assert script(monkeypatch, predict_script, *words, "--input", f"shots/{width}x{height}.png", "--output",
                      f"{name}-{width}", "--size", str(width), str(height)) == 0
    return {path.name: np.asarray(Image.open(path)) for path in Path().glob(f"{name}-*/ids/*.png")}


def test_every_form_predicts_the_same(handed_over, monkeypatch):
    own = ids_by(monkeypatch, "pth", "--config", "tiny.yml", "--checkpoint", "snapshot/golden/bn_adapt.pth")
    assert len(own) == len(SIZES) and len({int(i) for ids in own.values() for i in np.unique(ids)}) > 1
    folder = ids_by(monkeypatch, "folder", "--checkpoint", "snapshot/golden/bn_adapt")
    assert own.keys() == folder.keys() and all((own[name] == folder[name]).all() for name in own)
    onnx = onnxruntime.InferenceSession("net.onnx", providers=["CPUExecutionProvider"])
    program = torch.export.load("net.pt2").module()
    for name, ids in own.items():
        pixels = np.array(Image.open(f"shots/{name}"))[None]
        # The exporters round in other orders, so that ids may differ where two classes are as good as equal.
        for found in (onnx.run(None, {onnx.get_inputs()[0].name: pixels})[0], program(torch.from_numpy(pixels))):
            assert tuple(found.shape) == (1, *ids.shape) and np.mean(np.asarray(found)[0] != ids) <= 0.001, name


def test_the_folder_is_taken_wherever_the_file_is(handed_over, monkeypatch, capsys):
    words = ("--config", "tiny.yml")
    again = [load_config("tiny.yml", [f"init_weight=snapshot/golden/bn_adapt{ending}", f"note={note}"])
             for note, ending in (("file", ".pth"), ("folder", ""))]
    for cfg in again:
        run_script.run(cfg)
    states = [torch.load(f"snapshot/{cfg.note}/bn_adapt.pth", weights_only=True) for cfg in again]
    assert states[0].keys() == states[1].keys() and all(v.equal(states[1][k]) for k, v in states[0].items())
    assert script(monkeypatch, eval_script, *words, "snapshot/golden/bn_adapt") == 2  # no labels: the usual error
    assert "labels" in capsys.readouterr().err

"""Files for other programs: what ONNX and torch.export files compute, say of themselves, and when there is none."""
import copy
import hashlib
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from PIL import Image

import export as export_script
from model import exporters
from model.build import build_model
from model.export import ENDINGS, Form, deviation, export, provenance
from model.exporters import ExportError
from model.interface import Interface
from model.segmenter import Segmenter
from trainer import evaluate
from utils.config import parse_config
from utils.constants import INPUTS, InputConvention
from utils.errors import ConfigError

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
CPU = torch.device("cpu")
PAGE = Path(__file__).parent.parent / "docs/export.md"
SIZES = ((1, 45, 67), (3, 96, 33), (2, 64, 48), (1, 31, 64))  # batch, height, width

USER = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, outputs=5, bands=3):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(bands, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout2d(0.2))
        self.last = nn.Conv2d(8, outputs, 1)

    def forward(self, x):
        return {"logits": self.last(self.body(x))}

class Branching(Net):
    def forward(self, x):
        if x.mean() > 0:
            x = -x
        return super().forward(x)

class OneSize(Net):
    def forward(self, x):
        return super().forward(x + float(x.shape[2]) / 100)

class BySize(Net):
    def forward(self, x):
        return super().forward(x if x.shape[3] > 200 else -x)

class Loud(Net):
    def forward(self, x):
        print("loud")
        return super().forward(x)

class Random(Net):
    def forward(self, x):
        return super().forward(x + torch.randn(1))

class Multiples(Net):
    def forward(self, x):
        assert x.shape[2] % 16 == 0 and x.shape[3] % 16 == 0, "no multiple"
        return super().forward(x)
"""


def config(*words, classes=5, **keys):
    names = [f"class {i}" for i in range(classes)]
    section = {"type": "folder", "data_dir": "x", "input_size": [64, 48], "images": "{name}.png", "classes": names}
    tree = {"method": "source_only", "source": "own", "target": "own", "num_classes": classes, "own": section, **keys}
    return parse_config(json.dumps(tree), "c.yml", words)


def recognisable(network):
    """The network with statistics and weights such that its classes are mixed."""
    drawn = torch.Generator().manual_seed(1)
    for name, tensor in network.state_dict().items():
        if "running" in name:
            tensor.uniform_(0.5, 1.5, generator=drawn)
        elif name == "last.bias":
            tensor.copy_(0.01 * torch.arange(len(tensor)))
        elif tensor.ndim > 1:
            tensor.normal_(0, 0.3 if len(network.state_dict()) < 10 else 0.1, generator=drawn)
    return network


def build(**keys):
    torch.manual_seed(0)
    return recognisable(build_model(config(**keys), CPU)[0].eval())


@pytest.fixture
def mine(tmp_path, monkeypatch):
    (tmp_path / "mynet.py").write_text(USER)
    monkeypatch.chdir(tmp_path)
    return tmp_path


NETWORKS = {
    "deeplab": {"layers": [1, 1, 1, 1], "width": 4},
    "padded, chosen channels, bgr": {"model": "mynet.py:Net", "model_args": {"outputs": 7}, "size_multiple": 16,
                                     "output_channels": [6, 0, 3, 2, 1], "input_order": "bgr"},
    "four bands, consecutive channels, aligned": {
        "model": "mynet.py:Net", "model_args": {"outputs": 7, "bands": 4}, "output_channels": [1, 2, 3, 4, 5],
        "output_align_corners": True, "input_max": 255, "input_mean": [90, 100, 110, 120],
        "input_std": [50, 60, 70, 80]},
    "one channel for two classes": {"model": "mynet.py:Net", "model_args": {"outputs": 1}, "classes": 2}}


def pixels_of(size, bands=3, seed=0):
    return torch.randint(256, (*size, bands), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def plain_logits(segmenter, pixels):
    """The network's input and its logits, float64, one image at a time, by the words of docs/own-network.md."""
    interface, inputs, outputs = segmenter.interface, [], []
    order, maximum = interface.input.order, interface.input.maximum
    mean, std = (torch.tensor(values, dtype=torch.float64).view(-1, 1, 1)
                 for values in (interface.input.mean, interface.input.std))
    network = copy.deepcopy(segmenter.network).double()
    for image in pixels:
        x = image.permute(2, 0, 1).double()
        x = ((x[[2, 1, 0]] if order == "bgr" and len(x) == 3 else x) / 255 * maximum - mean) / std
        inputs.append(x)
        (height, width), multiple = x.shape[1:], interface.size_multiple
        x = F.pad(x, (0, -width % multiple, 0, -height % multiple))
        with torch.no_grad():
            found = interface.run(network, x[None])
        scores = found["logits"] if isinstance(found, dict) else found
        scores = scores if interface.channels is None else scores[:, list(interface.channels)]
        scores = torch.cat([scores * 0, scores], 1) if scores.shape[1] == 1 else scores
        whole = F.interpolate(scores, x.shape[1:], mode="bilinear", align_corners=interface.align_corners)
        outputs.append(whole[0, :, :height, :width])
    return torch.stack(inputs), torch.stack(outputs)


def loaded(path):
    """The function of a file, and what it says of itself."""
    if Path(path).suffix == ".onnx":
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(str(path), options)
        said = session.get_modelmeta().custom_metadata_map
        return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0]), said
    said = {exporters.METADATA: ""}
    program = torch.export.load(path, extra_files=said).module()
    return program, json.loads(said[exporters.METADATA])


def agree(ids, logits, share=1e-4):
    """Class ids are those of the highest logit, but where another logit is as good as equal."""
    best = logits.topk(2, 1).values
    sure = best[:, 0] - best[:, 1] > share * logits.abs().max()
    assert sure.double().mean() > 0.99 and ids.long()[sure].equal(logits.argmax(1)[sure])


def combinations():
    """Every network, form and ending. Those that `make test` runs are all forms, endings and networks but the deep one,
    though not each with each: a symbolic trace takes seconds."""
    for i, name in enumerate(NETWORKS):
        for j, ending in enumerate(ENDINGS):
            for pixels in (False, True):
                quick = (i + j) % 2 == (not pixels) and name != "deeplab"
                yield pytest.param(name, pixels, ending, marks=() if quick else pytest.mark.slow,
                                   id=f"{name}-{'preprocessing' if pixels else 'plain'}{ending}")


@pytest.mark.parametrize("name, pixels, ending", list(combinations()))
def test_a_file_computes_what_the_network_does(mine, name, pixels, ending):
    segmenter = build(**NETWORKS[name])
    bands, classes = len(segmenter.interface.input.mean), segmenter.num_classes
    written = export(segmenter, f"net{ending}", Form(pixels), {"classes": ["à", "b"]})
    assert written.apart <= 1e-4 and str(ending) in str(written)
    run, said = loaded(f"net{ending}")
    for seed, size in enumerate(SIZES):
        images = pixels_of(size, bands, seed)
        x, logits = plain_logits(segmenter, images)
        found = run(images if pixels else x.float())
        if pixels:
            assert found.shape == size and found.dtype == torch.uint8
            agree(found, logits)
            for image, ids in zip(images, found):
                item = {"image": image[None], "size": size[1:]}
                (_, evaluated), = evaluate.predictions(segmenter, [item], CPU)
                assert (evaluated == ids).double().mean() > 0.999
        else:
            assert found.shape == (size[0], classes, *size[1:]) and found.dtype == torch.float32
            assert (found - logits).abs().max() <= 1e-4 * logits.abs().max()
    assert len(found.unique()) > 1
    classes_said = said["classes"]
    assert (json.loads(classes_said) if isinstance(classes_said, str) else classes_said) == ["à", "b"]
    assert said["input"].startswith(f"images {'uint8' if pixels else 'float32'} [batch, ")
    assert str(Path(__file__).parent.parent).encode() not in Path(f"net{ending}").read_bytes()  # no path of the machine


def test_an_onnx_file_names_its_axes_and_passes_the_checker(mine):
    export(build(model="mynet.py:Net"), "net.onnx", Form(opset=18))
    made = onnx.load("net.onnx")
    onnx.checker.check_model(made, full_check=True)
    shapes = [[axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]
              for value in (made.graph.input[0], made.graph.output[0])]
    assert shapes == [["batch", 3, "height", "width"], ["batch", 5, "height", "width"]]
    assert [entry.version for entry in made.opset_import if not entry.domain] == [18]
    assert len(made.graph.input) == len(made.graph.output) == 1


QUICK = (pytest.param(".onnx", marks=pytest.mark.slow), ".pt2")


@pytest.mark.parametrize("ending", QUICK)
def test_one_size(mine, ending):
    """A network that is traced for one size says so, and is written with that size alone."""
    segmenter = build(model="mynet.py:OneSize")
    with pytest.raises(ExportError) as refused:
        export(segmenter, f"net{ending}", usual_size=(48, 64))
    text = str(refused.value)
    assert "cannot trace the network for images of any size" in text and "constant (195)" in text
    assert text.endswith("For one size it can be written: --size 64 48, or another width and height.")
    assert "\n" not in text and not Path(f"net{ending}").exists()
    export(segmenter, f"net{ending}", Form(size=(45, 67)))
    x, logits = plain_logits(segmenter, pixels_of((3, 45, 67)))
    run, said = loaded(f"net{ending}")
    assert "45, 67]" in said["input"] and (run(x.float()) - logits).abs().max() <= 1e-4 * logits.abs().max()
    with pytest.raises(Exception, match=r"67|Guard|shape|dimension"):
        run(torch.zeros(1, 3, 45, 68))


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_network_that_cannot_be_traced_is_one_line_with_the_reason(mine, ending, capfd):
    with pytest.raises(ExportError) as refused:
        export(build(model="mynet.py:Branching"), f"net{ending}", usual_size=(48, 64))
    assert re.fullmatch(r"model: torch.export cannot trace the network for images of any size \(\S*mynet.py, line 16: "
                        r"GuardOnDataDependentSymNode: Could not guard on data-dependent expression [^\n]*\)\.",
                        str(refused.value))
    assert not Path(f"net{ending}").exists() and capfd.readouterr() == ("", "")


def test_the_exporters_reason_for_onnx(mine, monkeypatch):
    def refuses(*_, **__):
        try:
            raise ValueError("\n\x1b[31mno operator 'x'\x1b[0m.\nmore")
        except ValueError as error:
            raise RuntimeError("step 3 of 3 failed") from error
    monkeypatch.setattr(torch.onnx, "export", refuses)
    with pytest.raises(ExportError, match=r"cannot write the network \(.*ValueError: no operator 'x'\)\.$"):
        export(build(model="mynet.py:Net"), "net.onnx")


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_network_that_chooses_by_the_size_is_found(mine, ending, monkeypatch):
    """Also where what is written would not fail: ONNX does not keep the conditions of a trace."""
    monkeypatch.setattr(exporters, "onnx_function", lambda content: None)
    with pytest.raises(ExportError, match=r"fails on 3 images of 323 x 128 pixels.*Guard failed: .*201"):
        export(build(model="mynet.py:BySize"), f"net{ending}")


@pytest.mark.parametrize("ending", QUICK)
def test_a_file_that_differs_is_not_kept(mine, ending):
    Path(f"net{ending}").write_bytes(b"old")
    with pytest.raises(ExportError, match=r"differs from the network on 2 images of 195 x 259 pixels, .* by \S+e-0\d"):
        export(build(model="mynet.py:Random"), f"net{ending}")
    assert Path(f"net{ending}").read_bytes() == b"old"
    assert sorted(p.name for p in mine.iterdir() if p.name[0] != "_") == ["mynet.py", f"net{ending}"]


def test_every_fault_of_a_files_function_is_found(mine, monkeypatch):
    segmenter, traced = build(model="mynet.py:Net"), exporters.traced
    kept = {}
    monkeypatch.setattr(exporters, "traced", lambda program, *more: kept.setdefault(program.pixels, None) or
                        kept.update({program.pixels: traced(program, *more)}) or kept[program.pixels])

    def refused(change, form=None):
        real = torch.export.load

        class Broken:
            def module(self):
                return change(self.program.module())
        def load(file):
            broken = Broken()
            broken.program = real(file)
            return broken
        with monkeypatch.context() as patch:
            patch.setattr(torch.export, "load", load)
            with pytest.raises(ExportError) as caught:
                export(segmenter, "net.pt2", form)
        assert not Path("net.pt2").exists() and "\n" not in str(caught.value)
        return str(caught.value)
    assert "differs from the network" in refused(lambda run: lambda x: run(x) + 1e-2)
    assert "on 1 images of 128 x 384" in refused(lambda run: lambda x: run(x) + (len(x) == 1))
    assert "differs" in refused(lambda run: lambda x: run(x) * float("nan"))
    assert "expected [2, 5, 195, 259]" in refused(lambda run: lambda x: run(x)[:, :4])
    assert "fails on 2 images" in refused(lambda run: lambda x: 1 / 0)
    assert "cannot be loaded (ZeroDivisionError" in refused(lambda run: 1 / 0)
    assert "differs from the network" in refused(lambda run: lambda x: (run(x) + 1) % 5, Form(True))
    assert "gives a tensor" in refused(lambda run: lambda x: run(x) + 5, Form(True))


def test_deviation_against_a_loop():
    logits = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    other = logits + 0.01 * torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(1))
    largest = max(abs(v) for v in logits.flatten().tolist())
    expected = max(abs(a - b) for a, b in zip(logits.flatten().tolist(), other.flatten().tolist())) / largest
    assert deviation(other, logits) == pytest.approx(expected, rel=1e-5)
    ids = other.argmax(1)
    ids[1, 2, 3] = logits[1, :, 2, 3].argmin()
    short = [(max(logits[b, :, i, j].tolist()) - logits[b, ids[b, i, j], i, j].item()) / largest
             for b in range(2) for i in range(4) for j in range(5)]
    assert deviation(ids, logits) == pytest.approx(max(short), rel=1e-5) and max(short) > 0
    assert deviation(logits.argmax(1), logits) == 0 and deviation(logits * 0, logits * 0) == 0


def test_the_network_stays_as_it_is(mine):
    """Export changes neither mode nor precision nor weights, and ignores how the network is computed here."""
    segmenter = build(model="mynet.py:Net").train()
    segmenter.autocast, segmenter.checkpointing = torch.bfloat16, True
    before = {k: v.clone() for k, v in segmenter.state_dict().items()}
    written = export(segmenter, "net.pt2")
    assert written.apart < 1e-6 and segmenter.training and segmenter.autocast == torch.bfloat16
    assert segmenter.checkpointing and all(v.equal(before[k]) for k, v in segmenter.state_dict().items())
    segmenter.autocast = None
    x, logits = plain_logits(segmenter.eval(), pixels_of((1, 33, 47)))
    assert (loaded("net.pt2")[0](x.float()) - logits).abs().max() <= 1e-4 * logits.abs().max()


def test_multiples_are_asked_for(mine):
    with pytest.raises(ConfigError, match="size_multiple: .* set size_multiple=16"):
        export(build(model="mynet.py:Multiples"), "net.pt2", usual_size=(48, 64))
    export(build(model="mynet.py:Multiples", size_multiple=16), "net.pt2")


def test_what_a_network_prints_while_it_is_traced_is_no_output(mine, capfd):
    segmenter = build(model="mynet.py:Loud")
    capfd.readouterr()
    export(segmenter, "net.pt2")
    assert set(capfd.readouterr().out.split()) <= {"loud"}


def test_symbolic_sizes_change_no_number():
    """`resized` to the image's own size is the general rule's result, bit for bit."""
    convention, drawn = INPUTS["rgb01"], torch.Generator().manual_seed(0)
    for multiple in (1, 8, 32):
        for aligned in (False, True):
            interface = Interface(convention, size_multiple=multiple, align_corners=aligned)
            for size in ((31, 64), (64, 96), (45, 77)):
                padded = tuple(-(-extent // multiple) * multiple for extent in size)
                scores = torch.randn(2, 3, -(-padded[0] // 8), -(-padded[1] // 8), generator=drawn)
                expected = F.interpolate(scores, padded, mode="bilinear", align_corners=aligned)
                assert interface.resized(scores, size, size).equal(expected[..., :size[0], :size[1]])
                x = torch.randn(1, 3, *size, generator=drawn)
                assert interface.padded(x).equal(F.pad(x, (0, padded[1] - size[1], 0, padded[0] - size[0])))


def test_more_than_256_classes_have_ids_of_64_bits(tmp_path):
    torch.manual_seed(0)
    network = torch.nn.Conv2d(3, 300, 1)
    segmenter = Segmenter(network, 300, Interface(InputConvention("rgb", 255, (127.0,) * 3, (50.0,) * 3))).eval()
    assert "ids int64" in export(segmenter, tmp_path / "net.pt2", Form(True)).gives
    images = pixels_of((1, 40, 50))
    ids = loaded(tmp_path / "net.pt2")[0](images)
    assert ids.dtype == torch.int64 and ids.max() > 255
    agree(ids, plain_logits(segmenter, images)[1])


# ---- the script ------------------------------------------------------------------------------------------------------

TINY = {"amp": "off",
        "method": "source_only", "model": "mynet.py:Net", "source": "own", "target": "own", "num_classes": 5,
        "init_weight": "nét.pth",
        "own": {"type": "folder", "data_dir": "x", "input_size": [67, 45], "images": "{name}.png",
                "classes": ["sky", "Bäume", "road", "car", "person"],
                "palette": [[1, 2, 3], [40, 50, 60], [70, 0, 0], [0, 0, 250], [9, 9, 9]]}}


@pytest.fixture
def here(mine):
    torch.save(build(model="mynet.py:Net").state_dict(), "nét.pth")
    Path("tiny.yml").write_text(yaml.safe_dump(TINY))
    return mine


def call(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["export.py", *words])
    try:
        return export_script.run()
    except SystemExit as stop:  # argparse
        return stop.code


def said_by(monkeypatch, capfd, *words):
    """The one line of a refusal, which leaves no file."""
    before = sorted(p.name for p in Path().iterdir())
    capfd.readouterr()
    assert call(monkeypatch, *words) == 2
    out, error = capfd.readouterr()
    assert out == "" and error.startswith("error: ") and len(error.splitlines()) == 1 and "Traceback" not in error
    assert [name for name in sorted(p.name for p in Path().iterdir()) if name[0] != "_"] == \
        [name for name in before if name[0] != "_"]
    return error


def test_the_onnx_file_and_the_checkpoint_predict_the_same(here, monkeypatch, capfd):
    """From the command line: the file, what is said of it, and class ids on images of odd sizes."""
    assert call(monkeypatch, "--config", "tiny.yml", "--checkpoint", "nét.pth", "--output", "out/nét.onnx",
                "--with-preprocessing") == 0
    out, error = capfd.readouterr()
    assert error == "" and "checked against the network: ids are within " in out and out.startswith("out/nét.onnx: ")
    run, said = loaded("out/nét.onnx")
    assert json.loads(said["classes"]) == TINY["own"]["classes"] and json.loads(said["palette"])[1] == [40, 50, 60]
    assert said["checkpoint"] == "nét.pth" and json.loads(said["input_size"]) == [67, 45]
    assert said["checkpoint_sha256"] == hashlib.sha256(Path("nét.pth").read_bytes()).hexdigest()
    model = build_model(parse_config(yaml.safe_dump(TINY), "c.yml"), CPU, "nét.pth")[0]
    for seed, size in enumerate(SIZES):
        images = pixels_of(size, seed=seed)
        _, logits = plain_logits(model.eval(), images)
        agree(run(images), logits)
    assert "exists: give another file, or --overwrite" in said_by(
        monkeypatch, capfd, "--config", "tiny.yml", "--output", "out/nét.onnx")


def test_a_torch_export_file_from_the_command_line(here, monkeypatch, capfd):
    Path("net.pt2").write_bytes(b"old")
    words = ("--config", "tiny.yml", "--output", "net.pt2", "--overwrite", "--size", "67", "45", "amp=bf16")
    assert call(monkeypatch, *words) == 0
    assert "gives logits float32 [batch, 5, 45, 67]" in capfd.readouterr().out
    assert loaded("net.pt2")[1]["checkpoint_sha256"] == provenance("nét.pth")["checkpoint_sha256"]
    model = build_model(parse_config(yaml.safe_dump(TINY), "c.yml"), CPU)[0]
    x, logits = plain_logits(model.eval(), pixels_of((3, 45, 67)))
    assert (loaded("net.pt2")[0](x.float()) - logits).abs().max() <= 1e-4 * logits.abs().max()


def test_without_onnxruntime_it_is_said_that_nothing_was_checked(here, monkeypatch, capfd):
    without(monkeypatch, "onnxruntime")
    monkeypatch.setattr(exporters, "as_onnx", lambda *_: b"content")
    assert call(monkeypatch, "--config", "tiny.yml", "--output", "net.onnx") == 0
    assert "not checked against the network: pip install onnxruntime" in capfd.readouterr().out
    assert Path("net.onnx").read_bytes() == b"content"


def without(monkeypatch, *names):
    from importlib import util
    find = util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *more: None if name in names else find(name, *more))


BASE = ("--config", "tiny.yml", "--checkpoint", "nét.pth")


@pytest.mark.parametrize("words, expected", [
    ((*BASE, "--output", "net.pth"), "--output: 'net.pth' does not end in .onnx or .pt2"),
    ((*BASE, "--output", "."), "--output: '.' is a folder"),
    ((*BASE, "--output", "mynet.py/net.onnx"), "nothing can be written in "),
    ((*BASE,), "the following arguments are required: --output"),
    ((*BASE, "--output", "a.pt2", "--size", "0", "5"), "argument --size: expected at least 1, found 0"),
    ((*BASE, "--output", "a.pt2", "--tolerance", "0"), "argument --tolerance: expected more than 0"),
    ((*BASE, "--output", "a.pt2", "--tolerance", "nan"), "argument --tolerance: expected more than 0"),
    pytest.param((*BASE, "--output", "a.onnx", "--opset", "1"), "--opset: the exporter writes version ",
                 marks=pytest.mark.slow),
    ((*BASE, "--output", "a.pt2", "model_args={outputs: 6}", "num_classes=6"), "num_classes"),
    (("--config", "tiny.yml", "--output", "a.pt2", "init_weight=None"), "is no trained network"),
    ((*BASE, "--output", "a.pt2", "model=mynet.py:Branching"), "mynet.py, line 16: GuardOnDataDependentSymNode"),
    (("--config", "tiny.yml", "--checkpoint", "gone.pth", "--output", "a.pt2"), "gone.pth: no such checkpoint"),
    (("--config", "gone.yml", "--output", "a.pt2"), "gone.yml"),
    (("--checkpoint", "nét.pth", "--output", "a.pt2"), "--config: missing: nét.pth"),
    (("--checkpoint", "gone", "--output", "a.pt2"), "gone: no such checkpoint"),
    (("--output", "a.pt2"), "--config: missing")])
def test_what_is_refused(here, monkeypatch, capfd, words, expected):
    assert expected in said_by(monkeypatch, capfd, *words)


@pytest.mark.parametrize("package", ["onnx", "onnxscript"])
def test_packages_that_are_not_there(here, monkeypatch, capfd, package):
    without(monkeypatch, package)
    error = said_by(monkeypatch, capfd, *BASE, "--output", "a.onnx")
    assert f"({package})" in error and "pip install onnx onnxscript" in error
    assert call(monkeypatch, *BASE, "--output", "a.pt2") == 0


def test_a_torch_that_is_too_old(here, monkeypatch, capfd):
    monkeypatch.delattr("torch.export.Dim.DYNAMIC")
    error = said_by(monkeypatch, capfd, *BASE, "--output", "a.pt2")
    assert f"needs torch 2.6 or newer, found {torch.__version__}" in error


def test_weights_that_an_onnx_file_cannot_hold(here, monkeypatch, capfd):
    monkeypatch.setattr(exporters, "_MOST_BYTES", 1000)
    assert "write a .pt2 file" in said_by(monkeypatch, capfd, *BASE, "--output", "a.onnx")


def test_the_pages_example_draws_a_photo(here, monkeypatch, capfd):
    """The Python code of docs/export.md, run as it stands."""
    assert call(monkeypatch, *BASE, "--output", "net.onnx", "--with-preprocessing") == 0
    blocks = np.random.default_rng(0).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    Image.fromarray(blocks).resize((134, 90), Image.Resampling.NEAREST).save("photo.jpg")
    code = re.search(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)[1]
    assert len(code.strip().splitlines()) <= 14
    exec(compile(code, str(PAGE), "exec"), {})
    drawn = Image.open("classes.png")
    assert drawn.size == (134, 90)
    shown = {tuple(colour) for colour in np.asarray(drawn.convert("RGB")).reshape(-1, 3).tolist()}
    assert len(shown) > 1 and shown <= {tuple(colour) for colour in TINY["own"]["palette"]}
    model = build_model(parse_config(yaml.safe_dump(TINY), "c.yml"), CPU)[0].eval()
    image = np.asarray(Image.open("photo.jpg").resize((67, 45), Image.Resampling.BICUBIC))
    _, logits = plain_logits(model, torch.from_numpy(image.copy())[None])
    expected = Image.fromarray(logits.argmax(1)[0].byte().numpy()).resize((134, 90), Image.Resampling.NEAREST)
    assert (np.asarray(expected) == np.asarray(drawn)).mean() > 0.999


# ---- the table of docs/export.md -------------------------------------------------------------------------------------

def table():
    """(network, {ending: what the page says}) of each row."""
    rows = re.findall(r"^\| `([^`]+)` \| ([a-z ]+) \| ([a-z ]+) \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    return [(name, {".onnx": onnx_says, ".pt2": pt2_says}) for name, onnx_says, pt2_says in rows]


def test_the_table_speaks_in_three_words():
    words = {word for _, row in table() for word in row.values()}
    assert len(table()) >= 15 and words <= {"any size", "one size", "no"}


SIDE = 128  # of the one size that is tried
VIT = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 16, "patch_size": 16,
       "image_size": SIDE, "use_auxiliary_head": False}
STAGES = [f"stage{i}" for i in range(1, 5)]


def transformers_config(name):
    """A tiny configuration of a row `hf/NAME`."""
    t = pytest.importorskip("transformers")
    upernet = {"hidden_size": 16, "auxiliary_in_channels": 16, "use_auxiliary_head": False}
    return {
        "segformer": lambda: t.SegformerConfig(depths=[1] * 4, hidden_sizes=[8, 8, 16, 16], decoder_hidden_size=16,
                                               num_attention_heads=[1, 1, 2, 2]),
        "mobilenet_v2": lambda: t.MobileNetV2Config(depth_multiplier=0.35, image_size=SIDE),
        "upernet (ConvNeXt)": lambda: t.UperNetConfig(backbone_config=t.ConvNextConfig(
            depths=[1] * 4, hidden_sizes=[8, 8, 16, 16], out_features=STAGES), **upernet),
        "beit": lambda: t.BeitConfig(out_indices=[1, 2, 3, 4], use_relative_position_bias=True, **VIT),
        "dpt": lambda: t.DPTConfig(backbone_out_indices=[0, 1, 2, 3], neck_hidden_sizes=[8] * 4, fusion_hidden_size=8,
                                   is_hybrid=False, **VIT)}[name]()


def keys_of(name, folder):
    """The keys of a row's network."""
    if name == "deeplab":
        return NETWORKS["deeplab"]
    if name.startswith("smp/"):
        pytest.importorskip("segmentation_models_pytorch")
    if not name.startswith("hf/"):
        return {"model": name}
    found = transformers_config(name.partition("/")[2])
    found.num_labels = 5
    found.save_pretrained(folder)
    return {"model": f"hf/{folder}"}


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("name, row", table())
def test_the_table_is_true(name, row, ending, tmp_path):
    torch.manual_seed(0)
    segmenter = build_model(config("channels_last=false", **keys_of(name, tmp_path / "folder")), CPU)[0].eval()

    def possible(form):
        try:
            export(segmenter, tmp_path / f"net{ending}", form)
        except (ExportError, ConfigError) as error:
            assert "\n" not in str(error)
            return False
        return True
    side = 224 if "224" in name else SIDE
    found = "any size" if possible(Form()) else "one size" if possible(Form(size=(side, side))) else "no"
    assert found == row[ending]

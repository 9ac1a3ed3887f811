"""Every family of networks: built by its name, equal to its own forward pass, trained a step, saved and loaded as
strictly as DeepLabV2, and refused in one line."""
import copy
import json

import pytest
import torch
import torchvision
from tiers import mostly_slow

from model.build import build_model
from model.networks import Network, deeplab, find, known
from model.weights import LoadReport, load_weights, save_weights
from utils.config import parse_config
from utils.constants import HOUSE_INPUT, INPUTS, InputConvention
from utils.errors import CheckpointError, ConfigError, UserError

CPU = torch.device("cpu")
TORCHVISION = torchvision.models.list_models(module=torchvision.models.segmentation)
BIG = {name for name in TORCHVISION if "resnet" in name}
SMP = ["unet:resnet18", "fpn:resnet18", "deeplabv3plus:mobilenet_v2", "segformer:mit_b0", "pspnet:resnet18",
       "linknet:efficientnet-b0", "upernet:resnet18", "unet:tu-mobilenetv3_small_050"]

USER = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, outputs, norm, bands=3):
        super().__init__()
        make = {"batch": nn.BatchNorm2d, "group": lambda n: nn.GroupNorm(2, n)}[norm]
        self.body = nn.Sequential(nn.Conv2d(bands, 8, 3, 2, 1), make(8), nn.ReLU(), nn.Dropout2d(0.2))
        self.last = nn.Conv2d(8, outputs, 1)

    def forward(self, x):
        return {"logits": self.last(self.body(x)), "features": None}

def build(outputs=20, norm="batch", **more):
    return Net(outputs, norm, **more)

def no_network():
    return {}

def fails(width):
    return [][width]
"""


def config(*words, classes=5, **keys):
    names = [f"class {i}" for i in range(classes)]
    section = {"type": "folder", "data_dir": "x", "input_size": [64, 64], "images": "{name}.png", "classes": names}
    tree = {"method": "source_only", "source": "own", "target": "own", "num_classes": classes, "own": section, **keys}
    return parse_config(json.dumps(tree), "c.yml", words)


def build(*words, seed=0, **keys):
    torch.manual_seed(seed)
    return build_model(config(*words, **keys), CPU)


def refusal(kind=UserError, **keys):
    with pytest.raises(kind) as caught:
        build(**keys)
    text = str(caught.value)
    assert text.endswith(".") and "\n" not in text
    return text


def images(*size):
    return torch.randn(*size, generator=torch.Generator().manual_seed(0))


def step(network, x):
    """One step of training; every trainable tensor that has a gradient moves, and no frozen one."""
    groups = network.parameter_groups(1.0, 10.0)
    optimizer = torch.optim.SGD(groups, 0.01)
    before = {n: p.detach().clone() for n, p in network.named_parameters()}
    network.train()(x).square().mean().backward()
    optimizer.step()
    moved = {n for n, p in network.named_parameters() if not p.equal(before[n])}
    assert moved and moved <= {n for n, p in network.named_parameters() if p.requires_grad}
    return [len(group["params"]) for group in groups]


def trains_and_loads(network, tmp_path, **keys):
    """A step changes it; saved, it loads into a new one, from which on both give the same."""
    backbone, head = step(network, images(2, 3, 64, 96))
    assert backbone and head
    save_weights(network, tmp_path / "net.pth")
    other, report = build(seed=1, init_weight=str(tmp_path / "net.pth"), **keys)
    assert report.loaded == report.total and not report.initialised and not report.warnings and not report.remarkable
    x = images(2, 3, 50, 70)
    assert other.eval()(x).equal(network.eval()(x))
    for which in ("batch", "running"):
        network.use_statistics(which)
        with torch.inference_mode():
            scores = network.score_map(x[:1])
            assert network.upsample(scores[0], (50, 70)).isfinite().all() and scores.shape[1] == network.num_classes


# ---- the table -------------------------------------------------------------------------------------------------------

def test_names_and_their_classes():
    for name, cls in known().items():
        assert issubclass(cls, Network) and find(name) is cls and cls.__doc__
    for name in ("torchvision/fcn_resnet50", "smp/unet:resnet18", "hf/some/folder", "a.py:b", "a.b:c", "deeplab"):
        assert find(name) in known().values()
    assert find("hf/net.py:build") is find("a.py:b")  # a file in a folder of that name


@pytest.mark.parametrize("name, expected", [("deplab", "did you mean 'deeplab'"), ("unet", "there are deeplab, "),
                                            ("timm/x", "no network 'timm/x'")])
def test_unknown_networks(name, expected):
    assert expected in refusal(ConfigError, model=name)


def test_deeplab_is_the_default_and_has_its_own_keys():
    network, report = build(layers=[1, 1, 1, 1], width=4)
    assert network.interface.input == HOUSE_INPUT and network.interface.align_corners
    assert report.format == "none (random start)"
    assert {"layers", "width", "head_branches", "init_input"} == set(known()["deeplab"].keys)


# ---- torchvision -----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in BIG else n for n in TORCHVISION])
def test_torchvision_networks(name, tmp_path):
    keys = {"model": f"torchvision/{name}"}
    network, report = build(**keys)
    assert len(report.initialised) == report.total and network.interface.input == INPUTS["rgb01"]
    x = images(2, 3, 70, 90)
    plain, _ = build("channels_last=false", **keys)
    with torch.no_grad():
        assert plain.eval()(x).equal(plain.network(x)["out"])
        # With channels_last torchvision interpolates in another layout, by another kernel.
        # In float64, as rounding in float32 grows with a hundred layers.
        wide = copy.deepcopy(network.eval()).double()
        torch.testing.assert_close(wide(x.double()), wide.network(x.double())["out"], rtol=1e-5, atol=1e-6)
        assert max(network.score_map(x).shape[-2:]) <= 12
    trains_and_loads(network, tmp_path, **keys)
    pooled = [remark for remark in network.remarks if "one value per channel" in remark]
    assert len(pooled) == ("deeplabv3" in name)


def test_an_auxiliary_classifier_is_taken_as_the_checkpoint_has_it(tmp_path):
    keys = {"model": "torchvision/deeplabv3_mobilenet_v3_large"}
    network, _ = build("channels_last=false", **keys, model_args={"aux_loss": True})
    x = images(2, 3, 64, 64)
    with torch.no_grad():
        assert network.eval()(x).equal(network.network(x)["out"])
    assert step(network, x)[1] == 12
    save_weights(network, tmp_path / "aux.pth")
    assert "set model_args={aux_loss: True}" in refusal(CheckpointError, init_weight=f"{tmp_path}/aux.pth", **keys)
    other, report = build("channels_last=false", **keys, model_args={"aux_loss": True},
                          init_weight=f"{tmp_path}/aux.pth")
    assert report.loaded == report.total and other.eval()(x).equal(network.eval()(x))


def test_what_torchvision_does_not_have():
    assert "did you mean 'fcn_resnet50'" in refusal(ConfigError, model="torchvision/fcn_resnet5")
    for name in ("fcn_resnet50", "lraspp_mobilenet_v3_large"):
        text = refusal(ConfigError, model=f"torchvision/{name}", model_args={"num_class": 3})
        assert f"model_args: 'num_class' is no argument of {name} (did you mean 'num_classes'?)" in text
    assert "cannot be built (KeyError: " in refusal(ConfigError, model="torchvision/fcn_resnet50",
                                                      model_args={"weights": "NONE_V9"})


# ---- segmentation_models_pytorch -------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", mostly_slow(SMP, lambda name: "upernet" in name))
def test_smp_networks(name, tmp_path):
    smp = pytest.importorskip("segmentation_models_pytorch")
    network, _ = build(model=f"smp/{name}", channels_last=False)
    torch.manual_seed(0)
    own = smp.create_model(*name.split(":"), encoder_weights=None, classes=5).eval()
    x = images(2, 3, 64, 96)
    with torch.no_grad():
        torch.testing.assert_close(network.eval()(x), own(x), rtol=1e-5, atol=1e-6)
    trains_and_loads(network, tmp_path, model=f"smp/{name}", channels_last=False)


@pytest.mark.parametrize("name, expected", [("unet", "expected smp/ARCH:ENCODER"), ("unett:resnet18", "mean 'unet'"),
                                            ("unet:resnet188", "did you mean 'resnet18'")])
def test_what_smp_does_not_have(name, expected):
    pytest.importorskip("segmentation_models_pytorch")
    assert expected in refusal(ConfigError, model=f"smp/{name}")


@pytest.mark.parametrize("name, pip", [("smp/unet:resnet18", "pip install segmentation-models-pytorch"),
                                       ("hf/folder", "pip install transformers")])
def test_packages_that_are_not_there(name, pip, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda package: None)
    text = refusal(ConfigError, model=name)
    assert pip in text and text.startswith(f"model: {name} ")


# ---- transformers ----------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def segformer(tmp_path_factory):
    """Folders of a tiny SegFormer: its configuration alone, and with weights."""
    transformers = pytest.importorskip("transformers")
    shape = {"depths": [1, 1, 1, 1], "hidden_sizes": [8, 8, 16, 16], "num_attention_heads": [1, 1, 2, 2],
             "decoder_hidden_size": 16, "num_labels": 7}
    torch.manual_seed(0)
    made = transformers.SegformerForSemanticSegmentation(transformers.SegformerConfig(**shape))
    root = tmp_path_factory.mktemp("hf")
    made.save_pretrained(root / "trained")
    made.config.save_pretrained(root / "untrained")
    return root, made


def test_segformer_from_its_configuration(segformer, tmp_path):
    keys = {"model": f"hf/{segformer[0]}/untrained"}
    network, report = build(**keys)
    assert len(report.initialised) == report.total
    x = images(2, 3, 64, 96)
    with torch.no_grad():
        assert network.eval().score_map(x).equal(network.network(x).logits)
        assert network.score_map(x).shape == (2, 5, 16, 24)
    trains_and_loads(network, tmp_path, **keys)


def test_segformer_with_its_folders_weights(segformer, capfd):
    root, made = segformer
    network, report = build(model=f"hf/{root}/trained", classes=7)
    assert capfd.readouterr().err == ""  # no progress bar
    assert report.loaded == report.total and not report.initialised and report.format.startswith("as hf/")
    x = images(1, 3, 40, 56)
    with torch.no_grad():
        torch.testing.assert_close(network.eval().score_map(x), made.eval()(x).logits)
    text = refusal(ConfigError, model=f"hf/{root}/trained")
    assert "num_classes: 5 classes, but the network gives 7 channels" in text
    chosen, _ = build(model=f"hf/{root}/trained", output_channels=[6, 5, 4, 3, 2])
    with torch.no_grad():
        assert chosen.eval()(x).equal(network(x)[:, [6, 5, 4, 3, 2]])


def test_a_folder_that_lacks_the_head_leaves_it_at_random(segformer, tmp_path):
    made = copy.deepcopy(segformer[1])
    kept = {k: v for k, v in made.state_dict().items() if not k.startswith("decode_head")}
    made.save_pretrained(tmp_path / "part", state_dict=kept)
    _, report = build(model=f"hf/{tmp_path}/part", classes=7)
    assert report.initialised and all(k.startswith("decode_head.") for k in report.initialised)


@pytest.mark.parametrize("content, expected", [
    ({"image_mean": [0.1, 0.2, 0.3], "image_std": [1, 2, 3]}, InputConvention("rgb", 1, (0.1, 0.2, 0.3), (1, 2, 3))),
    ({"do_rescale": False, "image_mean": [1, 2, 3], "image_std": [4, 5, 6]},
     InputConvention("rgb", 255, (1, 2, 3), (4, 5, 6))),
    ({"do_normalize": False, "do_flip_channel_order": True}, InputConvention("bgr", 1, (0, 0, 0), (1, 1, 1))),
    ({"rescale_factor": 1 / 127.5, "do_normalize": False}, InputConvention("rgb", 2, (0, 0, 0), (1, 1, 1))),
    (None, INPUTS["rgb01"])])
def test_the_input_is_what_the_folder_says(segformer, tmp_path, content, expected):
    folder = tmp_path / "net"
    folder.mkdir()
    (folder / "config.json").write_text((segformer[0] / "untrained/config.json").read_text())
    if content is not None:
        (folder / "preprocessor_config.json").write_text(json.dumps(content))
    assert build(model=f"hf/{folder}")[0].interface.input == expected
    assert build(model=f"hf/{folder}", input_max=255)[0].interface.input.maximum == 255


@pytest.mark.parametrize("weights", [None, "model.safetensors"])
def test_no_code_in_a_folder_is_run_and_nobody_is_asked(segformer, tmp_path, monkeypatch, capsys, weights):
    folder = tmp_path / "net"
    folder.mkdir()
    content = json.loads((segformer[0] / "trained/config.json").read_text())
    content |= {"model_type": "unheard of", "auto_map": {"AutoConfig": "own.Own", "AutoModelForSemanticSegmentation":
                                                         "own.Own"}}
    (folder / "config.json").write_text(json.dumps(content))
    (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Own: pass\n")
    if weights:
        (folder / weights).write_bytes((segformer[0] / "trained" / weights).read_bytes())
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    assert "contains custom code" in refusal(UserError, model=f"hf/{folder}", classes=7)
    assert not (tmp_path / "ran").exists()


def test_a_configuration_of_half_precision_gives_a_network_of_full(segformer, tmp_path):
    content = json.loads((segformer[0] / "untrained/config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**content, "dtype": "float16", "torch_dtype": "float16"}))
    assert {p.dtype for p in build(model=f"hf/{tmp_path}")[0].parameters()} == {torch.float32}


def test_folders_that_are_refused(segformer, tmp_path):
    assert "there is no" in refusal(ConfigError, model=f"hf/{tmp_path}/gone")
    folder = tmp_path / "net"
    folder.mkdir()
    (folder / "config.json").write_text((segformer[0] / "untrained/config.json").read_text())
    (folder / "preprocessor_config.json").write_text("{")
    assert "preprocessor_config.json cannot be read" in refusal(ConfigError, model=f"hf/{folder}")
    (folder / "preprocessor_config.json").unlink()
    (folder / "model.safetensors").write_bytes(b"nothing")
    assert "the folder's weights do not load" in refusal(CheckpointError, model=f"hf/{folder}")
    (folder / "config.json").write_text("{}")
    refusal(UserError, model=f"hf/{folder}")


# ---- a user's function -----------------------------------------------------------------------------------------------

@pytest.fixture
def mine(tmp_path, monkeypatch):
    (tmp_path / "mynet.py").write_text(USER)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_twenty_outputs_of_which_nineteen_count(mine, tmp_path):
    keys = {"model": "mynet.py:build", "classes": 19, "output_channels": list(range(19))}
    network, report = build(**keys)
    assert report == LoadReport("as mynet.py:build gives it", 5, 9, tuple(
        f"{name}.{kind}" for name in ("body.0", "last") for kind in ("weight", "bias")))
    pixels = torch.randint(256, (2, 64, 96, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    expected = ((pixels / 255 - mean) / std).permute(0, 3, 1, 2)
    torch.testing.assert_close(network.prepare(pixels), expected, rtol=1e-5, atol=1e-5)
    x = network.prepare(pixels)
    assert network.eval().score_map(x).equal(network.network(x)["logits"][:, :19])
    trains_and_loads(network, tmp_path, **keys)
    text = refusal(ConfigError, model="mynet.py:build", classes=19)
    assert "the network gives 20 channels: set output_channels to the 19" in text


def test_a_function_may_change_its_arguments(mine):
    with open("mynet.py", "a") as file:
        file.write("\ndef popping(widths):\n    return Net(widths.pop(), 'batch')\n")
    made = config(model="mynet.py:popping", model_args={"widths": [5]})
    report = build_model(made, CPU)[1]
    assert len(report.initialised) == 4 and made.options["model_args"] == {"widths": [5]}


def test_lazy_modules_are_refused_until_they_know_their_sizes(mine):
    with open("mynet.py", "a") as file:
        file.write("""
def lazy(known=False):
    network = nn.Sequential(nn.LazyConv2d(5, 1), nn.LazyBatchNorm2d())
    if known:
        network(torch.rand(2, 3, 8, 8))
    return network
""")
    assert "lazy modules do not know their sizes" in refusal(ConfigError, model="mynet.py:lazy")
    assert build(model="mynet.py:lazy", model_args={"known": True})[0].has_batch_norm


def test_a_network_with_a_3d_convolution(mine):
    with open("mynet.py", "a") as file:
        file.write("""
class Deep(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv3d(3, 5, 1)

    def forward(self, x):
        return self.conv(x.unsqueeze(2)).squeeze(2)
""")
    assert build(model="mynet.py:Deep")[0](images(1, 3, 8, 8)).shape == (1, 5, 8, 8)


def test_weights_that_the_function_loads_are_told_from_random_ones(mine, tmp_path):
    torch.save(build(model="mynet.py:build", classes=5, model_args={"outputs": 5})[0].state_dict(), "net.pth")
    with open("mynet.py", "a") as file:
        file.write("""
def trained(but=""):
    network = Net(5, "batch")
    state = {k: v for k, v in torch.load("net.pth").items() if k != but}
    network.load_state_dict(state, strict=False)
    return network
""")
    state = torch.get_rng_state()
    assert build(model="mynet.py:trained")[1] == LoadReport("as mynet.py:trained gives it", 9, 9)
    report = build(model="mynet.py:trained", model_args={"but": "last.weight"})[1]
    assert report == LoadReport("as mynet.py:trained gives it", 8, 9, ("last.weight",))
    torch.set_rng_state(state)


def test_one_output_for_two_classes(mine, tmp_path):
    keys = {"model": "mynet.py:build", "classes": 2, "model_args": {"outputs": 1}}
    network, _ = build(**keys)
    x = images(2, 3, 32, 32)
    torch.testing.assert_close(network.eval().score_map(x).softmax(1)[:, 1:], network.network(x)["logits"].sigmoid())
    trains_and_loads(network, tmp_path, **keys)


def test_group_norm_only(mine, tmp_path):
    keys = {"model": "mynet.py:build", "model_args": {"outputs": 5, "norm": "group"}}
    network, _ = build(**keys, fixbn=True)
    assert not network.has_batch_norm and all(p.requires_grad for p in network.parameters())
    trains_and_loads(network, tmp_path, **keys)


def test_keys_of_input_and_output(mine):
    network, _ = build(model="mynet.py:build", model_args={"outputs": 5, "bands": 4}, input_max=255,
                       input_mean=[1, 2, 3, 4], input_std=[5, 6, 7, 8], output="logits", head=["body.0"],
                       size_multiple=16, output_align_corners=True)
    assert network.interface.input == InputConvention("rgb", 255, (1, 2, 3, 4), (5, 6, 7, 8))
    assert network.prepare(torch.zeros(1, 4, 4, 4)).shape == (1, 4, 4, 4) and network.interface.align_corners
    assert network.eval()(images(1, 4, 50, 70)).shape == (1, 5, 50, 70)
    assert [len(g["params"]) for g in network.parameter_groups(1, 1)] == [2, 2]


@pytest.mark.parametrize("maximum", [1, 2, 255, 65535])
def test_what_is_not_given_of_the_input_is_imagenets_in_the_range_of_input_max(mine, maximum):
    keys = {"model": "mynet.py:build", "model_args": {"outputs": 5}, "input_max": maximum}
    pixels = torch.randint(256, (2, 5, 7, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    mean, std = torch.tensor([0.485, 0.456, 0.406]).double(), torch.tensor([0.229, 0.224, 0.225]).double()
    plain = ((pixels.double() / 255 - mean) / std).permute(0, 3, 1, 2)
    torch.testing.assert_close(build(**keys)[0].prepare(pixels).double(), plain, rtol=1e-5, atol=1e-5)
    expected = (pixels.double() / 255 / std).permute(0, 3, 1, 2)
    found = build(**keys, input_mean=[0, 0, 0])[0].prepare(pixels)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("keys, expected", [
    ({"model": "gone.py:build"}, "gone.py: cannot be read"), ({"model": "mynet.py:biuld"}, "did you mean 'build'"),
    ({"model": "mynet.py:no_network"}, "returns a dict, expected a torch.nn.Module"),
    ({"model": "mynet.py:fails", "model_args": {"width": 3}}, "mynet.py, line 22: IndexError"),
    ({"model": "mynet.py:fails"}, "TypeError: fails() missing 1 required positional argument: 'width'"),
    ({"model": "mynet.py:build", "model_args": {"bands": 4}}, "black image of 3 bands"),
    ({"model": "mynet.py:build", "input_mean": [1, 2]}, "input_mean: 2 values, input_std: 3"),
    ({"model": "mynet.py:build", "input_mean": [104, 117, 123]}, "input_mean: 123 is beyond input_max, 1: give"),
    ({"model": "mynet.py:build", "output": "scores"}, "output: 'scores' is not there; the network returns a mapping"),
    ({"model": "mynet.py:build", "output_channels": [0, 1, 2, 3, 20]}, "output_channels: 20 is not there"),
    ({"model": "mynet.py:build", "output_channels": [4, 1, 2, 3, 1]}, "output_channels: 1 is listed twice"),
    ({"model": "mynet.py:build", "model_args": {"outputs": 5}, "head": ["classifier"]}, "they begin with body, last"),
])
def test_what_is_wrong_is_said_in_one_line(mine, keys, expected):
    assert expected in refusal(ConfigError, **keys)


# ---- loading ---------------------------------------------------------------------------------------------------------

@pytest.fixture
def trained(mine):
    """A network of the user's, with recognisable statistics, its keys, and its plain state dict."""
    keys = {"model": "mynet.py:build", "model_args": {"outputs": 5}}
    network, _ = build(**keys)
    network.network.body[1].running_var.uniform_(0.5, 1.5)
    return network, keys, dict(network.state_dict())


WRAPPERS = {
    "plain": lambda s: s, "module.": lambda s: {f"module.{k}": v for k, v in s.items()},
    "state_dict": lambda s: {"state_dict": s, "epoch": 3}, "model of an optimiser's file": lambda s: {
        "model": {f"module.{k}": v for k, v in s.items()}, "optimizer": {"state": {0: {"momentum": torch.ones(3)}}}},
    "compiled": lambda s: {f"_orig_mod.{k}": v for k, v in s.items()},
    "without counters": lambda s: {k: v for k, v in s.items() if not k.endswith("num_batches_tracked")},
    "float counters": lambda s: {k: v.float().reshape(-1) if k.endswith("num_batches_tracked") else v
                                 for k, v in s.items()},
    "half precision of equal values": lambda s: {k: v.double() if v.is_floating_point() else v for k, v in s.items()},
    "averaged": lambda s: {"n_averaged": torch.tensor(3), **{f"module.{k}": v for k, v in s.items()}},
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_wrapped_checkpoints_load(trained, wrapper):
    _, keys, state = trained
    torch.save(WRAPPERS[wrapper](state), "net.pth")
    other, report = build(seed=1, init_weight="net.pth", **keys)
    assert all(v.equal(state[k]) for k, v in other.state_dict().items()) and not report.initialised


def test_safetensors_load(trained):
    from safetensors.torch import save_file
    _, keys, state = trained
    save_file({k: v.contiguous() for k, v in state.items()}, "net.safetensors")
    other, _ = build(seed=1, init_weight="net.safetensors", **keys)
    assert all(v.equal(state[k]) for k, v in other.state_dict().items())


def test_one_of_several_networks_is_named(trained):
    _, keys, state = trained
    changed = {k: v + 1 for k, v in state.items()}
    torch.save({"student": state, "teacher": changed}, "both.pth")
    assert "several networks" in refusal(CheckpointError, init_weight="both.pth", **keys)
    other, report = build(seed=1, init_weight="both.pth#teacher", **keys)
    assert all(v.equal(changed[k]) for k, v in other.state_dict().items()) and report.entry == "teacher"
    torch.save({**state, **{f"ema.{k}": v for k, v in changed.items()}}, "both.pth")
    assert "several networks" in refusal(CheckpointError, init_weight="both.pth", **keys)
    assert "no such network goes by the name 'x'" in refusal(CheckpointError, init_weight="both.pth#x", **keys)
    torch.save({"strange": state}, "strange.pth")
    assert "give strange.pth#strange" in refusal(CheckpointError, init_weight="strange.pth", **keys)


SPOILED = {
    "missing": (lambda s: {k: v for k, v in s.items() if k != "last.bias"}, "1 missing (last.bias)"),
    "unexpected": (lambda s: {**s, "more.weight": torch.zeros(3)}, "1 unexpected (more.weight)"),
    "both": (lambda s: {k.replace("last", "final"): v for k, v in s.items()},
             "2 missing (last.weight, last.bias), 2 unexpected (final.weight, final.bias)"),
    "shape": (lambda s: {**s, "body.0.weight": torch.zeros(8, 3, 5, 5)},
              "1 of another shape (body.0.weight (8, 3, 5, 5) for (8, 3, 3, 3))"),
    "outputs": (lambda s: {**s, "last.weight": torch.zeros(7, 8, 1, 1), "last.bias": torch.zeros(7)},
                "it has 7 outputs there: build the network with as many, by model_args"),
    "nan": (lambda s: {**s, "last.bias": torch.full((5,), torch.nan)}, "'last.bias' holds NaN"),
    "variance": (lambda s: {**s, "body.1.running_var": -torch.ones(8)}, "body.1.running_var hold values out of range"),
    "counter": (lambda s: {**s, "body.1.num_batches_tracked": torch.tensor(0.5)}, "num_batches_tracked' holds"),
    "whole numbers": (lambda s: {**s, "last.bias": torch.zeros(5, dtype=torch.int64)}, "'last.bias' holds torch.int64"),
    "another network": (lambda s: {"a.b": torch.zeros(3)}, "it fits nothing of the network"),
    "nothing": (lambda s: {"epoch": 3}, "holds no tensors"),
}


@pytest.mark.parametrize("kind", SPOILED)
def test_whatever_does_not_load_is_refused_with_its_name(trained, kind):
    network, keys, state = trained
    spoil, expected = SPOILED[kind]
    torch.save(spoil(state), "bad.pth")
    text = refusal(CheckpointError, init_weight="bad.pth", **keys)
    assert text.startswith("bad.pth: ") and expected in text
    before = copy.deepcopy(network.state_dict())
    with pytest.raises(CheckpointError):
        load_weights(network, "bad.pth")
    assert all(v.equal(before[k]) for k, v in network.state_dict().items())


def test_imagenet_is_a_start_of_deeplab_alone(mine):
    assert "start of deeplab only" in refusal(CheckpointError, model="mynet.py:build", init_weight="imagenet",
                                              model_args={"outputs": 5})


def test_a_file_states_the_input_that_it_was_trained_with(trained):
    network, keys, _ = trained
    save_weights(network, "rgb.pth")
    assert not build(init_weight="rgb.pth", **keys)[1].warnings
    _, report = build(init_weight="rgb.pth", input_order="bgr", **keys)
    assert len(report.warnings) == 1 and "trained with rgb 0..1 minus (0.485, 0.456, 0.406)" in report.warnings[0]
    other, _ = build(**keys, input_std=[1, 2, 3])
    save_weights(other, "other.pth")
    assert not build(init_weight="other.pth", input_std=[1, 2, 3], **keys)[1].warnings
    assert "over (1, 2, 3) input" in build(init_weight="other.pth", **keys)[1].warnings[0]


def test_a_deeplab_of_another_input_does_not_confuse_deeplab(tmp_path):
    network = deeplab(5, (1, 1, 1, 1), 4)
    save_weights(network, tmp_path / "bgr.pth")
    _, report = build(init_weight=str(tmp_path / "bgr.pth"), layers=[1, 1, 1, 1], width=4)
    assert not report.converted
    network.interface = type(network.interface)(InputConvention("rgb", 1, (0.5,) * 3, (0.5,) * 3))
    save_weights(network, tmp_path / "own.pth")
    _, report = build(init_weight=str(tmp_path / "own.pth"), layers=[1, 1, 1, 1], width=4)
    assert report.loaded == report.total


# ---- speed and memory ------------------------------------------------------------------------------------------------

def training_step(network, x):
    torch.manual_seed(5)
    network.train()
    loss = network(x).square().mean()
    loss.backward()
    return (loss.detach(), torch.rand(3), *(p.grad for p in network.parameters() if p.grad is not None),
            *network.buffers())


@pytest.mark.parametrize("batch", [1, 2])  # one image: torchvision's pooled branch has one value to normalise
@pytest.mark.parametrize("name", ["torchvision/lraspp_mobilenet_v3_large", "torchvision/deeplabv3_mobilenet_v3_large",
                                  "smp/unet:resnet18", "smp/segformer:mit_b0", "hf"])
def test_recomputation_changes_no_bit(name, batch, request):
    name = f"hf/{request.getfixturevalue('segformer')[0]}/untrained" if name == "hf" else name
    if name.startswith("smp"):
        pytest.importorskip("segmentation_models_pytorch")
    plain, saving = build(model=name)[0], build(model=name, checkpointing=True)[0]
    assert saving.checkpointing and saving._blocks
    x = images(batch, 3, 64, 64)
    found, expected = training_step(saving, x), training_step(plain, x)
    assert len(found) == len(expected) and all(a.equal(b) for a, b in zip(found, expected))


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_half_precision(amp):
    half, exact = (build(model="torchvision/lraspp_mobilenet_v3_large", amp=a)[0].eval() for a in (amp, "off"))
    x = images(1, 3, 64, 64)
    with torch.no_grad():
        close, scores = half(x), exact(x)
    assert close.dtype == torch.float32 and not close.equal(scores)
    assert (close - scores).norm() < 0.1 * scores.norm()


@pytest.mark.slow
def test_compiled_network():
    """The pooled branch is not compiled, so that a single image works."""
    keys = {"model": "torchvision/deeplabv3_mobilenet_v3_large"}
    plain, fused = build(**keys)[0].eval(), build(**keys, compile=True)[0].eval()
    for batch in (2, 1):
        x = images(batch, 3, 64, 64)
        for which in ("running", "batch"):
            plain.use_statistics(which), fused.use_statistics(which)
            with torch.inference_mode():
                torch.testing.assert_close(fused(x), plain(x), rtol=1e-3, atol=1e-3)

"""Checkpoints of other projects in their real formats, and files that must be refused."""
import copy
import pickle

import pytest
import torch
import torch.nn.functional as F

from model.deeplabv2 import DeepLabV2
from model.weights import convert, load_weights, read_network, save_weights
from utils.constants import BGR_MEAN
from utils.errors import CheckpointError


def net(num_classes=19, layers=(1, 1, 1, 1), width=4, seed=0):
    torch.manual_seed(seed)
    model = DeepLabV2(num_classes, layers, width)
    for name, buffer in model.named_buffers():  # recognisable statistics
        if "running" in name:
            buffer.uniform_(0.5, 1.5)
    return model


def strip_counters(state):
    return {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}


FORMATS = {
    "ours": lambda s: s,
    "AdaptSegNet, no counters": strip_counters,
    "module prefix": lambda s: {f"module.{k}": v for k, v in s.items()},
    "state_dict wrapper": lambda s: {"state_dict": s, "epoch": 3, "miou": 35.7},
    "model wrapper and prefix": lambda s: {"model": {f"module.{k}": v for k, v in s.items()}, "iteration": 1},
    "authors, two heads": lambda s: {
        **s, **{k.replace("layer5", "layer6"): v + 1 for k, v in s.items() if "layer5" in k}},
}


@pytest.mark.parametrize("name", FORMATS)
def test_trained_formats_round_trip(tmp_path, name):
    original, model = net(seed=1), net(seed=2)
    torch.save(FORMATS[name](original.state_dict()), tmp_path / "c.pth")
    report = load_weights(model, tmp_path / "c.pth")
    for key, tensor in strip_counters(original.state_dict()).items():
        assert model.state_dict()[key].equal(tensor), key
    assert report.initialised == () and str(report.loaded) in str(report)
    assert bool(report.dropped) == (name == "authors, two heads") and all("layer6" in k for k in report.dropped)


def test_caffe_initialisation_gives_the_backbone_alone(tmp_path):
    original, model = net(num_classes=21, seed=1), net(seed=2)
    start = copy.deepcopy(model.state_dict())
    torch.save({f"Scale.{k}": v for k, v in strip_counters(original.state_dict()).items()}, tmp_path / "c.pth")
    report = load_weights(model, tmp_path / "c.pth")
    for key, tensor in strip_counters(model.state_dict()).items():
        assert tensor.equal((start if key.startswith("layer5") else original.state_dict())[key]), key
    assert len(report.initialised) == 8 and all(k.startswith("layer5.") for k in report.initialised)
    assert len(report.dropped) == 8 and "random start: layer5.conv2d_list.0.weight" in str(report)


def test_torchvision_imagenet_becomes_our_input_convention(tmp_path):
    """conv1 and bn1 must answer to BGR - mean as the original did to normalised RGB, away from the zero padding."""
    original, model = net(seed=1).double(), net(seed=2).double()
    state = {k: v for k, v in original.state_dict().items() if not k.startswith("layer5.")}
    torch.save({**state, "fc.weight": torch.zeros(1000, 128), "fc.bias": torch.zeros(1000)}, tmp_path / "tv.pth")
    report = load_weights(model, tmp_path / "tv.pth")
    assert report.format == "torchvision ImageNet" and set(report.dropped) == {"fc.weight", "fc.bias"}

    rgb = torch.randint(0, 256, (2, 3, 40, 48), generator=torch.Generator().manual_seed(0)).double()
    mean = torch.tensor([0.485, 0.456, 0.406], dtype=torch.float64).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225], dtype=torch.float64).view(3, 1, 1)
    theirs = (rgb / 255 - mean) / std
    ours = rgb.flip(1) - torch.tensor(BGR_MEAN, dtype=torch.float64).view(3, 1, 1)
    def stem(m, x):
        return m.eval().bn1(F.conv2d(x, m.conv1.weight, stride=2))  # no padding: interior pixels
    with torch.no_grad():
        assert torch.allclose(stem(original, theirs), stem(model, ours), rtol=1e-9, atol=1e-9)


def refused(tmp_path, content, model=None, raw=None):
    """The message with which a file is refused; the model must be unchanged."""
    path = tmp_path / "bad.pth"
    path.write_bytes(raw) if raw is not None else torch.save(content, path)
    model = model or net()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(CheckpointError) as error:
        load_weights(model, path)
    assert all(before[k].equal(v) for k, v in model.state_dict().items())
    assert "bad.pth" in str(error.value) and "\n" not in str(error.value)
    return str(error.value)


def test_files_that_are_no_checkpoints(tmp_path):
    with pytest.raises(CheckpointError, match="gone.pth: no such checkpoint"):
        load_weights(net(), tmp_path / "gone.pth")
    refused(tmp_path, None, raw=b"note: this is YAML\n")
    refused(tmp_path, None, raw=b"")
    torch.save(net().state_dict(), tmp_path / "x")
    refused(tmp_path, None, raw=(tmp_path / "x").read_bytes()[:5000])
    assert "no tensors" in refused(tmp_path, {"epoch": 3})
    assert "no tensors" in refused(tmp_path, [1, 2])


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("save", [torch.save, lambda o, p: p.write_bytes(pickle.dumps(o))])
def test_nothing_in_a_pickle_is_run(tmp_path, save):
    save({"state_dict": net().state_dict(), "x": Malicious(tmp_path / "ran")}, tmp_path / "evil.pth")
    with pytest.raises(CheckpointError, match="evil.pth"):
        load_weights(net(), tmp_path / "evil.pth")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_broken_weights_are_refused_and_not_saved(tmp_path, value):
    broken = net()
    with torch.no_grad():
        broken.layer3[0].conv2.weight[0, 0, 0, 0] = value
    assert "layer3.0.conv2.weight" in refused(tmp_path, broken.state_dict())
    save_weights(net(), tmp_path / "good.pth")
    before = (tmp_path / "good.pth").read_bytes()
    with pytest.raises(CheckpointError, match="not written"):
        save_weights(broken, tmp_path / "good.pth")
    assert (tmp_path / "good.pth").read_bytes() == before


def test_networks_of_another_shape_name_the_key_to_change(tmp_path):
    state = net().state_dict()
    said = refused(tmp_path, state, net(num_classes=16))
    assert "19 classes" in said and "16" in said and "num_classes" in said
    assert "width" in refused(tmp_path, state, net(width=8))
    assert "layers" in refused(tmp_path, state, net(layers=(1, 1, 2, 1)))
    assert "layers" in refused(tmp_path, net(layers=(1, 2, 1, 1)).state_dict())


def test_a_checkpoint_that_fits_nothing_or_lacks_a_part_is_refused(tmp_path):
    assert "fits nothing" in refused(tmp_path, {"encoder.0.weight": torch.zeros(3)})
    state = net().state_dict()
    assert "bn1.running_mean" in refused(tmp_path, {k: v for k, v in state.items() if k != "bn1.running_mean"})
    assert "layer5" in refused(tmp_path, {k: v for k, v in state.items() if not k.startswith("layer5")})
    assert "extra.weight" in refused(tmp_path, {**state, "extra.weight": torch.zeros(1)})


def test_a_caffe_initialisation_of_another_backbone_is_refused(tmp_path):
    refused(tmp_path, {f"Scale.{k}": v for k, v in net(width=8).state_dict().items()})


def test_saving_is_atomic_and_plain(tmp_path, monkeypatch):
    model = net().to(memory_format=torch.channels_last)
    save_weights(model, tmp_path / "a.pth")
    state = torch.load(tmp_path / "a.pth", weights_only=True)
    assert list(state) == list(model.state_dict()) and all(v.is_contiguous() for v in state.values())
    assert convert(read_network(tmp_path / "a.pth").tensors)[0] == "one head"
    before = (tmp_path / "a.pth").read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(CheckpointError, match="cannot be written.*No space left"):
        save_weights(net(seed=5), tmp_path / "a.pth")
    assert (tmp_path / "a.pth").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.pth"]


def test_no_weights_is_said(tmp_path):
    assert "random start" in str(load_weights(net(), None))


def test_imagenet_that_cannot_be_fetched_says_what_to_do(monkeypatch):
    from torchvision.models import ResNet101_Weights

    def offline(*_, **__):
        raise OSError("no route to host")
    monkeypatch.setattr(ResNet101_Weights, "get_state_dict", offline)
    with pytest.raises(CheckpointError, match="could not be downloaded.*give the file"):
        load_weights(net(), "imagenet")

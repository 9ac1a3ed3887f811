"""Network, what of it is trained, optimiser groups."""
import itertools
from types import SimpleNamespace
from unittest.mock import patch

import torch

from bench.published.comparison import Row, outcome
from bench.published.ours import CLASSES
from model.build import build_model
from model.deeplabv2 import Bottleneck
from model.networks import deeplab
from utils.config import parse_config
from utils.config_keys import KEYS

RESIDUAL = 0.2  # scale of the residual branches, at which a random network neither explodes nor dies


def rows(published) -> list[Row]:
    return [*_forward_rows(published), *_parameter_rows(published), *_pace_rows(published), _start_row(published)]


def _forward_rows(published):
    torch.manual_seed(0)
    ours = deeplab(CLASSES)
    for block in ours.modules():
        if isinstance(block, Bottleneck):
            torch.nn.init.constant_(block.bn3.weight, RESIDUAL)
    state = ours.state_dict()
    second_head = {name.replace("layer5", "layer6"): t for name, t in state.items() if name.startswith("layer5")}
    with patch("torch.load", return_value=state | second_head):  # strict: every name must be there
        theirs = published.network.Deeplab(CLASSES, "a checkpoint")
    ours, theirs = ours.double().train(), theirs.double().train()
    size, file_size = (36, 44), (72, 88)
    x = 50 * torch.randn(2, 3, *size, dtype=torch.float64)
    outputs, gradients = [], []
    weights = torch.randn(2, CLASSES, *size, dtype=torch.float64)
    for network in (theirs, ours):
        output = network(x)[0] if network is theirs else network(x)
        outputs.append(output)
        named = dict(network.named_parameters())
        tensors = [named[f"{name}.weight"] for name in ("conv1", "layer3.5.conv2", "layer5.conv2d_list.3")]
        gradients.append(torch.cat([g.flatten() / g.norm() for g in torch.autograd.grad(
            (output * weights).mean(), tensors)]))
    statistics = [torch.cat([t.flatten() for name, t in sorted(n.named_buffers()) if "running" in name])
                  for n in (theirs, ours)]
    with torch.no_grad():
        evaluated = theirs.eval()(x)[0], ours.eval()(x)
        twice = [torch.nn.Upsample(file_size, mode="bilinear", align_corners=True)(logits) for logits in evaluated]
        once = ours(x, size=file_size)
        features = torch.randn(1, 2048, 28, 30, dtype=torch.float64)  # beyond the widest dilation
        heads = theirs.layer5(features), ours.network.layer5(features)
    given = f"ResNet-101, 2 x {size[0]} x {size[1]} pixels, float64"
    return [Row("network, training mode", given, *outputs, 1e-7),
            Row("its gradients at three depths", given, *gradients, 1e-6),
            Row("its running statistics after the pass", given, *statistics, 1e-9),
            Row("network, evaluation mode", given, *evaluated, 1e-9),
            Row("head alone", "28 x 30 positions, float64", *heads, 1e-12),
            Row("logits at the file's size (theirs: upsampled twice)", f"{file_size[0]} x {file_size[1]}", twice[0],
                once, 1e-9, twice[1])]


def _small(published):
    """(theirs, ours) with one block a stage."""
    theirs = published.network.ResNet(published.network.Bottleneck, [1, 1, 1, 1], CLASSES, is_teacher=True)
    ours = deeplab(CLASSES, (1, 1, 1, 1))
    ours.freeze_bn_affine()
    return theirs, ours


def _parameter_rows(published):
    theirs, ours = _small(published)
    names = [name for name, _ in ours.named_parameters()]
    parts = ["+".join(sorted({name.partition(".")[0] for name, _ in n.named_parameters()})) for n in (theirs, ours)]
    trained = [[dict(network.named_parameters())[name].requires_grad for name in names] for network in (theirs, ours)]
    shortcut = [own or "downsample.1." in name for name, own in zip(names, trained[1])]
    both = [name for name, *flags in zip(names, *trained) if all(flags)]
    head = [name.startswith("layer5") for name in both]
    def listed(network, group):
        found = [id(p) for p in group["params"]]
        return [found.count(id(dict(network.named_parameters())[name])) for name in both]
    backbone, whole = theirs.optim_parameters(1e-4)
    mine = [listed(ours, group) for group in ours.parameter_groups(3, 10)]
    said = [0 if of_head else 1 if name.startswith("conv1") else 4 if "downsample" in name else 3
            for name, of_head in zip(both, head)]
    ratio = whole["lr"] / backbone["lr"]
    times = listed(theirs, backbone)
    counts = ", ".join(f"{times.count(n)} tensors x{n}" for n in sorted({*times} - {0}))
    return [Row("parts of the network (theirs: a second head)", f"{len(names)} tensors", *parts,
                documented=f"{parts[1]}+layer6"),
            Row("what is trained (theirs: the shortcuts' batch norm too)", f"{len(names)} tensors", *trained,
                documented=shortcut),
            Row(f"listings of a backbone tensor in the optimiser ({counts})", f"{len(both)} tensors", times, mine[0],
                documented=said),
            Row("listings of a head tensor", f"{sum(head)} tensors", listed(theirs, whole), mine[1]),
            Row("rate of the head over the listed one", "1 group each", ratio, KEYS["head_lr_mult"].default)]


def _pace_rows(published):
    """A constant gradient drives one tensor of a bottleneck."""
    paces = []
    theirs, ours = _small(published)
    for network, groups in ((theirs, theirs.optim_parameters(1e-3)),
                            (ours, [{**group, "lr": 1e-3 * group["lr_mult"]} for group in ours.parameter_groups(
                                KEYS["backbone_lr_mult"].default, KEYS["head_lr_mult"].default)])):
        tensor = dict(network.named_parameters())["layer2.0.conv2.weight"]
        tensor.data = torch.zeros(tensor.shape, dtype=torch.float64)
        tensor.grad = torch.ones_like(tensor)
        optimizer, places = torch.optim.SGD(groups, 1e-3, momentum=0.9), [0.0]
        for _ in range(200):
            optimizer.step()
            places.append(tensor[0, 0, 0, 0].item())
        steps = [a - b for a, b in itertools.pairwise(places)]
        paces.append((steps[-1], (steps[-1] - steps[6]) / (steps[-1] - steps[5])))
    (their_pace, their_share), (our_pace, our_share) = paces
    return [Row("pace of a bottleneck's tensor under a constant gradient", "200 steps", their_pace, our_pace, 1e-6),
            Row("momentum that a step keeps (theirs: applied at each listing)", "0.9", their_share, our_share, 1e-6,
                0.9**3)]


def _start_row(published):
    theirs, _ = _small(published)
    keys = SimpleNamespace(num_classes=CLASSES, init_weight="")
    with patch.object(published.builder, "Deeplab", lambda **_: theirs):
        started = outcome(lambda: published.builder.init_model(keys))
    cfg = parse_config("layers: [1, 1, 1, 1]", "-")
    return Row("stages 1 and 2: building the network (theirs: unpacks three of one)", "run.py", started,
               outcome(lambda: build_model(cfg, torch.device("cpu"), load=False)), documented="TypeError")

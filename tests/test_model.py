"""DeepLabV2: names, shapes, output stride, parameter groups, frozen batch norm; the EMA teacher."""
import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from model.deeplabv2 import DeepLabV2, Head, _parts
from model.ema import Teacher, ema_decay
from model.networks import deeplab


def tiny(num_classes=5, seed=0):
    torch.manual_seed(seed)
    return deeplab(num_classes, (1, 2, 1, 1), 4)


@pytest.fixture(scope="module")
def resnet101():
    with torch.device("meta"):
        return DeepLabV2(19)


def expected_names():
    """The names that published checkpoints use, written out from the network's description."""
    bn = [f"{{}}.{s}" for s in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")]
    names = ["conv1.weight", *(n.format("bn1") for n in bn)]
    for layer, blocks in zip(range(1, 5), (3, 4, 23, 3)):
        for block in range(blocks):
            at = f"layer{layer}.{block}"
            for i in (1, 2, 3):
                names += [f"{at}.conv{i}.weight", *(n.format(f"{at}.bn{i}") for n in bn)]
            if block == 0:
                names += [f"{at}.downsample.0.weight", *(n.format(f"{at}.downsample.1") for n in bn)]
    return names + [f"layer5.conv2d_list.{i}.{s}" for i in range(4) for s in ("weight", "bias")]


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("size", [(1, 1), (5, 30), (27, 40)])
def test_head_equals_four_convolutions(size, memory_format):
    """Values and all gradients, in float64, on maps smaller and larger than the dilations."""
    torch.manual_seed(0)
    head = Head(6, 5).double().to(memory_format=memory_format)
    x = torch.randn(2, 6, *size, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(2, 5, *size, dtype=torch.float64)
    inputs = [x, *head.parameters()]
    plain = sum(F.conv2d(x, c.weight, c.bias, padding=d, dilation=d)
                for c, d in zip(head.conv2d_list, (6, 12, 18, 24)))
    ours = head(x.to(memory_format=memory_format))
    torch.testing.assert_close(ours, plain)
    for mine, theirs in zip(torch.autograd.grad(ours, inputs, upstream), torch.autograd.grad(plain, inputs, upstream)):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("branches", [1, 2, 3, 4])
@pytest.mark.parametrize("size", [(1, 1), (5, 30), (27, 40)])
def test_head_of_the_first_branches_equals_their_convolutions(branches, size):
    """As AdaptSegNet's and BDL's published forward, which returns after the second. In float64, with all gradients."""
    torch.manual_seed(0)
    head, x = Head(6, 5, branches).double(), torch.randn(2, 6, *size, dtype=torch.float64, requires_grad=True)
    assert list(head.state_dict()) == list(Head(6, 5).state_dict())
    upstream = torch.randn(2, 5, *size, dtype=torch.float64)
    plain = sum(F.conv2d(x, c.weight, c.bias, padding=d, dilation=d)
                for c, d in zip(head.conv2d_list[:branches], (6, 12, 18, 24)))
    used = [x, *head.conv2d_list[:branches].parameters()]
    ours = head(x)
    torch.testing.assert_close(ours, plain)
    for mine, theirs in zip(torch.autograd.grad(ours, used, upstream), torch.autograd.grad(plain, used, upstream)):
        torch.testing.assert_close(mine, theirs)
    head(x).backward(upstream)
    assert [c.weight.grad is None and c.bias.grad is None for c in head.conv2d_list] == [
        i >= branches for i in range(4)]


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
def test_unused_branches_stay_as_they_are_through_training(checkpointing, autocast):
    torch.manual_seed(0)
    model = deeplab(5, (1, 2, 1, 1), 4, head_branches=2)
    assert all(a.equal(b) for a, b in zip(model.state_dict().values(), tiny().state_dict().values()))
    model.freeze_bn_affine()
    model.checkpointing, model.autocast = checkpointing, autocast
    before, teacher = copy.deepcopy(model.state_dict()), Teacher(model, 0.5)
    groups = model.parameter_groups(1.0, 10.0)
    assert len(groups[1]["params"]) == 4
    optimizer = torch.optim.SGD(groups, 0.1, 0.9, weight_decay=0.1, foreach=True)
    for _ in range(2):
        optimizer.zero_grad()
        model.train()(torch.randn(2, 3, 40, 40)).square().mean().backward()
        optimizer.step()
        teacher.update(model)
    again = torch.optim.SGD(model.parameter_groups(1.0, 10.0), 0.1, 0.9, weight_decay=0.1, foreach=True)
    again.load_state_dict(optimizer.state_dict())
    for state in (model.state_dict(), teacher.model.state_dict()):
        for name in before:
            if name.startswith("layer5"):
                unused = name.split(".")[2] in "23"
                assert torch.allclose(before[name], state[name], rtol=1e-6, atol=0) == unused, name


def test_resnet101_names_and_count(resnet101):
    state = resnet101.state_dict()
    assert sorted(state) == sorted(expected_names()) and len(state) == 632
    # 104 convolutions of the backbone, 4 of the head
    assert sum(isinstance(m, nn.Conv2d) for m in resnet101.modules()) == 104 + 4
    assert state["layer5.conv2d_list.3.weight"].shape == (19, 2048, 3, 3)


def test_resnet101_backbone_has_torchvisions_shapes(resnet101):
    from torchvision.models import resnet101 as reference
    with torch.device("meta"):
        theirs = {k: v.shape for k, v in reference().state_dict().items() if not k.startswith("fc.")}
    ours = {k: v.shape for k, v in resnet101.state_dict().items() if not k.startswith("layer5.")}
    assert ours == theirs


def test_strides_and_dilations_sit_where_caffe_has_them(resnet101):
    for layer, stride, dilation in (("layer1", 1, 1), ("layer2", 2, 1), ("layer3", 1, 2), ("layer4", 1, 4)):
        for index, block in enumerate(getattr(resnet101, layer)):
            assert block.conv1.stride == (stride if index == 0 else 1,) * 2
            assert block.conv2.stride == (1, 1) and block.conv2.dilation == block.conv2.padding == (dilation,) * 2
            assert (block.downsample is not None) == (index == 0)
    assert [c.dilation[0] for c in resnet101.layer5.conv2d_list] == [6, 12, 18, 24]


@pytest.mark.parametrize("size", [(64, 128), (65, 97), (33, 33), (41, 90), (8, 8)])
def test_output_stride_is_8_at_odd_sizes(size):
    model = tiny().eval()
    def after(n):
        n = (n + 2 * 3 - 7) // 2 + 1            # 7x7, stride 2
        n = math.ceil((n + 2 * 1 - 3) / 2) + 1  # 3x3 pool, stride 2, ceil_mode
        return (n - 1) // 2 + 1                 # 1x1, stride 2
    with torch.no_grad():
        x = torch.randn(1, 3, *size)
        assert model.score_map(x).shape == (1, 5, after(size[0]), after(size[1]))
        assert abs(after(size[0]) - size[0] / 8) <= 1.5
        assert model(x).shape == (1, 5, *size)
        assert model(x, size=(37, 21)).shape == (1, 5, 37, 21)
        expected = F.interpolate(model.score_map(x), size, mode="bilinear", align_corners=True)
        assert model(x).equal(expected)


def test_convolutions_start_small():
    model = DeepLabV2(19, (1, 1, 1, 1), 16)
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 3000:
            assert module.weight.std().item() == pytest.approx(0.01, rel=0.1), name
            assert abs(module.weight.mean().item()) < 0.001, name


@pytest.mark.parametrize("fixbn", [False, True])
def test_parameter_groups_cover_every_trainable_tensor_once(fixbn):
    model = tiny()
    if fixbn:
        model.freeze_bn_affine()
    backbone, head = model.parameter_groups(3.0, 10.0)
    assert (backbone["lr_mult"], head["lr_mult"]) == (3.0, 10.0)
    listed = [id(p) for group in (backbone, head) for p in group["params"]]
    trainable = {id(p): n for n, p in model.named_parameters() if p.requires_grad}
    assert sorted(listed) == sorted(trainable)
    assert {trainable[id(p)].split(".")[0] for p in head["params"]} == {"layer5"}
    assert not any(trainable[id(p)].startswith("layer5") for p in backbone["params"])
    frozen = [n for n, p in model.named_parameters() if not p.requires_grad]
    bn = [n for n, m in model.network.named_modules() if isinstance(m, nn.BatchNorm2d)]
    assert sorted(frozen) == sorted(f"{n}.{s}" for n in bn for s in ("weight", "bias") if fixbn)


def test_a_step_leaves_frozen_batch_norm_and_moves_its_statistics():
    model = tiny()
    model.freeze_bn_affine()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameter_groups(1.0, 10.0), 0.1, 0.9, weight_decay=0.1)
    model.train()
    model(torch.randn(2, 3, 40, 40)).square().mean().backward()
    optimizer.step()
    after = model.state_dict()
    for name in before:
        in_bn = any(part in name for part in ("bn1.", "bn2.", "bn3.", "downsample.1."))
        is_bn_affine = in_bn and name.split(".")[-1] in ("weight", "bias")
        assert before[name].equal(after[name]) == is_bn_affine, name


def gradients(model, x):
    model.train()
    model(x).square().mean().backward()
    return {n: p.grad for n, p in model.named_parameters()}


def test_checkpointing_changes_no_bit_of_gradients_and_statistics():
    plain, saving = tiny(), tiny()
    saving.checkpointing = True
    x = torch.randn(2, 3, 40, 48)
    expected, found = gradients(plain, x), gradients(saving, x)
    assert all(expected[n].equal(found[n]) for n in expected)
    assert all(a.equal(b) for a, b in zip(plain.state_dict().values(), saving.state_dict().values()))
    assert saving.network.bn1.num_batches_tracked == saving.network.layer2[1].bn3.num_batches_tracked == 1


def test_checkpointing_keeps_less_for_the_backward_pass():
    def kept(checkpointing):
        model, sizes = tiny().train(), []
        model.checkpointing = checkpointing
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
            model(torch.randn(2, 3, 64, 64))
        return sum(sizes)
    assert kept(True) < 0.5 * kept(False)


def test_deep_stages_are_recomputed_in_pairs():
    assert [len(_parts(nn.Sequential(*map(nn.Conv2d, [1] * n, [1] * n, [1] * n)))) for n in (1, 3, 4, 9, 23, 36)] == [
        1, 3, 4, 5, 12, 12]
    x, found = 50 * torch.randn(2, 3, 40, 48), []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        model = deeplab(5, (1, 1, 9, 1), 2)
        model.checkpointing = checkpointing
        found.append((gradients(model, x), model.state_dict()))
    for plain, recomputed in zip(*found):
        assert list(plain) == list(recomputed) and all(plain[n].equal(recomputed[n]) for n in plain)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_inside_the_convolutions_only(dtype):
    exact, half = tiny(), tiny()
    half.autocast = dtype
    x = 50 * torch.randn(2, 3, 40, 48)
    found = gradients(half, x)
    exact.train()
    assert half(x).dtype == torch.float32 and all(p.dtype == torch.float32 for p in half.parameters())
    assert all(g.dtype == torch.float32 for g in found.values())
    scores, close = exact(x), half(x)
    assert not scores.equal(close) and (scores - close).norm() < 16 * torch.finfo(dtype).eps * scores.norm()


@pytest.mark.slow
def test_compiled_blocks_equal_plain_ones():
    plain, fused = tiny(), tiny()
    fused.compile_blocks()
    assert list(plain.state_dict()) == list(fused.state_dict())
    x = torch.randn(2, 3, 40, 48)
    expected, found = gradients(plain, x), gradients(fused, x)
    assert all(torch.allclose(expected[n], found[n], rtol=1e-3, atol=1e-6 + 1e-4 * expected[n].abs().max())
               for n in expected)
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-6)
               for a, b in zip(plain.state_dict().values(), fused.state_dict().values()))


# ---- teacher ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("alpha", [0.99, 0.5, 0.0])
def test_teacher_equals_the_plain_recursion(alpha):
    student = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2)).double()
    teacher = Teacher(student, alpha)
    expected = {n: p.detach().clone() for n, p in student.named_parameters()}
    g = torch.Generator().manual_seed(0)
    for t in range(200):
        with torch.no_grad():
            for p in student.parameters():
                p.add_(torch.randn(p.shape, generator=g, dtype=p.dtype))
            student[1].running_mean.fill_(t)
        a = min(1 - 1 / (t + 1), alpha)
        expected = {n: a * expected[n] + (1 - a) * p.detach() for n, p in student.named_parameters()}
        teacher.update(student)
        if t == 0:
            assert all(p.equal(q) for p, q in zip(teacher.model.parameters(), student.parameters()))
        for n, p in teacher.model.named_parameters():
            assert torch.allclose(p, expected[n], rtol=1e-12, atol=1e-12)
        assert teacher.model[1].running_mean.eq(t).all()
    assert teacher.updates == 200


def test_warm_up_of_the_teacher():
    assert [ema_decay(t, 0.99) for t in (0, 1, 3, 98, 99, 100, 10**6)] == pytest.approx(
        [0, 0.5, 0.75, 98 / 99, 0.99, 0.99, 0.99])


def test_the_teacher_is_a_copy_that_does_not_train():
    student = tiny()
    teacher = Teacher(student, 0.99)
    assert not any(p.requires_grad for p in teacher.model.parameters())
    assert all(p.requires_grad for p in student.parameters())
    with torch.no_grad():
        student.network.conv1.weight.add_(1)
    assert not teacher.model.network.conv1.weight.equal(student.network.conv1.weight)
    teacher.update(student)
    with torch.no_grad():
        student.network.conv1.weight.add_(1)
    assert not teacher.model.network.conv1.weight.equal(student.network.conv1.weight)  # no tensor is shared

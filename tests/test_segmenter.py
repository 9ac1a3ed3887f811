"""The wrapper of any network: input, output, padding, batch norms, head, recomputation, autocast; on small networks
whose answers are known."""
import copy
import re
from collections import OrderedDict
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from model.ema import Teacher
from model.examine import examine
from model.interface import Interface
from model.networks import deeplab
from model.recompute import blocks
from model.segmenter import Segmenter
from utils.constants import INPUTS, InputConvention
from utils.errors import ConfigError

RGB = INPUTS["rgb01"]


class Answer(nn.Module):
    """A 1x1 convolution, whose scores are wrapped by `wrap`."""

    def __init__(self, channels=3, wrap=lambda scores: scores, bands=3):
        super().__init__()
        self.conv, self.wrap = nn.Conv2d(bands, channels, 1), wrap

    def forward(self, x):
        return self.wrap(self.conv(x))


class Block(nn.Module):
    def __init__(self, width, norm=nn.BatchNorm2d, dropout=0.3):
        super().__init__()
        self.conv, self.norm, self.drop = nn.Conv2d(width, width, 3, padding=1), norm(width), nn.Dropout(dropout)

    def forward(self, x, scale=1.0):
        return x + scale * self.drop(F.relu(self.norm(self.conv(x))))


class Small(nn.Module):
    """Output stride 4, two blocks, a pooled branch with a batch norm, dropout, scores by the name `out`."""

    def __init__(self, channels=5, norm=nn.BatchNorm2d, width=8):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, 4, 1), norm(width), nn.ReLU(inplace=True))
        self.blocks = nn.ModuleList([Block(width, norm), Block(width, norm)])
        self.pooled = nn.Sequential(nn.Conv2d(width, width, 1), norm(width), nn.ReLU())
        self.classify = nn.Conv2d(width, channels, 1)

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x, scale=0.5)
        return {"aux": x, "out": self.classify(x + self.pooled(x.mean((2, 3), keepdim=True)))}


def segmenter(network, classes=None, **interface):
    return Segmenter(network, classes or 5, Interface(RGB, **interface))


def small(seed=0, norm=nn.BatchNorm2d, **interface):
    torch.manual_seed(seed)
    return segmenter(Small(norm=norm), **interface)


def images(*size, seed=0):
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


# ---- input -----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("bands", [1, 2, 3, 4, 16])
@pytest.mark.parametrize("order", ["rgb", "bgr"])
@pytest.mark.parametrize("maximum", [1, 255, 65535])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_input_against_the_formula(bands, order, maximum, dtype):
    g = torch.Generator().manual_seed(bands)
    pixels = torch.randint(256, (2, 5, 7, bands), generator=g, dtype=torch.uint8).to(dtype)
    mean, std = (maximum * torch.rand(bands, generator=g, dtype=torch.float64) + maximum / 9 for _ in range(2))
    convention = InputConvention(order, maximum, tuple(mean.tolist()), tuple(std.tolist()))
    found = Segmenter(Answer(bands=bands), 3, Interface(convention)).prepare(pixels)
    bands_last = pixels.double().flip(3) if bands == 3 and order == "bgr" else pixels.double()
    expected = ((bands_last * maximum / 255 - mean) / std).permute(0, 3, 1, 2)
    assert found.dtype == torch.float32 and found.shape == (2, bands, 5, 7)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


def test_deeplab_takes_bgr_minus_the_mean_exactly():
    pixels = torch.randint(256, (1, 4, 6, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    mean = torch.tensor([104.00698793, 116.66876762, 122.67891434]).view(3, 1, 1)
    assert deeplab(3, (1, 1, 1, 1), 1).prepare(pixels).equal(pixels.flip(3).permute(0, 3, 1, 2).float() - mean)


def test_another_number_of_bands_is_refused():
    with pytest.raises(ConfigError, match="the images have 4 bands, the network takes 3"):
        small().prepare(torch.zeros(1, 2, 2, 4))


# ---- output ----------------------------------------------------------------------------------------------------------

OUTPUTS = {
    "tensor": (lambda s: s, "auto"), "out": (lambda s: {"aux": 2 * s, "out": s}, "auto"),
    "ordered": (lambda s: OrderedDict(out=s, aux=2 * s), "auto"),
    "logits": (lambda s: {"logits": s, "loss": None}, "auto"),
    "attribute": (lambda s: SimpleNamespace(logits=s, hidden=[s]), "auto"),
    "one of a tuple": (lambda s: (s, s.mean(), None), "auto"), "list of one": (lambda s: [s], "auto"),
    "index": (lambda s: (2 * s, s), "1"), "last": (lambda s: [2 * s, s], "-1"),
    "name": (lambda s: {"x": s, "out": 2 * s}, "x"),
    "attribute by name": (lambda s: SimpleNamespace(main=s, out=2 * s), "main")}


@pytest.mark.parametrize("kind", OUTPUTS)
def test_scores_are_found_in_what_the_network_returns(kind):
    wrap, output = OUTPUTS[kind]
    network = Answer(wrap=wrap)
    made, x = segmenter(network, 3, output=output), images(2, 3, 6, 8)
    assert made.score_map(x).equal(network.conv(x))


def test_a_network_may_return_several_outputs_in_training_and_one_in_evaluation():
    class Auxiliary(Answer):
        def forward(self, x):
            scores = self.conv(x)
            return (scores, 2 * scores) if self.training else scores
    made, x = segmenter(Auxiliary(), 3, output="0"), images(2, 3, 6, 8)
    examine(made)
    assert made.train().score_map(x).equal(made.network.conv(x))
    assert made.eval().score_map(x).equal(made.network.conv(x))


@pytest.mark.parametrize("wrap, output, expected", [
    (lambda s: (s, s), "auto", "a tuple (a tensor [1, 3, 64, 64] of float32, a tensor [1, 3, 64, 64] of float32)"),
    (lambda s: {"a": s}, "auto", "a mapping (a: a tensor [1, 3, 64, 64] of float32)"),
    (lambda s: {"a": s}, "b", "'b' is not there; the network returns a mapping (a: a tensor"),
    (lambda s: [s], "1", "'1' is not there"), (lambda s: s, "1", "'1' is not there"),
    (lambda s: None, "auto", "the network returns a NoneType"),
    (lambda s: {"out": None}, "auto", "a mapping (out: a None"),
    (lambda s: s.mean((2, 3)), "auto", "the scores are a tensor [1, 3] of float32"),
    (lambda s: s.argmax(1, keepdim=True), "auto", "of int64"),
    (lambda s: {"out": [s]}, "auto", "the scores are a list"),
])
def test_other_outputs_are_refused_with_what_they_are(wrap, output, expected):
    with pytest.raises(ConfigError) as caught:
        examine(segmenter(Answer(wrap=wrap), 3, output=output))
    assert str(caught.value).startswith("output: ") and expected in str(caught.value)


@pytest.mark.parametrize("channels", [tuple(range(19)), tuple(range(1, 20)), (3, 1, 2), (0,) * 2, (19, 0, 5, 4)])
def test_channels_of_the_classes(channels):
    network, x = Answer(20), images(2, 3, 4, 5)
    found = segmenter(network, len(channels), channels=channels).score_map(x)
    assert found.equal(torch.stack([network.conv(x)[:, c] for c in channels], 1))


def test_one_channel_for_two_classes_is_the_logit_of_the_second():
    network, x = Answer(1), images(2, 3, 4, 5)
    z = network.conv(x)
    found = segmenter(network, 2).score_map(x)
    assert found.shape == (2, 2, 4, 5)
    torch.testing.assert_close(found.softmax(1)[:, 1:], z.sigmoid())
    network = Answer(4)
    assert segmenter(network, 2, channels=(3,)).score_map(x)[:, 1:].equal(network.conv(x)[:, 3:])


@pytest.mark.parametrize("count, classes, channels, expected", [
    (20, 19, None, "num_classes: 19 classes, but the network gives 20 channels"), (1, 3, None, "gives 1 channels"),
    (20, 19, (1, 2), "output_channels names 2"), (5, 2, (0, 5), "output_channels: 5 is not there"),
    (2, 2, (1,), None)])
def test_numbers_of_channels_that_do_not_fit(count, classes, channels, expected):
    made = segmenter(Answer(count), classes, channels=channels)
    if expected is None:
        return examine(made)
    with pytest.raises(ConfigError) as caught:
        examine(made)
    assert expected in str(caught.value)


# ---- sizes -----------------------------------------------------------------------------------------------------------

class Strict(nn.Module):
    """Takes multiples of `multiple` only; scores at output stride `stride`, of everything that it was given."""

    def __init__(self, multiple, stride):
        super().__init__()
        self.conv, self.multiple, self.stride = nn.Conv2d(3, 4, 3, stride, 1), multiple, stride

    def forward(self, x):
        assert x.shape[2] % self.multiple == x.shape[3] % self.multiple == 0
        return self.conv(x)


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("size", [(32, 64), (33, 47), (8, 8), (31, 65), (1, 90)])
@pytest.mark.parametrize("multiple, stride", [(16, 4), (32, 8), (8, 1)])
def test_sizes_are_padded_and_cut(size, multiple, stride, aligned):
    network, x = Strict(multiple, stride), images(2, 3, *size)
    made = segmenter(network, 4, size_multiple=multiple, align_corners=aligned)
    full = [-(-n // multiple) * multiple for n in size]
    padded = x.new_zeros(2, 3, *full)
    padded[..., :size[0], :size[1]] = x
    whole = F.interpolate(network(padded), full, mode="bilinear", align_corners=aligned)
    assert made(x).equal(whole[..., :size[0], :size[1]])
    assert made.upsample(made.score_map(x)[0], size).equal(made(x)[0])


@pytest.mark.parametrize("wanted", [(66, 94), (50, 47), (33, 200), (99, 141)])
def test_padded_scores_at_another_size_are_those_of_the_image_alone(wanted):
    """Bilinear upsampling of a map that is a linear function of the position is that function, between the outermost
    cells: so what the scores are at a pixel of the file does not depend on the padding."""
    class Ramp(nn.Module):
        def forward(self, x):
            rows, columns = (torch.arange(n, dtype=torch.float64) for n in x.shape[-2:])
            return F.avg_pool2d((rows.view(-1, 1) + 100 * columns).expand(1, 2, -1, -1), 4)

    size = 33, 47
    made = segmenter(Ramp(), 2, size_multiple=16)
    x = torch.zeros(1, 3, *size, dtype=torch.float64)
    found = made(x, size=wanted)[0, 0]
    assert made.upsample(made.score_map(x)[0], wanted, size)[0].equal(found) and found.shape == wanted
    rows, columns = ((torch.arange(n, dtype=torch.float64) + 0.5) * s / n - 0.5 for n, s in zip(wanted, size))
    inner = (rows >= 1.5).view(-1, 1) & (columns >= 1.5) & (columns <= 45.5)  # of 48, of which 47 are the image's
    assert inner.float().mean() > 0.85
    torch.testing.assert_close(found[inner], (rows.view(-1, 1) + 100 * columns)[inner], rtol=1e-6, atol=1e-4)


def test_a_scores_map_is_upsampled_as_the_network_says():
    for aligned in (False, True):
        made = small(align_corners=aligned).eval()
        x = images(1, 3, 30, 41)
        scores = made.score_map(x)
        expected = F.interpolate(scores, (60, 80), mode="bilinear", align_corners=aligned)
        assert made(x, size=(60, 80)).equal(expected) and made.upsample(scores[0], (60, 80)).equal(expected[0])


# ---- batch norm and dropout ------------------------------------------------------------------------------------------

def test_statistics_switch_batch_norms_and_nothing_else():
    made = small()
    made.train()
    for which in ("batch", "running", "batch"):
        made.use_statistics(which)
        training = {type(m) for m in made.modules() if m.training}
        assert training == ({nn.BatchNorm2d} if which == "batch" else set())
    x = images(2, 3, 16, 16)
    assert made(x).equal(made(x))  # no dropout
    assert made.has_batch_norm and not made.remarks


def test_batch_statistics_normalise_and_move_the_running_ones():
    made = small()
    made.use_statistics("batch")
    seen = {}
    made.network.stem[0].register_forward_hook(lambda m, a, y: seen.update(y=y.detach()))
    before = made.network.stem[1].running_mean.clone()
    with torch.inference_mode():
        made.score_map(images(2, 3, 16, 16))
    mean = seen["y"].mean((0, 2, 3))
    torch.testing.assert_close(made.network.stem[1].running_mean, 0.9 * before + 0.1 * mean)


def test_one_value_per_channel_uses_the_running_statistics_and_says_so_once():
    made, x = small(), images(1, 3, 16, 16)
    norm = made.network.pooled[1]
    norm.running_mean.fill_(0.3), norm.running_var.fill_(2.0)
    other = copy.deepcopy(made.network)  # evaluation mode in the pooled branch, batch statistics in the others
    for _ in range(2):
        made.use_statistics("batch")
        with torch.inference_mode():
            found = made.score_map(x)
    other.eval()
    for module in (other.stem[1], *(block.norm for block in other.blocks)):
        module.train()
    with torch.inference_mode():
        other(x)
        torch.testing.assert_close(found, other(x)["out"])
    assert norm.training and norm.num_batches_tracked == 0 and norm.running_mean.eq(0.3).all()
    assert made.network.stem[1].num_batches_tracked == 2
    assert len(made.remarks) == 1 and "one value per channel" in made.remarks[0]
    made.train()
    made(x).sum().backward()  # in training as well
    assert len(made.remarks) == 1 and "forward" not in norm.__dict__


def test_networks_without_batch_norm():
    made = small(norm=lambda width: nn.GroupNorm(2, width))
    made.use_statistics("batch")
    assert not made.has_batch_norm and not any(m.training for m in made.modules())
    made.freeze_bn_affine()
    assert all(p.requires_grad for p in made.parameters())
    teacher = Teacher(made, 0.5)
    teacher.update(made)
    assert all(a.equal(b) for a, b in zip(teacher.model.state_dict().values(), made.state_dict().values()))


@pytest.mark.filterwarnings("ignore:.*(weight_norm|torch.jit)")
@pytest.mark.parametrize("wrap", [nn.utils.weight_norm, nn.utils.spectral_norm])
def test_a_network_with_reparametrised_weights_can_have_a_teacher(wrap):
    network = Answer()
    wrap(network.conv)
    made, x = segmenter(network, 3), images(2, 3, 8, 8)
    examine(made)
    teacher = Teacher(made, 0.5)
    made.train()(x).sum().backward()
    teacher.update(made)
    assert teacher.model.eval()(x).equal(made.eval()(x))


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_a_network_that_cannot_be_copied_has_no_teacher():
    made = segmenter(torch.jit.trace(nn.Conv2d(3, 3, 1), images(1, 3, 8, 8)), 3)
    examine(made)
    with pytest.raises(ConfigError, match="model: the teacher is a copy .* TorchScript"):
        Teacher(made, 0.5)


@pytest.mark.parametrize("norm, frozen", [(nn.BatchNorm2d, True), (nn.SyncBatchNorm, True),
                                          (lambda w: nn.InstanceNorm2d(w, affine=True), False)])
def test_freezing_takes_every_kind_of_batch_norm(norm, frozen):
    made = small(norm=norm)
    made.freeze_bn_affine()
    assert [p.requires_grad for p in made.network.stem[1].parameters()] == [not frozen] * 2
    assert all(p.requires_grad for p in made.network.classify.parameters())


# ---- state, head, copies ---------------------------------------------------------------------------------------------

def test_state_and_names_are_the_networks():
    made = small()
    assert list(made.state_dict()) == list(made.network.state_dict())
    assert [n for n, _ in made.named_parameters()] == [n for n, _ in made.network.named_parameters()]
    assert [n for n, _ in made.named_buffers()] == [n for n, _ in made.network.named_buffers()]
    other = small(seed=1)
    other.load_state_dict(made.state_dict())
    assert all(a.equal(b) for a, b in zip(made.parameters(), other.parameters()))
    with pytest.raises(RuntimeError):
        other.load_state_dict({})


@pytest.mark.parametrize("head, expected", [
    (None, {"classify.weight", "classify.bias"}), (("classify.",), {"classify.weight", "classify.bias"}),
    (("pooled.1", "classify.bias"), {"pooled.1.weight", "pooled.1.bias", "classify.bias"}),
    (("blocks",), {f"blocks.{i}.{m}.{p}" for i in (0, 1) for m in ("conv", "norm") for p in ("weight", "bias")})])
def test_head_parameters(head, expected):
    made = small(head=head)
    made.network.stem[0].weight.requires_grad_(False)
    backbone, found = made.parameter_groups(3.0, 10.0)
    names = {id(p): n for n, p in made.named_parameters()}
    assert {names[id(p)] for p in found["params"]} == expected and found["lr_mult"] == 10
    everything = [id(p) for group in (backbone, found) for p in group["params"]]
    assert sorted(everything) == sorted(i for i, n in names.items() if n != "stem.0.weight")


def test_a_head_that_is_not_there():
    with pytest.raises(ConfigError, match="head: no parameter's name begins with class or layer5; they begin with st"):
        small(head=("class", "layer5")).parameter_groups(1, 1)


@pytest.mark.parametrize("batch", [1, 2])
def test_a_copy_is_another_network(batch):
    made = small()
    made.checkpointing = True
    twin, x = copy.deepcopy(made), images(batch, 3, 16, 16)
    with torch.no_grad():
        for p in twin.parameters():
            p.zero_()
    twin.train(), made.train()
    twin(x).sum().backward()
    assert twin(x).eq(0).all() and all(p.grad is None for p in made.parameters())
    assert made.network.stem[1].num_batches_tracked == 0 and not made(x).eq(0).all()


# ---- examination -----------------------------------------------------------------------------------------------------

class Noisy(Small):
    """Draws numbers and counts its passes, in evaluation mode too."""

    def __init__(self):
        super().__init__()
        self.register_buffer("passes", torch.zeros(()))

    def forward(self, x):
        self.passes += 1
        return super().forward(x + torch.rand_like(x))


@pytest.mark.parametrize("training", [True, False])
def test_examination_changes_nothing(training):
    torch.manual_seed(0)
    made = segmenter(Noisy())
    made.train(training)
    made.network.stem[1].eval()
    modes = [m.training for m in made.modules()]
    before, drawn = copy.deepcopy(made.state_dict()), torch.get_rng_state()
    examine(made)
    assert all(v.equal(before[k]) for k, v in made.state_dict().items())
    assert torch.get_rng_state().equal(drawn) and [m.training for m in made.modules()] == modes
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in made.modules())


@pytest.mark.parametrize("name", ["num_classes", "has_batch_norm", "checkpointing", "mean"])
def test_examination_of_a_network_whose_buffers_have_names_of_the_segmenter(name):
    network = Answer()
    network.register_buffer(name, torch.tensor([4.0, 5.0]))
    made = segmenter(network, 3)
    before = vars(made).keys() | set()
    examine(made)
    assert made.num_classes == 3 and not made.has_batch_norm and not made.checkpointing and vars(made).keys() == before
    assert network.get_buffer(name).tolist() == [4, 5]


class Branches(nn.Module):
    """A block of HRNet's kind: one feature map a branch, in a list, which `in_place` changes."""

    def __init__(self, in_place):
        super().__init__()
        self.convs = nn.ModuleList([nn.Conv2d(6, 6, 1), nn.Conv2d(6, 6, 3, padding=1)])
        self.in_place = in_place

    def forward(self, maps):
        result = maps if self.in_place else list(maps)
        for i, conv in enumerate(self.convs):
            result[i] = conv(result[i]).sigmoid()
        return [result[0] + result[1], result[1]]


class Parallel(nn.Module):
    """Blocks in a Sequential that take lists, and one that takes its input by name."""

    def __init__(self, in_place):
        super().__init__()
        self.stem, self.stage = nn.Conv2d(3, 6, 1), nn.Sequential(Branches(in_place), Branches(in_place))
        self.blocks, self.classify = nn.ModuleList([Block(6, dropout=0)]), nn.Conv2d(6, 5, 1)

    def forward(self, x):
        x = self.stem(x)
        return self.classify(self.blocks[0](x=sum(self.stage([x, 2 * x]))))


@pytest.mark.parametrize("in_place", [False, True])
def test_blocks_may_take_lists_and_named_arguments_and_are_recomputed_where_they_leave_them_as_they_are(in_place):
    torch.manual_seed(0)
    found = []
    made = segmenter(Parallel(in_place))
    examine(made)
    assert len(made._blocks) == (1 if in_place else 3)
    for made.checkpointing in (False, True):
        made.train().zero_grad()
        made(images(2, 3, 8, 8)).square().sum().backward()
        found.append([p.grad.clone() for p in made.parameters()])
    assert all(a.equal(b) for a, b in zip(*found))


def test_what_fails_is_said_with_its_reason():
    class Fails(Answer):
        def forward(self, x):
            raise RuntimeError("of no use\nand more")
    with pytest.raises(ConfigError, match="model: a pass over a black image of 3 bands .* RuntimeError: of no use: if"):
        examine(segmenter(Fails(), 3))
    with pytest.raises(ConfigError, match="input_mean and input_std"):
        examine(segmenter(Answer(bands=4), 3))


def test_a_network_that_needs_larger_images_is_tried_on_them():
    class Large(Answer):
        def forward(self, x):
            return super().forward(F.avg_pool2d(x, 100))
    examine(segmenter(Large(), 3))


@pytest.mark.parametrize("size, said", [((32, 32), 0), ((33, 32), 0), ((64, 60), 0), ((40, 64), 1), ((17, 16), 1)])
@pytest.mark.parametrize("statistics", ["batch", "running"])
def test_batch_norms_that_see_much_padding_are_said(size, said, statistics):
    made = small(size_multiple=32 if size != (33, 32) else 1)
    made.use_statistics(statistics)
    for _ in range(2):
        made(images(2, 3, *size))
    assert len(made.remarks) == said * (statistics == "batch")
    if made.remarks:
        share = 1 - size[0] * size[1] / ((size[0] + 31) // 32 * 32) / ((size[1] + 31) // 32 * 32)
        assert f"{size[1]} x {size[0]} pixels (width x height) are padded" in made.remarks[0]
        assert f"so {share:.0%} of" in made.remarks[0]


class Halving(Answer):
    """Adds features of half the size to their upsampled halves, `times` deep, as a decoder does."""

    def __init__(self, times):
        super().__init__()
        self.times = times

    def forward(self, x):
        levels = [super().forward(x)]
        for _ in range(self.times):
            levels.append(F.avg_pool2d(levels[-1], 3, 2, 1))
        for level in reversed(levels[:-1]):
            levels[-1] = level + F.interpolate(levels[-1], scale_factor=2)
        return levels[-1]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("times", [1, 3, 5])
@pytest.mark.parametrize("size", [(97, 96), (96, 33), (3, 3)])
def test_a_size_that_fails_is_said_with_the_multiple_that_does_not(size, times, training):
    examine(segmenter(Halving(times), 3))  # the sizes tried there fit
    made = segmenter(Halving(times), 3).train(training)
    with pytest.raises(ConfigError, match=f"on an input of {size[0]} x {size[1]} .*: set size_multiple=([0-9]+),") as e:
        made(torch.randn(2, 3, *size))
    multiple = int(re.search("size_multiple=([0-9]+)", str(e.value))[1])
    assert multiple <= 2**times
    assert segmenter(Halving(times), 3, size_multiple=multiple)(torch.randn(2, 3, *size)).shape == (2, 3, *size)


def test_what_no_size_helps_stays_what_it_is():
    class Later(Answer):
        def forward(self, x):
            if x.abs().sum() > 0 or len(x) > 1:
                raise RuntimeError("mine")
            raise ValueError("another")
    with pytest.raises(RuntimeError, match="mine"):
        segmenter(Later(), 3)(torch.ones(2, 3, 8, 8))


def test_full_memory_is_not_taken_for_a_wrong_size():
    class Full(Answer):
        def forward(self, x):
            if x.shape[-1] == 9:
                raise torch.cuda.OutOfMemoryError("CUDA out of memory")
            return super().forward(x)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        segmenter(Full(), 3)(torch.ones(2, 3, 9, 9))


# ---- recomputation ---------------------------------------------------------------------------------------------------

def gradients(made, x, seed=3):
    """(loss, gradients, buffers, a number drawn afterwards) of one training step."""
    torch.manual_seed(seed)
    made.train()
    loss = made(x).square().mean()
    loss.backward()
    return (loss.detach(), {n: p.grad for n, p in made.named_parameters()},
            {n: b.clone() for n, b in made.named_buffers()}, torch.rand(3))


def same(a, b):
    assert a[0].equal(b[0]) and a[3].equal(b[3])
    for one, other in zip(a[1:3], b[1:3]):
        assert list(one) == list(other)
        assert all(one[n] is other[n] is None or one[n].equal(other[n]) for n in one)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
@pytest.mark.parametrize("norm", [nn.BatchNorm2d, lambda width: nn.GroupNorm(2, width)])
def test_recomputation_changes_no_bit(batch, autocast, norm):
    """Values, gradients, batch-norm statistics, dropout masks and the generator behind them, also where a batch norm
    sees one value."""
    plain, saving = small(norm=norm), small(norm=norm)
    saving.checkpointing = True
    plain.autocast = saving.autocast = autocast
    x = images(batch, 3, 24, 20)
    same(gradients(plain, x), gradients(saving, x))
    same(gradients(plain, x, 4), gradients(saving, x, 4))


def test_recomputation_keeps_less():
    def kept(checkpointing):
        made, sizes = small(), []
        made.train().checkpointing = checkpointing
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
            made(images(2, 3, 64, 64))
        return sum(sizes)
    assert kept(True) < 0.8 * kept(False)


def test_recomputation_happens_in_training_alone():
    made, passes = small(), []
    made.checkpointing = True
    made.network.blocks[0].conv.register_forward_hook(lambda *_: passes.append(1))
    x = images(2, 3, 16, 16)
    made.train()(x).sum().backward()
    assert len(passes) == 2
    made.eval()(x).sum().backward()
    with torch.no_grad():
        made.train()(x)
    assert len(passes) == 4 and "forward" not in made.network.blocks[0].__dict__


def test_blocks_are_the_outermost_children_of_sequences():
    def names(network):
        found = {id(b) for b in blocks(network)}
        return [n for n, m in network.named_modules() if id(m) in found]
    assert names(Small()) == ["blocks.0", "blocks.1"]
    pair = nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU())
    assert names(nn.Sequential(pair, pair, nn.ReLU(), nn.Sequential(nn.Sequential(nn.ReLU())))) == ["0", "3"]
    assert names(nn.ModuleList([nn.ModuleList([nn.ReLU(), pair])])) == ["0.1"]
    assert names(nn.ModuleDict({"a": nn.Sequential(nn.ReLU(), pair)})) == ["a.1"]


class InPlace(nn.Module):
    def forward(self, x):
        return F.leaky_relu(x, 0.1, inplace=True) * 2


def test_blocks_that_change_their_input_are_left_alone():
    def made(checkpointing):
        torch.manual_seed(0)
        inner = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(InPlace(), nn.Conv2d(4, 4, 1)),
                              nn.Sequential(nn.Tanh(), nn.Conv2d(4, 5, 1)))
        result = segmenter(inner)
        examine(result)
        result.checkpointing = checkpointing
        return result
    assert made(True)._blocks == [] or len(made(True)._blocks) == 1
    x = images(2, 3, 8, 8)
    same(gradients(made(False), x), gradients(made(True), x))


def test_an_input_that_is_changed_afterwards_is_noticed():
    class Changes(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.parts = nn.Conv2d(3, 5, 1), nn.ModuleList([nn.Sequential(nn.Dropout(0.5))])

        def forward(self, x):
            x = self.stem(x)
            y = self.parts[0](x)
            return y + x.mul_(2)
    made = segmenter(Changes())
    made.checkpointing = True
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        made.train()(images(1, 3, 8, 8)).sum().backward()


def test_networks_without_blocks_say_that_checkpointing_has_no_effect():
    made = segmenter(Answer())
    made.checkpointing = True
    assert made.remarks == ["checkpointing has no effect: the network has no blocks in a Sequential or ModuleList"]


# ---- precision and compilation ---------------------------------------------------------------------------------------

@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_gives_float32_scores_near_the_exact_ones(dtype):
    exact, half, x = small().eval(), small().eval(), images(2, 3, 24, 24)
    half.autocast = dtype
    scores, close = exact.score_map(x), half.score_map(x)
    assert close.dtype == torch.float32 and not close.equal(scores)
    assert (scores - close).norm() < 16 * torch.finfo(dtype).eps * scores.norm()
    assert all(p.dtype == torch.float32 for p in half.parameters())


def test_float64_networks_give_float64():
    made = small().double().eval()
    assert made(images(1, 3, 8, 8).double()).dtype == torch.float64


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_compiled_block_that_fails_runs_as_it_is(checkpointing, monkeypatch):
    calls = []

    def refusing(forward, **options):
        def compiled(x, scale=1.0):
            calls.append(forward.__self__)
            assert len(calls) < 4, "expected stride 192==3072"
            return forward(x, scale=scale)
        return compiled
    plain, fused = small().train(), small().train()
    monkeypatch.setattr(torch, "compile", refusing)
    fused.compile_blocks()
    fused.checkpointing = checkpointing
    for seed in range(4):
        same(gradients(plain, images(2, 3, 24, 24), seed), gradients(fused, images(2, 3, 24, 24), seed))
    assert set(calls) == set(fused.network.blocks)
    calls.clear()
    same(gradients(plain, images(2, 3, 24, 24)), gradients(fused, images(2, 3, 24, 24)))
    assert not calls and fused.remarks == ["compile: a Block runs as it is (expected stride 192==3072)"]


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True])
def test_compiled_blocks_equal_plain_ones(checkpointing):
    plain, fused = small(), small()
    for made in (plain, fused):
        for block in made.network.blocks:
            block.drop.p = 0.0  # compiled code draws other numbers
    examine(fused)
    fused.checkpointing = checkpointing
    fused.compile_blocks()
    assert len(fused._fused) == 2 and list(plain.state_dict()) == list(fused.state_dict())
    for batch in (2, 1):
        a, b = gradients(plain, images(batch, 3, 24, 20)), gradients(fused, images(batch, 3, 24, 20))
        torch.testing.assert_close(a[0], b[0])
        for one, other in zip(a[1:3], b[1:3]):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)
    twin = copy.deepcopy(fused)
    assert twin._fused == {}
    torch.testing.assert_close(twin.eval()(images(1, 3, 8, 8)), plain.eval()(images(1, 3, 8, 8)), rtol=1e-3, atol=1e-4)


def test_a_failure_that_is_not_the_sizes_stays_what_it_is():
    """Such as a batch that does not fit into memory."""
    class Full(Answer):
        def forward(self, x):
            if len(x) > 1:
                raise RuntimeError("out of memory")
            return super().forward(x)
    with pytest.raises(RuntimeError, match="out of memory"):
        segmenter(Full(), 3)(images(2, 3, 33, 47))

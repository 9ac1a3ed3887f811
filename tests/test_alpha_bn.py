"""alpha-BN: against a slow float64 version, its gradient, its limits, and what of it a network and a run see."""
import copy

import numpy as np
import pytest
import torch
from test_pipeline import call, weights
from test_resume import BE, kill_at, prepared, world  # noqa: F401
from tiers import mostly_slow
from torch import nn

import run as run_script
from model.alpha_bn import AlphaBatchNorm
from model.interface import Interface
from model.networks import deeplab
from model.segmenter import Segmenter
from trainer.loop import Trainer
from utils.cli import EXIT_STOPPED
from utils.constants import INPUTS


def norm_of(width=3, seed=0, dtype=torch.float32, momentum=0.1, kind=nn.BatchNorm2d):
    torch.manual_seed(seed)
    norm = kind(width, momentum=momentum).to(dtype)
    for tensor in (norm.weight.data, norm.bias.data, norm.running_mean):
        tensor.copy_(torch.randn(width))
    norm.running_var.copy_(torch.rand(width) + 0.3)
    return norm.train()


def segmenter(share):
    torch.manual_seed(1)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(),
                            nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)), nn.Conv2d(4, 5, 1))
    made = Segmenter(network, 5, Interface(INPUTS["rgb01"]))
    alpha = AlphaBatchNorm(made, share)
    made.training_norm = alpha.normalise
    return made, alpha


def images(count, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(count, 3, 16, 20))).float()


def slow(x, norm, source, share, momentum):
    """(output, running mean, running variance) in float64, one channel after the other."""
    x, out, running = x.double().numpy(), np.empty(x.shape), []
    for c in range(x.shape[1]):
        values = x[:, c].ravel()
        mean = share * source[0][c].item() + (1 - share) * values.mean()
        var = share * source[1][c].item() + (1 - share) * values.var()
        out[:, c] = (x[:, c] - mean) / np.sqrt(var + norm.eps) * norm.weight[c].item() + norm.bias[c].item()
        unbiased = share * source[1][c].item() + (1 - share) * values.var(ddof=1)
        running.append(((1 - momentum) * source[0][c].item() + momentum * mean,
                        (1 - momentum) * source[1][c].item() + momentum * unbiased))
    return out, *np.transpose(running)


@pytest.mark.parametrize("kind, shape", [(nn.BatchNorm2d, (2, 3, 4, 5)), (nn.BatchNorm1d, (6, 3)),
                                         (nn.BatchNorm1d, (4, 3, 7)), (nn.BatchNorm2d, (1, 3, 2, 2))])
@pytest.mark.parametrize("share, momentum", [(0.5, 0.1), (0.2, 0.7), (1.0, 0.1), (0.3, None)])
def test_normalise_against_a_slow_version(kind, shape, share, momentum):
    norm = norm_of(kind=kind, momentum=momentum)
    alpha = AlphaBatchNorm(norm, share)
    source = [tensor.clone() for tensor in alpha.source[0]]
    x = 2 * torch.randn(shape) + 1
    found = alpha.normalise(norm, x)
    expected, mean, var = slow(x, norm, source, share, 1.0 if momentum is None else momentum)  # the first batch
    np.testing.assert_allclose(found.detach(), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(norm.running_mean, mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(norm.running_var, var, rtol=1e-5, atol=1e-6)
    assert norm.num_batches_tracked == 1 and all(a.equal(b) for a, b in zip(alpha.source[0], source))


def test_share_0_is_batch_norm():
    norm, twin = norm_of(), norm_of()
    x = torch.randn(2, 3, 5, 4)
    torch.testing.assert_close(AlphaBatchNorm(norm, 0.0).normalise(norm, x), twin(x))
    torch.testing.assert_close(list(norm.buffers()), list(twin.buffers()))


def test_gradients_flow_through_the_batchs_statistics():
    norm = norm_of(dtype=torch.float64)
    alpha = AlphaBatchNorm(norm, 0.4)
    x = torch.randn(2, 3, 3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: alpha.normalise(norm, x), x)


def test_half_precision_is_normalised_in_float32():
    norm, x = norm_of(), 100 + torch.randn(2, 3, 8, 8)
    found = AlphaBatchNorm(norm, 0.5).normalise(norm, x.bfloat16())
    twin = norm_of()
    expected = AlphaBatchNorm(twin, 0.5).normalise(twin, x.bfloat16().float())
    assert found.dtype == torch.bfloat16 and found.equal(expected.bfloat16())
    assert norm.running_mean.equal(twin.running_mean)


@pytest.mark.parametrize("share", [0.25, 1.0])
def test_start_mixes_the_source_with_the_mean_over_the_images(share):
    made, alpha = segmenter(share)
    before = copy.deepcopy(made.network)
    first, x = before[1].train(), images(3)
    seen = [before[0](image.unsqueeze(0)) for image in x]
    mean = torch.stack([y.mean((0, 2, 3)) for y in seen]).mean(0)
    var = torch.stack([y.var((0, 2, 3)) for y in seen]).mean(0)
    made.network[1].running_mean.fill_(0.7)  # the source's are those at the start, not at the making
    alpha.start(made, x.split(1))
    torch.testing.assert_close(made.network[1].running_mean, share * torch.full((4,), 0.7) + (1 - share) * mean)
    torch.testing.assert_close(made.network[1].running_var, share * first.running_var + (1 - share) * var)
    assert alpha.source[0][0].eq(0.7).all() and made.network[1].momentum == before[1].momentum


def test_training_mode_alone_mixes():
    made, _ = segmenter(1.0)
    x = images(2)
    running = made.eval()(x)
    torch.testing.assert_close(made.train()(x), running)  # share 1 is the source
    made.use_statistics("batch")
    assert not torch.allclose(made(x), running, atol=1e-3)
    assert "forward" not in made.network[1].__dict__


def test_recomputed_blocks_give_the_same_gradients_and_statistics():
    found = []
    for checkpointing in (False, True):
        made, _ = segmenter(0.3)
        made.checkpointing = checkpointing
        made.train()(images(2)).square().sum().backward()
        found.append([p.grad for p in made.parameters()] + list(made.network.buffers()))
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("share", [0.3, 1.0])
def test_a_recomputed_deeplab_gives_the_same_gradients_and_statistics(share):
    found = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        made = deeplab(5, (1, 2, 4, 1), 4)
        made.training_norm, made.checkpointing = AlphaBatchNorm(made, share).normalise, checkpointing
        made.train()(images(2)).square().sum().backward()
        found.append([p.grad for p in made.parameters()] + list(made.network.buffers()))
        assert not any("forward" in module.__dict__ for module in made.modules())
    torch.testing.assert_close(*found)


def test_a_copy_keeps_its_own_statistics():
    made, _ = segmenter(0.5)
    twin = copy.deepcopy(made)
    before = made.network[1].running_mean.clone()
    twin.train()(images(2))
    assert made.network[1].running_mean.equal(before) and not twin.network[1].running_mean.equal(before)


def test_its_state_is_the_sources_statistics():
    made, alpha = segmenter(0.5)
    alpha.start(made, images(2).split(1))
    other = AlphaBatchNorm(segmenter(0.5)[0], 0.5)
    for mean, _ in other.source:
        mean.fill_(9.0)
    other.load_state_dict(copy.deepcopy(alpha.state_dict()))
    assert all(a.equal(b) for x, y in zip(other.source, alpha.source) for a, b in zip(x, y))


@pytest.mark.parametrize("step", mostly_slow([1, 3]))
def test_a_run_that_is_stopped_and_resumed_ends_with_the_same_bits(world, monkeypatch, step):  # noqa: F811
    words = (*BE, "bn_source=0.5", "bn_stats=running", "score_images=0", "overwrite=true")
    assert call(monkeypatch, run_script, *words) == 0
    whole = weights("snapshot/tiny/be.pth")
    with monkeypatch.context() as patch:
        kill_at(patch, Trainer, step)
        assert call(patch, run_script, *words) == EXIT_STOPPED
    assert call(monkeypatch, run_script, *words, "--resume") == 0
    again = weights("snapshot/tiny/be.pth")
    assert whole.keys() == again.keys() and all(whole[k].equal(again[k]) for k in whole)
    assert call(monkeypatch, run_script, *words, "bn_source=0") == 0
    assert not whole["bn1.running_mean"].equal(weights("snapshot/tiny/be.pth")["bn1.running_mean"])


def test_compiled_batch_norms_are_refused(world, monkeypatch, capsys):  # noqa: F811
    assert call(monkeypatch, run_script, *BE, "bn_source=0.5", "compile=true", "overwrite=true") == 2
    assert "bn_source: compiled batch norms cannot mix" in capsys.readouterr().err

"""The losses against plain float64 loops over pixels, and their gradients against finite differences."""
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from trainer import losses
from utils import tiles


def random_case(seed, classes=7, shape=(2, 4, 5), ignored=0.4):
    g = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(shape[0], classes, *shape[1:], generator=g, dtype=torch.float64)
    label = torch.randint(classes, shape, generator=g)
    label[torch.rand(shape, generator=g) < ignored] = 255
    return logits, label


def softmax(z):
    e = [math.exp(v - max(z)) for v in z]
    return [v / sum(e) for v in e]


def slow_entropy(p, entropy):
    """The paper's, or the released code's: it takes p for logits and the log of their softmax."""
    return -sum(v * math.log(q) for v, q in zip(p, p if entropy == "shannon" else softmax(p)) if v > 0)


def slow_ld_losses(logits, label, rank, entropy_on, entropy):
    positive, entropic, negative = [], [], []
    for b in range(label.shape[0]):
        for y in range(label.shape[1]):
            for x in range(label.shape[2]):
                p = softmax(logits[b, :, y, x].tolist())
                true = label[b, y, x].item()
                if true != 255:
                    positive.append(-math.log(p[true]))
                if entropy_on == "all" or true == 255:
                    entropic.append(slow_entropy(p, entropy))
                k = sorted(range(len(p)), key=lambda c: -p[c])[rank - 1]
                negative.append(-math.log(min(max(1 - p[k], 1e-5), 1)))
    def mean(values):
        return sum(values) / len(values) if values else 0.0
    return {"positive": mean(positive), "entropy": mean(entropic), "negative": mean(negative)}


@pytest.mark.parametrize("entropy", ["released", "shannon"])
@pytest.mark.parametrize("entropy_on", ["all", "unselected"])
@pytest.mark.parametrize("seed", range(5))
def test_ld_losses_equal_the_loop(seed, entropy_on, entropy):
    logits, label = random_case(seed)
    for rank in range(1, 8):
        got = losses.ld_losses(logits, label, rank, entropy_on, entropy)
        expected = slow_ld_losses(logits, label, rank, entropy_on, entropy)
        for name, value in expected.items():
            assert got[name].item() == pytest.approx(value, rel=1e-12), (name, rank)


@pytest.mark.parametrize("ignored, absent", [(1.1, "positive"), (0.0, "entropy")])
def test_a_term_without_pixels_is_zero_and_trains_nothing(ignored, absent):
    for entropy in ("released", "shannon"):
        logits, label = random_case(0, ignored=ignored)
        logits.requires_grad_()
        term = losses.ld_losses(logits, label, 3, "unselected", entropy)[absent]
        term.backward()
        assert term.item() == 0 and logits.grad.abs().max() == 0


@pytest.mark.parametrize("scale", [0.01, 1, 10, 1000])
@pytest.mark.parametrize("classes", [2, 3, 19, 150])
def test_the_released_entropy_is_the_twofold_softmax(classes, scale):
    """Value and gradient in float64 and float32 against autograd of the two softmaxes that the released code takes."""
    g = torch.Generator().manual_seed(classes)
    logits = scale * torch.randn(2, classes, 6, 7, dtype=torch.float64, generator=g)
    label = torch.full((2, 6, 7), 255)
    z = logits.clone().requires_grad_()
    p = z.softmax(1)
    expected = -(p * p.log_softmax(1)).sum(1).mean()
    expected.backward()
    same = p.logsumexp(1) - (p * p).sum(1)
    assert same.mean().item() == pytest.approx(expected.item(), rel=1e-12)
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        ours = logits.detach().to(dtype).clone().requires_grad_()
        term = losses.ld_losses(ours, label, 2, entropy="released")["entropy"]
        term.backward()
        assert term.item() == pytest.approx(expected.item(), rel=tolerance)
        # Near 0 and 1 the summands cancel, in both forms: the bound is one on a pixel's share, not on what is left.
        assert torch.allclose(ours.grad.double(), z.grad, rtol=0, atol=tolerance / label.numel())


def test_the_released_entropy_pushes_unsure_pixels_less():
    """The norm of its gradient over that of Shannon entropy's grows with the confidence, from near 0 to near 1."""
    def norm(entropy, scale):
        z = scale * torch.randn(1, 19, 40, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        z.requires_grad_()
        losses.ld_losses(z, torch.full((1, 40, 40), 255), 9, entropy=entropy)["entropy"].backward()
        return z.grad.norm()
    ratios = [(norm("released", scale) / norm("shannon", scale)).item() for scale in (0.3, 1, 3, 8)]
    assert ratios == sorted(ratios) and ratios[0] < 0.15 and 0.6 < ratios[-1] < 1


def test_certain_pixels_stay_finite():
    logits = torch.zeros(1, 4, 2, 2)
    logits[:, 0] = 1e4
    logits.requires_grad_()
    label = torch.zeros(1, 2, 2, dtype=torch.long)
    terms = losses.ld_losses(logits, label, 1, entropy="shannon")
    sum(terms.values()).backward()
    assert terms["negative"].item() == pytest.approx(-math.log(1e-5), rel=1e-5)  # 1 - p clamped
    assert terms["entropy"].item() == 0 and terms["positive"].item() == 0
    assert torch.isfinite(logits.grad).all()


def test_certain_pixels_have_the_least_released_entropy():
    logits = torch.zeros(1, 4, 2, 2)
    logits[:, 0] = 1e4
    logits.requires_grad_()
    term = losses.ld_losses(logits, torch.zeros(1, 2, 2, dtype=torch.long), 2, entropy="released")["entropy"]
    term.backward()
    assert term.item() == pytest.approx(math.log(math.e + 3) - 1, rel=1e-6) and (logits.grad == 0).all()


@pytest.mark.parametrize("name", ["positive", "entropy", "negative"])
def test_ld_gradients_against_the_closed_form(name):
    # d positive/dz = (p - onehot)/selected; d entropy/dz_c = -p_c (log p_c + H)/pixels;
    # d negative/dz_c = p_k (delta_ck - p_c) / (1 - p_k) / pixels
    logits, label = random_case(3)
    rank = 4
    z = logits.clone().requires_grad_()
    losses.ld_losses(z, label, rank, entropy="shannon")[name].backward()
    p = logits.softmax(1)
    pixels, selected = label.numel(), (label != 255)
    if name == "positive":
        onehot = torch.zeros_like(p).scatter(1, label.where(selected, 0).unsqueeze(1), 1)
        expected = (p - onehot) * selected.unsqueeze(1) / selected.sum()
    elif name == "entropy":
        expected = -p * (p.log() - (p * p.log()).sum(1, keepdim=True)) / pixels
    else:
        k = logits.argsort(1, descending=True)[:, rank - 1 : rank]
        p_k = p.gather(1, k)
        expected = p_k * (torch.zeros_like(p).scatter(1, k, 1) - p) / (1 - p_k) / pixels
    assert torch.allclose(z.grad, expected, rtol=1e-10, atol=1e-14)


def test_gradients_against_finite_differences():
    logits, label = random_case(4, shape=(2, 2, 3))
    conf = torch.rand(label.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    z = logits.clone().requires_grad_()
    for name in ("positive", "entropy", "negative"):
        for entropy_on in ("all", "unselected"):
            for entropy in ("released", "shannon"):
                assert torch.autograd.gradcheck(lambda x: losses.ld_losses(x, label, 4, entropy_on, entropy)[name], z)
    whole = label.where(label != 255, 0)
    assert torch.autograd.gradcheck(lambda x: losses.mixed_cross_entropy(x, whole, conf, 0.5), z)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_give_float32_losses(dtype):
    logits, label = random_case(5)
    half = logits.to(dtype)
    for name, loss in losses.ld_losses(half, label, 3).items():
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(losses.ld_losses(half.double(), label, 3)[name].item(), rel=1e-5)


@pytest.mark.parametrize("classes", [1, 2, 5, 16, 19, 33])
def test_the_selection_network_finds_every_rank(classes):
    z = torch.randn(2, classes, 500, generator=torch.Generator().manual_seed(classes))
    z[:, :, 250:] = z[:, :, 250:].round()  # ties
    for rank in range(1, classes + 1):
        assert torch.equal(losses.kth_largest(z, rank), z.sort(1, descending=True).values[:, rank - 1])


def test_classes_that_tie_for_the_rank_share_the_gradient():
    z = torch.tensor([3.0, 1.0, 1.0, -2.0], dtype=torch.float64).view(1, 4, 1, 1).requires_grad_()
    losses.ld_losses(z, torch.full((1, 1, 1), 255), 2)["negative"].backward()
    p = z.detach().softmax(1).flatten()
    expected = p[1] / (1 - p[1]) * (torch.tensor([0, 0.5, 0.5, 0], dtype=torch.float64) - p)
    assert torch.allclose(z.grad.flatten(), expected, rtol=1e-12)


@pytest.mark.parametrize("entropy", ["released", "shannon"])
def test_losses_do_not_depend_on_tiles_or_memory_layout(monkeypatch, entropy):
    logits, label = random_case(6, classes=19, shape=(3, 40, 37))
    def of(z):
        z = z.clone(memory_format=torch.preserve_format).requires_grad_()
        terms = losses.ld_losses(z, label, 8, "unselected", entropy)
        (terms["positive"] + 2 * terms["entropy"] + 3 * terms["negative"]).backward()
        return torch.stack(list(terms.values())).detach(), z.grad
    whole, whole_grad = of(logits)
    last, last_grad = of(logits.contiguous(memory_format=torch.channels_last))
    monkeypatch.setattr(tiles, "_CACHE_BYTES", 5000)
    assert len(tiles.tiles(40 * 37, 57, logits.device)) > 60
    pieces, pieces_grad = of(logits)
    for terms, grad in ((last, last_grad), (pieces, pieces_grad)):
        assert torch.allclose(terms, whole, rtol=1e-12) and torch.allclose(grad, whole_grad, rtol=1e-10, atol=1e-16)


def test_the_rank_is_drawn_from_the_middle():
    rng = np.random.default_rng(0)
    drawn = {losses.negative_rank(19, 3, rng) for _ in range(500)}
    assert drawn == set(range(6, 13))  # 9 - 3 .. 9 + 3
    assert {losses.negative_rank(16, 0, rng) for _ in range(20)} == {8}


@pytest.mark.parametrize("classes", range(2, 13))
def test_the_rank_is_never_the_predicted_class_nor_beyond_the_last(classes):
    rng = np.random.default_rng(classes)
    for width in range(classes):
        middle = classes // 2
        possible = {min(max(k, 2), classes) for k in range(middle - width, middle + width + 1)}
        assert {losses.negative_rank(classes, width, rng) for _ in range(40 * (2 * width + 1))} == possible
        assert min(possible) >= 2


@pytest.mark.parametrize("classes", [2, 3])
def test_with_few_classes_the_negative_term_strengthens_what_is_predicted(classes):
    """Rank 1, floor(C/2), would weaken it: against positive and entropy terms."""
    z = torch.tensor([2.0, 0.5, -1.0][:classes], dtype=torch.float64).view(1, classes, 1, 1).requires_grad_()
    rank = losses.negative_rank(classes, 0, np.random.default_rng(0))
    losses.ld_losses(z, torch.full((1, 1, 1), 255), rank)["negative"].backward()
    assert z.grad[0, 0, 0, 0] < 0


@pytest.mark.parametrize("seed", range(5))
def test_mixed_cross_entropy_equals_the_loop(seed):
    logits, label = random_case(seed, ignored=0.0)
    logits[0, :, 0, 0] = 0
    logits[0, label[0, 0, 0], 0, 0] = 1e4  # cross entropy exactly 0: left out of the mean
    conf = torch.rand(label.shape, generator=torch.Generator().manual_seed(seed))
    total, positive = 0.0, 0
    for b in range(2):
        weight = sum(c >= 0.6 for c in conf[b].flatten().tolist()) / conf[b].numel()
        for y in range(4):
            for x in range(5):
                loss = -math.log(softmax(logits[b, :, y, x].tolist())[label[b, y, x]])
                total += weight * loss
                positive += loss > 0
    got = losses.mixed_cross_entropy(logits, label, conf, 0.6)
    assert positive == label.numel() - 1
    assert got.item() == pytest.approx(total / positive, rel=1e-12)


def test_mixed_cross_entropy_without_confident_pixels_is_zero():
    logits, label = random_case(1, ignored=0.0)
    assert losses.mixed_cross_entropy(logits, label, torch.zeros(label.shape), 0.97).item() == 0


COMPILED = """
import sys, torch
from trainer.losses import ld_losses
g = torch.Generator().manual_seed(0)
label = torch.randint(0, 7, (2, 20, 30), generator=g)
label[label == 0] = 255
found = []
for compile, entropy in ((c, e) for e in ("released", "shannon") for c in (False, True)):
    logits = (4 * torch.randn(2, 7, 20, 30, generator=torch.Generator().manual_seed(1))).requires_grad_()
    terms = ld_losses(logits, label, 3, entropy=entropy, compile=compile)
    sum(terms.values()).backward()
    found.append([*terms.values(), logits.grad])
for pair in (found[:2], found[2:]):
    assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-8) for a, b in zip(*pair)), found
print("equal")
"""


@pytest.mark.slow
@pytest.mark.parametrize("compiler", [{}, {"CXX": "/nowhere/g++"}], ids=["compiler", "no compiler"])
def test_compiled_losses_equal_plain_ones_and_run_plain_without_a_compiler(tmp_path, compiler):
    done = subprocess.run([sys.executable, "-c", COMPILED], cwd=Path(__file__).parent.parent, capture_output=True,
                          text=True, env={**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path), **compiler})
    assert done.stdout == "equal\n", done.stderr[-2000:]
    assert ("InvalidCxxCompiler" in done.stderr) == bool(compiler)

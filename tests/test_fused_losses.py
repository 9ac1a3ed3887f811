"""The fused losses of label denoising equal the plain ones, float64 loops over pixels and finite differences."""
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import slow_losses as slow
import torch
from slow_losses import random_case

from trainer import fused_losses, losses
from utils import tiles


@pytest.mark.parametrize("entropy", ["released", "shannon"])
@pytest.mark.parametrize("entropy_on", ["all", "unselected"])
@pytest.mark.parametrize("seed", range(5))
def test_ld_losses_equal_the_loop(seed, entropy_on, entropy):
    logits, label = random_case(seed)
    for rank in range(1, 8):
        got = fused_losses.ld_losses(logits, label, rank, entropy_on, entropy)
        expected = slow.ld_losses(logits, label, rank, entropy_on, entropy)
        for name, value in expected.items():
            assert got[name].item() == pytest.approx(value, rel=1e-12), (name, rank)


@pytest.mark.parametrize("entropy", ["released", "shannon"])
@pytest.mark.parametrize("entropy_on", ["all", "unselected"])
@pytest.mark.parametrize("scale", [0.01, 1, 10, 1000])
@pytest.mark.parametrize("classes", [2, 3, 16, 19, 30, 150])
def test_ld_losses_equal_the_plain_ones(classes, scale, entropy_on, entropy):
    """Values and gradient, in float64 and float32, for ranks from the predicted class (float64) to the last."""
    logits, label = random_case(classes, classes=classes, shape=(2, 6, 7), scale=scale)
    mask = None if entropy_on == "all" else label == 255
    for dtype, tolerance, ranks in ((torch.float64, 1e-11, {1, 2, classes // 2 + 1, classes}),
                                    (torch.float32, 1e-5, {2, classes // 2 + 1, classes})):
        for rank in ranks:
            ours, plain = (logits.to(dtype).clone().requires_grad_() for _ in range(2))
            found = fused_losses.ld_losses(ours, label, rank, entropy_on, entropy)
            expected = {"positive": losses.positive(plain, label), "entropy": losses.entropy(plain, mask, entropy),
                        "negative": losses.negative(plain, rank)}
            assert list(found) == list(expected)
            for name, value in expected.items():
                assert found[name].item() == pytest.approx(value.item(), rel=tolerance, abs=tolerance), (name, rank)
            for terms in (found, expected):
                (terms["positive"] + 2 * terms["entropy"] + 3 * terms["negative"]).backward()
            assert torch.allclose(ours.grad, plain.grad, rtol=10 * tolerance, atol=10 * tolerance / label.numel())


@pytest.mark.parametrize("ignored, absent", [(1.1, "positive"), (0.0, "entropy")])
def test_a_term_without_pixels_is_zero_and_has_no_gradient(ignored, absent):
    for entropy in ("released", "shannon"):
        logits, label = random_case(0, ignored=ignored)
        logits.requires_grad_()
        term = fused_losses.ld_losses(logits, label, 3, "unselected", entropy)[absent]
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
        term = fused_losses.ld_losses(ours, label, 2, entropy="released")["entropy"]
        term.backward()
        assert term.item() == pytest.approx(expected.item(), rel=tolerance)
        # Near probabilities of 0 and 1 the summands cancel in both forms, so the bound is relative to the summands.
        assert torch.allclose(ours.grad.double(), z.grad, rtol=0, atol=tolerance / label.numel())


def test_the_released_entropy_has_smaller_gradients_for_uncertain_pixels():
    """The norm of its gradient over that of Shannon entropy's grows with the confidence, from near 0 to near 1."""
    def norm(entropy, scale):
        z = scale * torch.randn(1, 19, 40, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        z.requires_grad_()
        fused_losses.ld_losses(z, torch.full((1, 40, 40), 255), 9, entropy=entropy)["entropy"].backward()
        return z.grad.norm()
    ratios = [(norm("released", scale) / norm("shannon", scale)).item() for scale in (0.3, 1, 3, 8)]
    assert ratios == sorted(ratios) and ratios[0] < 0.15 and 0.6 < ratios[-1] < 1


def test_certain_pixels_stay_finite():
    logits = torch.zeros(1, 4, 2, 2)
    logits[:, 0] = 1e4
    logits.requires_grad_()
    label = torch.zeros(1, 2, 2, dtype=torch.long)
    terms = fused_losses.ld_losses(logits, label, 1, entropy="shannon")
    sum(terms.values()).backward()
    assert terms["negative"].item() == pytest.approx(-math.log(1e-5), rel=1e-5)  # 1 - p clamped
    assert terms["entropy"].item() == 0 and terms["positive"].item() == 0
    assert torch.isfinite(logits.grad).all()


def test_certain_pixels_have_the_least_released_entropy():
    logits = torch.zeros(1, 4, 2, 2)
    logits[:, 0] = 1e4
    logits.requires_grad_()
    term = fused_losses.ld_losses(logits, torch.zeros(1, 2, 2, dtype=torch.long), 2, entropy="released")["entropy"]
    term.backward()
    assert term.item() == pytest.approx(math.log(math.e + 3) - 1, rel=1e-6) and (logits.grad == 0).all()


@pytest.mark.parametrize("name", ["positive", "entropy", "negative"])
def test_ld_gradients_against_the_closed_form(name):
    # d positive/dz = (p - onehot)/selected; d entropy/dz_c = -p_c (log p_c + H)/pixels;
    # d negative/dz_c = p_k (delta_ck - p_c) / (1 - p_k) / pixels
    logits, label = random_case(3)
    rank = 4
    z = logits.clone().requires_grad_()
    fused_losses.ld_losses(z, label, rank, entropy="shannon")[name].backward()
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
    z = logits.clone().requires_grad_()
    for name in ("positive", "entropy", "negative"):
        for entropy_on in ("all", "unselected"):
            for entropy in ("released", "shannon"):
                def term(x):
                    return fused_losses.ld_losses(x, label, 4, entropy_on, entropy)[name]
                assert torch.autograd.gradcheck(term, z)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_give_float32_losses(dtype):
    logits, label = random_case(5)
    half = logits.to(dtype)
    for name, loss in fused_losses.ld_losses(half, label, 3).items():
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(fused_losses.ld_losses(half.double(), label, 3)[name].item(), rel=1e-5)


@pytest.mark.parametrize("classes", [1, 2, 5, 16, 19, 33])
def test_the_selection_network_finds_every_rank(classes):
    z = torch.randn(2, classes, 500, generator=torch.Generator().manual_seed(classes))
    z[:, :, 250:] = z[:, :, 250:].round()  # ties
    for rank in range(1, classes + 1):
        assert torch.equal(fused_losses.kth_largest(z, rank), z.sort(1, descending=True).values[:, rank - 1])


def test_classes_that_tie_for_the_rank_share_the_gradient():
    z = torch.tensor([3.0, 1.0, 1.0, -2.0], dtype=torch.float64).view(1, 4, 1, 1).requires_grad_()
    fused_losses.ld_losses(z, torch.full((1, 1, 1), 255), 2)["negative"].backward()
    p = z.detach().softmax(1).flatten()
    expected = p[1] / (1 - p[1]) * (torch.tensor([0, 0.5, 0.5, 0], dtype=torch.float64) - p)
    assert torch.allclose(z.grad.flatten(), expected, rtol=1e-12)


@pytest.mark.parametrize("entropy", ["released", "shannon"])
def test_losses_do_not_depend_on_tiles_or_memory_layout(monkeypatch, entropy):
    logits, label = random_case(6, classes=19, shape=(3, 40, 37))
    def of(z):
        z = z.clone(memory_format=torch.preserve_format).requires_grad_()
        terms = fused_losses.ld_losses(z, label, 8, "unselected", entropy)
        (terms["positive"] + 2 * terms["entropy"] + 3 * terms["negative"]).backward()
        return torch.stack(list(terms.values())).detach(), z.grad
    whole, whole_grad = of(logits)
    last, last_grad = of(logits.contiguous(memory_format=torch.channels_last))
    monkeypatch.setattr(tiles, "_CACHE_BYTES", 5000)
    assert len(tiles.tiles(40 * 37, 57, logits.device)) > 60
    pieces, pieces_grad = of(logits)
    for terms, grad in ((last, last_grad), (pieces, pieces_grad)):
        assert torch.allclose(terms, whole, rtol=1e-12) and torch.allclose(grad, whole_grad, rtol=1e-10, atol=1e-16)


COMPILED = """
import sys, torch
from trainer.fused_losses import ld_losses
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

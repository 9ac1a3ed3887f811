"""The losses equal plain float64 loops over pixels, and their gradients equal finite differences."""
import math

import numpy as np
import pytest
import slow_losses as slow
import torch
import torch.nn.functional as F
from slow_losses import random_case, random_confidence, softmax

from trainer import losses

# name: (the loss, its loop), both of logits, labels and confidence
LOSSES = {
    "cross_entropy": (lambda z, y, _: losses.cross_entropy(z, y), lambda z, y, _: slow.cross_entropy(z, y)),
    "positive": (lambda z, y, _: losses.positive(z, y), lambda z, y, _: slow.cross_entropy(z, y)),
    "entropy": (lambda z, y, _: losses.entropy(z), lambda z, y, _: slow.entropy(z, y >= 0, "shannon")),
    "entropy of a mask": (lambda z, y, _: losses.entropy(z, y == 255),
                          lambda z, y, _: slow.entropy(z, y == 255, "shannon")),
    "released entropy": (lambda z, y, _: losses.entropy(z, kind="released"),
                         lambda z, y, _: slow.entropy(z, y >= 0, "released")),
    "released entropy of a mask": (lambda z, y, _: losses.entropy(z, y == 255, "released"),
                                   lambda z, y, _: slow.entropy(z, y == 255, "released")),
    "negative": (lambda z, y, _: losses.negative(z, 2), lambda z, y, _: slow.negative(z, 2)),
    "negative of the last": (lambda z, y, _: losses.negative(z, z.shape[1]),
                             lambda z, y, _: slow.negative(z, z.shape[1])),
    "confidence_weighted": (lambda z, y, conf: losses.confidence_weighted_cross_entropy(z, y, conf, 0.6),
                            lambda z, y, conf: slow.confidence_weighted_cross_entropy(z, y, conf, 0.6)),
    "maximum_squares": (lambda z, y, _: losses.maximum_squares(z), lambda z, y, _: slow.maximum_squares(z, 0)),
    "balanced maximum_squares": (lambda z, y, _: losses.maximum_squares(z, 0.2),
                                 lambda z, y, _: slow.maximum_squares(z, 0.2)),
    "wholly balanced maximum_squares": (lambda z, y, _: losses.maximum_squares(z, 1),
                                        lambda z, y, _: slow.maximum_squares(z, 1)),
    "information: entropy": (lambda z, y, _: losses.information_maximisation(z)["entropy"],
                             lambda z, y, _: slow.information_maximisation(z)["entropy"]),
    "information: diversity": (lambda z, y, _: losses.information_maximisation(z)["diversity"],
                               lambda z, y, _: slow.information_maximisation(z)["diversity"]),
    "crst_mrkld": (lambda z, y, _: losses.crst_mrkld(z, y, 0.3), lambda z, y, _: slow.crst_mrkld(z, y, 0.3)),
}
LABELLED = ["cross_entropy", "positive", "confidence_weighted", "crst_mrkld"]  # nothing to learn without labels
every_loss = pytest.mark.parametrize("name", LOSSES)


@every_loss
@pytest.mark.parametrize("scale", [0.01, 1, 10, 1000])
@pytest.mark.parametrize("classes", [2, 3, 7, 19, 30])
def test_losses_equal_the_loop(name, classes, scale):
    """In float64, and in float32 within its rounding, where the gradient is that of float64 too."""
    (ours, loop), conf = LOSSES[name], random_confidence(classes)
    logits, label = random_case(classes, classes=classes, scale=scale)
    gradients = {}
    for dtype, tolerance in ((torch.float64, 1e-11), (torch.float32, 1e-5)):
        z = logits.to(dtype).clone().requires_grad_()
        value = ours(z, label, conf)
        value.backward()
        gradients[dtype] = z.grad.double()
        assert value.dtype == dtype and value.ndim == 0
        assert value.item() == pytest.approx(loop(logits, label, conf), rel=tolerance, abs=tolerance)
        assert torch.isfinite(z.grad).all()
    pixels = label.numel()
    assert torch.allclose(gradients[torch.float32], gradients[torch.float64], rtol=1e-4, atol=1e-5 / pixels)


@every_loss
@pytest.mark.parametrize("seed", range(3))
def test_gradients_against_finite_differences(name, seed):
    logits, label = random_case(seed, shape=(2, 2, 3), scale=1)
    conf = random_confidence(seed, label.shape)
    z = logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: LOSSES[name][0](x, label, conf), z, atol=1e-7)


@every_loss
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_give_float32_losses(name, dtype):
    logits, label = random_case(5)
    half, conf = logits.to(dtype), random_confidence(5)
    of_half, of_float = (LOSSES[name][0](z, label, conf) for z in (half, half.float()))
    assert of_half.dtype == torch.float32 and torch.equal(of_half, of_float)


@every_loss
def test_pixels_without_a_label_are_unused_and_give_finite_losses(name):
    """All labels ignored: 0 for what is learned from labels; for the others the labels make no difference."""
    logits, label = random_case(0, ignored=1.1)
    z = logits.requires_grad_()
    value = LOSSES[name][0](z, label, random_confidence(0))
    value.backward()
    assert torch.isfinite(value) and torch.isfinite(z.grad).all()
    assert (value.item() == 0 and (z.grad == 0).all()) == (name in LABELLED)


@pytest.mark.parametrize("kind", ["shannon", "released"])
def test_the_entropy_of_no_pixels_is_zero(kind):
    logits, label = random_case(0)
    z = logits.requires_grad_()
    value = losses.entropy(z, torch.zeros_like(label, dtype=torch.bool), kind)
    value.backward()
    assert value.item() == 0 and (z.grad == 0).all()


def test_an_unknown_kind_of_entropy_is_refused():
    with pytest.raises(ValueError, match="shannon.*released.*'renyi'"):
        losses.entropy(random_case(0)[0], kind="renyi")


def test_the_built_in_mean_is_the_same_where_there_are_labels():
    logits, label = random_case(8)
    assert losses.cross_entropy(logits, label).item() == pytest.approx(
        F.cross_entropy(logits, label, ignore_index=255).item(), rel=1e-12)
    moved = label.masked_fill(label == 255, 3)  # with another ignore_index
    assert losses.cross_entropy(logits, moved, ignore_index=3).item() == pytest.approx(
        F.cross_entropy(logits, moved, ignore_index=3).item(), rel=1e-12)


def test_the_released_entropy_is_the_twofold_softmax_up_to_twice_the_maximum_squares():
    logits = random_case(9)[0]
    p = logits.softmax(1)
    expected = p.logsumexp(1).mean() + 2 * losses.maximum_squares(logits)
    assert losses.entropy(logits, kind="released").item() == pytest.approx(expected.item(), rel=1e-12)


@pytest.mark.parametrize("kept, absent", [(1, 1), (1, 4), (5, 2)])
def test_certain_pixels_have_finite_losses(kept, absent):
    """One-hot predictions: entropies 0, maximum squares -1/2, diversity that of the classes' shares."""
    z = torch.zeros(1, kept + absent, 2, kept)
    for c in range(kept):
        z[0, c, :, c] = 1e4
    z.requires_grad_()
    found = losses.information_maximisation(z)
    assert losses.entropy(z).item() == 0 and found["entropy"].item() == 0
    assert found["diversity"].item() == pytest.approx(-math.log(kept), abs=1e-6)
    assert losses.maximum_squares(z).item() == -0.5
    assert losses.negative(z, 1).item() == pytest.approx(-math.log(1e-5), rel=1e-5)  # 1 - p clamped
    (losses.entropy(z) + sum(found.values()) + losses.maximum_squares(z) + losses.negative(z, 1)).backward()
    assert torch.isfinite(z.grad).all()


@pytest.mark.parametrize("classes", [2, 5, 19])
def test_uniform_predictions(classes):
    z = torch.zeros(2, classes, 3, 4, dtype=torch.float64)
    found = losses.information_maximisation(z)
    assert found["entropy"].item() == pytest.approx(math.log(classes))
    assert found["diversity"].item() == pytest.approx(-math.log(classes))
    for balance in (0, 0.2):  # a class that all pixels are predicted as has their plain mean
        assert losses.maximum_squares(z, balance).item() == pytest.approx(-0.5 / classes)
    label = torch.zeros(2, 3, 4, dtype=torch.long)
    assert losses.crst_mrkld(z, label, 0.1).item() == pytest.approx(1.1 * math.log(classes))


@pytest.mark.parametrize("seed", range(5))
def test_information_is_what_a_pixel_tells_of_its_class(seed):
    """Minus the mutual information: within -log C..0, and 0 where all pixels are alike."""
    logits, _ = random_case(seed)
    assert -math.log(7) < sum(losses.information_maximisation(logits).values()).item() < 0
    alike = logits[:1, :, :1, :1].expand(2, 7, 4, 5)
    assert sum(losses.information_maximisation(alike).values()).item() == pytest.approx(0, abs=1e-12)


def test_balance_weighs_rare_classes_more():
    """A rare class's pixel has (N/N_c)^q times its weight in the plain mean, in value and gradient, per image."""
    logits = torch.zeros(2, 3, 1, 8, dtype=torch.float64)
    logits[0, 0, 0, :6], logits[0, 1, 0, 6:], logits[1, 2] = 2, 2, 2
    plain, balanced = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    losses.maximum_squares(plain).backward()
    losses.maximum_squares(balanced, 0.5).backward()
    ratio = (balanced.grad / plain.grad)[:, :, 0]
    expected = torch.tensor([[(8 / 6) ** 0.5] * 6 + [2.0] * 2, [1.0] * 8], dtype=torch.float64)
    assert torch.allclose(ratio, expected.unsqueeze(1).expand_as(ratio), rtol=1e-12)


@pytest.mark.parametrize("weight", [0, 0.1, 2])
def test_model_regularisation_draws_towards_the_uniform_distribution(weight):
    """Gradient (p - onehot + weight (p - 1/C)) / selected on selected pixels, 0 on the others."""
    logits, label = random_case(2)
    z = logits.clone().requires_grad_()
    losses.crst_mrkld(z, label, weight).backward()
    p, selected = logits.softmax(1), label != 255
    onehot = torch.zeros_like(p).scatter(1, label.where(selected, 0).unsqueeze(1), 1)
    expected = (p - onehot + weight * (p - 1 / 7)) * selected.unsqueeze(1) / selected.sum()
    assert torch.allclose(z.grad, expected, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("seed", range(3))
def test_both_weighted_cross_entropies_agree_where_every_pixel_has_a_loss(seed):
    logits, label = random_case(seed, ignored=0.0)
    conf = random_confidence(seed)
    assert losses.confidence_weighted_cross_entropy(logits, label, conf, 0.6).item() == pytest.approx(
        losses.mixed_cross_entropy(logits, label, conf, 0.6).item(), rel=1e-12)


def test_each_image_is_weighted_by_its_own_confidence():
    """Confidence at the threshold counts; an image without confident pixels has no effect."""
    logits, label = random_case(1, ignored=0.0)
    conf = torch.full(label.shape, 0.5)
    conf[0, 0] = 0.968  # 5 of 20 pixels
    z = logits.requires_grad_()
    value = losses.confidence_weighted_cross_entropy(z, label, conf)
    value.backward()
    expected = 0.25 * F.cross_entropy(logits[:1], label[:1]).item() / 2
    assert value.item() == pytest.approx(expected, rel=1e-12) and (z.grad[1] == 0).all() and (z.grad[0] != 0).any()


@pytest.mark.parametrize("classes", [2, 5, 19])
def test_negative_takes_the_class_of_the_rank(classes):
    logits, _ = random_case(4, classes=classes)
    for rank in range(1, classes + 1):
        assert losses.negative(logits, rank).item() == pytest.approx(slow.negative(logits, rank), rel=1e-12)


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
    losses.negative(z, rank).backward()
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


def test_the_gradient_of_mixed_cross_entropy_against_finite_differences():
    logits, label = random_case(4, shape=(2, 2, 3), ignored=0.0)
    conf = random_confidence(4, label.shape)
    assert torch.autograd.gradcheck(lambda x: losses.mixed_cross_entropy(x, label, conf, 0.5), logits.requires_grad_())


def test_mixed_cross_entropy_without_confident_pixels_is_zero():
    logits, label = random_case(1, ignored=0.0)
    assert losses.mixed_cross_entropy(logits, label, torch.zeros(label.shape), 0.97).item() == 0

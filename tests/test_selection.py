"""Thresholds and selection equal those by full sorts of exact float64 confidences."""
import math

import pytest
import torch

from trainer import selection

BIN = 1 + 2**-10  # widest ratio of two uncertainties in one bin


def random_logits(seed, classes=5, size=(24, 31), scale=6.0):
    g = torch.Generator().manual_seed(seed)
    return scale * torch.randn(classes, *size, generator=g)


def exact_uncertainty(logits):
    """1 - max softmax in float64, summed over the other classes so that nothing cancels."""
    label = logits.argmax(0)
    p = logits.double().softmax(0)
    return label, p.scatter(0, label.unsqueeze(0), 0).sum(0)


def thresholds_of(images, classes, portion):
    histogram = torch.zeros(classes, selection.NUM_BINS, dtype=torch.int64)
    for logits in images:
        label, uncertainty = selection.predict(logits)
        histogram += selection.uncertainty_histogram(label, selection.uncertainty_bin(uncertainty), classes)
    return selection.class_thresholds(histogram, portion), histogram


@pytest.mark.parametrize("scale", [0.1, 1.0, 6.0, 30.0])
def test_predict_equals_softmax_in_float64(scale):
    logits = random_logits(0, scale=scale)
    label, uncertainty = selection.predict(logits)
    expected_label, expected = exact_uncertainty(logits)
    assert (label == expected_label).all()
    kept = expected > 1e-36
    assert torch.allclose(uncertainty[kept].double(), expected[kept], rtol=1e-4)


def test_saturated_confidences_stay_ordered():
    # float32 softmax gives 1.0 for all of these
    logits = torch.zeros(2, 1, 5)
    logits[0, 0] = torch.tensor([20.0, 30.0, 40.0, 50.0, 55.0])
    _, uncertainty = selection.predict(logits)
    assert (logits.softmax(0).max(0).values[0] == 1).sum() >= 4
    assert (uncertainty[0].diff() < 0).all()
    assert (selection.uncertainty_bin(uncertainty)[0].diff() < 0).all()


def test_bins_are_monotone_and_fine():
    uncertainty = torch.cat([torch.logspace(-37, 0, 100_000), torch.tensor([0.0, 1.0])]).sort().values
    bins = selection.uncertainty_bin(uncertainty)
    assert (bins.diff() >= 0).all() and bins.min() == 0 and bins.max() == selection.NUM_BINS - 1
    assert uncertainty[bins == 0].max() < 2**-80 * BIN and uncertainty[bins == 1].min() >= 2**-80 * (1 + 2**-11)
    for b in bins[bins > 0].unique()[:: 50]:
        members = uncertainty[bins == b]
        assert members.max() / members.min() <= BIN


@pytest.mark.parametrize("portion", [0.05, 0.1, 0.3, 0.77, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_thresholds_equal_the_full_sort(seed, portion):
    images = [random_logits(10 * seed + i) for i in range(4)]
    thresholds, _ = thresholds_of(images, 5, portion)
    label, uncertainty = (torch.cat([f(x).flatten() for x in images]) for f in
                    (lambda x: selection.predict(x)[0], lambda x: selection.predict(x)[1]))
    for c in range(5):
        ordered = uncertainty[label == c].sort().values
        wanted = max(1, math.floor(portion * len(ordered) + 1e-9))
        exact = ordered[wanted - 1]
        assert thresholds[c] == selection.uncertainty_bin(exact)
        passed = uncertainty[(label == c) & (selection.uncertainty_bin(uncertainty) <= thresholds[c])]
        assert len(passed) >= wanted                      # the share is reached,
        assert passed.max() <= exact * BIN                # and exceeded by pixels of the last bin only
        assert passed.max() < 1 - selection.threshold_confidence(thresholds)[c] + 1e-12


def test_ties_are_selected_together():
    logits = torch.zeros(2, 1, 10)
    logits[0] = 2.0
    logits[0, 0, :3] = 5.0
    thresholds, _ = thresholds_of([logits], 2, 0.4)  # the 4th of 3 x high, 7 x low
    label, uncertainty = selection.predict(logits)
    assert (selection.select(label, uncertainty, thresholds, None) == 0).all()


def test_an_absent_class_has_no_threshold_and_selects_nothing():
    logits = random_logits(1)
    logits[3] = -50
    thresholds, _ = thresholds_of([logits], 5, 0.2)
    assert thresholds[3] == selection.NOTHING and (thresholds[[0, 1, 2, 4]] >= 0).all()
    assert selection.threshold_confidence(thresholds)[3].isnan()
    # a later image that has the class
    other = random_logits(2)
    other[3] = 50
    label, uncertainty = selection.predict(other)
    assert (selection.select(label, uncertainty, thresholds, None) == 255).all()


def test_a_class_of_few_pixels_gives_its_most_confident_one():
    logits = torch.zeros(3, 1, 6)
    logits[0, 0, :3] = torch.tensor([3.0, 7.0, 5.0])
    logits[1, 0, 3] = 4.0
    logits[2, 0, 4:] = torch.tensor([1.0, 2.0])
    thresholds, _ = thresholds_of([logits], 3, 0.1)  # 0.1 of 3, 1 and 2 pixels
    label, uncertainty = selection.predict(logits)
    chosen = selection.select(label, uncertainty, thresholds, None)
    assert chosen[0].tolist() == [255, 0, 255, 1, 255, 2]


def test_saturated_pixels_are_selected():
    logits = torch.zeros(2, 2, 2)
    logits[0] = 500.0  # uncertainty underflows to exactly 0
    thresholds, _ = thresholds_of([logits], 2, 0.1)
    label, uncertainty = selection.predict(logits)
    assert (selection.select(label, uncertainty, thresholds, None) == 0).all()


def test_histograms_add_up_whatever_the_order():
    images = [random_logits(i) for i in range(3)]
    a, whole = thresholds_of(images, 5, 0.3)
    b, _ = thresholds_of(images[::-1], 5, 0.3)
    assert (a == b).all()
    assert whole.sum() == sum(x[0].numel() for x in images)


@pytest.mark.parametrize("seed", range(3))
def test_selection_equals_the_rule_pixel_by_pixel(seed):
    logits, portion = random_logits(seed), 0.15
    thresholds, _ = thresholds_of([random_logits(100 + seed), logits], 5, portion)
    label, uncertainty = selection.predict(logits)
    ordered = sorted(uncertainty.flatten().tolist())
    image_limit = ordered[math.floor(portion * len(ordered) + 1e-9) - 1]
    bins = selection.uncertainty_bin(uncertainty)
    for use_image in (True, False):
        chosen = selection.select(label, uncertainty, thresholds, portion if use_image else None)
        assert chosen.dtype == torch.uint8
        for y in range(label.shape[0]):
            for x in range(label.shape[1]):
                c = label[y, x].item()
                expected = bins[y, x] <= thresholds[c] or (use_image and uncertainty[y, x].item() <= image_limit)
                assert chosen[y, x].item() == (c if expected else 255)


@pytest.mark.parametrize("n, portion, count", [(100, 0.29, 29), (10, 0.3, 3), (9, 0.1, 1), (7, 1.0, 7), (1, 0.5, 1)])
def test_the_image_threshold_counts_exactly(n, portion, count):
    uncertainty = torch.linspace(0.01, 0.9, n)[torch.randperm(n, generator=torch.Generator().manual_seed(0))]
    assert (uncertainty <= selection.image_threshold(uncertainty, portion)).sum() == count


def check_cbst(chosen, logits, limits, label_margin, limit_margin):
    """`chosen` against CBST's rule in float64, pixel by pixel; returns how many pixels were compared. limits: largest
    selected uncertainty of each class, NaN for a class without pixels; the label maximises p_c / (1 - limit_c). Pixels
    closer to a tie or to a limit than the margins (relative) are left out."""
    compared = 0
    for z, found in zip(logits.flatten(1).T.tolist(), chosen.flatten().tolist()):
        weights = [math.exp(v - max(z)) for v in z]
        ratios = sorted(((w / sum(weights) / (1 - limit), c) for c, (w, limit) in enumerate(zip(weights, limits))
                         if not math.isnan(limit)), reverse=True)
        label = ratios[0][1]
        uncertainty = (sum(weights[:label]) + sum(weights[label + 1:])) / sum(weights)
        tied = len(ratios) > 1 and ratios[0][0] < ratios[1][0] * (1 + label_margin)
        if not tied and abs(uncertainty - limits[label]) > limit_margin * limits[label]:
            assert found == (label if uncertainty <= limits[label] else 255)
            compared += 1
    return compared


@pytest.mark.parametrize("scale", [0.01, 1.0, 6.0, 30.0])
@pytest.mark.parametrize("classes", [2, 3, 5, 19, 30])
def test_cbst_equals_the_rule_pixel_by_pixel(classes, scale):
    """With the exact quantiles of exact uncertainties, and with the binned ones, which are closer to what is compared
    but beyond float64's reach next to a confidence of 1."""
    images = [random_logits(seed, classes, (12, 17), scale) for seed in range(3)]
    thresholds, _ = thresholds_of(images, classes, 0.3)
    chosen = [selection.cbst_select(logits, thresholds) for logits in images]
    label, uncertainty = (torch.cat(part).flatten() for part in zip(*map(exact_uncertainty, images)))
    exact = []
    for c in range(classes):
        ordered = uncertainty[label == c].sort().values.tolist()
        exact.append(ordered[max(1, math.floor(0.3 * len(ordered) + 1e-9)) - 1] if ordered else math.nan)
    binned = (1 - selection.threshold_confidence(thresholds)).tolist()
    # A bin is 2^-10 of an uncertainty wide, so more than that of a confidence below 1/2.
    widest = 2**-9 * max(limit / (1 - limit) for limit in exact if limit == limit)
    compared = sum(check_cbst(c, z, exact, widest, 2**-9) for c, z in zip(chosen, images))
    assert compared > 550 or scale < 1
    if min(limit for limit in binned if limit == limit) > 1e-10:
        compared = sum(check_cbst(c, z, binned, 1e-5, 1e-5) for c, z in zip(chosen, images))
        assert compared > 550
    assert all(c.dtype == torch.uint8 and (c != 255).any() for c in chosen)


@pytest.mark.parametrize("portion", [0.05, 0.5])
def test_cbst_selects_at_least_the_portion_of_each_class(portion):
    """Every pixel that the class's own threshold selects is selected, if perhaps as another class."""
    images = [random_logits(seed) for seed in range(3)]
    thresholds, _ = thresholds_of(images, 5, portion)
    for logits in images:
        own = selection.select(*selection.predict(logits), thresholds, None)
        assert (selection.cbst_select(logits, thresholds) != 255)[own != 255].all()


@pytest.mark.parametrize("seed", range(3))
def test_cbst_with_one_threshold_for_all_is_plain_selection(seed):
    logits = random_logits(seed)
    thresholds = selection.uncertainty_bin(torch.full((5,), 0.25))
    own = selection.select(*selection.predict(logits), thresholds, None)
    assert torch.equal(selection.cbst_select(logits, thresholds), own) and 0 < (own == 255).float().mean() < 1


def test_cbst_prefers_the_class_of_low_confidence():
    p = torch.tensor([[0.6, 0.4], [0.75, 0.25], [0.95, 0.05], [0.3, 0.7]])
    thresholds = selection.uncertainty_bin(1 - torch.tensor([0.9, 0.35]))
    chosen = selection.cbst_select(p.log().T.unsqueeze(1), thresholds)
    assert chosen[0].tolist() == [1, 255, 0, 1]  # largest ratios 0.4/0.35, 0.75/0.9, 0.95/0.9, 0.7/0.35


def test_cbst_never_selects_a_class_without_pixels():
    logits = random_logits(4)
    thresholds, _ = thresholds_of([random_logits(5)], 5, 0.5)
    thresholds[3] = selection.NOTHING
    chosen = selection.cbst_select(logits, thresholds)
    assert (chosen != 3).all() and (chosen != 255).any()
    certain = logits.clone()
    certain[3] = 500
    assert (selection.cbst_select(certain, thresholds) == 255).all()
    assert (selection.cbst_select(logits, torch.full((5,), selection.NOTHING)) == 255).all()


def test_cbst_keeps_saturated_confidences_apart():
    """Float32 confidence is 1.0 for all; the threshold lies between the third and the fourth."""
    logits = torch.zeros(2, 1, 6)
    logits[0, 0] = torch.tensor([60.0, 50.0, 40.0, 30.0, 25.0, 500.0])
    thresholds, _ = thresholds_of([logits], 2, 4 / 6)
    assert selection.cbst_select(logits, thresholds)[0].tolist() == [0, 0, 0, 255, 255, 0]

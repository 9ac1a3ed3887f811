"""Thresholds and selection against full sorts of exact float64 confidences."""
import math

import pytest
import torch

from trainer import pseudo_label as pl

BIN = 1 + 2**-10  # widest ratio of two doubts in one bin


def random_logits(seed, classes=5, size=(24, 31), scale=6.0):
    g = torch.Generator().manual_seed(seed)
    return scale * torch.randn(classes, *size, generator=g)


def exact_doubt(logits):
    """1 - max softmax in float64, summed over the other classes so that nothing cancels."""
    label = logits.argmax(0)
    p = logits.double().softmax(0)
    return label, p.scatter(0, label.unsqueeze(0), 0).sum(0)


def thresholds_of(images, classes, portion):
    histogram = torch.zeros(classes, pl.NUM_BINS, dtype=torch.int64)
    for logits in images:
        label, doubt = pl.predict(logits)
        histogram += pl.doubt_histogram(label, pl.doubt_bin(doubt), classes)
    return pl.class_thresholds(histogram, portion), histogram


@pytest.mark.parametrize("scale", [0.1, 1.0, 6.0, 30.0])
def test_predict_equals_softmax_in_float64(scale):
    logits = random_logits(0, scale=scale)
    label, doubt = pl.predict(logits)
    expected_label, expected = exact_doubt(logits)
    assert (label == expected_label).all()
    kept = expected > 1e-36
    assert torch.allclose(doubt[kept].double(), expected[kept], rtol=1e-4)


def test_saturated_confidences_stay_ordered():
    # float32 softmax gives 1.0 for all of these
    logits = torch.zeros(2, 1, 5)
    logits[0, 0] = torch.tensor([20.0, 30.0, 40.0, 50.0, 55.0])
    _, doubt = pl.predict(logits)
    assert (logits.softmax(0).max(0).values[0] == 1).sum() >= 4
    assert (doubt[0].diff() < 0).all()
    assert (pl.doubt_bin(doubt)[0].diff() < 0).all()


def test_bins_are_monotone_and_fine():
    doubt = torch.cat([torch.logspace(-37, 0, 100_000), torch.tensor([0.0, 1.0])]).sort().values
    bins = pl.doubt_bin(doubt)
    assert (bins.diff() >= 0).all() and bins.min() == 0 and bins.max() == pl.NUM_BINS - 1
    assert doubt[bins == 0].max() < 2**-80 * BIN and doubt[bins == 1].min() >= 2**-80 * (1 + 2**-11)
    for b in bins[bins > 0].unique()[:: 50]:
        members = doubt[bins == b]
        assert members.max() / members.min() <= BIN


@pytest.mark.parametrize("portion", [0.05, 0.1, 0.3, 0.77, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_thresholds_equal_the_full_sort(seed, portion):
    images = [random_logits(10 * seed + i) for i in range(4)]
    thresholds, _ = thresholds_of(images, 5, portion)
    label, doubt = (torch.cat([f(x).flatten() for x in images]) for f in
                    (lambda x: pl.predict(x)[0], lambda x: pl.predict(x)[1]))
    for c in range(5):
        ordered = doubt[label == c].sort().values
        wanted = max(1, math.floor(portion * len(ordered) + 1e-9))
        exact = ordered[wanted - 1]
        assert thresholds[c] == pl.doubt_bin(exact)
        passed = doubt[(label == c) & (pl.doubt_bin(doubt) <= thresholds[c])]
        assert len(passed) >= wanted                      # the share is reached,
        assert passed.max() <= exact * BIN                # and overshot by pixels of the last bin alone
        assert passed.max() < 1 - pl.threshold_confidence(thresholds)[c] + 1e-12


def test_ties_pass_together():
    logits = torch.zeros(2, 1, 10)
    logits[0] = 2.0
    logits[0, 0, :3] = 5.0
    thresholds, _ = thresholds_of([logits], 2, 0.4)  # the 4th of 3 x high, 7 x low
    label, doubt = pl.predict(logits)
    assert (pl.select(label, doubt, thresholds, None) == 0).all()


def test_an_absent_class_has_no_threshold_and_selects_nothing():
    logits = random_logits(1)
    logits[3] = -50
    thresholds, _ = thresholds_of([logits], 5, 0.2)
    assert thresholds[3] == pl.NOTHING and (thresholds[[0, 1, 2, 4]] >= 0).all()
    assert pl.threshold_confidence(thresholds)[3].isnan()
    # a later image that does show it
    other = random_logits(2)
    other[3] = 50
    label, doubt = pl.predict(other)
    assert (pl.select(label, doubt, thresholds, None) == 255).all()


def test_a_class_of_few_pixels_gives_its_most_confident_one():
    logits = torch.zeros(3, 1, 6)
    logits[0, 0, :3] = torch.tensor([3.0, 7.0, 5.0])
    logits[1, 0, 3] = 4.0
    logits[2, 0, 4:] = torch.tensor([1.0, 2.0])
    thresholds, _ = thresholds_of([logits], 3, 0.1)  # 0.1 of 3, 1 and 2 pixels
    label, doubt = pl.predict(logits)
    chosen = pl.select(label, doubt, thresholds, None)
    assert chosen[0].tolist() == [255, 0, 255, 1, 255, 2]


def test_saturated_pixels_are_selected():
    logits = torch.zeros(2, 2, 2)
    logits[0] = 500.0  # doubt underflows to exactly 0
    thresholds, _ = thresholds_of([logits], 2, 0.1)
    label, doubt = pl.predict(logits)
    assert (pl.select(label, doubt, thresholds, None) == 0).all()


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
    label, doubt = pl.predict(logits)
    ordered = sorted(doubt.flatten().tolist())
    image_limit = ordered[math.floor(portion * len(ordered) + 1e-9) - 1]
    bins = pl.doubt_bin(doubt)
    for use_image in (True, False):
        chosen = pl.select(label, doubt, thresholds, portion if use_image else None)
        assert chosen.dtype == torch.uint8
        for y in range(label.shape[0]):
            for x in range(label.shape[1]):
                c = label[y, x].item()
                expected = bins[y, x] <= thresholds[c] or (use_image and doubt[y, x].item() <= image_limit)
                assert chosen[y, x].item() == (c if expected else 255)


@pytest.mark.parametrize("n, portion, count", [(100, 0.29, 29), (10, 0.3, 3), (9, 0.1, 1), (7, 1.0, 7), (1, 0.5, 1)])
def test_the_image_threshold_counts_exactly(n, portion, count):
    doubt = torch.linspace(0.01, 0.9, n)[torch.randperm(n, generator=torch.Generator().manual_seed(0))]
    assert (doubt <= pl.image_threshold(doubt, portion)).sum() == count

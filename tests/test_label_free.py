"""Label-free scores against slow, obvious float64 versions."""
import math

import numpy as np
import pytest
import torch

from trainer import label_free


def random_probs(rng, *shape):
    """Probabilities of very different sureness: float64, sums over dimension 0 are 1."""
    return torch.from_numpy(rng.normal(size=shape) * 10 ** rng.uniform(-1, 1)).softmax(0)


def plain_entropy(p):
    return -sum(x * math.log(x) for x in p if x > 0) / math.log(len(p))


def plain_density(columns):
    total, n = 0.0, len(columns)
    unit = [np.asarray(c) / np.linalg.norm(c) for c in columns]
    for i in range(n):
        similar = [math.exp(float(unit[i] @ unit[j]) / 0.05) for j in range(n) if j != i]
        total += -sum(s / sum(similar) * math.log(s / sum(similar)) for s in similar if s > 0)
    return total / n / math.log(n - 1)


def plain_mean_iou(a, b, num_classes):
    found = []
    for c in range(num_classes):
        union = ((a == c) | (b == c)).sum()
        if union:
            found.append(((a == c) & (b == c)).sum() / union)
    return float(np.mean(found))


@pytest.mark.parametrize("seed", range(6))
def test_scores_of_images_equal_the_plain_ones(seed):
    rng = np.random.default_rng(seed)
    classes, h, w, n = (int(rng.integers(low, high)) for low, high in ((2, 12), (2, 9), (2, 9), (1, 5)))
    views = [[random_probs(rng, classes, h, w) for _ in range(3)] for _ in range(n)]
    scores = label_free.total([label_free.image_sums(*each) for each in views]).scores()
    columns = [c.numpy() for each in views for c in each[0].flatten(1).T]
    mean_entropy = np.mean([plain_entropy(c) for c in columns])
    assert scores["entropy"] == pytest.approx(mean_entropy)
    assert scores["information"] == pytest.approx(plain_entropy(np.mean(columns, 0)) - mean_entropy)
    assert scores["nuclear"] == pytest.approx(np.linalg.svd(np.array(columns), compute_uv=False).sum()
                                              / math.sqrt(len(columns) * min(len(columns), classes)))
    assert scores["density"] == pytest.approx(np.mean([plain_density(each[0].flatten(1).T.numpy()) for each in views]))
    labels = [np.concatenate([each[i].numpy().argmax(0).ravel() for each in views]) for i in range(3)]
    assert scores["consistency"] == pytest.approx(
        (plain_mean_iou(labels[0], labels[1], classes) + plain_mean_iou(labels[0], labels[2], classes)) / 2)
    assert all(0 <= value <= 1 + 1e-12 for value in scores.values())


@pytest.mark.parametrize("seed", range(6))
def test_agreement_equals_the_plain_one(seed):
    rng = np.random.default_rng(seed)
    networks, n, classes, h, w = (int(rng.integers(2, 6)) for _ in range(5))
    predictions = [(torch.stack([random_probs(rng, classes, h, w) for _ in range(n)]) * 255).round().byte().numpy()
                   for _ in range(networks)]
    members = sorted(rng.choice(networks, int(rng.integers(1, networks + 1)), replace=False).tolist())
    reference = sum(predictions[m].astype(int) for m in members).argmax(1)
    expected = [plain_mean_iou(p.argmax(1), reference, classes) for p in predictions]
    found, single = label_free.agreements(predictions, [members, [0]])
    assert found == pytest.approx(expected) and single[0] == 1


def test_the_ends_of_the_scales():
    one, all_classes = torch.zeros(4, 2, 2).double(), torch.eye(4).double().view(4, 2, 2)
    one[0] = 1
    same = label_free.image_sums(one, one, one)
    assert same.scores() == pytest.approx({"consistency": 1, "entropy": 0, "information": 0, "density": 1,
                                           "nuclear": 0.5})
    assert same.shares() == [1, 0, 0, 0]
    varied = label_free.image_sums(all_classes, all_classes, all_classes).scores()
    assert varied == pytest.approx({"consistency": 1, "entropy": 0, "information": 1, "density": 1, "nuclear": 1})
    unsure = torch.full((4, 2, 2), 0.25).double()
    assert label_free.image_sums(unsure, unsure, unsure).scores()["entropy"] == pytest.approx(1)


def test_views_are_compared_at_the_same_places():
    """A network that sees each pixel alone agrees with its own mirror image everywhere."""
    x = torch.zeros(1, 3, 32, 48)
    x[..., :20] = 1

    def predict(view, size):
        logits = torch.nn.functional.interpolate(view, size, mode="bilinear", align_corners=False)
        return torch.cat([logits[:, :1] * 9, 4.5 - 0 * logits[:, :1]], 1)
    (_, sums), = label_free.measure(predict, [x], (32, 48))
    assert label_free.mean_iou(sums.flipped) == 1
    assert label_free.mean_iou(sums.scaled) > 0.95


def test_numbers_that_are_not_finite_are_seen():
    x = torch.ones(1, 3, 8, 8)
    (probs, sums), = label_free.measure(lambda view, size: torch.full((1, 3, *size), math.nan), [x], (4, 4))
    assert not sums.finite and probs.dtype == torch.uint8
    (_, sums), = label_free.measure(lambda view, size: torch.ones(1, 3, *size), [x], (4, 4))
    assert sums.finite


@pytest.mark.parametrize("size", [(1, 1), (8, 8), (512, 1024), (360, 480), (16384, 8), (3, 20000), (720, 1280)])
def test_grids_have_the_image_shape(size):
    grid = label_free.grid_size(size)
    assert 1 <= grid[0] * grid[1] <= label_free.GRID_POINTS and all(g <= s for g, s in zip(grid, size))
    if min(grid) > 8:
        assert grid[0] / grid[1] == pytest.approx(size[0] / size[1], rel=0.1)

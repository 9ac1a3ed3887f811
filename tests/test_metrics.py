"""Schedules, confusion matrix, IoU and the street protocols against plain counting."""
import math

import numpy as np
import pytest
import torch

from dataset.labels import CITYSCAPES_CLASSES, STREET_PROTOCOLS, street_class_set
from model.interface import Interface
from model.segmenter import Segmenter
from trainer.evaluate import means, predictions, protocol_scores, score_table, scored_classes
from utils.constants import HOUSE_INPUT
from utils.metrics import class_iou, confusion_matrix
from utils.schedule import poly_lr, round_lr, round_portion


def test_poly_schedule():
    for t in range(0, 50):
        assert poly_lr(0.1, t, 50, 0.9) == pytest.approx(0.1 * math.pow(1 - t / 50, 0.9))
    for t in (50, 51, 1000):
        rate = poly_lr(0.1, t, 50, 0.9)
        assert isinstance(rate, float) and rate == 0.0


def test_round_schedules():
    assert [round_lr(1e-4, r, math.sqrt(2)) for r in range(3)] == pytest.approx([1e-4, 1e-4 / math.sqrt(2), 5e-5])
    assert [round_portion(0.1, 0.05, r) for r in range(3)] == pytest.approx([0.1, 0.15, 0.2])
    assert round_portion(0.9, 0.2, 3) == 1.0


def members(classes, protocol):
    """The classes of a protocol of labels that have the network's classes."""
    labelled, predicted = classes.protocols[protocol].labelled, classes.protocols[protocol].predicted
    assert labelled == predicted
    return [c for (c,) in labelled]


def random_labels(seed, classes, n=4000, ignored=0.1):
    g = torch.Generator().manual_seed(seed)
    label = torch.randint(classes, (n,), generator=g)
    label[torch.rand(n, generator=g) < ignored] = 255
    return label, torch.randint(classes, (n,), generator=g)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_confusion_matrix_counts_pairs(dtype):
    label, predicted = random_labels(0, 7)
    expected = torch.zeros(7, 7, dtype=torch.int64)
    for t, p in zip(label.tolist(), predicted.tolist()):
        if t != 255:
            expected[t, p] += 1
    assert confusion_matrix(label.to(dtype), predicted, 7).equal(expected)


def test_confusion_matrix_of_ignored_pixels_is_zero():
    assert confusion_matrix(torch.full((5,), 255), torch.zeros(5, dtype=torch.long), 3).sum() == 0


@pytest.mark.parametrize("protocol", [19, 16, 13])
@pytest.mark.parametrize("seed", range(3))
def test_protocol_iou_equals_counting_sets(seed, protocol):
    label, predicted = random_labels(seed, 19)
    predicted[predicted == 5] = 4
    label[label == 5] = 255      # absent from both
    predicted[predicted == 7] = 8  # in the labels alone: IoU 0
    members = STREET_PROTOCOLS[protocol]
    counted = [(t, p) for t, p in zip(label.tolist(), predicted.tolist()) if t in members]
    expected = {}
    for c in members:
        union = sum(t == c or p == c for t, p in counted)
        expected[c] = 100 * sum(t == p == c for t, p in counted) / union if union else None
    per_class, miou = class_iou(confusion_matrix(label, predicted, 19), members)
    assert per_class == [e if e is None else pytest.approx(e) for e in expected.values()]
    present = [e for e in expected.values() if e is not None]
    assert miou == pytest.approx(sum(present) / len(present))
    assert expected[7] == 0 and expected.get(5) is None


def test_no_pixels_no_score():
    assert class_iou(torch.zeros(3, 3, dtype=torch.int64), (0, 1, 2)) == ([None] * 3, None)


def test_class_sets_offer_the_protocols_that_fit():
    assert [list(street_class_set(n).protocols) for n in (19, 16, 13)] == [
        ["19 classes", "16 classes", "13 classes"], ["16 classes", "13 classes"], ["13 classes"]]
    left_out = set(CITYSCAPES_CLASSES) - set(street_class_set(16).names)
    assert left_out == {"terrain", "truck", "train"}
    assert left_out | {"wall", "fence", "pole"} == set(CITYSCAPES_CLASSES) - set(street_class_set(13).names)
    sixteen = street_class_set(16)
    assert [sixteen.names[c] for c in members(sixteen, "13 classes")] == list(street_class_set(13).names)
    assert sixteen.protocols["13 classes"].names == street_class_set(13).names


def test_the_table_shows_every_number():
    label, predicted = random_labels(1, 19)
    scores = protocol_scores(confusion_matrix(label, predicted, 19), street_class_set(19))
    table = score_table({"LD": scores, "a heading longer than its three columns": scores}, street_class_set(19))
    lines = table.splitlines()
    assert len({len(line) for line in lines}) == 1
    alone = score_table({"LD": scores}, street_class_set(19)).splitlines()  # a long heading widens its own columns only
    assert all(line.startswith(short) for line, short in zip(lines, alone))
    assert lines[-1].split()[1:] == 2 * [f"{scores[p]['miou']:.1f}" for p in scores]
    terrain = next(line for line in lines if line.startswith("terrain")).split()
    assert terrain[1:] == 2 * [f"{scores['19 classes']['iou']['terrain']:.1f}", "-", "-"]


@pytest.mark.parametrize("seed", range(3))
def test_classes_without_a_labelled_pixel_are_named_and_a_mean_over_fewer_says_so(seed):
    label, predicted = random_labels(seed, 19)
    absent = {int(c) for c in np.random.default_rng(seed).choice(19, 4, replace=False)}
    label[torch.isin(label, torch.tensor(sorted(absent)))] = 255
    neither = min(absent)  # the others are predicted: IoU 0, in the mean
    predicted[predicted == neither] = (neither + 1) % 19
    classes = street_class_set(19)
    scores = protocol_scores(confusion_matrix(label, predicted, 19), classes)
    for protocol in classes.protocols:
        scored = members(classes, protocol)
        assert scores[protocol]["unseen"] == [classes.names[c] for c in scored if c in absent]
        counted = len(scored) - (neither in scored)
        assert scored_classes(scores[protocol]) == f"{counted} of {len(scored)}"
        full = f"{scores[protocol]['miou']:.2f} ({protocol})"
        assert (full in means(scores)) == (neither not in scored)
        assert (f"({counted} of {len(scored)} classes)" in means(scores)) == (neither in scored)
    lines = score_table({"LD": scores}, classes).splitlines()
    assert lines[-1].startswith("mIoU") and lines[-2].startswith("classes") and "18/19" in lines[-2]
    assert len({len(line) for line in lines}) == 1


def test_a_mean_over_all_classes_has_no_second_row():
    label, predicted = random_labels(0, 19)
    scores = protocol_scores(confusion_matrix(label, predicted, 19), street_class_set(19))
    assert "classes" not in score_table({"LD": scores}, street_class_set(19)).splitlines()[-2]
    assert all(s["unseen"] == [] for s in scores.values()) and " of " not in means(scores)


def test_the_caller_of_predictions_has_gradients():
    network = Segmenter(torch.nn.Conv2d(3, 4, 1), 4, Interface(HOUSE_INPUT))
    items = [{"image": torch.zeros(1, 2, 3, 3, dtype=torch.uint8), "size": (5, 7)}] * 2
    for item, prediction in predictions(network, items, torch.device("cpu")):
        assert prediction.shape == item["size"] and prediction.dtype == torch.int64
        assert not torch.is_inference_mode_enabled() and torch.is_grad_enabled()

"""ClassMix: one mask for image, label and confidence; half of the classes, rounded down."""
from collections import Counter

import pytest
import torch

from trainer.classmix import class_mix, draw_classes, half_by_keys

DEVICES = ["cpu", pytest.param("cuda", marks=[
    pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")])]


def encoded_batch(seed, batch, classes=6, size=(9, 11)):
    """Images and confidences that name their own image, pixel and class, so that any misalignment shows."""
    g = torch.Generator().manual_seed(seed)
    label = torch.randint(classes, (batch, *size), generator=g)
    where = torch.arange(size[0] * size[1]).view(size)
    code = torch.stack([1000 * i + where for i in range(batch)])
    images = torch.stack([code, label, -code], dim=1).float()
    return images, label, code.float()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("batch", [2, 3, 5])
@pytest.mark.parametrize("seed", range(4))
def test_mask_label_and_confidence_stay_aligned(seed, batch, device):
    images, label, conf = encoded_batch(seed, batch)
    moved = (x.to(device) for x in (images, label, conf))
    mixed, mixed_label, mixed_conf = (x.cpu() for x in class_mix(*moved, torch.Generator().manual_seed(seed)))
    assert (mixed[:, 1] == mixed_label).all()
    assert (mixed[:, 0] == mixed_conf).all() and (mixed[:, 2] == -mixed_conf).all()
    for i in range(batch):
        from_i = mixed_conf[i] == conf[i]
        assert (mixed_conf[i][~from_i] == conf[(i + 1) % batch][~from_i]).all()
        pasted = set(label[i][from_i].tolist())
        assert len(pasted) == len(label[i].unique()) // 2
        assert from_i.equal(torch.isin(label[i], torch.tensor(sorted(pasted))))  # whole classes, nothing else


def test_an_image_of_one_class_pastes_nothing():
    images, label, conf = encoded_batch(0, 2)
    label[0] = 4
    mixed, mixed_label, _ = class_mix(images, label, conf, torch.Generator().manual_seed(0))
    assert mixed_label[0].equal(label[1]) and mixed[0].equal(images[1])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("present, drawn", [(1, 0), (2, 1), (3, 1), (8, 4), (255, 127)])
def test_half_of_the_classes_rounded_down(present, drawn, device):
    label = torch.arange(present, device=device).repeat(2, 7, 1)
    label[1] = 254 - label[1]
    found = draw_classes(label, torch.Generator().manual_seed(0))
    assert found.sum(1).tolist() == [drawn, drawn]
    assert not found[0, present:].any() and not found[1, :255 - present].any()


@pytest.mark.parametrize("device", DEVICES)
def test_every_class_is_drawn_and_the_generator_decides(device):
    label = torch.arange(6, device=device).view(1, 2, 3)
    seen = set()
    for seed in range(50):
        first, again = (draw_classes(label, torch.Generator().manual_seed(seed)) for _ in range(2))
        assert first.equal(again)
        seen |= set(first[0].nonzero().flatten().tolist())
    assert seen == set(range(6))


@pytest.mark.parametrize("seed", range(5))
def test_on_a_gpu_the_present_classes_with_the_smallest_keys_are_drawn(seed):
    g = torch.Generator().manual_seed(seed)
    present, keys = torch.rand(20, 30, generator=g) < torch.rand(20, 1, generator=g), torch.rand(20, 30, generator=g)
    present[0], present[1] = False, True
    for row, row_keys, drawn in zip(present.tolist(), keys.tolist(), half_by_keys(present, keys).tolist()):
        ordered = sorted((key, c) for c, key in enumerate(row_keys) if row[c])
        assert {c for c, one in enumerate(drawn) if one} == {c for _, c in ordered[: len(ordered) // 2]}


def test_all_halves_are_equally_likely_on_a_gpu():
    present = torch.zeros(6000, 7, dtype=torch.bool)
    present[:, [0, 2, 3, 6]] = True
    keys = torch.rand(present.shape, generator=torch.Generator().manual_seed(0))
    counts = Counter(map(tuple, half_by_keys(present, keys).int().tolist()))
    assert len(counts) == 6 and sum((n - 1000)**2 / 1000 for n in counts.values()) < 25  # chi-square, 5 degrees: 1e-4


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_mixing_does_not_wait_for_the_gpu():
    batch = [x.cuda() for x in encoded_batch(0, 3)]
    class_mix(*batch, torch.Generator())
    torch.cuda.set_sync_debug_mode("error")
    try:
        class_mix(*batch, torch.Generator())
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_inputs_are_left_alone():
    images, label, conf = encoded_batch(0, 3)
    before = images.clone(), label.clone(), conf.clone()
    class_mix(images, label, conf, torch.Generator().manual_seed(0))
    assert all(a.equal(b) for a, b in zip(before, (images, label, conf)))

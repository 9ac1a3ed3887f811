"""ClassMix: one mask for image, label and confidence; half of the classes, rounded down."""
import pytest
import torch

from trainer.classmix import class_mix, draw_classes


def encoded_batch(seed, batch, classes=6, size=(9, 11)):
    """Images and confidences that name their own image, pixel and class, so that any misalignment shows."""
    g = torch.Generator().manual_seed(seed)
    label = torch.randint(classes, (batch, *size), generator=g)
    where = torch.arange(size[0] * size[1]).view(size)
    code = torch.stack([1000 * i + where for i in range(batch)])
    images = torch.stack([code, label, -code], dim=1).float()
    return images, label, code.float()


@pytest.mark.parametrize("batch", [2, 3, 5])
@pytest.mark.parametrize("seed", range(4))
def test_mask_label_and_confidence_stay_aligned(seed, batch):
    images, label, conf = encoded_batch(seed, batch)
    mixed, mixed_label, mixed_conf = class_mix(images, label, conf, torch.Generator().manual_seed(seed))
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


@pytest.mark.parametrize("present, drawn", [(1, 0), (2, 1), (3, 1), (8, 4)])
def test_half_of_the_classes_rounded_down(present, drawn):
    label = torch.arange(present).repeat(7).view(7, present)
    assert len(draw_classes(label, torch.Generator().manual_seed(0)).unique()) == drawn


def test_every_class_is_drawn_and_the_generator_decides():
    label = torch.arange(6).view(2, 3)
    seen = set()
    for seed in range(50):
        first, again = (draw_classes(label, torch.Generator().manual_seed(seed)) for _ in range(2))
        assert first.equal(again)
        seen |= set(first.tolist())
    assert seen == set(range(6))


def test_inputs_are_left_alone():
    images, label, conf = encoded_batch(0, 3)
    before = images.clone(), label.clone(), conf.clone()
    class_mix(images, label, conf, torch.Generator().manual_seed(0))
    assert all(a.equal(b) for a, b in zip(before, (images, label, conf)))

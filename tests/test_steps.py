"""One step of LD and of BE: what the student sees, and the losses it gets, with stand-ins for both networks."""
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from dataset.transforms import network_input
from trainer import fused_losses, losses
from trainer.ldbe_trainer import LDBETrainer
from utils.config import load_config


class Fixed(nn.Module):
    """A network that answers each image with the same logits [C], and keeps what it was given."""

    def __init__(self, logits):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits))

    def forward(self, x):
        self.seen, self.seen_in_training = x, self.training
        return self.logits.view(1, -1, 1, 1).expand(len(x), -1, *x.shape[2:])


@pytest.fixture
def trainer(tmp_path):
    def make(method, student, teacher=None, *words):
        (tmp_path / "c.yml").write_text(f"method: {method}")
        made = LDBETrainer.__new__(LDBETrainer)
        made.cfg, made.device, made.stage = load_config(tmp_path / "c.yml", words), torch.device("cpu"), method
        made.model, made.teacher = student, SimpleNamespace(model=teacher)
        return made
    return make


def batch(label):
    image = torch.randint(256, (len(label), 4, 6, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return {"image": image, "label": torch.tensor(label).view(-1, 1, 1).expand(-1, 4, 6).contiguous()}


@pytest.mark.parametrize("bn_stats", ["batch", "running"])
def test_be_step(trainer, bn_stats):
    """The teacher says class 1 everywhere, at a confidence below the threshold; image 1 has pseudo labels of class 2.
    Images of one class paste nothing, so the student sees image 1, then image 0."""
    student, teacher = Fixed([0.0, 1.0, 3.0]), Fixed([0.0, 1.0, 0.5])
    given = batch([255, 2])
    student.train()
    step = trainer("be", student, teacher, f"bn_stats={bn_stats}")
    found = step.step(given, np.random.default_rng(0))
    images = network_input(given["image"])
    assert teacher.seen.equal(images) and teacher.seen_in_training == (bn_stats == "batch")
    assert student.seen.equal(images.flip(0)) and student.seen_in_training
    # Weight 1 where the pseudo label stands, whose confidence is 1; weight 0 where the unsure teacher is alone.
    expected = -student.logits.log_softmax(0)[2] / 2
    assert list(found) == ["mixed"] and found["mixed"].item() == pytest.approx(expected.item())
    found["mixed"].backward()
    assert student.logits.grad.abs().sum() > 0 and teacher.logits.grad is None


def test_be_step_uses_the_teachers_label_where_it_is_sure(trainer):
    student, teacher = Fixed([0.0, 1.0, 3.0]), Fixed([0.0, 9.0, 0.5])
    found = trainer("be", student, teacher).step(batch([255, 255]), np.random.default_rng(0))
    assert found["mixed"].item() == pytest.approx(-student.logits.log_softmax(0)[1].item())


def test_ld_step_sums_three_losses_of_weight_1(trainer):
    classes = 19
    student = Fixed(torch.linspace(0, 3, classes).tolist())
    given = batch([255, 2])
    step = trainer("ld", student)
    ranks = set()
    for seed in range(40):
        found = step.step(given, np.random.default_rng(seed))
        rank = losses.negative_rank(classes, 3, np.random.default_rng(seed))
        expected = fused_losses.ld_losses(student(network_input(given["image"])), given["label"], rank)
        assert {k: v.item() for k, v in found.items()} == {k: v.item() for k, v in expected.items()}
        ranks.add(rank)
    assert list(found) == ["positive", "entropy", "negative"] and ranks == set(range(6, 13))

"""One step of LD and of BE, with stand-ins for both networks: the student's input and losses; checks of losses."""
import numpy as np
import pytest
import torch
from torch import nn

from trainer import checks, fused_losses, losses
from trainer.checks import FiniteCheck, not_finite, require_losses
from trainer.methods.base import Batch, Setting
from trainer.optimisation import Optimisation
from trainer.run_state import Position
from utils.config import load_config
from utils.errors import TrainingError


class Fixed(nn.Module):
    """A network that answers each image with the same logits [C], and keeps what it was given."""

    def __init__(self, logits):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits))

    def forward(self, x):
        self.seen, self.seen_in_training = x, self.training
        return self.logits.view(1, -1, 1, 1).expand(len(x), -1, *x.shape[2:])

    def use_statistics(self, which):
        self.statistics = which


@pytest.fixture
def method(tmp_path):
    def make(name, student, teacher=None, *words):
        (tmp_path / "c.yml").write_text(f"method: {name}")
        cfg = load_config(tmp_path / "c.yml", words)
        made = cfg.method_class(Setting(cfg, student, torch.device("cpu"), [], (), Position(0), None, lambda: None))
        if teacher:
            made.teacher.model = teacher
        return made
    return make


def batch(label):
    images = torch.randn(len(label), 3, 4, 6, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor(label).view(-1, 1, 1).expand(-1, 4, 6).contiguous()
    return Batch(images, labels, [str(c) for c in label], None)


@pytest.mark.parametrize("bn_stats", ["batch", "running"])
def test_be_step(method, bn_stats):
    """The teacher says class 1 everywhere, at a confidence below the threshold; image 1 has pseudo labels of class 2.
    Images of one class paste nothing, so the student sees image 1, then image 0."""
    student, teacher = Fixed([0.0, 1.0, 3.0]), Fixed([0.0, 1.0, 0.5])
    given = batch([255, 2])
    student.train()
    found = method("be", student, teacher, f"bn_stats={bn_stats}").losses(given, np.random.default_rng(0))
    assert teacher.seen.equal(given.images) and teacher.statistics == bn_stats
    assert student.seen.equal(given.images.flip(0)) and student.seen_in_training
    # Weight 1 for the image with pseudo labels, whose confidence is 1; weight 0 for that of the uncertain teacher.
    expected = -student.logits.log_softmax(0)[2] / 2
    assert list(found) == ["mixed"] and found["mixed"].item() == pytest.approx(expected.item())
    found["mixed"].backward()
    assert student.logits.grad.abs().sum() > 0 and teacher.logits.grad is None


def test_be_step_uses_the_teachers_label_where_it_is_confident(method):
    student, teacher = Fixed([0.0, 1.0, 3.0]), Fixed([0.0, 9.0, 0.5])
    found = method("be", student, teacher).losses(batch([255, 255]), np.random.default_rng(0))
    assert found["mixed"].item() == pytest.approx(-student.logits.log_softmax(0)[1].item())


def test_ld_step_sums_three_losses_of_weight_1(method):
    classes = 19
    student = Fixed(torch.linspace(0, 3, classes).tolist())
    given = batch([255, 2])
    step = method("ld", student)
    ranks = set()
    for seed in range(40):
        found = step.losses(given, np.random.default_rng(seed))
        rank = losses.negative_rank(classes, 3, np.random.default_rng(seed))
        expected = fused_losses.ld_losses(student(given.images), given.labels, rank)
        assert {k: v.item() for k, v in found.items()} == {k: v.item() for k, v in expected.items()}
        ranks.add(rank)
    assert list(found) == ["positive", "entropy", "negative"] and ranks == set(range(6, 13))


SCALAR = torch.ones((), requires_grad=True)


@pytest.mark.parametrize("returned, trains, said", [
    (None, True, "returned a NoneType, expected a dict of scalar tensors by name"),
    (SCALAR, True, r"returned a tensor \[\] of float32, expected a dict"),
    ([SCALAR], True, r"returned a list \(a tensor \[\] of float32\), expected a dict"),
    ({"a": SCALAR, "b": 2.0}, True, r"returned a mapping \(a: a tensor \[\] of float32, b: a float\), expected a dict"),
    ({"a": SCALAR.expand(2, 3)}, True, r"a: a tensor \[2, 3\] of float32"),
    ({"a": SCALAR.long()}, True, r"a: a tensor \[\] of int64"),
    ({"a": SCALAR.detach()}, True, "expected losses that depend on the network's trainable parameters"),
    ({"a": SCALAR}, False, "expected {}, as its `trains` is False"),
])
def test_losses_that_cannot_be_minimised_are_refused(returned, trains, said):
    with pytest.raises(TrainingError, match=f"^method: mine.py:M: losses returned .*{said.removeprefix('returned ')}"):
        require_losses("mine.py:M", trains, returned)


def test_losses_that_can_be_minimised_pass():
    for returned in ({}, {"a": SCALAR}, {"a": SCALAR.double(), "constant": torch.tensor(1.0)}):
        require_losses("m", True, returned)
    require_losses("m", False, {})


@pytest.mark.parametrize("fp16", [False, True])
def test_what_is_not_finite_is_named(fp16):
    """With fp16 an overflow of gradients is no error: the scaler skips that step. A collapsed scale is, and so is a
    loss or a running statistic, which no other scale would help."""
    def found(factor, scale=2.0**16, statistic=0.0):
        network = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 1)).eval()
        network[0].running_var[1] = statistic
        network.register_buffer("mask", torch.tensor(float("-inf")))  # as some networks have for attention
        scaler = torch.amp.GradScaler("cpu", init_scale=scale, enabled=fp16)
        total = factor(network[1](torch.ones(1, 2)).sum())
        scaler.scale(total).backward()
        return not_finite("m", network, total, scaler).tolist()

    def bad_gradient(x):
        return (0 * x).sqrt()

    def bad_loss(x):
        return x * float("inf")
    gradient = [False, not fp16]
    assert found(lambda x: x) == [False, False]
    assert found(bad_gradient) == gradient
    assert found(bad_loss)[0] and found(lambda x: x + float("nan"))[0]
    if fp16:
        assert found(bad_gradient, 2.0**-11) == [False, True]
        assert [found(lambda x: x, statistic=value)[0] for value in (float("inf"), float("nan"), 1.0)] == [1, 1, 0]


class LateFlag:
    """Stands for flags on a GPU: what `host_copy` is asked for, and when they were read."""

    device = torch.device("cuda")

    def __init__(self, *flags):
        self.flags, self.read = list(flags), False

    def tolist(self):
        self.read = True
        return self.flags


@pytest.mark.parametrize("flags, which", [((True, True), "loss"), ((True, False), "loss"), ((False, True), "gradient")])
def test_a_gpu_is_read_a_step_later_and_before_what_relies_on_the_step(flags, which, monkeypatch):
    monkeypatch.setattr(checks, "host_copy", lambda flag: lambda: flag)
    for by in ("next step", "settle"):
        check, steps = FiniteCheck(), [LateFlag(False, False), LateFlag(*flags), LateFlag(False, False)]
        check.add(steps[0], lambda which: AssertionError("is fine"))
        assert not steps[0].read
        check.add(steps[1], lambda which: TrainingError(f"step 1: {which}"))
        assert steps[0].read and not steps[1].read
        with pytest.raises(TrainingError, match=f"^step 1: {which}$"):
            check.settle() if by == "settle" else check.add(steps[2], lambda which: AssertionError("is fine"))
        check.settle()  # said once


def test_the_cpu_is_read_at_once():
    with pytest.raises(TrainingError, match="^gradient$"):
        FiniteCheck().add(torch.tensor([False, True]), TrainingError)


def minimise(optimisation, losses):
    optimisation.begin()
    optimisation.add(losses)
    return optimisation.move(losses)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("amp", ["off", "fp16"])
def test_nothing_moves_where_a_loss_or_gradient_is_not_finite(tmp_path, fused, amp):
    """Also in the very first step, after which the momentum must not be what memory held."""
    (tmp_path / "c.yml").write_text(f"method: ld\namp: {amp}\nbatch_size: 1")
    cfg = load_config(tmp_path / "c.yml")
    network = nn.Linear(3, 2).double()
    network.parameter_groups = lambda *_: [{"name": "head", "lr_mult": 1.0, "params": list(network.parameters())}]
    made = Optimisation(cfg, network, torch.device("cpu"), fused)
    before = [p.detach().clone() for p in network.parameters()]

    def step(factor):
        made.schedule(0.1, 0)
        return minimise(made, {"a": network(torch.ones(1, 3, dtype=torch.float64)).sum() * factor}).tolist()
    for factor in (float("nan"), float("inf")):
        assert step(factor)[0]
        assert all(p.equal(q) for p, q in zip(network.parameters(), before))
    step(1.0)
    again = torch.optim.SGD([p.clone().requires_grad_() for p in before], 0.1, cfg.momentum,
                            weight_decay=cfg.weight_decay)
    for p in again.param_groups[0]["params"]:
        p.grad = torch.ones_like(p)
    again.step()
    for p, q in zip(network.parameters(), again.param_groups[0]["params"]):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=0)


@pytest.mark.parametrize("fused", [False, True])
def test_nothing_moves_where_fp16_has_spoilt_a_statistic_but_no_gradient(tmp_path, fused):
    """The loss scaler looks at gradients alone."""
    (tmp_path / "c.yml").write_text("method: ld\namp: fp16\nbatch_size: 1")
    network = nn.Linear(3, 2)
    network.register_buffer("running_mean", torch.zeros(2))
    network.parameter_groups = lambda *_: [{"name": "head", "lr_mult": 1.0, "params": list(network.parameters())}]
    made = Optimisation(load_config(tmp_path / "c.yml"), network, torch.device("cpu"), fused)
    made.schedule(0.1, 0)
    for spoilt in (True, False):
        network.running_mean.fill_(torch.inf if spoilt else 1.0)
        before = [p.detach().clone() for p in network.parameters()]
        assert minimise(made, {"a": network(torch.ones(1, 3)).sum()}).tolist() == [spoilt, False]
        assert all(p.equal(q) == spoilt for p, q in zip(network.parameters(), before))


def test_a_state_of_another_device_is_taken_over(tmp_path):
    """The saved options of the kernel are not; and parameters that have had no gradient yet get one later."""
    (tmp_path / "c.yml").write_text("method: ld\nbatch_size: 1")
    cfg, made = load_config(tmp_path / "c.yml"), []
    for fused in (False, True, False):
        torch.manual_seed(0)
        network = nn.ModuleList([nn.Linear(3, 2), nn.Linear(3, 2)])
        network.parameter_groups = lambda *_, n=network: [{"name": "h", "lr_mult": 1.0, "params": list(n.parameters())}]
        made.append(Optimisation(cfg, network, torch.device("cpu"), fused))
        if len(made) > 1:
            made[-1].network.load_state_dict(made[-2].network.state_dict())
            made[-1].optimizer.load_state_dict(made[-2].optimizer.state_dict())
        made[-1].schedule(0.1, 0)
        used = list(network)[:len(made)]
        minimise(made[-1], {"a": sum(part(torch.ones(1, 3)).sum() for part in used)})
        (group,) = made[-1].optimizer.param_groups
        assert (group["fused"], group["foreach"]) == (fused, not fused)
        # With fp16, GradScaler leaves it to such an optimiser to skip a step; for others it waits for the GPU.
        assert getattr(made[-1].optimizer, "_step_supports_amp_scaling", False) == fused
        assert all(p.isfinite().all() for p in network.parameters())


def test_losses_that_miss_the_network_are_refused():
    total = SCALAR * 2
    total.backward()
    with pytest.raises(TrainingError, match="^method: m: its losses reach none of the network's trainable parameters"):
        not_finite("m", nn.Linear(2, 1), total, torch.amp.GradScaler("cpu", enabled=False))

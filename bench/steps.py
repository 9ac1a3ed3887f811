"""Rows of whole training steps: beside the obvious version, and the configuration's keys beside their defaults."""
import contextlib
import copy
from pathlib import Path

import numpy as np
import torch

from bench import baseline
from bench.harness import Check, Row, Spread, Target, elsewhere, interleave, peak_memory
from bench.inputs import FULL, NUM_CLASSES, QUICK, Inputs
from bench.training import relative_difference
from model.deeplabv2 import Head, parameter_groups
from model.ema import ema_decay
from trainer import losses
from trainer.base_trainer import Position

CHECK_RATE, RATE = 1e-2, 1e-6  # learning rates: of the step whose update is compared, and of those that are timed
STEPS = {"ld": 1, "be": 2}     # method -> batch size
VARIANTS = ("obvious", "ours", "checkpointing")
KEYS = ({"channels_last": False}, {"compile": True}, {"amp": "bf16"}, {"checkpointing": True})


class PlainStep:
    """The obvious version's training step on one fixed batch; returns its losses."""

    def __init__(self, inputs: Inputs, method: str, batch: dict, device: str = "cpu"):
        self.cfg, self.method = inputs.config(method=method, batch_size=len(batch["label"])), method
        self.images, self.label = (t.to(device) for t in inputs.plain_batch(batch))
        self.model = inputs.plain_network(device)
        self.teacher = copy.deepcopy(self.model)
        self.updates = 0
        groups = parameter_groups(self.model, self.cfg.backbone_lr_mult, self.cfg.head_lr_mult)
        self.optimizer = baseline.sgd(groups, RATE, self.cfg.momentum, self.cfg.weight_decay)

    def __call__(self, rate: float = RATE):
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["lr_mult"]
        rng = first_step_rng(self.cfg)
        if self.method == "ld":
            rank = losses.negative_rank(NUM_CLASSES, self.cfg.neg_rank_width, rng)
            return baseline.ld_step(self.model, self.optimizer, self.images, self.label, rank)
        generator = torch.Generator().manual_seed(int(rng.integers(2**63)))
        self.updates += 1
        return baseline.be_step(self.model, self.teacher, self.optimizer, self.images, self.label, generator,
                                self.cfg.conf_thresh, ema_decay(self.updates - 1, self.cfg.ema_alpha))


class OurStep:
    """The project's training step on one fixed batch, through the loop that trains."""

    def __init__(self, inputs: Inputs, method: str, batch: dict, **keys):
        self.batch = batch
        self.trainer = inputs.trainer(method=method, batch_size=len(batch["label"]), **keys)

    def __call__(self, rate: float = RATE, steps: int = 1):
        self.trainer.position = Position(0)  # the same random numbers every time
        self.trainer.run_steps([self.batch] * steps, rate, lambda lr, step: lr)

    def losses(self):
        """The losses that the next call will minimise."""
        self.trainer.model.train()
        with torch.no_grad():
            return self.trainer.step(self.batch, first_step_rng(self.trainer.cfg))


def first_step_rng(cfg) -> np.random.Generator:
    """The generator that the trainer gives to step 0 of round 0."""
    return np.random.default_rng([cfg.seed, 0, 0])


def build_step(inputs: Inputs, method: str, variant: str, batch: dict):
    if variant == "obvious":
        return PlainStep(inputs, method, batch)
    return OurStep(inputs, method, batch, checkpointing=variant == "checkpointing")


def step_rows(inputs: Inputs, repeats: int) -> list[Row]:
    """Seconds and peak memory of one LD and one BE step. Each variant, and each check, has a process of its own: they
    differ in what they ask of the allocator, and together they would keep more memory than a machine has."""
    rows, here = [], (str(inputs.root), inputs.size is QUICK)
    for method, count in STEPS.items():
        checks = {}
        for variant in ("ours", "checkpointing"):
            with elsewhere("bench.steps:checked_step", *here, method, variant) as check:
                checks[variant] = [Check(*found) for found in check()["result"]]
        with contextlib.ExitStack() as processes:
            seconds = interleave({v: processes.enter_context(elsewhere("bench.steps:timed_step", *here, method, v))
                                  for v in VARIANTS}, repeats)
        memory = {v: Spread.of([peak_memory("bench.steps:prepare_step", *here, method, v)]) for v in seconds}
        name = f"{method.upper()} step, batch {count}, crop {inputs.size.crop}"
        for variant, speed, share in (("ours", 1.2, 1.0), ("checkpointing", 0.7, 0.45)):
            title = name + (", activation checkpointing" if variant == "checkpointing" else "")
            rows.append(Row(title, _pair(seconds, variant), "s", [Target("obvious", "ours", ">=", speed)],
                            checks[variant]))
            rows.append(Row(f"{title}, peak memory", _pair(memory, variant), "MiB",
                            [Target("ours", "obvious", "<=", share)]))
    return rows


def all_labelled(batch: dict) -> dict:
    """The batch for checks: no pixel is labelled by the teacher, whose nearest classes float32's rounding may swap."""
    return {**batch, "label": batch["label"] % NUM_CLASSES}


def _pair(values, variant):
    return {"obvious": values["obvious"], "ours": values[variant]}


def step_checks(ours: OurStep, plain: PlainStep) -> list[Check]:
    """Losses of the first step on the batch of both, and the weights' update by it. The bounds are those of float32
    through a hundred layers whose convolutions add in another order, not the losses' own (see the row `losses`)."""
    mine, theirs = list(ours.trainer.model.parameters()), list(plain.model.parameters())
    start = [p.detach().clone() for p in theirs]
    difference = relative_difference(plain(CHECK_RATE), ours.losses())
    ours(CHECK_RATE)
    moved = torch.cat([(p.detach() - s).flatten() for p, s in zip(theirs, start)])
    apart = torch.cat([(p.detach() - q.detach()).flatten() for p, q in zip(mine, theirs)])
    return [Check("losses, relative difference", difference, 1e-4),
            Check("weights, difference over update (norms)", (apart.norm() / moved.norm()).item(), 0.05)]


def timed_step(root: str, quick: bool, method: str, variant: str):
    """The work of one process whose steps are timed."""
    inputs = Inputs(Path(root), QUICK if quick else FULL)
    step = build_step(inputs, method, variant, inputs.batch(STEPS[method]))

    def work():
        step()
    return work


def checked_step(root: str, quick: bool, method: str, variant: str):
    """The work of one process that compares a step with the obvious one; returns the checks' fields."""
    inputs = Inputs(Path(root), QUICK if quick else FULL)
    labelled = all_labelled(inputs.batch(STEPS[method]))
    ours, plain = (build_step(inputs, method, v, labelled) for v in (variant, "obvious"))
    return lambda: [(c.name, c.value, c.limit) for c in step_checks(ours, plain)]


def prepare_step(root: str, quick: bool, method: str, variant: str):
    """The work of one process of the memory rows: building everything and two steps, the second with momentum. Pages of
    the libraries that are first touched there count as well: about 150 MiB, the same in all variants."""
    inputs = Inputs(Path(root), QUICK if quick else FULL)
    batch = inputs.batch(STEPS[method])

    def work():
        step = build_step(inputs, method, variant, batch)
        step()
        step()
    return work


def head_rows(inputs: Inputs, repeats: int) -> list[Row]:
    """The network's head on the features of one crop, forward and backward."""
    torch.manual_seed(0)
    channels, side = inputs.size.width * 32, -(-inputs.size.crop // 8)
    plain, ours = baseline.PlainHead(channels, NUM_CLASSES), Head(channels, NUM_CLASSES)
    ours.load_state_dict(plain.state_dict())
    ours.to(memory_format=torch.channels_last)
    x = torch.randn(1, channels, side, side)

    def with_gradients(head, x):
        x = x.detach().requires_grad_()
        scores = head(x)
        return scores, torch.autograd.grad(scores.square().mean(), [x, *head.parameters()])

    (a, a_grads), (b, b_grads) = with_gradients(plain, x), with_gradients(ours, x)
    checks = [Check(name, max(((p - q).abs().max() / p.abs().max()).item() for p, q in pairs), 1e-5)
              for name, pairs in (("scores, largest difference over largest value", [(a, b)]),
                                  ("gradients, largest difference over largest value", zip(a_grads, b_grads)))]
    last = x.to(memory_format=torch.channels_last)
    values = interleave({"obvious": lambda: with_gradients(plain, x), "ours": lambda: with_gradients(ours, last)},
                        repeats)
    return [Row(f"head of the network, batch 1, {channels} x {side} x {side}, forward and backward", values,
                targets=[Target("obvious", "ours", ">=", 1)], checks=checks)]


def key_rows(inputs: Inputs, repeats: int) -> list[Row]:
    """An LD step with one key after the other set otherwise, beside the same step with all defaults, on every device
    that is here."""
    lines = ["| LD step with | time beside the defaults' | spread of the ratio |", "| --- | --- | --- |"]
    for device, count in {"cpu": 1, **({"cuda": 3} if torch.cuda.is_available() else {})}.items():
        batch = inputs.batch(count)
        for keys in KEYS:
            pair = {"defaults": OurStep(inputs, "ld", batch, device=device),
                    "changed": OurStep(inputs, "ld", batch, device=device, **keys)}
            wait = torch.cuda.synchronize if device == "cuda" else lambda: None
            seconds = interleave(pair, repeats, synchronize=wait)
            changed, defaults = seconds["changed"], seconds["defaults"]
            (key, value), = keys.items()
            lines.append(f"| {key}: {value}, {device}, batch {count} | {changed.median / defaults.median:.2f} | "
                         f"{changed.low / defaults.high:.2f}..{changed.high / defaults.low:.2f} |")
    return [Row("keys: see the table of its own", extra=lines)]

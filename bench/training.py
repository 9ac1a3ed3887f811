"""Rows of training: losses, samples, steps, the start of a run."""
import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from bench import baseline
from bench.harness import Check, Row, Spread, Target, interleave, peak_memory, process_seconds
from bench.inputs import FULL, NUM_CLASSES, QUICK, Inputs
from dataset import files, segmentation, views
from dataset.labels import CITYSCAPES_IDS
from dataset.transforms import network_input
from model.deeplabv2 import parameter_groups
from model.ema import ema_decay
from trainer import losses
from trainer.base_trainer import Position

EPOCHS = 4                     # crops of each image in one call of the sample row
CHECK_RATE, RATE = 1e-2, 1e-6  # learning rates: of the step whose update is compared, and of those that are timed
STEPS = {"ld": 1, "be": 2}     # method -> batch size


def loss_rows(inputs: Inputs, repeats: int) -> list[Row]:
    """The three LD terms of given logits and their gradient; the floor is one log-softmax with its gradient."""
    batch, side = 3, inputs.size.crop
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(batch, NUM_CLASSES, side, side, generator=generator)
    label = torch.randint(0, 3 * NUM_CLASSES, (batch, side, side), generator=generator)
    label = label.masked_fill(label >= NUM_CLASSES, baseline.IGNORE)
    rank, upstream = NUM_CLASSES // 2, torch.randn(logits.shape, generator=generator)

    def with_gradient(function):
        z = logits.detach().requires_grad_()
        terms = function(z, label, rank)
        sum(terms.values()).backward()
        return terms, z.grad

    def floor():
        logits.detach().requires_grad_().log_softmax(1).backward(upstream)

    checks = loss_checks(with_gradient(baseline.ld_losses), with_gradient(losses.ld_losses))
    values = interleave({"obvious": lambda: with_gradient(baseline.ld_losses),
                         "ours": lambda: with_gradient(losses.ld_losses), "floor": floor}, repeats)
    return [Row(f"losses of an LD step, batch {batch}, {side}x{side}, forward and backward", values,
                targets=[Target("obvious", "ours", ">=", 2)], checks=checks)]


def loss_checks(obvious, ours) -> list[Check]:
    """obvious, ours: (named losses, gradient)."""
    gradient = (obvious[1] - ours[1]).abs().max() / obvious[1].abs().max()
    return [Check("losses, relative difference", relative_difference(obvious[0], ours[0]), 1e-6),
            Check("gradient, largest difference over largest value", gradient.item(), 1e-5)]


def relative_difference(a: dict, b: dict) -> float:
    """The largest over named losses."""
    if set(a) != set(b):
        return float("inf")
    return max(abs(a[k].item() - b[k].item()) / max(abs(a[k].item()), 1e-12) for k in a)


def sample_rows(inputs: Inputs, repeats: int) -> list[Row]:
    """Random crops of one data set after the other, read in this process. The floor decodes image and label."""
    return [_sample_row(inputs, dataset, repeats) for dataset in ("gta5", "cityscapes")]


def _sample_row(inputs, dataset, repeats):
    cfg, samples = inputs.config(), inputs.samples("train", dataset)
    table = segmentation.label_table(cfg.section(dataset), NUM_CLASSES)
    keys = [(0, epoch, index) for epoch in range(EPOCHS) for index in range(len(samples))]

    def obvious(scales=cfg.scales):
        return [baseline.training_sample(samples[key[2]].image, samples[key[2]].label, CITYSCAPES_IDS,
                                         np.random.default_rng([cfg.seed, *key]), cfg.input_tgt, cfg.crop_tgt, scales)
                for key in keys]

    def ours(scales=cfg.scales):
        crops = views.TrainingCrops(samples, table, cfg.input_tgt, cfg.crop_tgt, scales, cfg.mirror, cfg.seed)
        return [crops[key] for key in keys]  # 8-bit: the whole batch becomes floating-point at once, on the device

    def decode():
        for _, _, index in keys:
            files.read_image(samples[index].image)
            files.read_label_ids(samples[index].label)

    # Where the crop does not fit, ours resamples once what the obvious version resamples twice: not to be compared.
    fitting = tuple(s for s in cfg.scales if s * cfg.input_tgt >= cfg.crop_tgt)
    checks = sample_checks(obvious(fitting), [(network_input(item["image"].unsqueeze(0))[0], item["label"].long())
                                              for item in ours(fitting)])
    values = interleave({"obvious": obvious, "ours": ours, "floor": decode}, repeats, per=len(keys))
    width, height = getattr(inputs.size, dataset)
    size = sum(s.image.stat().st_size for s in samples) / len(samples) / 1e6
    return Row(f"one training sample, {dataset} ({width}x{height}, {size:.1f} MB)", values, checks=checks,
               targets=[Target("obvious", "ours", ">=", 1.6), Target("ours", "floor", "<=", 1.25)])


def sample_checks(obvious, ours) -> list[Check]:
    """obvious, ours: lists of (network input, label). A pixel whose source lies half-way between two may take either:
    labels agree where ours is one of the obvious version's within a pixel."""
    image = max((a - b).abs().mean().item() for (a, _), (b, _) in zip(obvious, ours))
    label = max((~_near(a, b)).double().mean().item() for (_, a), (_, b) in zip(obvious, ours))
    return [Check("image, mean difference in grey levels", image, 0.1),
            Check("label, share of pixels with another label than any within a pixel", label, 0)]


def _near(label, other):
    """bool [H, W]: where `other` equals one of the 3 x 3 values of `label` around the pixel."""
    padded = torch.nn.functional.pad(label[None].float(), (1, 1, 1, 1), mode="replicate")[0]
    height, width = label.shape
    return torch.stack([padded[y: y + height, x: x + width] == other for y in range(3) for x in range(3)]).any(0)


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
    """Seconds and peak memory of one LD and one BE step."""
    rows = []
    for method, count in STEPS.items():
        batch = inputs.batch(count)
        work = {v: build_step(inputs, method, v, batch) for v in ("obvious", "ours", "checkpointing")}
        # Where no pixel is labelled by the teacher, whose nearest classes float32's rounding may swap.
        labelled = {**batch, "label": batch["label"] % NUM_CLASSES}
        checks = {v: step_checks(work[v], PlainStep(inputs, method, labelled), labelled)
                  for v in ("ours", "checkpointing")}
        seconds = interleave(work, repeats)
        del work
        memory = {v: Spread.of([peak_memory("bench.training:prepare_step", str(inputs.root), inputs.size is QUICK,
                                            method, v)]) for v in seconds}
        name = f"{method.upper()} step, batch {count}, crop {inputs.size.crop}"
        for variant, speed, share in (("ours", 1.2, 1.0), ("checkpointing", 0.7, 0.45)):
            title = name + (", activation checkpointing" if variant == "checkpointing" else "")
            rows.append(Row(title, _pair(seconds, variant), "s", [Target("obvious", "ours", ">=", speed)],
                            checks[variant]))
            rows.append(Row(f"{title}, peak memory", _pair(memory, variant), "MiB",
                            [Target("ours", "obvious", "<=", share)]))
    return rows


def _pair(values, variant):
    return {"obvious": values["obvious"], "ours": values[variant]}


def step_checks(ours: OurStep, plain: PlainStep, batch: dict) -> list[Check]:
    """Losses of the first step on `batch`, which is `plain`'s, and the weights' update by it. The bounds are those of
    float32 through a hundred layers whose convolutions add in another order, not the losses' own (see the row
    `losses`)."""
    timed, ours.batch = ours.batch, batch
    mine, theirs = list(ours.trainer.model.parameters()), list(plain.model.parameters())
    start = [p.detach().clone() for p in theirs]
    difference = relative_difference(plain(CHECK_RATE), ours.losses())
    ours(CHECK_RATE)
    ours.batch = timed
    moved = torch.cat([(p.detach() - s).flatten() for p, s in zip(theirs, start)])
    apart = torch.cat([(p.detach() - q.detach()).flatten() for p, q in zip(mine, theirs)])
    return [Check("losses, relative difference", difference, 1e-4),
            Check("weights, difference over update (norms)", (apart.norm() / moved.norm()).item(), 0.05)]


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


def start_rows(inputs: Inputs, repeats: int) -> list[Row]:
    """run.py until its first step begins, pseudo labels of three small images before it included."""
    size = replace(inputs.size, cityscapes=(128, 64), gta5=(64, 64), input_size=(128, 64), images=3)
    small = Inputs(inputs.root / "start", size)
    small.root.mkdir()
    command = small.yaml(note="start", worker=2, overwrite=True)
    build = f"import torch, torchvision; from model.deeplabv2 import DeepLabV2; DeepLabV2({NUM_CLASSES}, " \
            f"{tuple(inputs.size.layers)}, {inputs.size.width})"
    values = interleave({"ours": process_seconds("-m", "bench.start", "--config", str(command)),
                         "floor": process_seconds("-c", build)}, repeats)
    return [Row("start of run.py to its first step (floor: imports and the network)", values,
                targets=[Target("ours", "floor", "<=", 1.3)])]

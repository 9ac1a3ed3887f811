"""Rows of a CUDA GPU, on data already decoded."""
import warnings
from contextlib import contextmanager
from dataclasses import replace
from unittest.mock import patch

import torch
from torch.utils.flop_counter import FlopCounterMode

from bench import baseline
from bench.harness import Check, Row, Target, interleave
from bench.inputs import NUM_CLASSES, Inputs
from bench.labelling import DIFFERING, PlainRound, SameInputs, label_checks, reported_thresholds, threshold_check
from bench.steps import OurStep, PlainStep, all_labelled, step_checks
from dataset import loaders
from trainer import evaluate
from utils.schedule import round_portion

DEVICE = "cuda"
STEPS, BATCH = 5, 3        # steps in one call; crops in a batch
IMAGES = 16                # in one call of a round or validation: enough to hide what a round does once
AMP = "bf16"
MATRIX = 8192              # side of the matrices whose product gives the card's rate


def step_rows(inputs: Inputs, repeats: int) -> list[Row]:
    """LD and BE step. Obvious: true float32; in the spread also with TF32 convolutions, which PyTorch allows by
    default."""
    if not torch.cuda.is_available():
        return [Row(f"GPU: {m} step, no GPU here") for m in ("LD", "BE")]
    rate = matmul_rate()
    return [_step_row(inputs, method, repeats, rate) for method in ("ld", "be")]


def _step_row(inputs, method, repeats, rate):
    batch = decoded([inputs.batch(BATCH)])[0]
    labelled = all_labelled(batch)
    fp32 = OurStep(inputs, method, labelled, device=DEVICE, amp="off")
    with plain_cudnn(tf32=False):
        checks = step_checks(fp32, PlainStep(inputs, method, labelled, DEVICE))
    del fp32
    plain, ours = PlainStep(inputs, method, batch, DEVICE), OurStep(inputs, method, batch, device=DEVICE, amp=AMP)

    def obvious():
        with plain_cudnn(tf32=False):
            for _ in range(STEPS):
                plain()

    def with_tf32():
        with plain_cudnn(tf32=True):
            for _ in range(STEPS):
                plain()

    with FlopCounterMode(display=False) as counter:
        plain()
    values = interleave({"obvious": obvious, "obvious, TF32": with_tf32, "ours": lambda: ours(steps=STEPS)}, repeats,
                        per=STEPS, synchronize=torch.cuda.synchronize)
    achieved = counter.get_total_flops() / values["ours"].median
    note = (f"GPU, {method.upper()} step: {achieved / 1e12:.1f} TFLOP/s, {achieved / rate:.0%} of the "
            f"{rate / 1e12:.0f} TFLOP/s of a bf16 product of {MATRIX}x{MATRIX} matrices (target: 40%).")
    return Row(f"GPU: {method.upper()} step, batch {BATCH}, crop {inputs.size.crop} (ours: {AMP})", values,
               targets=[Target("obvious", "ours", ">=", 3), Target("obvious, TF32", "ours", ">=", 1)], checks=checks,
               extra=[note])


@contextmanager
def plain_cudnn(tf32: bool):
    """cuDNN as it is set before anybody tunes it, whatever the project has set; tf32=False: true float32."""
    before = torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32 = False, tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def matmul_rate() -> float:
    """FLOP/s of a large bf16 matrix product, by CUDA events; the best of ten."""
    a, b = (torch.randn(MATRIX, MATRIX, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    milliseconds = []
    for _ in range(13):
        start.record()
        a @ b
        end.record()
        torch.cuda.synchronize()
        milliseconds.append(start.elapsed_time(end))
    return 2 * MATRIX**3 / (min(milliseconds[3:]) / 1000)  # the first ones choose and load kernels


def round_rows(inputs: Inputs, repeats: int) -> list[Row]:
    """A round and a validation over decoded images: the project's loader and the obvious version's reader are replaced
    by lists; pseudo labels are written."""
    if not torch.cuda.is_available():
        return [Row(f"GPU: {work}, no GPU here") for work in ("pseudo-label round", "validation")]
    root = inputs.root / "gpu"
    root.mkdir()
    alike = Inputs(root, replace(inputs.size, images=1))
    alike.multiply(IMAGES)
    return [_round_row(alike, repeats), _validation_row(alike, repeats)]


def _round_row(inputs, repeats):
    trainer = inputs.trainer(device=DEVICE, amp=AMP)
    items = decoded(loaders.whole_image_loader(trainer.cfg, "cityscapes", inputs.samples("train"), False))
    portion = round_portion(trainer.cfg.cb_prop, trainer.cfg.portion_step, 0)
    obvious = PlainRound(OnGpu(inputs), inputs.plain_network(DEVICE), portion)

    def ours(owner=trainer):
        with patch.object(loaders, "whole_image_loader", lambda *_, **__: items):
            return owner.label_target(0)

    def plainly():
        with plain_cudnn(tf32=False):
            obvious()

    fp32 = inputs.trainer(device=DEVICE, amp="off")
    plainly()
    with plain_cudnn(tf32=False):  # agreement is one of float32; bf16 networks are faster, not equal
        files = [sample.label for sample in ours(fp32)]
        checks = [threshold_check(obvious.deltas, reported_thresholds(fp32)), *label_checks(obvious, files)]
    ours()
    checks.append(Check("times that a round waits for the GPU, per image", waits(ours) / len(items), 0.99))
    values = interleave({"obvious": plainly, "ours": ours}, repeats, len(items), torch.cuda.synchronize)
    return Row(f"GPU: pseudo-label round, per image (ours: {AMP})", values,
               targets=[Target("obvious", "ours", ">=", 6)], checks=checks)


def _validation_row(inputs, repeats):
    device, plain = torch.device(DEVICE), inputs.plain_network(DEVICE)
    items = decoded(inputs.validation_loader()) * IMAGES
    same = SameInputs(inputs.root, inputs.size)
    pairs = [(x.to(DEVICE), truth.to(DEVICE)) for x, truth in same.plain_pairs()] * IMAGES
    fp32, ours = inputs.trainer(device=DEVICE, amp="off").model, inputs.trainer(device=DEVICE, amp=AMP).model

    def obvious():
        with plain_cudnn(tf32=False):
            return baseline.validation(plain, pairs, NUM_CLASSES)

    def evaluated(model=ours):
        return evaluate.evaluate(model, items, NUM_CLASSES, device)

    with plain_cudnn(tf32=False):
        confusion = evaluated(fp32)
    moved = (obvious() - confusion).abs().sum().item() / 2 / confusion.sum().item()
    evaluated()
    checks = [Check("pixels counted elsewhere, share", moved, DIFFERING),
              Check("times that a validation waits for the GPU, per image", waits(evaluated) / len(items), 0.99)]
    values = interleave({"obvious": obvious, "ours": evaluated}, repeats, len(items), torch.cuda.synchronize)
    return Row("GPU: validation, per image", values, targets=[Target("obvious", "ours", ">=", 6)], checks=checks)


class OnGpu(SameInputs):
    """The obvious version's inputs, decoded once and kept on the GPU."""

    def __init__(self, inputs: Inputs):
        super().__init__(inputs.root, inputs.size)
        self._kept = [(x.to(DEVICE), size) for x, size in super().plain_inputs()]

    def plain_inputs(self, split: str = "train"):
        return iter(self._kept)


def decoded(loader) -> list[dict]:
    """The loader's items, in pinned memory."""
    return [{k: v.pin_memory() if isinstance(v, torch.Tensor) else v for k, v in item.items()} for item in loader]


def waits(work) -> int:
    """Calls during `work` that make the CPU wait for the GPU, as PyTorch's own debug mode sees them. Waiting for an
    event, as a writer of finished labels does, is not among them."""
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            work()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing" in str(w.message) for w in caught)

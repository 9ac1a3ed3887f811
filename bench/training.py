"""Rows of training: losses, samples, the start of a run."""
from dataclasses import replace

import numpy as np
import torch

from bench import baseline
from bench.harness import Check, Row, Target, elsewhere, interleave, process_seconds
from bench.inputs import NUM_CLASSES, Inputs
from dataset import files, segmentation, views
from dataset.labels import CITYSCAPES_IDS
from dataset.transforms import network_input
from trainer import fused_losses

EPOCHS = 4  # crops of each image in one call of the sample row


def loss_rows(inputs: Inputs, repeats: int) -> list[Row]:
    """The three LD terms of given logits and their gradient; the floor is one log-softmax with its gradient."""
    logits, label = loss_input(inputs.size.crop)
    upstream = torch.randn(logits.shape, generator=torch.Generator().manual_seed(1))

    def ours():
        return with_gradient(fused_losses.ld_losses, logits, label)

    def floor():
        logits.detach().requires_grad_().log_softmax(1).backward(upstream)

    checks = loss_checks(with_gradient(baseline.ld_losses, logits, label), ours())
    with elsewhere("bench.training:plain_losses", inputs.size.crop) as obvious:
        values = interleave({"obvious": obvious, "ours": ours, "floor": floor}, repeats)
    side = inputs.size.crop
    return [Row(f"losses of an LD step, batch {len(logits)}, {side}x{side}, forward and backward", values,
                targets=[Target("obvious", "ours", ">=", 2)], checks=checks)]


def loss_input(side: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Random logits float [3, C, side, side] and labels, a third of the pixels labelled."""
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(3, NUM_CLASSES, side, side, generator=generator)
    label = torch.randint(0, 3 * NUM_CLASSES, (3, side, side), generator=generator)
    return logits, label.masked_fill(label >= NUM_CLASSES, baseline.IGNORE)


def with_gradient(function, logits, label):
    """(named losses, gradient of their sum)"""
    z = logits.detach().requires_grad_()
    terms = function(z, label, NUM_CLASSES // 2)
    sum(terms.values()).backward()
    return terms, z.grad


def plain_losses(side: int):
    """The obvious version of the row's work, for a process of its own."""
    logits, label = loss_input(side)

    def work():
        with_gradient(baseline.ld_losses, logits, label)
    return work


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

    def obvious():
        return [baseline.training_sample(samples[key[2]].image, samples[key[2]].label, CITYSCAPES_IDS,
                                         np.random.default_rng([cfg.seed, *key]), cfg.input_tgt, cfg.crop_tgt,
                                         cfg.scales) for key in keys]

    def ours():
        crops = views.TrainingCrops(samples, table, cfg.input_tgt, cfg.crop_tgt, cfg.scales, cfg.mirror, cfg.seed)
        return [crops[key] for key in keys]  # 8-bit: the whole batch becomes floating-point at once, on the device

    def decode():
        for _, _, index in keys:
            files.read_image(samples[index].image)
            files.read_label_ids(samples[index].label)

    checks = sample_checks(obvious(), [(network_input(item["image"].unsqueeze(0))[0], item["label"].long())
                                       for item in ours()])
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in a process that reads for a training
    values = interleave({"obvious": obvious, "ours": ours, "floor": decode}, repeats, per=len(keys))
    torch.set_num_threads(threads)
    width, height = getattr(inputs.size, dataset)
    size = sum(s.image.stat().st_size for s in samples) / len(samples) / 1e6
    return Row(f"one training sample, {dataset} ({width}x{height}, {size:.1f} MB)", values, checks=checks,
               targets=[Target("obvious", "ours", ">=", 1.6), Target("ours", "floor", "<=", 1.25)])


def sample_checks(obvious, ours) -> list[Check]:
    """obvious, ours: lists of (network input, label). A pixel whose source lies half-way between two may take either,
    and the smallest images are enlarged to the crop: labels agree where ours is one of the obvious version's within
    two pixels."""
    image = max((a - b).abs().mean().item() for (a, _), (b, _) in zip(obvious, ours))
    label = max((~_near(a, b)).double().mean().item() for (_, a), (_, b) in zip(obvious, ours))
    return [Check("image, mean difference in grey levels", image, 0.1),
            Check("label, share of pixels with another label than any within two pixels", label, 0)]


def _near(label, other):
    """bool [H, W]: where `other` equals one of the 5 x 5 values of `label` around the pixel."""
    padded = torch.nn.functional.pad(label[None].float(), (2, 2, 2, 2), mode="replicate")[0]
    height, width = label.shape
    return torch.stack([padded[y: y + height, x: x + width] == other for y in range(5) for x in range(5)]).any(0)


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

"""Rows of work on whole images: a round of pseudo-labelling, its memory, validation."""
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from bench import baseline
from bench.harness import Check, Row, Spread, Target, elsewhere, interleave, peak_memory
from bench.inputs import FULL, NUM_CLASSES, QUICK, Inputs
from dataset import loaders
from dataset.transforms import network_input
from model.deeplabv2 import DeepLabV2
from trainer import evaluate
from trainer.build import build_model
from utils.schedule import round_portion

RESOLUTION = 2**-7        # relative, of 1 - conf: what a threshold may be off by
FLOAT32 = 2**-23          # the obvious version knows 1 - conf of confident pixels only to this
DIFFERING = 1e-4          # share of pixels whose label may differ
FEW, SOME = 10, 40        # images of the memory row


def round_rows(inputs: Inputs, repeats: int) -> list[Row]:
    """Thresholds and pseudo labels of all training images, reading and writing files included. Compared are the results
    on the same network inputs; the obvious version's own, resized by Pillow, are timed."""
    trainer, here = inputs.trainer(), (str(inputs.root), inputs.size is QUICK)
    images = [x for x, _ in inputs.plain_inputs()]

    def forward():
        trainer.model.train()
        for x in images:
            with torch.no_grad():
                trainer.model(x)

    labelled, plain = trainer.label_target(0), plain_round(SameInputs(inputs.root, inputs.size))
    plain()
    checks = [threshold_check(plain.deltas, reported_thresholds(trainer)),
              *label_checks(plain, [sample.label for sample in labelled])]
    with elsewhere("bench.labelling:prepare_plain_round", *here) as obvious:
        values = interleave({"obvious": obvious, "ours": lambda: trainer.label_target(0), "floor": forward}, repeats,
                            per=len(images))
    targets = [Target("obvious", "ours", ">=", 2.3), Target("ours", "floor", "<=", 1.15)]
    return [Row("pseudo-label round, per image", values, targets=targets, checks=checks)]


class SameInputs(Inputs):
    """The obvious version's inputs, read as the project reads them."""

    def plain_inputs(self, split: str = "train"):
        for item in loaders.whole_image_loader(self.config(), "cityscapes", self.samples(split), False):
            yield network_input(item["image"]), item["size"]

    def plain_pairs(self):
        for item in self.validation_loader():
            yield network_input(item["image"]), item["label"]


def plain_round(inputs: Inputs) -> "PlainRound":
    """The obvious version of a round with the defaults' portion."""
    cfg = inputs.config()
    return PlainRound(inputs, inputs.plain_network(), round_portion(cfg.cb_prop, cfg.portion_step, 0))


def prepare_plain_round(root: str, quick: bool):
    """The obvious version of the row's work, for a process of its own."""
    return plain_round(Inputs(Path(root), QUICK if quick else FULL))


class PlainRound:
    """The obvious version's round, called as often as wanted: leaves label files, keeps and returns `deltas`."""

    def __init__(self, inputs: Inputs, model, portion: float):
        self.inputs, self.model, self.portion = inputs, model, portion
        self.folder = inputs.root / "plain_labels"
        self.names = [sample.name for sample in inputs.samples("train")]

    def __call__(self):
        self.deltas = baseline.thresholds(self.model, self.inputs.plain_inputs(), NUM_CLASSES, self.portion)
        baseline.pseudo_labels(self.model, self.inputs.plain_inputs(), self.names, self.deltas, self.portion,
                               self.folder)
        return self.deltas

    def label_files(self) -> list[Path]:
        return [self.folder / f"{name}.png" for name in self.names]


def reported_thresholds(trainer) -> list[float | None]:
    """delta_c of the newest round in the run's log."""
    lines = (Path(trainer.cfg.log) / trainer.cfg.note / f"{trainer.stage}.jsonl").read_text().splitlines()
    return list([e for e in map(json.loads, lines) if e["event"] == "pseudo_label"][-1]["threshold"].values())


def threshold_check(plain: list[float | None], ours: list[float | None]) -> Check:
    """Largest relative difference of 1 - delta_c, less what float32 cannot tell; infinite where one has none."""
    def difference(a, b):
        if a is None or b is None:
            return 0.0 if a is b else float("inf")
        return max(0.0, abs(a - b) - FLOAT32) / max(1 - a, FLOAT32)
    return Check("thresholds, relative difference of 1 - conf", max(map(difference, plain, ours)), RESOLUTION)


def label_checks(obvious: PlainRound, files: list[Path]) -> list[Check]:
    """Pixels labelled differently: their share, and how many of them no near tie explains."""
    pixels = differing = unexplained = 0
    for (x, size), mine, plain in zip(obvious.inputs.plain_inputs(), files, obvious.label_files()):
        differs = torch.from_numpy(np.asarray(Image.open(mine)) != np.asarray(Image.open(plain)))
        pixels, differing = pixels + differs.numel(), differing + int(differs.sum())
        if differs.any():
            obvious.model.train()
            with torch.no_grad():
                logits = baseline.upsampled(obvious.model, x, size)[0]
            unexplained += int((~near_tie(logits, differs, obvious.deltas, obvious.portion)).sum())
    return [Check(f"labels that differ, share of pixels ({differing} of {pixels})", differing / pixels, DIFFERING),
            Check("labels that differ without a confidence or margin within the resolution", unexplained, 0)]


def near_tie(logits: Tensor, where: Tensor, deltas: list[float | None], portion: float) -> Tensor:
    """bool, one for each pixel of the mask `where`: is its 1 - conf within RESOLUTION of a threshold's, or are its two
    largest logits? logits: float [C, H, W]."""
    conf = logits.softmax(0).max(0).values.flatten()
    own = conf.sort(descending=True).values[baseline.top_count(portion, conf.numel()) - 1].double()
    top, classes = logits[:, where].double().topk(2, dim=0)
    doubt = 1 - 1 / (logits[:, where].double() - top[0]).exp().sum(0)
    delta = torch.tensor([torch.nan if d is None else d for d in deltas], dtype=torch.float64, device=logits.device)
    def close(threshold):
        return (doubt - (1 - threshold)).abs() <= RESOLUTION * (1 - threshold) + FLOAT32
    return (top[0] - top[1] <= RESOLUTION) | close(delta[classes[0]]) | close(own)


class StubNetwork(DeepLabV2):
    """A network that costs nothing: a linear map of 8x8 averages in place of the score map."""

    def __init__(self, num_classes: int):
        super().__init__(num_classes, (1, 1, 1, 1), 1)
        self.mix = torch.nn.Conv2d(3, num_classes, 1)
        torch.nn.init.normal_(self.mix.weight, std=0.1)

    def score_map(self, x: Tensor) -> Tensor:
        return self.mix(F.avg_pool2d(x, 8))


def memory_rows(inputs: Inputs, repeats: int) -> list[Row]:
    """What the memory of a round with a stub network grows by from 10 images to many. The obvious version would not
    end in time: its growth from 10 to 40 images is scaled up. `repeats` has no effect."""
    quick, many = inputs.size is QUICK, inputs.size.many
    def peak(variant, count):
        return peak_memory("bench.labelling:prepare_round", str(inputs.root / "memory"), quick, variant, count)
    ours = peak("ours", many) - peak("ours", FEW)
    obvious = (peak("obvious", SOME) - peak("obvious", FEW)) * (many - FEW) / (SOME - FEW)
    values = {name: Spread.of([v]) for name, v in (("obvious", obvious), ("ours", ours), ("limit", 64.0))}
    return [Row(f"memory of a round, growth from {FEW} to {many} images (limit 64 MiB; obvious scaled up from {SOME})",
                values, "MiB", [Target("ours", "limit", "<=", 1)])]


def prepare_round(root: str, quick: bool, variant: str, count: int):
    """Work of one process of the memory row: a round over `count` images (hard links to a small one)."""
    size = replace(QUICK if quick else FULL, cityscapes=(256, 128), gta5=(64, 64), layers=(1, 1, 1, 1), width=1,
                   images=1)
    inputs = Inputs(Path(root) / f"{variant}{count}", size)
    inputs.root.mkdir(parents=True)
    inputs.multiply(count)
    if variant == "obvious":
        return PlainRound(inputs, StubNetwork(NUM_CLASSES), 0.1)
    trainer = inputs.trainer()
    trainer.model = StubNetwork(NUM_CLASSES)
    return lambda: len(trainer.label_target(0))


def validation_rows(inputs: Inputs, repeats: int) -> list[Row]:
    """The confusion matrix of the validation images, reading included."""
    cpu = torch.device("cpu")
    model, _ = build_model(inputs.config(), cpu)
    images, pixels = [x for x, _ in inputs.plain_inputs("val")], inputs.size.images * np.prod(inputs.size.cityscapes)

    def ours():
        return evaluate.evaluate(model, inputs.validation_loader(), NUM_CLASSES, cpu)

    def forward():
        model.eval()
        for x in images:
            with torch.no_grad():
                model(x)

    with elsewhere("bench.labelling:plain_validation", str(inputs.root), inputs.size is QUICK) as obvious:
        moved = (torch.tensor(obvious()["result"]) - ours()).abs().sum().item() / 2 / pixels
        values = interleave({"obvious": obvious, "ours": ours, "floor": forward}, repeats, per=len(images))
    return [Row("validation, per image", values, targets=[Target("ours", "floor", "<=", 1.08)],
                checks=[Check("pixels counted elsewhere, share", moved, DIFFERING)])]


def plain_validation(root: str, quick: bool):
    """The obvious version of the row's work, for a process of its own."""
    inputs = Inputs(Path(root), QUICK if quick else FULL)
    plain = inputs.plain_network()
    return lambda: baseline.validation(plain, inputs.plain_pairs(), NUM_CLASSES).tolist()

"""How cost grows: a round without its network, and the losses, at three sizes each."""
import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from bench.harness import Row, interleave
from bench.inputs import QUICK, Inputs
from bench.labelling import StubNetwork
from model.deeplabv2 import DeepLabV2
from model.weights import save_weights
from trainer import fused_losses

# Of the axis that grows while the others stay at their middle value.
IMAGES, CLASSES, SIDES = (4, 8, 16), (10, 20, 40), (256, 512, 1024)


def scaling_rows(inputs: Inputs, repeats: int) -> list[Row]:
    """One table: seconds per image, and these divided by what grows, relative to the first size: 1 throughout where the
    cost is linear in it, falling where a constant part weighs on the small sizes."""
    sides = [side // (8 if inputs.size is QUICK else 1) for side in SIDES]
    lines = ["| work | what grows | ms per image | relative cost per unit |", "| --- | --- | --- | --- |"]

    def line(work, cost, grows, settings, units):
        seconds = [cost(inputs, *setting, repeats) for setting in settings]
        relative = [s / u / (seconds[0] / units[0]) for s, u in zip(seconds, units)]
        lines.append(f"| {work} | {grows} | {', '.join(f'{1000 * s:.3g}' for s in seconds)} | "
                     f"{', '.join(f'{r:.2f}' for r in relative)} |")

    images, classes, side = IMAGES[1], CLASSES[1], sides[1]
    line("round without the network", _round_seconds, f"images: {IMAGES}", [(classes, n, side) for n in IMAGES],
         [1, 1, 1])
    for work, cost in (("round without the network", _round_seconds), ("LD losses", _loss_seconds)):
        line(work, cost, f"classes: {CLASSES}", [(c, images, side) for c in CLASSES], CLASSES)
        line(work, cost, f"pixels: {tuple(sides)} high", [(classes, images, s) for s in sides], [s * s for s in sides])
    return [Row("scaling: see the table of its own", extra=lines)]


def _round_seconds(inputs, classes, images, side, repeats) -> float:
    """Per image of 2 side x side pixels, labelled at that size from an input of half of it."""
    root = Path(tempfile.mkdtemp(dir=inputs.root))
    small = Inputs(root, replace(QUICK, cityscapes=(2 * side, side), input_size=(side, side // 2), images=1))
    small.multiply(images)
    save_weights(DeepLabV2(classes, small.size.layers, small.size.width), root / "start.pth")
    folder = {"type": "folder", "data_dir": str(small.streets / "cityscapes"), "images": "leftImg8bit/{split}",
              "classes": [f"class {c}" for c in range(classes)], "input_size": list(small.size.input_size)}
    trainer = small.trainer(num_classes=classes, source="own", target="own", own=folder, val=False)
    trainer.model = StubNetwork(classes)
    return interleave({"ours": lambda: trainer.label_target(0)}, repeats, per=images)["ours"].median


def _loss_seconds(inputs, classes, images, side, repeats) -> float:
    """Per crop of side x side pixels, forward and backward; the number of images has no part in it."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, classes, side, side, generator=generator)
    label = torch.randint(0, classes, (1, side, side), generator=generator)

    def work():
        z = logits.detach().requires_grad_()
        sum(fused_losses.ld_losses(z, label, classes // 2).values()).backward()
    return interleave({"ours": work}, repeats)["ours"].median

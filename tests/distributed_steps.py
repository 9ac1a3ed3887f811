"""Steps of methods in float64 on drawn batches, by one process or by several that torchrun has started, each of which
writes what it found.

    torchrun --nproc_per_node P tests/distributed_steps.py RESULTS TASK ...

A batch of step t has parts of SIZE images; process r takes those from number r * accumulate on. It is drawn from t
alone, so that any number of processes has the same parts.
"""
import functools
import sys
from pathlib import Path
from types import SimpleNamespace

from utils import distributed  # isort: skip  # before torch, as the scripts do

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from model.build import build_model, pick_device
from model.segmenter import Segmenter
from trainer.checks import FiniteCheck
from trainer.methods.base import Batch, Method, Setting
from trainer.optimisation import Optimisation
from trainer.parts import Parts
from trainer.run_state import Position
from utils.config import parse_config
from utils.errors import UserError

SIZE, CLASSES, SIDE, STEPS = 2, 13, 24, 3
CASES = {name: name.split() for name in (
    "source_only", "ld", "ld entropy_on=unselected entropy=shannon", "be conf_thresh=0.6 ema_alpha=0.5", "cbst",
    "crst_mrkld kld_weight=0.3", "entmin", "infomax freeze_head=False", "infomax", "maxsquare class_balance=0.2",
    "mean_teacher jitter_probability=0 blur_probability=0 conf_thresh=0.6", "pseudo", "pseudo_select")}
NETWORKS = {"plain": [f"model={__file__}:plain"], "odd": [f"model={__file__}:odd"], "rare": [f"model={__file__}:rare"],
            "deeplab": ["layers=[1,1,1,1]", "width=4"], "frozen": ["layers=[1,1,1,1]", "width=4"]}


def plain(classes=CLASSES):
    """A network without batch norm."""
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.GroupNorm(2, 8), nn.ReLU(), nn.Conv2d(8, classes, 1))


class Odd(nn.Module):
    """A network with a branch that nothing uses, a block that is dropped at random, constants and a count."""

    def __init__(self, classes=CLASSES, kept=0.5):
        super().__init__()
        self.kept = kept
        self.first = nn.Conv2d(3, 8, 3, 2, 1, bias=False)  # before a batch norm its gradient would be 0
        self.block, self.last = nn.Conv2d(8, 8, 3, 1, 1), nn.Conv2d(8, classes, 1)
        self.unused, self.norm = nn.Linear(3, 3), nn.BatchNorm2d(8)
        self.register_buffer("constants", torch.tensor([0.1, float("inf"), float("-inf")]))
        self.register_buffer("passes", torch.zeros((), dtype=torch.int64))

    def forward(self, x):
        self.passes += 1
        x = self.norm(self.first(x))
        return self.last(x + self.block(x).relu() if torch.rand(()) < self.kept else x)


def odd():
    return Odd()


def rare():
    """One whose block only some parts have, often none of the last parts of all processes."""
    return Odd(kept=0.2)


class Twice(Method):
    """A method whose losses take two forward passes, which share its parameters."""

    def losses(self, batch, rng):
        a, b = self.network(batch.images), self.network(batch.images.flip(3))
        return {"consistency": (a - b.flip(3)).square().mean() + a.square().mean()}


def global_batch(step, parts):
    """Pixels and labels of all parts. Their shares of labelled pixels differ widely; the first part has none."""
    rng = np.random.default_rng([7, step])
    pixels = rng.integers(256, size=(parts * SIZE, SIDE, SIDE, 3), dtype=np.uint8)
    pixels = np.repeat(np.repeat(pixels[:, ::6, ::6], 6, 1), 6, 2)
    labels = rng.integers(CLASSES, size=(parts * SIZE, SIDE, SIDE))
    share = np.repeat(np.arange(parts) / parts, SIZE) ** 2
    labels[rng.random(labels.shape) >= share[:, None, None]] = 255
    return torch.from_numpy(pixels), torch.from_numpy(labels)


def freeze_norms(network):
    """Give batch norms the statistics of a batch, and keep them in evaluation mode."""
    norms = [m for m in network.modules() if isinstance(m, _BatchNorm)]
    for norm in norms:
        norm.momentum = 1.0
    network.train()(network.prepare(global_batch(0, 1)[0]))
    for norm in norms:
        norm.eval()
        norm.train = functools.partial(lambda norm, mode=True: norm, norm)


class World:
    """A method with its network, in float64 unless amp is used, as a run builds it. total: parts that the batches have,
    if they are not those of `trainer.parts`."""

    def __init__(self, case, network, *words, total=None, device="cpu"):
        name, *own = CASES.get(case, case.split())
        words = ["amp=off", f"num_classes={CLASSES}", f"batch_size={SIZE}", "fixbn=False", *NETWORKS[network], *own,
                 *words]
        self.cfg = cfg = parse_config("", "-", words, method=name, device=device)
        self.device = pick_device(device)
        torch.manual_seed(0)
        self.network = made = build_model(cfg, self.device)[0]
        if cfg.amp == "off":
            made.double()
            made.prepare = lambda pixels: Segmenter.prepare(made, pixels).double()
        for p in made.parameters():  # logits that differ from pixel to pixel
            if p.dim() > 1:
                nn.init.kaiming_normal_(p)
        if network == "frozen":
            freeze_norms(made)
        self.position = Position(0)
        self.parts = Parts(cfg, made, self.position)
        self.total = total or self.parts.count
        self.log = SimpleNamespace(say_once=print)
        self.method = cfg.method_class(Setting(cfg, made, self.device, [], tuple("abcdefghijklm"),
                                               self.position, self.log, None, self.parts.mean))
        self.optimisation, self.finite = Optimisation(cfg, made, self.device), FiniteCheck()

    def batch(self, step):
        """This process's share of the batch."""
        pixels, labels = (tensor.to(self.device) for tensor in global_batch(step, self.total))
        count = len(pixels) // distributed.size()
        mine = slice(distributed.rank() * count, (distributed.rank() + 1) * count)
        names = [f"image{i}" for i in range(len(pixels))][mine]
        labels = None if self.cfg.method in ("entmin", "infomax", "maxsquare", "mean_teacher") else labels[mine]
        return Batch(self.network.prepare(pixels[mine]), labels, names, pixels[mine])

    def step(self, change=lambda batch: batch):
        """(losses, gradients) of a step; raises what a run would raise."""
        batch = change(self.batch(self.position.step))
        self.optimisation.schedule(0.01, self.position.step)
        losses = self.parts.gradients(self.method, self.optimisation, batch)
        gradients = {n: p.grad if p.grad is None else p.grad.clone() for n, p in self.network.named_parameters()}
        if losses:
            self.finite.add(self.optimisation.move(losses), lambda which: UserError(
                f"{which}: {self.parts.suspects(self.parts.found)}"))
        self.method.after_step(batch)
        self.position.step += 1
        return {name: loss.item() for name, loss in losses.items()}, gradients

    def state(self):
        """All that a saved state would hold."""
        parts = {"network": self.network, "optimisation": self.optimisation.optimizer,
                 "scaler": self.optimisation.scaler, **self.method.parts()}
        parts.pop("pseudo_labels", None)
        return {name: part.state_dict() for name, part in parts.items()}


def trained(case, network, *words, total=None, device="cpu"):
    """Losses and gradients of STEPS steps, and the state after them."""
    world = World(case, network, *words, total=total, device=device)
    if world.cfg.sync_bn:
        world.network.synchronise_norms()
    steps = [world.step() for _ in range(STEPS)]
    return {"losses": [losses for losses, _ in steps], "gradients": [found for _, found in steps],
            "state": world.state()}


def refused(case, change):
    """The message of the error that a step raises."""
    try:
        World(case, "plain").step(change)
    except UserError as error:
        return str(error)
    return "none"


def broken(rank):
    """A NaN in the second image of a process."""
    def change(batch):
        if distributed.rank() == rank:
            batch.images[1, 0, 0, 0] = float("nan")
        return batch
    return refused("entmin", change)


def without_losses(rank):
    """A method that returns no losses in one process."""
    world = World("entmin", "plain")
    if distributed.rank() == rank:
        world.method.losses = lambda batch, rng: {}
    try:
        world.step()
    except UserError as error:
        return str(error)
    return "none"


def main(results, *tasks):
    """Do the tasks, Python expressions, and write {task: result}."""
    distributed.join()
    torch.save({task: eval(task) for task in tasks}, Path(results) / f"{distributed.size()}_{distributed.rank()}.pt")
    distributed.leave()


if __name__ == "__main__":
    main(*sys.argv[1:])

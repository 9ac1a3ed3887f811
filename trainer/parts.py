"""The parts of a step's batch: `accumulate` of each process. The gradient of a step is the mean of its parts' ones."""
import contextlib
import dataclasses
import random
import zlib

import numpy as np
import torch
from torch import Tensor

from dataset.labels import IGNORE_INDEX
from model.interface import described
from model.parallel import PartStatistics
from model.segmenter import Segmenter
from trainer.checks import require_losses
from trainer.methods.base import Batch, Method
from trainer.optimisation import Optimisation
from trainer.run_state import Position
from utils import distributed
from utils.config import Config
from utils.errors import TrainingError

_NAMED = 12  # images in a message, at most


class Parts:
    """How the batch of a step is divided, and the gradient that its parts have together.

    There are P processes with A = `accumulate` parts each, of B = `batch_size` images. Part number r A + a is part a of
    process r. Each draws its own random numbers, seeded with its number, and has its own batch statistics; losses that
    divide by a count have the mean count of all parts. So P processes take the same step as one with `accumulate` = P,
    and, without batch statistics, as one with a `batch_size` of P A B.
    """

    def __init__(self, cfg: Config, network: Segmenter, position: Position):
        self.cfg, self.network, self.position = cfg, network, position
        self.own = cfg.accumulate if cfg.method_class.trains else 1
        self.count = self.own * distributed.size()
        self._means: list[Tensor] | None = None  # what `mean` returns, in the order of its calls
        self._given: list[Tensor] = []           # sums of what `mean` was given, in this order
        self._calls = 0                          # of `mean`, of a part
        self.found: list[tuple[list[str], dict[str, Tensor]]] = []  # of the last step: names and losses of each part

    def gradients(self, method: Method, optimisation: Optimisation | None, batch: Batch) -> dict[str, Tensor]:
        """Compute the gradients of a step and its losses, both the mean over all parts. batch: the images of this
        process, in the order of its parts. The network's buffers have afterwards moved by the mean over the parts.
        Collective."""
        self.network.train()
        parts = self._divided(batch)
        moving = PartStatistics(self.network, self.count) if self.count > 1 and method.trains else None
        if self.own > 1 and method.uses_mean:
            self._learn_means(method, parts, moving)
        if optimisation:
            optimisation.begin()
        self.found = []
        for number, part in enumerate(parts):
            if number:
                moving.rewind()
            with self._apart(number + 1 < len(parts)):
                losses = self._losses(method, part, number)
                require_losses(self.cfg.method, method.trains, losses)
                self._require_same_names(losses)
                if losses:
                    optimisation.add(losses, self.own)
            self.found.append((part.names, {name: loss.detach() for name, loss in losses.items()}))
            if moving:
                moving.add()
        if moving:
            moving.settle()
        return self._mean_losses()

    def mean(self, value: Tensor) -> Tensor:
        """The mean of a value over all parts, by `Method.mean`."""
        if self.count == 1:
            return value
        if self.own == 1:
            return _with_gradient_of(value, distributed.total(value.detach()) / self.count)
        self._calls += 1
        if self._means is not None:
            return _with_gradient_of(value, self._means[self._calls - 1])
        if torch.is_grad_enabled():
            raise TrainingError(f"method: {self.cfg.method}: its losses call `mean`, which accumulate > 1 has to know: "
                                "set `uses_mean = True` in the class.")
        if len(self._given) < self._calls:
            self._given.append(torch.zeros_like(value))
        self._given[self._calls - 1] += value
        return value

    def suspects(self, found: list[tuple[list[str], dict[str, Tensor]]]) -> list[str]:
        """The images of the parts whose losses are not finite, or else of all parts, of all processes; not more than a
        message can hold. found: as it was after the step. Collective."""
        mine = [(names, all(loss.isfinite() for loss in losses.values())) for names, losses in found]
        all_parts = [part for found in distributed.gathered(mine) for part in found]
        broken = [names for names, finite in all_parts if not finite] or [names for names, _ in all_parts]
        names = [name for part in broken for name in part]
        return names if len(names) <= _NAMED else [*names[:_NAMED], f"{len(names) - _NAMED} more"]

    def _divided(self, batch):
        """The parts of this process's batch."""
        size = len(batch.names) // self.own
        if self.own > 1 and len(batch.names) != self.own * self.cfg.batch_size:
            raise TrainingError(f"method: {self.cfg.method}: a step's batch has {len(batch.names)} images, expected "
                                f"accumulate x batch_size = {self.own} x {self.cfg.batch_size}.")
        labelled = None
        if batch.labels is not None:
            labelled = distributed.total((batch.labels != IGNORE_INDEX).sum().double()) / self.count
        parts = []
        for number in range(self.own):
            images = slice(number * size, (number + 1) * size)
            parts.append(Batch(batch.images[images], batch.labels if batch.labels is None else batch.labels[images],
                               batch.names[images], batch.pixels[images], labelled))
        return parts

    def _losses(self, method, part, number):
        """The losses of part `number` of this process, with all random generators seeded for it."""
        seed, *when = self.cfg.seed, self.position.round, self.position.step
        slot = distributed.rank() * self.own + number
        drawn = int(np.random.SeedSequence([seed, slot, *when]).generate_state(1, np.uint64)[0])
        torch.manual_seed(drawn)
        random.seed(drawn)  # this and the next for users' networks and methods
        np.random.seed(drawn % 2**32)
        self._calls = 0
        part = dataclasses.replace(part, rng=np.random.default_rng([seed, *when, slot]))
        return method.losses(part, np.random.default_rng([seed, *when]))

    def _learn_means(self, method, parts, moving):
        """Compute the losses of all parts once for what `mean` returns the second time."""
        self._means, self._given = None, []
        with torch.no_grad():
            for number, part in enumerate(parts):
                self._losses(method, part, number)
                moving.rewind()
        self._means = [distributed.total(given) / self.count for given in self._given]

    def _apart(self, wanted):
        parallel = self.network.parallel
        return parallel.apart() if parallel and wanted else contextlib.nullcontext()

    def _require_same_names(self, losses):
        """Raise TrainingError unless all parts have losses of the same names: a process without any would not add to
        the gradient for which the others wait."""
        if self.found:
            same = list(losses) == list(self.found[0][1])
        else:
            code = zlib.crc32("\n".join(losses).encode())
            low, high = distributed.smallest(torch.tensor([code, -code])).tolist()
            same = low == -high
        if not same:
            error = TrainingError(f"method: {self.cfg.method}: losses returned {described(losses)} for one part of the "
                                  "batch and others for another, expected the same names for all.")
            error.said = not self.found and not distributed.is_main()  # all raise it
            raise error

    def _mean_losses(self):
        """The losses by name, their mean over all parts."""
        found = [losses for _, losses in self.found]
        if self.count == 1 or not found[0]:
            return found[0]
        sums = torch.stack([torch.stack([losses[name].double() for losses in found]).sum() for name in found[0]])
        return dict(zip(found[0], distributed.total(sums) / self.count))


def _with_gradient_of(value, mean):
    return mean + (value - value.detach())

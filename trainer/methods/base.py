"""The base classes of the methods: training data, starting point, losses, configuration keys and state of a method."""
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor

from dataset import inspection, loaders
from dataset.segmentation import Sample
from model.segmenter import Segmenter
from trainer import selection
from trainer.rounds import PseudoLabels
from trainer.run_state import Position
from utils.config import Config
from utils.config_values import Declares, key
from utils.distributed import Mean, alone
from utils.errors import ConfigError
from utils.logger import RunLog
from utils.schedule import round_lr, round_portion

TRAINED, ANY = "trained", "any"  # what a method may start from: a trained network only, or a random start as well


@dataclass(frozen=True)
class Batch:
    """The batch of a step, or a part of it: where there are several processes, or `accumulate` is above 1, the losses
    are those of one of equal parts, and the gradient of the step is the mean over all. All tensors are on the device.

    images: float32 [B, K, H, W], ready for the network. labels: int64 [B, H, W] train ids, 255 where a pixel has none,
    or None if the images have no labels. names: of the images. pixels: the images as read, uint8 [B, H, W, K], RGB for
    three bands. labelled: the number of labelled pixels, in a part in the mean, float64 []; None without labels. A mean
    over them that is divided by it, in place of the part's own count, is the whole batch's. rng: the part's own
    generator, seeded with seed, round, step and the part's number.
    """

    images: Tensor
    labels: Tensor | None
    names: list[str]
    pixels: Tensor
    labelled: Tensor | None = None
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))


class Batches(Protocol):
    """Batches of a round, as `Method.batches` gives them: they can be iterated over, and `len` is their number."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[dict[str, Any]]: ...


@dataclass(frozen=True)
class Setting:
    """What a method is given. network: on `device`. samples: the training images. class_names: of the network's
    classes. position: where training stands, not to be changed. check: to be called between the images of a long pass;
    what it raises ends the run. mean: `Method.mean`."""

    cfg: Config
    network: Segmenter
    device: torch.device
    samples: Sequence[Sample]
    class_names: tuple[str, ...]
    position: Position
    log: RunLog
    check: Callable[[], None]
    mean: Mean = alone


class Method(Declares):
    """Base of all methods. A subclass implements `losses`. The other hooks have defaults, which train on random crops
    of the unlabelled target for one round.

    A method's configuration keys are annotated class attributes made by `utils.config_values.key`; an object has their
    values. Except for the class methods `check`, `check_network` and `usable`, no hook is called before the object is
    complete.
    """

    title: ClassVar[str] = ""  # in tables and figures; empty: the name
    needs_source: ClassVar[bool] = False  # trains on the labelled source in place of the target
    trains: ClassVar[bool] = True  # False: its losses are always {}, and there is no optimiser
    starts_from: ClassVar[str] = TRAINED
    after: ClassVar[str] = "source_only"  # the stage from whose checkpoint it usually starts
    uses_mean: ClassVar[bool] = False  # `losses` calls `mean`; with accumulate > 1 they are then computed twice

    epochs: int = key(1, "passes over the target images in a round", low=1)

    @classmethod
    def check_network(cls, cfg: Config, network: Segmenter) -> None:
        """Raise ConfigError if the method cannot work with the network. Called before anything is written."""

    def __init__(self, setting: Setting):
        super().__init__(setting.cfg.options)
        self.cfg, self.network, self.device = setting.cfg, setting.network, setting.device
        self.samples, self.class_names, self.position = setting.samples, setting.class_names, setting.position
        self.log, self.check_interrupt, self._mean = setting.log, setting.check, setting.mean
        self.setup()

    def setup(self) -> None:
        """Create what the method needs beside the network, such as a teacher."""

    @property
    def first_round(self) -> int:
        """The round that a new run begins with."""
        return 0

    @property
    def rounds(self) -> int:
        """The round before which training ends. Each round has its own optimiser and learning-rate schedule."""
        return 1

    def base_lr(self, round_index: int) -> float:
        """The learning rate with which the schedule of a round begins."""
        return self.cfg.learning_rate

    def prepare_round(self, round_index: int) -> None:
        """Prepare a round, before its first step. Not called for a resumed run whose round is prepared already."""

    def batches(self, round_index: int, first: int) -> Batches:
        """The batches of a round from number `first` on, each with `image` uint8 [B, H, W, K], `name` and, where there
        are labels, `label` uint8 [B, H, W]."""
        return loaders.target_loader(self.cfg, self.samples, self.epochs, round_index, first,
                                     self.device.type == "cuda")

    def losses(self, batch: Batch, rng: np.random.Generator) -> dict[str, Tensor]:
        """Losses of one batch by name, scalar tensors whose sum is minimised; {} leaves the parameters as they are.

        The network is in training mode. rng: the step's own generator, seeded with seed, round and step, for what is to
        be the same in all parts of the batch; the global ones of torch, NumPy and Python are the part's own, as
        `batch.rng` is. All parts return losses of the same names.
        """
        raise ConfigError(f"method: {type(self).__name__} has no losses: define losses(self, batch, rng), or "
                          "set method to another class.")

    def mean(self, value: Tensor) -> Tensor:
        """The mean of a tensor over the parts of the step's batch, for `losses` that are no means over equally many
        pixels of each part. Its gradient reaches the part's own value. Collective: all parts call it equally often. A
        class that calls it sets `uses_mean`."""
        return self._mean(value)

    def after_step(self, batch: Batch) -> None:
        """Called after each step. batch: this process's, whole."""

    def end_round(self, round_index: int) -> None:
        """Called after the last step of a round, before its state is saved."""

    def pseudo_labelled(self, round_index: int) -> Sequence[Sample] | None:
        """The samples with a round's pseudo labels as their labels; None for a method without such files."""
        return None

    def networks(self) -> Mapping[str, Segmenter]:
        """The networks that the run may hand back: a title, empty for the one that is trained, -> network."""
        return {"": self.network}

    def parts(self) -> Mapping[str, Any]:
        """The method's parts of the run's saved state: name -> object with `state_dict` and `load_state_dict`, of plain
        tensors and values. The network is saved anyway."""
        return {}

    @classmethod
    def usable(cls, cfg: Config, samples: Sequence[Sample], state: dict[str, Any]) -> bool:
        """Whether the files that a saved state relies on, such as pseudo labels, are intact. state: a dictionary with
        `position` and `parts`."""
        return True


class SelfTraining(Method):
    """Base of methods that train in rounds on pseudo labels of the target. Each round predicts the target's labels with
    the current network, selects a class-balanced portion of the pixels, and trains on crops with the labels of these;
    all other pixels have label 255.

    A subclass implements `losses` and, for another selection, `select`.
    """

    round: int = key(2, "R, rounds of pseudo-labelling and training", low=1)
    round_start: int = key(0, "first round to run, from 0; portion and rate are that round's", low=0)
    round_lr_decay: float = key(math.sqrt(2), "the rate is divided by this after each round", low=0, above=True)
    cb_prop: float = key(0.1, "alpha of round 0: share of each class's pixels that is selected", low=0, high=1,
                         above=True)
    portion_step: float = key(0.05, "added to alpha after each round", low=0, high=1)
    select_image: bool = key(True, "select each image's own top alpha pixels too (released code; not in the paper)")

    @classmethod
    def check(cls, cfg):
        start, rounds = cfg.options["round_start"], cfg.options["round"]
        if start >= rounds:
            raise ConfigError(f"round_start: {start} leaves nothing to run of the {rounds} rounds from 0 on; use less.")

    def __init__(self, setting):
        self.pseudo_labels = PseudoLabels(setting.cfg, setting.samples)
        super().__init__(setting)

    @property
    def first_round(self):
        return self.round_start

    @property
    def rounds(self):
        return self.round

    def base_lr(self, round_index):
        return round_lr(self.cfg.learning_rate, round_index, self.round_lr_decay)

    def portion(self, round_index: int) -> float:
        """alpha of a round: the share of each class's pixels that is selected, above 0 and at most 1."""
        return round_portion(self.cb_prop, self.portion_step, round_index)

    def select(self, logits: Tensor, thresholds: Tensor, portion: float) -> tuple[Tensor, Tensor]:
        """Predict one image and select its pseudo labels: logits float [C, H, W] -> (prediction int64 [H, W], pseudo
        label uint8 [H, W], 255 where a pixel is not selected). thresholds: int64 [C], of `selection.class_thresholds`.
        portion: the round's."""
        label, uncertainty = selection.predict(logits)
        return label, selection.select(label, uncertainty, thresholds, portion if self.select_image else None)

    def prepare_round(self, round_index):
        """Write the round's pseudo labels and report what they cover."""
        cfg, names = self.cfg, self.class_names
        portion = self.portion(round_index)
        found = self.pseudo_labels.write(round_index, self.network, names, portion,
                                         lambda logits, thresholds: self.select(logits, thresholds, portion),
                                         self.check_interrupt)
        accuracy = {"accuracy": found.accuracy} if found.accuracy else {}
        self.log.event("pseudo_label", self.position.global_step, round=round_index, portion=portion,
                       coverage=found.coverage,
                       threshold=dict(zip(names, selection.threshold_confidence(found.thresholds).tolist())),
                       **accuracy)
        if found.unseen:
            seen = inspection.never_seen(cfg, cfg.target, found.unseen, "the training labels")
            self.log.say_once(f"warning: {seen}")
        right = f", accuracy {found.accuracy['all']:.1%}" if found.accuracy else ""
        self.log.say(f"round {round_index}: portion {portion:.2f}, pseudo labels cover {found.coverage['all']:.1%} of "
                     f"the target's pixels{right}")

    def batches(self, round_index, first):
        return loaders.round_loader(self.cfg, self.pseudo_labelled(round_index), self.epochs, round_index, first,
                                    self.device.type == "cuda")

    def pseudo_labelled(self, round_index):
        return self.pseudo_labels.samples(round_index)

    def parts(self):
        return {"pseudo_labels": self.pseudo_labels}

    @classmethod
    def usable(cls, cfg, samples, state):
        position = state["position"]
        written = state["parts"].get("pseudo_labels", {})
        return not position["prepared"] or PseudoLabels(cfg, samples).intact(position["round"], written)

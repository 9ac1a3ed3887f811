"""What the stages share: assembling a run, the training loop, validation, saving and resuming."""
import dataclasses
import json
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from dataset import inspection, loaders, segmentation
from dataset.class_sets import class_set
from model.deeplabv2 import parameter_groups
from model.weights import save_weights
from trainer import evaluate
from trainer.build import build_model, pick_device
from trainer.resume import newest_state
from utils.checkpoint import STATE_VERSION, RunLock, StateFolder, remove_unfinished, write_atomically
from utils.config import Config, config_remarks, to_yaml, with_drawn_seed
from utils.errors import CheckpointError, Stopped, TrainingError, one_line
from utils.interrupt import Interrupt
from utils.logger import RunLog
from utils.progress import Progress

MIN_SCALE = 2.0**-10  # of the fp16 loss scaler, which halves with every overflow: below it, halving no longer helps


@dataclass
class Position:
    """Where training stands. step: within the round; labelled: the round's pseudo labels are written."""

    round: int
    step: int = 0
    labelled: bool = False


class BaseTrainer(ABC):
    """One stage of one run. A subclass finds its images in `training_samples`, trains in `train`, and computes a step's
    losses in `step`.

    Building it checks data, weights, saved states and configuration and raises a UserError before anything is written.
    What a state holds and what is drawn at random are functions of the configuration, the data and `position` alone, so
    a run that goes on from a state ends, on the CPU, with the same bits as one that was never stopped.
    """

    stage: str  # names the checkpoint, the log and the pseudo labels of the stage

    def __init__(self, cfg: Config):
        self.cfg = cfg
        self.device = pick_device(cfg.device)
        torch.backends.cudnn.benchmark = True  # crops have one size, and whole images usually have
        self.class_set = class_set(cfg)
        remarks = [f"note: {remark}" for remark in config_remarks(cfg)]
        self.samples, more = self.training_samples()
        remarks += more
        self.fingerprint = segmentation.fingerprint(self.samples)  # now: at a save the disk may no longer answer
        self.val_loader, more = self._validation_loader()
        remarks += [remark for remark in more if remark not in remarks]  # one list or folder may serve both splits
        self.snapshot = Path(cfg.snapshot) / cfg.note
        self.states = StateFolder(self.snapshot / f"{self.stage}.state", cfg.keep)
        self.lock = RunLock(self.snapshot) if self.snapshot.is_dir() else None  # before a look at what lies there
        self._last_state, self._resumed = newest_state(cfg, self.states, self.samples, self.usable, remarks)
        if self._resumed and not cfg.fix_seed:
            cfg = self.cfg = dataclasses.replace(cfg, seed=self._resumed["seed"], fix_seed=True)
        elif not cfg.fix_seed:
            cfg = self.cfg = with_drawn_seed(cfg)
        torch.manual_seed(cfg.seed)
        self.model, report = build_model(cfg, self.device, load=not self._resumed)
        if self.stage != "source_only" and not self._resumed and report.initialised:
            raise CheckpointError(f"init_weight: {cfg.init_weight} ({report.format}) leaves {report.initialised[0]} "
                                  f"and others at random: stage {self.stage} starts from a trained network.")
        self.position, self.global_step = Position(cfg.round_start if self.stage != "source_only" else 0), 0
        self.scores, self._validated_at = None, -1
        self.optimizer = self.scaler = None
        self.interrupt = Interrupt()
        self._start_writing(remarks, report)

    @abstractmethod
    def training_samples(self) -> tuple[list[segmentation.Sample], list[str]]:
        """The images that the stage trains on, and remarks on them for the log. Raises DataError."""

    @abstractmethod
    def train(self) -> None:
        """The training of the stage from `position` on, by calls of `run_steps`, each followed by `next_round`."""

    @abstractmethod
    def step(self, batch: dict, rng: np.random.Generator) -> dict[str, torch.Tensor]:
        """Losses of one batch by name; their sum is minimised. rng: this step's own, from seed and counters."""

    def after_step(self) -> None:
        """Called after each optimiser step."""

    def run(self) -> dict | None:
        """Train, validate, save. Returns the last validation's scores (`evaluate.protocol_scores`), None without one.

        Raises Stopped, with what to do in its text, when a signal has ended the run and its state is saved.
        """
        try:
            with self.interrupt:
                if self._resumed:
                    self.restore(self._resumed)
                    self._resumed = None
                if self.cfg.train:
                    self.train()
                    self.save()
                self.validate()
                self._write_result()
                if self.cfg.train:
                    self.states.finish()
        except Stopped as stop:
            where = f"its state is in {self._last_state}" if self._last_state else "no state had been saved yet"
            raise Stopped(f"stopped by {stop} at step {self.global_step}: {where}; the same command with --resume goes "
                          "on.") from None
        finally:
            self.log.close()
            self.lock.release()
        return self.scores

    def run_steps(self, loader, base_lr: float, lr_at) -> None:
        """One optimiser over all batches of `loader`, which begins at `position`. lr_at(base_lr, step) -> learning rate
        of a step of the round. Raises TrainingError, before the optimiser moves, where a loss or gradient is not
        finite."""
        cfg, first = self.cfg, self.position.step
        self._build_optimizer(base_lr)
        pace = Progress(loader, self.stage, 0, cfg.screen, "step", first)
        for step, batch in enumerate(self._awaited(pace), first):
            for group in self.optimizer.param_groups:
                group["lr"] = lr_at(base_lr, step) * group["lr_mult"]
            self.model.train()
            losses = self.step(batch, np.random.default_rng([cfg.seed, self.position.round, step]))
            total = sum(losses.values())
            self.optimizer.zero_grad()
            self.scaler.scale(total).backward()
            self._require_finite(losses, total, batch)
            self.scaler.step(self.optimizer)
            self.scaler.update()
            self.after_step()
            self.global_step += 1
            self.position.step = step + 1
            if step % cfg.print_freq == 0 or step + 1 == first + len(loader):
                self._report(losses, total, pace)
            if self.interrupt.requested or self.global_step % cfg.save_freq == 0:
                self.save_state()
            self.interrupt.check()
            if self.global_step % cfg.val_freq == 0:
                self.validate()

    def _awaited(self, batches):
        """The batches; a signal that ends the wait for one finds the state of the step before, and saves it."""
        try:
            yield from batches
        except Stopped:
            self.save_state()
            raise

    def next_round(self) -> None:
        """Move to the start of the next round and save the state there."""
        self.position.round, self.position.step, self.position.labelled = self.position.round + 1, 0, False
        self.optimizer = self.scaler = None
        self.save_state()

    def validate(self) -> None:
        """Score the network as it stands, once per step count, where the target's validation split has labels."""
        if self.val_loader is None or self._validated_at == self.global_step:
            return
        try:
            pace = Progress(self.val_loader, "validation", self.cfg.print_freq, self.cfg.screen)
            confusion = evaluate.evaluate(self.model, pace, self.cfg.num_classes, self.device, self.interrupt.check,
                                          len(self.class_set.labels))
        except Stopped:
            if self.cfg.train:
                self.save_state()
            raise
        self.scores = evaluate.protocol_scores(confusion, self.class_set)
        self._validated_at = self.global_step
        self.log.event("val", self.global_step, **self.scores)
        self.log.say(f"step {self.global_step}: mIoU {evaluate.means(self.scores)}")
        unseen = evaluate.unseen_classes(self.scores, self.class_set)
        self.warn_of_unseen(self.cfg.target, unseen, "the validation labels")

    def warn_of_unseen(self, section_name: str, names: list[str], where: str) -> None:
        """Say, once, which classes of a section have no pixel in its labels, if any; where: in which labels."""
        if names:
            self.log.say_once(f"warning: {inspection.never_seen(self.cfg, section_name, names, where)}")

    def save(self) -> None:
        """Write `<snapshot>/<note>/<stage>.pth`, atomically."""
        path = self.snapshot / f"{self.stage}.pth"
        save_weights(self.model, path)
        self.log.say(f"saved {path}")

    def save_state(self) -> None:
        """Save all that `restore` needs; if the disk refuses, say so and go on: older states are still whole."""
        try:
            self._last_state = self.states.save(self.state())
        except CheckpointError as error:
            self.log.say(f"warning: {error}")

    def state(self) -> dict:
        """Plain tensors and values only, so that reading a state runs no code."""
        return {"version": STATE_VERSION, **dataclasses.asdict(self.position), "global_step": self.global_step,
                "seed": self.cfg.seed, "config": to_yaml(self.cfg),
                "data": self.fingerprint, "model": self.model.state_dict(),
                "optimizer": self.optimizer and self.optimizer.state_dict(),
                "scaler": self.scaler and self.scaler.state_dict(),
                "scores": self.scores, "validated_at": self._validated_at, "log": self.log.position()}

    def restore(self, state: dict) -> None:
        """Go back to where `state` was saved, and make up for a validation that a stop has cut off. A subclass restores
        its own parts first: a signal in that validation saves all of them again."""
        self.model.load_state_dict(state["model"])
        self.position = Position(state["round"], state["step"], state["labelled"])
        self.global_step, self.scores, self._validated_at = state["global_step"], state["scores"], state["validated_at"]
        if state["optimizer"]:
            self._build_optimizer(0.0)
            self.optimizer.load_state_dict(state["optimizer"])
            self.scaler.load_state_dict(state["scaler"])
        if self.global_step and (self.position.step == 0 or self.global_step % self.cfg.val_freq == 0):
            self.validate()

    def usable(self, state: dict) -> bool:
        """Whether what a state needs beside itself is still there."""
        return True

    def _build_optimizer(self, base_lr):
        """A round has one optimiser: a new one, unless `restore` has brought the round's own."""
        if self.optimizer is None:
            groups = parameter_groups(self.model, self.cfg.backbone_lr_mult, self.cfg.head_lr_mult)
            self.optimizer = torch.optim.SGD(groups, base_lr, self.cfg.momentum, weight_decay=self.cfg.weight_decay,
                                             foreach=True)
            self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.cfg.amp == "fp16")

    def _start_writing(self, remarks, report):
        """All is checked: take the run's folder, and write the first lines."""
        cfg, state = self.cfg, self._resumed
        self.snapshot.mkdir(parents=True, exist_ok=True)
        self.lock = self.lock or RunLock(self.snapshot)
        if cfg.train and not state:
            self.states.clear()
        remove_unfinished(self.snapshot)
        self.log = RunLog(Path(cfg.log) / cfg.note, self.stage, cfg.tensorboard,
                          **({"position": state["log"], "step": state["global_step"]} if state else {}))
        write_atomically(self.snapshot / f"{self.stage}.yml", lambda file: file.write(to_yaml(cfg).encode()))
        self.log.say(f"stage {self.stage}: {len(self.samples)} images, {cfg.num_classes} classes, {self.device}, "
                     f"seed {cfg.seed}")
        if not state:
            self.log.say(f"weights: {f'{cfg.init_weight}: ' if cfg.init_weight else ''}{report}")
        for remark in remarks + ([self.lock.remark] if self.lock.remark else []):
            self.log.say(one_line(remark))

    def _write_result(self) -> None:
        if self.scores is None:
            return
        folder, content = Path(self.cfg.result) / self.cfg.note, json.dumps(self.scores, indent=1)
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / f"{self.stage}.json", lambda file: file.write(content.encode()))

    def _require_finite(self, losses, total, batch):
        """One reading for the loss and all gradients. With fp16 the scaler skips steps that overflow, so only a scale
        that has collapsed counts."""
        if self.scaler.is_enabled():
            fine = self.scaler.get_scale() >= MIN_SCALE
        else:
            norms = torch._foreach_norm([p.grad for p in self.model.parameters() if p.grad is not None])
            fine = bool(torch.isfinite(torch.stack([total.detach(), *norms]).sum()))
        if not fine:
            values = {name: loss.item() for name, loss in losses.items()}
            kept = f"the last good state is {self._last_state}" if self._last_state else "no state had been saved yet"
            which = "gradient" if np.isfinite(total.item()) else "loss"
            raise TrainingError(f"step {self.global_step}: the {which} is not finite (losses {values}, learning rates "
                                f"{self._rates()}, images {batch['name']}); {kept}: lower learning_rate, or check "
                                "these images and init_weight.")

    def _rates(self):
        return {group["name"]: group["lr"] for group in self.optimizer.param_groups}

    def _report(self, losses, total, pace) -> None:
        rates = self._rates()
        values = {"total": total.item(), **{name: loss.item() for name, loss in losses.items()}}
        pace.report(loss=f"{values['total']:.3f}", lr=f"{rates['head']:.2e}")
        self.log.event("train", self.global_step, loss=values, lr=rates)

    def _validation_loader(self):
        """(loader or None, remarks for the log, which say why there is none)"""
        cfg = self.cfg
        if not cfg.val:
            return None, [f"{inspection.NO_VALIDATION}: val is False"]
        samples, remarks = inspection.validation_samples(cfg)
        if not samples:
            return None, remarks
        trained = {sample.image for sample in self.samples}
        if shared := sum(sample.image in trained for sample in samples):
            remarks = [*remarks, f"note: {shared} of the {len(samples)} validation images are trained on as well"]
        return loaders.whole_image_loader(cfg, cfg.target, samples, True, self.device.type == "cuda"), remarks

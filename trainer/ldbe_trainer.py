"""Stages 1 and 2: rounds of pseudo-labelling the target and training on it, by label denoising (LD) or boundary
enhancement (BE). Nothing of the source is opened."""
from dataclasses import replace
from pathlib import Path

import torch

from dataset import inspection, loaders, segmentation
from dataset.labels import IGNORE_INDEX
from dataset.transforms import network_input
from model.deeplabv2 import compile_blocks
from model.ema import Teacher
from trainer import fused_losses, losses, selection
from trainer.base_trainer import BaseTrainer
from trainer.classmix import class_mix
from trainer.labelling import label_round, labels_intact
from utils.errors import ConfigError
from utils.schedule import poly_lr, round_lr, round_portion


class LDBETrainer(BaseTrainer):
    """`method: ld` minimises positive, entropy and negative losses, `method: be` the mixed cross entropy."""

    def __init__(self, cfg):
        self.stage = cfg.method
        if cfg.init_weight is None:
            before = "source_only" if cfg.method == "ld" else "ld"
            raise ConfigError(f"init_weight: stage {cfg.method} starts from a trained network: give its checkpoint, "
                              f"such as {cfg.snapshot}/{cfg.note}/{before}.pth.")
        super().__init__(cfg)
        self.manifest = None  # of the round's pseudo labels
        self.teacher = Teacher(self.model, cfg.ema_alpha) if cfg.method == "be" else None
        if self.teacher and cfg.compile:
            compile_blocks(self.teacher.model)

    def training_samples(self):
        return inspection.training_samples(self.cfg, self.cfg.target, labels_needed=False)

    def train(self):
        cfg, position = self.cfg, self.position
        while position.round < cfg.round:
            r = position.round
            samples = self.labelled_samples(r)
            loader = loaders.round_loader(cfg, samples, r, position.step, self.device.type == "cuda")
            self.run_steps(loader, round_lr(cfg.learning_rate, r, cfg.round_lr_decay),
                           lambda lr, step: poly_lr(lr, step, cfg.num_steps, cfg.power))
            self.next_round()
            self.validate()

    def step(self, batch, rng):
        return self.ld_step(batch, rng) if self.stage == "ld" else self.be_step(batch, rng)

    def ld_step(self, batch, rng):
        logits = self.model(network_input(batch["image"].to(self.device, non_blocking=True)))
        pseudo_label = batch["label"].to(self.device, non_blocking=True).long()
        rank = losses.negative_rank(self.cfg.num_classes, self.cfg.neg_rank_width, rng)
        return fused_losses.ld_losses(logits, pseudo_label, rank, self.cfg.entropy_on, self.cfg.entropy,
                                compile=self.cfg.compile)

    def be_step(self, batch, rng):
        images = network_input(batch["image"].to(self.device, non_blocking=True))
        pseudo_label = batch["label"].to(self.device, non_blocking=True).long()
        with torch.inference_mode():
            self.teacher.model.train(self.cfg.bn_stats == "batch")
            conf, label = self.teacher.model(images).softmax(1).max(1)
        selected = pseudo_label != IGNORE_INDEX
        label, conf = torch.where(selected, pseudo_label, label), conf.masked_fill(selected, 1)
        generator = torch.Generator().manual_seed(int(rng.integers(2**63)))
        images, label, conf = class_mix(images, label, conf, generator)
        return {"mixed": losses.mixed_cross_entropy(self.model(images), label, conf, self.cfg.conf_thresh)}

    def after_step(self):
        if self.teacher:
            self.teacher.update(self.model)

    def labelled_samples(self, round_index: int) -> list[segmentation.Sample]:
        """The target's samples with the round's pseudo labels, written first unless a resumed state has them."""
        if self.position.labelled:
            folder = self._label_folder(round_index)
            return [replace(s, label=folder / f"{s.name}.png") for s in self.samples]
        samples = self.label_target(round_index)
        self.position.labelled = True
        self.save_state()
        return samples

    def label_target(self, round_index: int) -> list[segmentation.Sample]:
        """Write the round's pseudo labels; return the target's samples with them as labels."""
        cfg, names = self.cfg, self.class_set.names
        portion = round_portion(cfg.cb_prop, cfg.portion_step, round_index)
        folder = self._label_folder(round_index)
        found = label_round(self.model, cfg, self.samples, names, portion, folder, self.interrupt.check)
        self.manifest = found.manifest
        accuracy = {"accuracy": found.accuracy} if found.accuracy else {}
        self.log.event("pseudo_label", self.global_step, round=round_index, portion=portion, coverage=found.coverage,
                       threshold=dict(zip(names, selection.threshold_confidence(found.thresholds).tolist())),
                       **accuracy)
        self.warn_of_unseen(cfg.target, found.unseen, "the training labels")
        right = f", accuracy {found.accuracy['all']:.1%}" if found.accuracy else ""
        self.log.say(f"round {round_index}: portion {portion:.2f}, pseudo labels cover {found.coverage['all']:.1%} of "
                     f"the target's pixels{right}")
        return [replace(s, label=folder / f"{s.name}.png") for s in self.samples]

    def state(self):
        teacher = self.teacher and {"model": self.teacher.model.state_dict(), "updates": self.teacher.updates}
        return {**super().state(), "teacher": teacher, "manifest": self.manifest}

    def restore(self, state):
        self.manifest = state["manifest"]
        if self.teacher:
            self.teacher.model.load_state_dict(state["teacher"]["model"])
            self.teacher.updates = state["teacher"]["updates"]
        super().restore(state)  # last: it may validate, and a signal then saves the state as it stands

    def usable(self, state):
        folder = self._label_folder(state["round"])
        return not state["labelled"] or labels_intact(folder, self.samples, state["manifest"])

    def _label_folder(self, round_index: int) -> Path:
        return Path(self.cfg.plabel) / self.cfg.note / self.stage / f"round{round_index}"

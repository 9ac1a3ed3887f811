"""Stages 1 and 2: rounds of pseudo-labelling the target and training on it, by label denoising (LD) or boundary
enhancement (BE). Nothing of the source is opened."""
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image
from tqdm import tqdm

from dataset import loaders, segmentation
from dataset.labels import IGNORE_INDEX
from dataset.transforms import network_input
from model.ema import Teacher
from trainer import losses
from trainer import pseudo_label as pl
from trainer.base_trainer import BaseTrainer
from trainer.classmix import class_mix
from utils.errors import ConfigError
from utils.metrics import confusion_matrix
from utils.schedule import poly_lr, round_lr, round_portion


class LDBETrainer(BaseTrainer):
    """`method: ld` minimises positive, entropy and negative losses, `method: be` the mixed cross entropy."""

    def __init__(self, cfg):
        self.stage = cfg.method
        if cfg.init_weight is None:
            raise ConfigError(f"init_weight: stage {cfg.method} starts from a trained network: give its checkpoint, such "
                              f"as {cfg.snapshot}/{cfg.note}/{'source_only' if cfg.method == 'ld' else 'ld'}.pth.")
        super().__init__(cfg)
        self.teacher = Teacher(self.model, cfg.ema_alpha) if cfg.method == "be" else None

    def training_samples(self):
        return segmentation.find_samples(self.cfg.target, self.cfg.target_data, "train")

    def train(self):
        cfg = self.cfg
        for r in range(cfg.round_start, cfg.round):
            samples = self.label_target(r)
            steps = loaders.round_steps(cfg, len(samples))
            loader = loaders.round_loader(cfg, samples, r, steps, self.device.type == "cuda")
            self.run_steps(loader, round_lr(cfg.learning_rate, r, cfg.round_lr_decay),
                           lambda lr, step: poly_lr(lr, step, cfg.num_steps, cfg.power), r)
            self.validate()

    def step(self, batch, rng):
        return self.ld_step(batch, rng) if self.stage == "ld" else self.be_step(batch, rng)

    def ld_step(self, batch, rng):
        logits = self.model(network_input(batch["image"].to(self.device, non_blocking=True)))
        pseudo_label = batch["label"].to(self.device, non_blocking=True)
        rank = losses.negative_rank(self.cfg.num_classes, self.cfg.neg_rank_width, rng)
        return losses.ld_losses(logits, pseudo_label, rank, self.cfg.entropy_on)

    def be_step(self, batch, rng):
        images = network_input(batch["image"].to(self.device, non_blocking=True))
        pseudo_label = batch["label"].to(self.device, non_blocking=True)
        with torch.no_grad():
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

    def label_target(self, round_index: int) -> list[segmentation.Sample]:
        """Write the round's pseudo labels; return the target's samples with them as labels."""
        cfg = self.cfg
        portion = round_portion(cfg.cb_prop, cfg.portion_step, round_index)
        thresholds = self._thresholds(portion)
        folder = Path(cfg.plabel) / cfg.note / self.stage / f"round{round_index}"
        compare = cfg.plabel_accuracy and all(s.label and s.label.is_file() for s in self.samples)
        counts = _LabelCounts(cfg.num_classes)
        for item, logits in self._predict_target("pseudo labels", at_file_size=True, with_labels=compare):
            label, doubt = pl.predict(logits)
            chosen = pl.select(label, doubt, thresholds, portion if cfg.select_image else None)
            counts.add(label, chosen, item["label"].to(self.device) if compare else None)
            path = folder / f"{item['name']}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(chosen.cpu().numpy()).save(path)
        names = self.class_set.names
        report = counts.report(names)
        self.log.event("pseudo_label", self.global_step, round=round_index, portion=portion,
                       threshold=dict(zip(names, pl.threshold_confidence(thresholds).tolist())), **report)
        accuracy = f", accuracy {report['accuracy']['all']:.1%}" if "accuracy" in report else ""
        self.log.say(f"round {round_index}: portion {portion:.2f}, pseudo labels cover "
                     f"{report['coverage']['all']:.1%} of the target's pixels{accuracy}")
        return [replace(s, label=folder / f"{s.name}.png") for s in self.samples]

    def _thresholds(self, portion):
        histogram = torch.zeros(self.cfg.num_classes, pl.NUM_BINS, dtype=torch.int64, device=self.device)
        for _, logits in self._predict_target("thresholds", at_file_size=False, with_labels=False):
            label, doubt = pl.predict(logits)
            histogram += pl.doubt_histogram(label, pl.doubt_bin(doubt), self.cfg.num_classes)
        return pl.class_thresholds(histogram, portion)

    def _predict_target(self, title, at_file_size, with_labels):
        """Yield (item, logits [C, H, W]) of each target image, alone in its pass. With `bn_stats: batch` it is
        normalised by its own statistics, and the running ones move to the target with every image seen."""
        cfg = self.cfg
        self.model.train(cfg.bn_stats == "batch")
        loader = loaders.whole_image_loader(cfg, cfg.target, self.samples, with_labels, self.device.type == "cuda")
        for item in tqdm(loader, title, disable=not cfg.screen, leave=False):
            with torch.no_grad():
                image = network_input(item["image"].to(self.device, non_blocking=True))
                yield item, self.model(image, size=tuple(item["size"]) if at_file_size else None)[0]


class _LabelCounts:
    """Pixels predicted and selected per class, and, where the truth is known, which of the selected are right."""

    def __init__(self, num_classes: int):
        self.num_classes = num_classes
        self.predicted = self.selected = self.confusion = 0

    def add(self, label, chosen, truth):
        self.predicted += torch.bincount(label.flatten(), minlength=self.num_classes)
        self.selected += torch.bincount(chosen.flatten().long(), minlength=IGNORE_INDEX + 1)[: self.num_classes]
        if truth is not None:
            truth = torch.where(chosen == IGNORE_INDEX, IGNORE_INDEX, truth)
            self.confusion += confusion_matrix(truth, chosen, self.num_classes)

    def report(self, names) -> dict[str, dict[str, float]]:
        """coverage: selected / predicted pixels of each class; accuracy: right / selected pixels where labelled."""
        report = {"coverage": _shares(self.selected, self.predicted, names)}
        if isinstance(self.confusion, torch.Tensor):
            report["accuracy"] = _shares(self.confusion.diagonal(), self.confusion.sum(0), names)
        return report


def _shares(part, whole, names):
    shares = (part.double() / whole.double()).tolist()
    return {"all": (part.sum().double() / whole.sum().double()).item(), **dict(zip(names, shares))}

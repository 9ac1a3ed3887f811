"""What the stages share: assembling a run, the training loop, validation, saving."""
import json
from abc import ABC, abstractmethod
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from dataset import loaders, segmentation
from model.deeplabv2 import DeepLabV2, compile_blocks, freeze_bn_affine, parameter_groups
from model.weights import load_weights, save_weights
from trainer import evaluate
from utils.config import Config, to_yaml
from utils.errors import ConfigError, UserError
from utils.logger import RunLog

AUTOCAST = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}  # of the key `amp`


class BaseTrainer(ABC):
    """One stage of one run. A subclass finds its images in `training_samples`, trains in `train`, and computes a step's
    losses in `step`.

    Building it checks data, weights and configuration in that order and raises a UserError before anything is written.
    """

    stage: str  # names the checkpoint, the log and the pseudo labels of the stage

    def __init__(self, cfg: Config):
        self.cfg = cfg
        self.device = pick_device(cfg.device)
        torch.backends.cudnn.benchmark = True  # crops have one size, and whole images usually have
        self.class_set = segmentation.class_set(cfg.target_data, cfg.num_classes)
        self.samples = self.training_samples()
        self.val_loader, why_not = self._validation_loader()
        torch.manual_seed(cfg.seed)
        self.model, report = build_model(cfg, self.device)
        self.global_step = 0
        self.scores = None
        self._validated_at = -1
        self.snapshot = Path(cfg.snapshot) / cfg.note
        self.log = RunLog(Path(cfg.log) / cfg.note, self.stage, cfg.tensorboard)
        self.snapshot.mkdir(parents=True, exist_ok=True)
        (self.snapshot / f"{self.stage}.yml").write_text(to_yaml(cfg), encoding="utf-8")
        self.log.say(f"stage {self.stage}: {len(self.samples)} images, {cfg.num_classes} classes, {self.device}, "
                     f"seed {cfg.seed}\nweights: {report}")
        if why_not:
            self.log.say(f"validation skipped: {why_not}")

    @abstractmethod
    def training_samples(self) -> list[segmentation.Sample]:
        """The images that the stage trains on. Raises DataError."""

    @abstractmethod
    def train(self) -> None:
        """The whole training of the stage, by one or more calls of `run_steps`."""

    @abstractmethod
    def step(self, batch: dict, rng: np.random.Generator) -> dict[str, torch.Tensor]:
        """Losses of one batch by name; their sum is minimised. rng: this step's own, a function of seed and counters."""

    def after_step(self) -> None:
        """Called after each optimiser step."""

    def run(self) -> dict | None:
        """Train, validate, save. Returns the last validation's scores (`evaluate.protocol_scores`), None without one."""
        try:
            if self.cfg.train:
                self.train()
                self.save()
            self.validate()
            self._write_result()
        finally:
            self.log.close()
        return self.scores

    def run_steps(self, loader, base_lr: float, lr_at, round_index: int = 0) -> None:
        """One optimiser over all batches of `loader`. lr_at(base_lr, step) -> learning rate of a step."""
        cfg = self.cfg
        groups = parameter_groups(self.model, cfg.backbone_lr_mult, cfg.head_lr_mult)
        optimizer = torch.optim.SGD(groups, base_lr, cfg.momentum, weight_decay=cfg.weight_decay, foreach=True)
        scaler = torch.amp.GradScaler(self.device.type, enabled=cfg.amp == "fp16")
        bar = tqdm(loader, self.stage, disable=not cfg.screen)
        for step, batch in enumerate(bar):
            for group in optimizer.param_groups:
                group["lr"] = lr_at(base_lr, step) * group["lr_mult"]
            self.model.train()
            losses = self.step(batch, np.random.default_rng([cfg.seed, round_index, step]))
            total = sum(losses.values())
            optimizer.zero_grad()
            scaler.scale(total).backward()
            scaler.step(optimizer)
            scaler.update()
            self.after_step()
            self.global_step += 1
            if step % cfg.print_freq == 0 or step + 1 == len(loader):
                self._report(losses, total, optimizer, bar, batch)
            if self.global_step % cfg.save_freq == 0:
                self.save()
            if self.global_step % cfg.val_freq == 0:
                self.validate()

    def validate(self) -> None:
        """Score the network as it stands, once per step count, where the target's validation split has labels."""
        if self.val_loader is None or self._validated_at == self.global_step:
            return
        confusion = evaluate.evaluate(self.model, self.val_loader, self.cfg.num_classes, self.device, self.cfg.screen)
        self.scores = evaluate.protocol_scores(confusion, self.class_set)
        self._validated_at = self.global_step
        self.log.event("val", self.global_step, **self.scores)
        means = ", ".join(f"{s['miou']:.2f} ({protocol})" for protocol, s in self.scores.items() if s["miou"] is not None)
        self.log.say(f"step {self.global_step}: mIoU {means}")

    def save(self) -> None:
        """Write `<snapshot>/<note>/<stage>.pth`, atomically."""
        path = self.snapshot / f"{self.stage}.pth"
        save_weights(self.model, path)
        self.log.say(f"saved {path}")

    def _write_result(self) -> None:
        if self.scores is None:
            return
        folder = Path(self.cfg.result) / self.cfg.note
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{self.stage}.json").write_text(json.dumps(self.scores, indent=1), encoding="utf-8")

    def _report(self, losses, total, optimizer, bar, batch) -> None:
        values = {name: loss.item() for name, loss in losses.items()}
        if not np.isfinite(total.item()):
            raise UserError(f"step {self.global_step}: the loss is not finite ({values}, images {batch['name']}): nothing "
                            "was saved since; lower learning_rate, or check the data and init_weight.")
        rates = {group["name"]: group["lr"] for group in optimizer.param_groups}
        bar.set_postfix(loss=f"{total.item():.3f}", lr=f"{rates['head']:.2e}")
        self.log.event("train", self.global_step, loss={"total": total.item(), **values}, lr=rates)

    def _validation_loader(self):
        """(loader or None, the reason for None)"""
        cfg = self.cfg
        if not cfg.val:
            return None, "val is False"
        samples = segmentation.find_samples(cfg.target, cfg.target_data, "val", required=False)
        if not samples:
            return None, f"{cfg.target} has no images in its split 'val'"
        if not segmentation.has_labels(samples):
            return None, f"{cfg.target} has no labels for its split 'val'"
        return loaders.whole_image_loader(cfg, cfg.target, samples, True, self.device.type == "cuda"), None


def build_model(cfg: Config, device: torch.device, weights: str | None = None):
    """The network of a configuration with `weights` (default: init_weight) loaded: (model on device, what was loaded).

    Raises CheckpointError if they do not fit.
    """
    model = DeepLabV2(cfg.num_classes, cfg.layers, cfg.width)
    report = load_weights(model, weights or cfg.init_weight)
    if cfg.fixbn:
        freeze_bn_affine(model)
    model.autocast, model.checkpointing = AUTOCAST[cfg.amp], cfg.checkpointing
    model.to(device, memory_format=torch.channels_last if cfg.channels_last else torch.preserve_format)
    if cfg.compile:
        compile_blocks(model)
    return model, report


def pick_device(name: str) -> torch.device:
    """`auto`: the first GPU, else the CPU. Raises ConfigError if a GPU is asked for that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"device: {name!r} is not there ({torch.cuda.device_count()} GPUs found): use auto or cpu.")
    return device

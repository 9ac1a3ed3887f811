"""Stage 0: cross entropy on the labelled source."""
import torch
import torch.nn.functional as F

from dataset import inspection, loaders
from dataset.labels import IGNORE_INDEX
from dataset.transforms import network_input
from trainer.base_trainer import BaseTrainer
from utils.schedule import poly_lr

ENOUGH_CROPS = 1000  # after which a class without a single pixel is worth a warning before the stage ends


class SourceOnlyTrainer(BaseTrainer):
    """`method: source_only` minimises cross entropy, and says which classes the labels never showed."""

    stage = "source_only"

    def __init__(self, cfg):
        super().__init__(cfg)
        self.crops, self.seen = 0, torch.zeros(cfg.num_classes, dtype=torch.bool)
        self.named = []  # the classes that a warning has named

    def training_samples(self):
        return inspection.training_samples(self.cfg, self.cfg.source, labels_needed=True)

    def train(self):
        cfg = self.cfg
        if self.position.round:
            return  # resumed behind the last step
        loader = loaders.source_loader(cfg, self.samples, self.position.step, self.device.type == "cuda")
        self.run_steps(loader, cfg.learning_rate, lambda lr, step: poly_lr(lr, step, cfg.num_steps, cfg.power))
        self.judge_labels()
        self.next_round()

    def step(self, batch, rng):
        logits = self.model(network_input(batch["image"].to(self.device, non_blocking=True)))
        self.crops += len(batch["label"])
        self.seen |= torch.bincount(batch["label"].flatten(), minlength=IGNORE_INDEX)[: len(self.seen)] > 0
        label = batch["label"].to(self.device, non_blocking=True).long()
        # The mean over labelled pixels, and 0 for a batch without any, where the built-in mean is NaN.
        loss = F.cross_entropy(logits, label, ignore_index=IGNORE_INDEX, reduction="sum")
        return {"cross_entropy": loss / (label != IGNORE_INDEX).sum().clamp(min=1)}

    def after_step(self):
        if self.crops >= ENOUGH_CROPS > self.crops - self.cfg.batch_size:
            self.judge_labels()

    def judge_labels(self) -> None:
        """Warn of the classes that no crop has shown, unless the last warning named the same."""
        unseen = [name for name, seen in zip(self.class_set.names, self.seen.tolist()) if not seen]
        if unseen != self.named:
            self.warn_of_unseen(self.cfg.source, unseen, f"the labels of {self.crops} crops")
        self.named = unseen

    def state(self):
        return {**super().state(), "crops": self.crops, "seen": self.seen}

    def restore(self, state):
        self.crops, self.seen = state["crops"], state["seen"]
        super().restore(state)

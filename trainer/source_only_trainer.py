"""Stage 0: cross entropy on the labelled source."""
import torch.nn.functional as F

from dataset import inspection, loaders
from dataset.labels import IGNORE_INDEX
from dataset.transforms import network_input
from trainer.base_trainer import BaseTrainer
from utils.schedule import poly_lr


class SourceOnlyTrainer(BaseTrainer):
    stage = "source_only"

    def training_samples(self):
        return inspection.training_samples(self.cfg, self.cfg.source, labels_needed=True)

    def train(self):
        cfg = self.cfg
        if self.position.round:
            return  # resumed behind the last step
        loader = loaders.source_loader(cfg, self.samples, self.position.step, self.device.type == "cuda")
        self.run_steps(loader, cfg.learning_rate, lambda lr, step: poly_lr(lr, step, cfg.num_steps, cfg.power))
        self.next_round()

    def step(self, batch, rng):
        logits = self.model(network_input(batch["image"].to(self.device, non_blocking=True)))
        label = batch["label"].to(self.device, non_blocking=True).long()
        # The mean over labelled pixels, and 0 for a batch without any, where the built-in mean is NaN.
        loss = F.cross_entropy(logits, label, ignore_index=IGNORE_INDEX, reduction="sum")
        return {"cross_entropy": loss / (label != IGNORE_INDEX).sum().clamp(min=1)}

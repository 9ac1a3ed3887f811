"""Stage 0: cross entropy on the labelled source."""
import torch.nn.functional as F

from dataset import loaders, segmentation
from dataset.labels import IGNORE_INDEX
from dataset.transforms import network_input
from trainer.base_trainer import BaseTrainer
from utils.schedule import poly_lr


class SourceOnlyTrainer(BaseTrainer):
    stage = "source_only"

    def training_samples(self):
        samples = segmentation.find_samples(self.cfg.source, self.cfg.source_data, "train")
        segmentation.require_labels(self.cfg.source, samples)
        return samples

    def train(self):
        cfg = self.cfg
        loader = loaders.source_loader(cfg, self.samples, self.device.type == "cuda")
        self.run_steps(loader, cfg.learning_rate, lambda lr, step: poly_lr(lr, step, cfg.num_steps, cfg.power))

    def step(self, batch, rng):
        logits = self.model(network_input(batch["image"].to(self.device, non_blocking=True)))
        label = batch["label"].to(self.device, non_blocking=True)
        # The mean over labelled pixels, and 0 for a batch without any, where the built-in mean is NaN.
        loss = F.cross_entropy(logits, label, ignore_index=IGNORE_INDEX, reduction="sum")
        return {"cross_entropy": loss / (label != IGNORE_INDEX).sum().clamp(min=1)}

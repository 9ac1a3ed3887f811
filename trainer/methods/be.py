"""Stage 2, boundary enhancement (You et al., ACM MM 2021): a mean teacher fills the gaps of the pseudo labels, and
ClassMix puts new boundaries into the images."""
import torch

from dataset.labels import IGNORE_INDEX
from model.ema import Teacher
from trainer import losses
from trainer.classmix import class_mix
from trainer.methods.base import SelfTraining
from utils.config_values import key
from utils.errors import ConfigError


class BoundaryEnhancement(SelfTraining):
    """Minimises the cross entropy of images mixed by ClassMix (`losses.mixed_cross_entropy`). Labels are the pseudo
    labels, and the teacher's predictions where a pixel has none."""

    title = "LDBE"
    uses_mean = True
    after = "ld"

    ema_alpha: float = key(0.99, "a, largest share of the old teacher that an update keeps", low=0, high=1)
    conf_thresh: float = key(0.97, "confidence whose share of pixels weights an image", low=0, high=1)

    @classmethod
    def check(cls, cfg):
        super().check(cfg)
        if cfg.batch_size < 2:
            raise ConfigError(f"batch_size: 1 is too small for method {cfg.method}, which mixes each image of a batch "
                              "with the next; use 2 or more.")

    def setup(self):
        self.teacher = Teacher(self.network, self.ema_alpha, self.cfg.compile)

    def losses(self, batch, rng):
        conf, label = self.teacher.predict(batch.images, self.cfg.bn_stats)
        selected = batch.labels != IGNORE_INDEX
        label, conf = torch.where(selected, batch.labels, label), conf.masked_fill(selected, 1)
        generator = torch.Generator().manual_seed(int(batch.rng.integers(2**63)))
        images, label, conf = class_mix(batch.images, label, conf, generator)
        return {"mixed": losses.mixed_cross_entropy(self.network(images), label, conf, self.conf_thresh, self.mean)}

    def after_step(self, batch):
        self.teacher.update(self.network)

    def networks(self):
        return {**super().networks(), "teacher": self.teacher.model}

    def parts(self):
        return {**super().parts(), "teacher": self.teacher}

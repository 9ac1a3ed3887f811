"""Mean teacher with strong augmentation: the target's half of DACS (Tranheden et al., WACV 2021) and DAFormer (Hoyer et
al., CVPR 2022), after Tarvainen and Valpola, "Mean teachers are better role models", NeurIPS 2017."""
from model.ema import Teacher
from trainer import augmentation, losses
from trainer.methods.base import Method
from utils.config_values import key


class MeanTeacher(Method):
    """Minimises q_i/(BHW) sum of -log p_y over the pixels of each crop i of a batch. y is the teacher's prediction on
    the crop as it is, p the student's on the crop with jittered colours and blur (`trainer/augmentation.py`), q_i the
    share of the crop's pixels with a teacher's confidence of at least `conf_thresh`
    (`losses.confidence_weighted_cross_entropy`). After each step theta' <- a theta' + (1 - a) theta.

    Without the source: both papers paste classes of labelled source images over the target's and also train on the
    source; DAFormer's rare class sampling and feature distance need it too. Strength and probabilities of jitter
    and blur are DAFormer's; whether they happen is drawn for each image here, for a batch there.
    """

    title = "Mean teacher"

    ema_alpha: float = key(0.99, "a, largest share of the old teacher that an update keeps", low=0, high=1)
    conf_thresh: float = key(0.968, "confidence whose share of pixels weights an image", low=0, high=1)
    jitter: float = key(0.2, "s: brightness, contrast and saturation are multiplied by U(1-s, 1+s), hue turns by "
                        "U(-s, s) of a circle", low=0, high=0.5)
    jitter_probability: float = key(0.8, "share of the crops whose colours are jittered", low=0, high=1)
    blur_probability: float = key(0.5, "share of the crops that are blurred", low=0, high=1)

    def setup(self):
        self.teacher = Teacher(self.network, self.ema_alpha, self.cfg.compile)

    def losses(self, batch, rng):
        confidence, label = self.teacher.predict(batch.images, self.cfg.bn_stats)
        pixels = augmentation.strong(batch.pixels, batch.rng, self.jitter, self.jitter_probability,
                                     self.blur_probability)
        logits = self.network(self.network.prepare(pixels))
        return {"consistency": losses.confidence_weighted_cross_entropy(logits, label, confidence, self.conf_thresh)}

    def after_step(self, batch):
        self.teacher.update(self.network)

    def networks(self):
        return {**super().networks(), "teacher": self.teacher.model}

    def parts(self):
        return {"teacher": self.teacher}

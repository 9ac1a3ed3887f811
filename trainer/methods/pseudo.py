"""Plain pseudo labels (Lee, "Pseudo-Label: the simple and efficient semi-supervised learning method for deep neural
networks", ICML workshop 2013): every pixel's prediction is its label."""
import torch

from trainer import losses
from trainer.methods.base import SelfTraining
from utils.config_values import UNUSED


class PlainPseudoLabels(SelfTraining):
    """Minimises -1/N sum_n log p_n(y_n) over all N pixels of a batch, y_n = argmax_c p_nc of the network at the start
    of the round. Every pixel is used, which makes it the baseline of LDBE's selection. Source-free. Lee's method is
    for classification, predicts the labels again in each step, and also trains on labelled images."""

    title = "Pseudo"
    cb_prop = portion_step = select_image = UNUSED

    def portion(self, round_index):
        return 1.0

    def select(self, logits, thresholds, portion):
        label = logits.max(0).indices
        return label, label.to(torch.uint8)

    def losses(self, batch, rng):
        return {"cross_entropy": losses.cross_entropy(self.network(batch.images), batch.labels,
                                                      labelled=batch.labelled)}

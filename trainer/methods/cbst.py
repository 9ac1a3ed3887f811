"""Class-balanced self-training, CBST (Zou et al., "Unsupervised domain adaptation for semantic segmentation via
class-balanced self-training", ECCV 2018)."""
import torch

from dataset.labels import IGNORE_INDEX
from trainer import losses, selection
from trainer.methods.base import SelfTraining
from utils.config_values import UNUSED


class ClassBalancedSelfTraining(SelfTraining):
    """Minimises -log p_y, mean over the selected pixels. The label is y = argmax_c p_c / delta_c, and the pixel is
    selected if that ratio reaches 1; delta_c is the confidence that the share `cb_prop` of the pixels predicted as c
    reaches (`selection.cbst_select`). The share grows by `portion_step` a round, as published from 0.2 by 0.05.

    Without the source: the published method also trains on labelled source images and mines small classes in them; its
    variant CBST-SP weights p by a map of where classes lie in them.
    """

    title = "CBST"
    cb_prop = 0.2
    select_image = UNUSED

    def select(self, logits, thresholds, portion):
        selected = selection.cbst_select(logits, thresholds).long()
        label = torch.where(selected == IGNORE_INDEX, logits.max(0).indices, selected)
        return label, selected.to(torch.uint8)

    def losses(self, batch, rng):
        return {"cross_entropy": losses.cross_entropy(self.network(batch.images), batch.labels,
                                                      labelled=batch.labelled)}

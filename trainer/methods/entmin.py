"""Entropy minimisation: MinEnt of ADVENT (Vu et al., "ADVENT: Adversarial entropy minimization for domain adaptation in
semantic segmentation", CVPR 2019)."""
import math

from trainer import losses
from trainer.methods.base import Method
from utils.config_values import key


class EntropyMinimisation(Method):
    """Minimises w / (N log C) sum_n sum_c -p_nc log p_nc over the N pixels of a batch of unlabelled crops.

    Without the source: the published method adds this term, with w = 0.001, to the cross entropy on labelled source
    images, which keeps it from collapsing; here it stands alone. The published code takes p log2(p + 1e-30).
    """

    title = "EntMin"

    entropy_weight: float = key(1.0, "w, weight of the entropy term", low=0)

    def losses(self, batch, rng):
        logits = self.network(batch.images)
        return {"entropy": self.entropy_weight / math.log(logits.shape[1]) * losses.entropy(logits)}

"""Confidence-regularised self-training, model regularisation by the Kullback-Leibler divergence (MRKLD; Zou et al.,
"Confidence regularized self-training", ICCV 2019)."""
from trainer import losses
from trainer.methods.cbst import ClassBalancedSelfTraining
from utils.config_values import key


class ConfidenceRegularisedSelfTraining(ClassBalancedSelfTraining):
    """Minimises -log p_y - w/C sum_c log p_c, mean over the pixels that `cbst` selects, with its labels y: up to a
    constant w KL(uniform || p) is added, which keeps the network from overconfidence in labels that may be wrong.

    Without the source, as `cbst`. The paper's w is 0.1; its released code multiplies by that number twice.
    """

    title = "CRST-MRKLD"

    kld_weight: float = key(0.1, "w, weight of the divergence from the uniform distribution", low=0)

    def losses(self, batch, rng):
        return {"cross_entropy": losses.crst_mrkld(self.network(batch.images), batch.labels, self.kld_weight,
                                                   labelled=batch.labelled)}

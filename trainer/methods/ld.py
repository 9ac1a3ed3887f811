"""Stage 1, label denoising (You et al., ACM MM 2021): positive and negative learning with pseudo labels."""
from trainer import fused_losses, losses
from trainer.methods.base import SelfTraining
from utils.config_values import key


class LabelDenoising(SelfTraining):
    """Minimises the sum of three terms (`fused_losses.ld_losses`): cross entropy where a pseudo label is selected,
    entropy, and -log(1 - p_k) for a class k of middle rank, which the pixel is likely not to belong to."""

    title = "LD"

    entropy_on: str = key("all", "pixels of the entropy loss: all (released code) or unselected (paper)",
                          choices=("all", "unselected"))
    entropy: str = key("released", "entropy loss: released (the released code takes the softmax twice: logsumexp(p) - "
                       "sum p^2) or shannon (paper: -sum p log p)", choices=("released", "shannon"))
    neg_rank_width: int = key(3, "w: rank of the complementary class is floor(C/2) + U{-w..w}, kept within 2..C",
                              low=0, high=255)

    def losses(self, batch, rng):
        logits = self.network(batch.images)
        rank = losses.negative_rank(self.cfg.num_classes, self.neg_rank_width, rng)
        return fused_losses.ld_losses(logits, batch.labels, rank, self.entropy_on, self.entropy,
                                      compile=self.cfg.compile, labelled=batch.labelled)

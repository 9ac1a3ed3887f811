"""Maximum squares (Chen, Xue and Cai, "Domain adaptation for semantic segmentation with maximum squares loss", ICCV
2019)."""
from trainer import losses
from trainer.methods.base import Method
from utils.config_values import key


class MaximumSquares(Method):
    """Minimises -1/(2N) sum_n sum_c p_nc^2 over the N pixels of an image, mean over the batch's unlabelled crops
    (`losses.maximum_squares`): confident pixels do not dominate the gradient as they do with the entropy.

    With `class_balance` q a pixel predicted as c has the weight 1 / (N_c^q N^(1-q)) in place of 1/N, N_c the image's
    pixels predicted as c (the paper's image-wise weighting, q = 0.2). Without the source: the published method adds
    the term, with weight 0.1, to the cross entropy on labelled source images. Its guidance by lower layers (+Multi) is
    left out, as it needs a second head.
    """

    title = "MaxSquare"

    class_balance: float = key(0.0, "q, exponent of the image-wise class balance; 0.2 in the paper, 0: none", low=0,
                               high=1)

    def losses(self, batch, rng):
        return {"squares": losses.maximum_squares(self.network(batch.images), self.class_balance)}

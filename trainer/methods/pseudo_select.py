"""Selected pseudo labels: the ablation Pse.+Sel. of You et al., ACM MM 2021 (arXiv 2110.06484)."""
from trainer import losses
from trainer.methods.base import SelfTraining


class SelectedPseudoLabels(SelfTraining):
    """Minimises label denoising's first term alone: -log p_y, mean over the selected pixels, y the prediction at the
    start of the round where its confidence reaches the class's intra-class threshold.

    Source-free as published. `select_image` adds each image's own most confident pixels, as the released code does.
    """

    title = "Pseudo + selection"

    def losses(self, batch, rng):
        return {"positive": losses.positive(self.network(batch.images), batch.labels, labelled=batch.labelled)}

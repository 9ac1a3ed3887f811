"""Batch-norm adaptation: the target's statistics in place of the source's. Parameters stay as they are.

Precise batch norm: Wu and Johnson, "Rethinking 'Batch' in BatchNorm", 2021 (arXiv 2105.07576). A mixture of source and
target: Schneider et al., "Improving robustness against common corruptions by covariate shift adaptation", NeurIPS 2020;
alpha-BN: You, Li and Zhao, "Test-time batch statistics calibration for covariate shift", 2021 (arXiv 2110.04065).
"""
from dataset import loaders
from model.statistics import TargetStatistics, batch_norms
from trainer.methods.base import Method
from utils import distributed
from utils.config_values import UNUSED, key
from utils.errors import ConfigError, TrainingError


class BatchNormAdaptation(Method):
    """One pass over the N whole target images, each in a batch of its own and normalised by its own statistics, as in
    pseudo-labelling. Nothing is minimised, so learning rate, crops and num_steps have no effect.

    With the mean m_n and the unbiased variance v_n of image n at a batch norm, m_T = 1/N sum_n m_n and v_T = 1/N sum_n
    v_n; the result is alpha m_S + (1 - alpha) m_T, and the same of v. Wu and Johnson define v_T = E[v + m^2] - E[m]^2
    (`bn_variance: population`) for batches of many images; their published code (fvcore) averages v_n. The average is
    the default, since here a batch is one image: it is the variance that normalised each image while it was seen.
    Schneider et al. write alpha = N/(N + n), N the weight of the source in images, and estimate m_T from n test images;
    here n is the whole training split of the target. A batch norm that sees one value per channel keeps the source's.
    A step is one image of each process, and the result the same with any number of processes.
    """

    title = "BN"
    trains = False
    epochs = UNUSED

    bn_momentum: float | None = key(None, "weight of each image in an exponential moving average that starts from the "
                                    "source's statistics; None: the mean over all images, without the source's", low=0,
                                    high=1, above=True)
    alpha: float = key(0.0, "share of the source's batch-norm statistics in the result", low=0, high=1)
    bn_variance: str = key("image", "variance of the target: image (mean of the images' variances) or population (plus "
                           "the variance of the images' means)", choices=("image", "population"))

    @classmethod
    def check_network(cls, cfg, network):
        if not batch_norms(network):
            raise ConfigError(f"method: {cfg.method} moves batch-norm statistics, and the network has none: use "
                              "another method.")

    def setup(self):
        self.statistics = TargetStatistics(self.network, self.bn_momentum, self.alpha, self.bn_variance == "population")

    def batches(self, round_index, first):
        rest = self.samples[first * distributed.size():]
        return loaders.lockstep_loader(self.cfg, self.cfg.target, rest, self.device.type == "cuda")

    def losses(self, batch, rng):
        self.statistics.add(batch.images)
        return {}

    def end_round(self, round_index):
        if not self.statistics.finite:
            raise distributed.of_all(TrainingError("batch-norm statistics are not finite: set amp=off or bf16, or "
                                                   "check init_weight and the target's images."))

    def parts(self):
        return {"statistics": self.statistics}

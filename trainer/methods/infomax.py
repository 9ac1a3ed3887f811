"""Information maximisation: SHOT-IM (Liang, Hu and Feng, "Do we really need to access the source data? Source
hypothesis transfer for unsupervised domain adaptation", ICML 2020)."""
from trainer import losses
from trainer.methods.base import Method
from utils.config_values import key
from utils.errors import ConfigError


class InformationMaximisation(Method):
    """Minimises 1/N sum_n H(p_n) - w H(m) over the N pixels of a batch of unlabelled crops, H the entropy and m the
    mean of p: pixels become confident, but not all of the same class.

    Source-free as published, for classification; its pseudo labels by clustering are left out. There m is taken over a
    batch of images, whose classes are balanced; over the pixels of few crops they are not. The head, SHOT's source
    hypothesis, is frozen as published; running statistics of batch norms in it still move.
    """

    title = "InfoMax"
    uses_mean = True

    diversity_weight: float = key(1.0, "w, weight of the entropy of the mean prediction", low=0)
    freeze_head: bool = key(True, "keep the head as trained on the source, as SHOT does")

    @classmethod
    def check_network(cls, cfg, network):
        if cfg.options["freeze_head"] and not network.parameter_groups(1, 1)[0]["params"]:
            raise ConfigError("freeze_head: True leaves nothing to train, the network is all head; set it to False, or "
                              "name the head's parameters by the key head.")

    def setup(self):
        if self.freeze_head:
            for parameter in self.network.parameter_groups(1, 1)[1]["params"]:
                parameter.requires_grad_(False)

    def losses(self, batch, rng):
        terms = losses.information_maximisation(self.network(batch.images), self.mean)
        return {"entropy": terms["entropy"], "diversity": self.diversity_weight * terms["diversity"]}

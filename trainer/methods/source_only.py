"""Stage 0: cross entropy on the labelled source."""
from dataset import inspection, loaders
from trainer import losses
from trainer.methods.base import ANY, Method
from trainer.seen_classes import SeenClasses
from utils.config_values import UNUSED

ENOUGH_CROPS = 1000  # after which a class without a single pixel is warned of, before the stage ends


class SourceOnly(Method):
    """Minimises the cross entropy for num_steps steps, and warns of classes that no label showed."""

    title = "source-only"
    needs_source = True
    starts_from = ANY
    epochs = UNUSED

    def setup(self):
        self.seen = SeenClasses(len(self.class_names), self.device)

    def batches(self, round_index, first):
        return loaders.source_loader(self.cfg, self.samples, first, self.device.type == "cuda")

    def losses(self, batch, rng):
        return {"cross_entropy": losses.cross_entropy(self.network(batch.images), batch.labels,
                                                      labelled=batch.labelled)}

    def after_step(self, batch):
        before = self.seen.crops
        self.seen.add(batch.labels)
        if self.seen.crops >= ENOUGH_CROPS > before:
            self.warn_of_unseen()

    def end_round(self, round_index):
        self.warn_of_unseen()

    def warn_of_unseen(self) -> None:
        """Warn of the classes that no crop has shown, unless the last warning named the same."""
        unseen = [self.class_names[c] for c in self.seen.unseen]
        if unseen and unseen != self.seen.named:
            where = f"the labels of {self.seen.crops} crops"
            self.log.say_once(f"warning: {inspection.never_seen(self.cfg, self.cfg.source, unseen, where)}")
        self.seen.named = unseen

    def parts(self):
        return {"seen": self.seen}

"""Validation during training: scores of the network on the target's validation split."""
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from dataset import inspection, loaders
from dataset.class_sets import class_set
from dataset.samples import Sample, Samples, shared_images
from model.segmenter import Segmenter
from trainer import evaluate, pictures
from utils import distributed
from utils.checkpoint import write_atomically
from utils.config import Config
from utils.logger import RunLog
from utils.progress import Progress


class Validation:
    """Scores the network on the validation split and keeps the last scores, as a part of a run's saved state. Of
    several processes each predicts its share of the images, and all have the scores.

    scores: `evaluate.protocol_scores`; None before the first validation, and where the split cannot be scored. samples:
    of the split, none where it cannot be scored. remarks: lines for the log, among them why it cannot. Building it
    raises DataError if only some of the split's labels are there.
    """

    def __init__(self, cfg: Config, training_samples: Sequence[Sample], pin_memory: bool):
        self.cfg, self._at = cfg, -1
        self.scores: dict[str, dict] | None = None
        self.class_set = class_set(cfg)
        self.samples = Samples.of([])
        self._loader, self.remarks = None, [f"{inspection.NO_VALIDATION}: val is False"]
        if not cfg.val:
            return
        samples, self.remarks = inspection.validation_samples(cfg)
        if not samples:
            return
        self.samples = samples
        if shared := shared_images(samples, training_samples):
            self.remarks.append(f"note: {shared} of the {len(samples)} validation images are trained on as well")
        self._loader = loaders.whole_image_loader(cfg, cfg.target, distributed.share(samples), True, pin_memory)

    @property
    def possible(self) -> bool:
        """Whether the split can be scored."""
        return self._loader is not None

    def run(self, network: Segmenter, step: int, log: RunLog, check: Callable[[], None]) -> None:
        """Score the network and log the scores, unless it has been scored at this step already. check: as for
        `evaluate.evaluate`."""
        if not self.possible or self._at == step:
            return
        confusion = self._confusion(network, check)
        self.scores, self._at = evaluate.protocol_scores(confusion, self.class_set), step
        log.event("val", step, **self.scores)
        log.picture("confusion", step, lambda: pictures.confusion_picture(confusion.numpy(), self.class_set))
        log.say(f"step {step}: mIoU {evaluate.means(self.scores)}")
        if unseen := evaluate.unseen_classes(self.scores, self.class_set):
            seen = inspection.never_seen(self.cfg, self.cfg.target, unseen, "the validation labels")
            log.say_once(f"warning: {seen}")

    def score(self, network: Segmenter, check: Callable[[], None]) -> dict[str, dict]:
        """The scores of a network on the split, which must be one that can be scored."""
        return evaluate.protocol_scores(self._confusion(network, check), self.class_set)

    def miou(self, network: Segmenter, check: Callable[[], None]) -> float | None:
        """The mIoU of a network on the split by the first protocol, in percent."""
        return next(iter(self.score(network, check).values()))["miou"]

    def write(self) -> None:
        """Write the scores to `<result>/<note>/<stage>.json`, if there are any. Of several processes the first does."""
        if self.scores is not None and distributed.is_main():
            content = json.dumps(self.scores, indent=1).encode()
            path = Path(self.cfg.result) / self.cfg.note / f"{self.cfg.stage}.json"
            write_atomically(path, lambda file: file.write(content))

    def state_dict(self) -> dict:
        """The last scores, and the step that they belong to."""
        return {"scores": self.scores, "at": self._at}

    def load_state_dict(self, state: dict) -> None:
        """Go on from where `state_dict` was."""
        self.scores, self._at = state["scores"], state["at"]

    def _confusion(self, network, check):
        pace = Progress(self._loader, "validation", self.cfg.print_freq, self.cfg.screen)
        device = next(network.parameters()).device
        return evaluate.evaluate(network, pace, self.cfg.num_classes, device, check, len(self.class_set.labels))

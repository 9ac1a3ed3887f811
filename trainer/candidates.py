"""The candidates of a run: the states of its network that it may hand back, their label-free scores, and the choice."""
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dataset import loaders
from dataset.segmentation import Sample
from model.segmenter import Segmenter
from model.statistics import batch_norms, refreshed
from model.weights import save_weights
from trainer import label_free
from trainer.verdict import REFERENCES, Verdict, decide, table
from utils.checkpoint import write_atomically
from utils.config import Config
from utils.logger import RunLog

UNTOUCHED, ADAPTED, MIXED = REFERENCES
MIXED_ALPHA = 0.8  # share of the source's statistics, as in DIGA (Wang et al., CVPR 2023)
_PROMISING = 5  # best-scored candidates whose weights are kept beside the references


class Candidates:
    """States of the network of a run, each with its predictions of a fixed sample of target images and its scores.

    Of each there are `<snapshot>/<note>/<stage>.candidates/NNN.pth`, its weights, and NNN.npy, its predictions uint8
    [n, C, h, w] (probabilities x 255 on the grid of `label_free.grid_size`). Weights are pruned to the references and
    the promising ones. Memory does not depend on the number of candidates.

    It is a part of a run's saved state. check: called between images; what it raises ends the run.
    """

    def __init__(self, cfg: Config, samples: list[Sample], device: torch.device, log: RunLog,
                 check: Callable[[], None], miou: Callable[[Segmenter], float | None]):
        self.cfg, self.device, self.log, self.check, self.miou = cfg, device, log, check, miou
        count = min(cfg.score_images, len(samples))
        chosen = np.random.default_rng([cfg.seed, 2**31]).choice(len(samples), count, replace=False)
        self.samples = [samples[i] for i in sorted(chosen)]
        width, height = cfg.target_data.input_size
        self.grid = label_free.grid_size((height, width))
        self.folder = Path(cfg.snapshot) / cfg.note / f"{cfg.stage}.candidates"
        self.records: list[dict[str, Any]] = []

    # ---- collecting --------------------------------------------------------------------------------------------------

    def begin(self, network: Segmenter) -> None:
        """Add the references, made of the network as it is before training."""
        self._add(UNTOUCHED, 0, network)
        if batch_norms(network):
            for name, alpha in ((ADAPTED, 0.0), (MIXED, MIXED_ALPHA)):
                if not self._known(name):
                    with refreshed(network, self._images(network), alpha):
                        self._add(name, 0, network)

    def consider(self, step: int, networks: Mapping[str, Segmenter]) -> None:
        """Add networks as they stand at a step, and each with refreshed statistics. networks: title, which may be
        empty, -> network. Those that have been added at this step are left out."""
        for title, network in networks.items():
            name = f"step {step} {title}".rstrip()
            self._add(name, step, network)
            if batch_norms(network) and not self._known(f"{name} refreshed"):
                with refreshed(network, self._images(network)):
                    self._add(f"{name} refreshed", step, network)

    def _known(self, name):
        return any(record["name"] == name for record in self.records)

    def _add(self, name, step, network):
        if self._known(name):
            return
        stem = f"{len(self.records):03d}"
        network.use_statistics("running")
        with torch.no_grad():
            measured = list(label_free.measure(network, self._images(network), self.grid))
        sums = label_free.total([each for _, each in measured])
        predictions = np.stack([probs.numpy() for probs, _ in measured])
        save_weights(network, self.folder / f"{stem}.pth")
        write_atomically(self.folder / f"{stem}.npy", lambda file: np.save(file, predictions))
        scores = sums.scores() if sums.finite else dict.fromkeys(label_free.SCORES[1:])
        if self.cfg.select_by == "miou":
            scores["miou"] = self.miou(network)
        self.records.append({"name": name, "step": step, "file": stem, "kept": True, "scores": scores,
                             "histogram": sums.shares()})

    def _images(self, network) -> Iterator[Tensor]:
        loader = loaders.whole_image_loader(self.cfg, self.cfg.target, self.samples, False, self.device.type == "cuda")
        for item in loader:
            self.check()
            yield network.prepare(item["image"].to(self.device, non_blocking=True))

    # ---- judging -----------------------------------------------------------------------------------------------------

    def judge(self, step: int) -> Verdict:
        """Score the agreement of all candidates, choose one, say and log the verdict, and prune."""
        predictions = [np.load(self.folder / f"{record['file']}.npy", mmap_mode="r") for record in self.records]
        verdict = decide(self.records, predictions, self.cfg.select_by)
        self._prune(verdict)
        self.log.say(table(verdict))
        self.log.event("verdict", step, **verdict.as_dict())
        return verdict

    def _prune(self, verdict):
        """Remove the weights of candidates that are neither references nor promising."""
        if self.cfg.keep_candidates:
            return
        kept = {*REFERENCES, *verdict.ranking[:_PROMISING], verdict.chosen}
        for record in self.records:
            if record["name"] not in kept:
                record["kept"] = False
                (self.folder / f"{record['file']}.pth").unlink(missing_ok=True)

    def finish(self, verdict: Verdict) -> Path:
        """Write `<stage>_chosen.pth` and `<stage>_verdict.json` beside the stage's checkpoint. Returns the former."""
        chosen = next(record for record in self.records if record["name"] == verdict.chosen)
        weights = (self.folder / f"{chosen['file']}.pth").read_bytes()
        path = self.folder.with_name(f"{self.cfg.stage}_chosen.pth")
        write_atomically(path, lambda file: file.write(weights))
        content = json.dumps(verdict.as_dict(), indent=1).encode()
        write_atomically(self.folder.with_name(f"{self.cfg.stage}_verdict.json"), lambda file: file.write(content))
        return path

    # ---- as a part of the saved state --------------------------------------------------------------------------------

    def state_dict(self) -> dict:
        """What is known of each candidate; the files are not part of it."""
        return {"records": self.records}

    def load_state_dict(self, state: dict) -> None:
        """Go on from where `state_dict` was."""
        self.records = state["records"]

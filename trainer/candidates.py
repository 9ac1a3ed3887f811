"""The candidates of a run: the states of its network that it may hand back, their label-free scores, and the choice."""
import hashlib
import io
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dataset import loaders
from dataset.segmentation import Sample
from model.segmenter import Segmenter
from model.statistics import batch_norms, gathered
from model.weights import save_weights
from trainer import label_free
from trainer.verdict import CHOSEN, FILE, LEVELS, REFERENCES, UNTOUCHED, Verdict, decide, lost, scored, table
from utils import distributed
from utils.checkpoint import write_atomically
from utils.config import Config
from utils.errors import naming
from utils.logger import RunLog

# Share of the source's batch-norm statistics in candidates that mix them with the target's: 0.8 as in DIGA (Wang et
# al., CVPR 2023), and half.
_OF_SOURCE = {"adapted statistics": 0.0, "half-adapted statistics": 0.5, "mixed statistics": 0.8}
_OF_STATE = {"refreshed": 0.0, "half-refreshed": 0.5}
_PROMISING = 5  # best-scored candidates whose weights are kept beside the references


class Candidates:
    """States of the network of a run, each with its predictions of a fixed sample of target images and its scores.

    Of each there are `<snapshot>/<note>/<stage>.candidates/NNN.pth`, its weights, and NNN.npy, its predictions uint8
    [n, C, h, w] (probabilities x 255 on the grid of `label_free.grid_size`). Weights are pruned to the references and
    the promising ones. Memory does not depend on the number of candidates.

    Of several processes each predicts its share of the sample; all end with the same records, and the first writes the
    files. `begin`, `consider` and `judge` are collective; the first alone calls `hand_back`.

    It is a part of a run's saved state. class_names: of the network's classes. check: called between images; what it
    raises ends the run. miou: the mIoU of a network on the validation split, for `select_by: miou`. collapsed: whether
    the network that is trained has collapsed, at the last look.
    """

    def __init__(self, cfg: Config, samples: Sequence[Sample], class_names: tuple[str, ...], device: torch.device,
                 log: RunLog, check: Callable[[], None], miou: Callable[[Segmenter], float | None]):
        self.cfg, self.class_names, self.device, self.log = cfg, class_names, device, log
        self.check, self.miou, self.collapsed = check, miou, False
        count = min(cfg.score_images, len(samples))
        chosen = np.random.default_rng([cfg.seed, 2**31]).choice(len(samples), count, replace=False)
        self.samples = [samples[i] for i in sorted(chosen)]
        width, height = cfg.target_data.input_size
        self.grid = label_free.grid_size((height, width))
        self.folder = _folder(cfg)
        self.records: list[dict[str, Any]] = []
        self._judged = -1
        self._source: Tensor | None = None  # moments of the untouched network's batch norms

    # ---- collecting --------------------------------------------------------------------------------------------------

    def begin(self, network: Segmenter) -> None:
        """Add the references, made of the network as it is before training."""
        self._add(UNTOUCHED, 0, network)
        self._add_mixtures(network, 0, _OF_SOURCE)

    def consider(self, step: int, networks: Mapping[str, Segmenter]) -> None:
        """Add networks as they stand at a step, and each with refreshed statistics. networks: title, empty for the one
        that is trained, -> network. Those that have been added at this step are left out."""
        for title, network in networks.items():
            name = f"step {step} {title}".rstrip()
            self._add(name, step, network, trained=not title)
            self._add_mixtures(network, step, {f"{name} {kind}": alpha for kind, alpha in _OF_STATE.items()})
        self._look(step)

    def _add_mixtures(self, network, step, mixtures):
        """Add the network with batch-norm statistics of the target mixed with those of the untouched network."""
        if not batch_norms(network) or all(self._known(name) for name in mixtures):
            return
        with gathered(network, self._images(network), self._source) as statistics:
            self._source = statistics.source
            for name, alpha in mixtures.items():
                statistics.use(alpha)
                self._add(name, step, network)

    def _look(self, step):
        """Say which classes the network has lost, and note whether it has collapsed: even with refreshed statistics."""
        seen = distributed.from_main(lambda: scored(self.records, self._predictions()))
        now = [c for c in seen if c["step"] == step and c["name"] not in REFERENCES]
        self.collapsed = all(c["collapsed"] for c in now)
        references = [c for c in seen if c["name"] in REFERENCES]
        gone = lost(references, next(c for c in now if c["trained"]))
        if gone:
            shares = ", ".join(f"{self.class_names[c]} (of {before:.1%} of the pixels {after:.2%} are left)"
                               for c, before, after in gone)
            self.log.say(f"warning: step {step}: classes vanish from the predictions: {shares}")
        if self.collapsed:
            self.log.say(f"warning: step {step}: the network agrees with no reference any more: it has collapsed")

    def _known(self, name):
        return any(record["name"] == name for record in self.records)

    def _add(self, name, step, network, trained=False):
        if self._known(name):
            return
        stem = f"{len(self.records):03d}"
        network.use_statistics("running")
        with distributed.together(), torch.no_grad():
            own = list(label_free.measure(network, self._images(network), self.grid))
        measured = distributed.collected(own)
        sums = label_free.total([each for _, each in measured])
        content = io.BytesIO()
        np.save(content, np.stack([probs.numpy() for probs, _ in measured]))

        def write():
            save_weights(network, self.folder / f"{stem}.pth")
            write_atomically(self.folder / f"{stem}.npy", lambda file: file.write(content.getbuffer()))
        distributed.from_main(write)
        scores = sums.scores() if sums.finite else dict.fromkeys(label_free.OWN_SCORES)
        if self.cfg.select_by == "miou":
            scores["miou"] = self.miou(network)
        self.log.event("candidate", step, **{name.removeprefix(f"step {step}").strip() or "network": scores})
        self.records.append({"name": name, "step": step, "trained": trained, "file": stem, "kept": True,
                             "scores": scores, "histogram": sums.shares(), "digest": _digest(content.getbuffer())})

    def _images(self, network: Segmenter) -> Iterator[Tensor]:
        """This process's share of the sample."""
        loader = loaders.whole_image_loader(self.cfg, self.cfg.target, distributed.share(self.samples), False,
                                            self.device.type == "cuda")
        for item in loader:
            self.check()
            yield network.prepare(item["image"].to(self.device, non_blocking=True))

    # ---- judging -----------------------------------------------------------------------------------------------------

    def judge(self, step: int) -> None:
        """Say and log the verdict at a step, once, and prune."""
        if self._judged == step:
            return
        verdict = distributed.from_main(self._decide)
        self._prune(verdict)
        self.log.say(table(verdict))
        trust = {c["name"]: c["scores"]["trust"] for c in verdict.candidates}
        self.log.event("verdict", step, **verdict.as_dict(), level=LEVELS[verdict.verdict],  # numbers for TensorBoard
                       trust={"chosen": trust[verdict.chosen], "untouched": trust[UNTOUCHED]})
        self._judged = step

    def _decide(self) -> Verdict:
        return decide(self.records, self._predictions(), self.cfg.select_by)

    def _predictions(self):
        return [np.load(self.folder / f"{record['file']}.npy", mmap_mode="r") for record in self.records]

    def _prune(self, verdict):
        """Remove the weights of candidates that are neither references nor promising."""
        if self.cfg.keep_candidates:
            return
        kept = {*REFERENCES, *verdict.ranking[:_PROMISING], verdict.chosen}
        for record in self.records:
            if record["name"] not in kept:
                record["kept"] = False
                if distributed.is_main():
                    (self.folder / f"{record['file']}.pth").unlink(missing_ok=True)

    def hand_back(self) -> tuple[Path, Verdict]:
        """Write `<stage>_chosen.pth` and `<stage>_verdict.json` beside the stage's checkpoint. Returns the path of the
        former, and the verdict."""
        verdict = self._decide()
        chosen = next(record for record in self.records if record["name"] == verdict.chosen)
        file = self.folder / f"{chosen['file']}.pth"
        with naming(file):
            weights = file.read_bytes()
        path = self.folder.with_name(f"{self.cfg.stage}{CHOSEN}.pth")
        write_atomically(path, lambda file: file.write(weights))
        content = json.dumps(verdict.as_dict(), indent=1).encode()
        write_atomically(self.folder.with_name(f"{self.cfg.stage}{FILE}"), lambda file: file.write(content))
        return path, verdict

    # ---- as a part of the saved state --------------------------------------------------------------------------------

    def state_dict(self) -> dict:
        """What is known of each candidate; of the files only hashes."""
        return {"records": self.records, "judged": self._judged, "collapsed": self.collapsed,
                "source": self._source}

    def load_state_dict(self, state: dict) -> None:
        """Go on from where `state_dict` was."""
        self.records, self._judged, self.collapsed = state["records"], state["judged"], state["collapsed"]
        self._source = state["source"]


def clear(cfg: Config, finished: bool) -> None:
    """Remove the folder of a run's candidates; that of a finished run not if `keep_candidates`."""
    if not (finished and cfg.keep_candidates):
        shutil.rmtree(_folder(cfg), ignore_errors=True)


def intact(cfg: Config, state: dict) -> bool:
    """Whether the predictions that a saved state relies on are there as they were. state: with `parts`."""
    try:
        return all(_digest((_folder(cfg) / f"{r['file']}.npy").read_bytes()) == r["digest"]
                   for r in state["parts"].get("candidates", {"records": []})["records"])
    except (OSError, KeyError, TypeError):
        return False


def _folder(cfg):
    return Path(cfg.snapshot) / cfg.note / f"{cfg.stage}.candidates"


def _digest(content):
    return hashlib.sha256(content).hexdigest()

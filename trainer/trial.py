"""The parts of a run, each done and timed on a few of its images."""
import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dataset import inspection, loaders
from dataset.class_sets import class_set
from dataset.missing_labels import looked_at
from dataset.survey import spread
from trainer import evaluate, forecast
from trainer.candidates import Candidates
from trainer.forecast import Files, Part
from trainer.loop import Trainer
from trainer.methods.base import Batches, Method
from trainer.stopwatch import ENOUGH, MOST, Stopwatch
from utils.config import Config
from utils.errors import DataError
from utils.logger import RunLog
from utils.progress import Progress, say

HEADERS = 10_000  # of a long list whose headers are read
_SPARED = 6    # candidates beside the references whose weights a round's end leaves: the best five, and the chosen one


class Trial:
    """A run that is done on a few of its images. cfg: with folders for this trial alone.

    parts, files: what the whole run takes, once `run` has ended; a file's `folder` is a key of the configuration.
    watch: has the peaks of memory.
    """

    def __init__(self, cfg: Config):
        began = time.monotonic()
        self.trainer = trainer = Trainer(cfg)
        self.cfg = cfg = trainer.cfg
        self.parts = [Part("start", 1, time.monotonic() - began)]
        self.files: list[Files] = []
        self.watch = Stopwatch(trainer.device)
        trainer.log.close()
        trainer.log = _Unsaid(Path(cfg.log) / cfg.note, "dry-run", False)
        trainer.log.open()
        method: Method | None = trainer.method
        self.steps = [len(method.batches(r, 0)) for r in range(method.first_round, method.rounds)] if cfg.train else []
        self.scored = inspection.validation_samples(cfg)[0] if trainer.validation.possible else []
        self._candidates: Candidates | None = None
        self._marks: list[float] = []  # when the scoring of an image began
        self._took = 0.0, 0.0        # what `_scoring` found last

    def close(self) -> None:
        """Let go of the files."""
        self.trainer.log.close()
        self.trainer.folder.release()

    def run(self) -> None:
        """Do every part, in the order of a run."""
        self._read_headers()
        if self.cfg.train:
            self._references()
            self._gather_statistics()
            self._prepare_round()
            self._take_steps()
            self._consider()
        self._validate()
        if self.cfg.train:
            self._save()

    # ---- the parts of a run ------------------------------------------------------------------------------------------

    def _read_headers(self):
        """Read the header of every image, and of every label that the run reads; of long lists, of some. Raises
        DataError for the first that would stop it."""
        cfg, training = self.cfg, self.trainer.samples
        if not cfg.method_class.needs_source and not inspection.labels_compared(cfg, training):
            training = training.without_labels()
        samples = list(dict.fromkeys(s for part in (training, self.scored) for s in looked_at(part, HEADERS)))
        loader = loaders.ReadingLoader(inspection.header_fault, samples, loaders.worker_count(cfg),
                                       lambda sample: str(sample.image))
        if faults := [fault for fault in Progress(loader, "headers", 1000, cfg.screen) if fault]:
            more = f" ({len(faults) - 1} more: python -m dataset.check lists them)" if len(faults) > 1 else ""
            raise DataError(faults[0] + more)

    def _references(self):
        """Score the networks that a run begins with, where it has candidates."""
        def begin(count):
            cfg = dataclasses.replace(self.cfg, score_images=count)
            self._candidates = Candidates(cfg, trainer.samples, class_set(cfg).names, trainer.device, trainer.log,
                                          self._mark, lambda network: 0.0)
            self._took = self._scoring(lambda: self._candidates.begin(trainer.network))
            return self._took[0] * count
        trainer = self.trainer
        if trainer.candidates:
            say("dry run: candidates")
            self.watch.per_item(begin, len(trainer.candidates.samples))
            self._add_scoring("references", len(self._candidates.records), 1)

    def _mark(self):
        self._marks.append(time.perf_counter())

    def _scoring(self, work):
        """(seconds for each image, other seconds) of scoring candidates, which calls `_mark` before every image."""
        count = len(self._candidates.samples)
        self._marks.clear()
        seconds = self.watch.seconds(work)
        if count == 1:
            return seconds, 0.0
        passes = [self._marks[i: i + count] for i in range(0, len(self._marks), count)]
        each = sum((marks[-1] - marks[0]) / (count - 1) for marks in passes)
        return each, max(0.0, seconds - each * count)

    def _add_scoring(self, title, number, times):
        """Add candidates of which `number` together were scored last, and which come `times` times."""
        each, rest = self._took
        self.parts.append(Part(title, number * times, (each * len(self.trainer.candidates.samples) + rest) / number))

    def _gather_statistics(self):
        """Gather the target's batch-norm statistics, if `bn_source` asks for them."""
        def gather(count):
            return self.watch.seconds(lambda: trainer.alpha_bn.start(trainer.network, self._images(count)))
        trainer = self.trainer
        if trainer.alpha_bn:
            say("dry run: statistics")
            total = len(trainer.samples)
            self.parts.append(Part("statistics, images", total, self.watch.per_item(gather, total)))

    def _prepare_round(self):
        """Build the method for a few images and let it prepare its first round."""
        def prepare(count):
            trainer.method = None  # before the next one is built: it may hold a copy of the network
            trainer.method = trainer.new_method(spread(trainer.samples, count))
            return self.watch.seconds(lambda: trainer.method.prepare_round(trainer.position.round))
        trainer, total, rounds = self.trainer, len(self.trainer.samples), len(self.steps)
        if type(trainer.method).prepare_round is Method.prepare_round:
            prepare(min(total, MOST))
            return
        say("dry run: labelling")
        self.parts.append(Part("labelling, images", total * rounds, self.watch.per_item(prepare, total)))
        self.watch.note_peak("labelling")
        if size := _size_of(Path(self.cfg.plabel)):
            self.files.append(Files("pseudo labels", "plabel", size / len(trainer.method.samples) * total * rounds))
            with torch.no_grad():
                packed = 2 * total * trainer.network.score_map(next(self._images(1))).numel()  # 16 bits a number
            if packed > self.cfg.score_budget * 2**20:
                self.files.append(Files("score maps", "plabel", packed, kept=False))

    def _take_steps(self):
        """Take steps of the first round. The very first is not timed."""
        trainer, timed = self.trainer, []
        method, position = trainer.method, trainer.position
        say("dry run: steps")
        trainer.begin_optimisation()
        for item, waited in _again(method.batches(position.round, 0)):
            if trainer.optimisation:
                trainer.optimisation.schedule(method.base_lr(position.round), position.step)
            timed.append(waited + self.watch.seconds(lambda item=item: trainer.step(item)))
            position.step += 1
            position.global_step += 1
            if len(timed) > MOST or sum(timed[1:]) >= ENOUGH:
                break
        method.end_round(position.round)
        self.parts.append(Part("steps", sum(self.steps), float(np.mean(timed[1:] or [0.0]))))
        self.watch.note_peak("training")

    def _consider(self):
        """Score the trained networks, as a run does several times in a round."""
        cfg, candidates = self.cfg, self._candidates
        if not candidates:
            return
        before, images = len(candidates.records), len(candidates.samples)
        self._took = self._scoring(lambda: candidates.consider(1, self.trainer.method.networks()))
        added = len(candidates.records) - before
        looks = [forecast.looks(n, cfg.candidate_freq, self.trainer.method.trains) for n in self.steps]
        self._add_scoring("candidates", added, sum(looks))
        self.watch.note_peak("candidates")
        most = forecast.most_weights(looks, before, added, _SPARED, cfg.keep_candidates)
        sizes = [[f.stat().st_size for f in candidates.folder.glob(f"*.{kind}")] for kind in ("pth", "npy")]
        maps = sum(sizes[1]) / len(sizes[1]) * len(self.trainer.candidates.samples) / images
        size = most * max(sizes[0]) + (before + sum(looks) * added) * maps
        self.files.append(Files("candidates", "snapshot", size, kept=cfg.keep_candidates))

    def _validate(self):
        """Score the network on images of the validation split."""
        def validate(count):
            samples = spread(self.scored, count)
            loader = loaders.whole_image_loader(cfg, cfg.target, samples, True, device.type == "cuda")
            return self.watch.seconds(lambda: evaluate.evaluate(trainer.network, loader, cfg.num_classes, device,
                                                                num_labels=len(class_set(cfg).labels)))
        cfg, trainer, device = self.cfg, self.trainer, self.trainer.device
        if self.scored:
            say("dry run: validation")
            times = forecast.validations(self.steps, cfg.val_freq)
            if cfg.select_by == "miou":
                times += sum(part.count for part in self.parts if part.title in ("references", "candidates"))
            each = self.watch.per_item(validate, len(self.scored))
            self.parts.append(Part("validation, images", times * len(self.scored), each))
            self.watch.note_peak("validation")

    def _save(self):
        """Save state and results, and count their bytes."""
        trainer, cfg = self.trainer, self.cfg
        trainer.candidates = self._candidates
        folder = Path(cfg.snapshot) / cfg.note
        sizes = [_size_of(folder)]
        seconds = []
        for save in (trainer.save_state, trainer.save):
            seconds.append(self.watch.seconds(save))
            sizes.append(_size_of(folder))
        count = 2 * len(self.steps) + sum(self.steps) // cfg.save_freq
        self.parts += [Part("saved states", count, seconds[0]), Part("results", 1, seconds[1])]
        held = min(count, cfg.keep + 1) + 1  # with the one at the round's start, and the one being written
        self.files += [Files("saved states", "snapshot", held * (sizes[1] - sizes[0]), kept=False),
                       Files("results", "snapshot", sizes[2] - sizes[1])]

    def _images(self, count: int) -> Iterator[Tensor]:
        trainer = self.trainer
        loader = loaders.whole_image_loader(self.cfg, self.cfg.target, spread(trainer.samples, count), False,
                                            trainer.device.type == "cuda")
        for item in loader:
            yield trainer.network.prepare(item["image"].to(trainer.device, non_blocking=True))


class _Unsaid(RunLog):
    """A log whose lines, which are about a few images alone, are not printed."""

    def say(self, text):
        pass


def _again(batches: Batches) -> Iterator[tuple[dict[str, Any], float]]:
    """The batches again and again, each with the seconds for which it was waited; 0 for the first of each pass, as a
    whole round has one only."""
    waited, some = 0.0, True
    while some:
        some, began = False, 0.0
        for item in batches:
            waited, some = time.perf_counter() - began if some else 0.0, True
            yield item, waited
            began = time.perf_counter()


def _size_of(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())

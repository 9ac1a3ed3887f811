"""One run of one method: its assembly, the training loop, validation, saving and resuming."""
import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from dataset import inspection, loaders, segmentation
from dataset.class_sets import class_set
from dataset.segmentation import Sample
from model.alpha_bn import AlphaBatchNorm
from model.build import build_model, pick_device, with_precision
from model.weights import save_weights, source_sha256
from trainer import agreement, candidates
from trainer.candidates import Candidates
from trainer.checks import FiniteCheck, require_device, require_parts, require_start, require_trained
from trainer.handover import leave_folders, provenance
from trainer.methods.base import Batch, Batches, Method, Setting
from trainer.optimisation import Optimisation
from trainer.parts import Parts
from trainer.pictures import Pictures
from trainer.run_folder import RunFolder
from trainer.run_state import Position, newest_state, restore_parts, saved_state, with_saved_precision
from trainer.validation import Validation
from trainer.verdict import start_remark
from utils import distributed
from utils.checkpoint import digest
from utils.config import Config, config_remarks, drawn_seed
from utils.errors import ConfigError, NothingToDo, Stopped, TrainingError, one_line
from utils.interrupt import Interrupt
from utils.logger import RunLog
from utils.machine import machine, peak_memory, versions
from utils.progress import Progress


class Trainer:
    """One run: its steps, learning-rate schedule, validation and saved states.

    The method (`trainer/methods`) decides which images the run trains on and what it minimises; nothing here depends on
    the method's name.

    Building a Trainer checks configuration, data, weights and saved states, and raises a UserError before anything is
    written. Saved states and random numbers are functions of the configuration, the data and `position` alone.
    Therefore a resumed run ends, on the CPU, with the same bits as one that was never stopped.
    """

    def __init__(self, cfg: Config):
        method = cfg.method_class
        self.device = pick_device(cfg.device)
        agreement.require_same_run(cfg, self.device)
        torch.backends.cudnn.benchmark = True  # all crops have one size, and so, as a rule, do whole images
        require_start(cfg)
        require_device(cfg, self.device)
        remarks = [f"note: {remark}" for remark in config_remarks(cfg)] + start_remark(cfg.init_weight)
        section = cfg.source if method.needs_source else cfg.target
        self.samples, more = inspection.training_samples(cfg, section, labels_needed=method.needs_source)
        remarks += more
        self.fingerprint = segmentation.fingerprint(self.samples)  # now, as a later save may find the disk gone
        self.validation = Validation(cfg, self.samples, self.device.type == "cuda")
        remarks += [r for r in self.validation.remarks if r not in remarks]  # one list or folder may serve both splits
        agreement.require_same_images(self.samples, self.fingerprint, self.validation.samples)
        agreement.require_shared_folders(cfg)
        self.folder = RunFolder(cfg)
        try:
            self.folder.last_state, self._resumed = newest_state(
                cfg, self.folder.states, self.samples,
                lambda state: all([method.usable(cfg, self.samples, state), candidates.intact(cfg, state)]), remarks)
        except NothingToDo:
            self.folder.finish()  # an earlier call may have been cut off before that
            raise
        if not cfg.fix_seed:
            cfg = (dataclasses.replace(cfg, seed=self._resumed["seed"], fix_seed=True) if self._resumed else
                   dataclasses.replace(cfg, seed=distributed.from_main(drawn_seed), fix_seed=True))
        cfg = with_precision(with_saved_precision(cfg, self._resumed) if self._resumed else cfg, self.device)
        self.cfg = cfg
        torch.manual_seed(cfg.seed)
        self.network, report = build_model(cfg, self.device, load=not self._resumed)
        if not self._resumed:
            require_trained(cfg, report)
            agreement.require_same_beginning(cfg, self.network.state_dict())
        self.start = self._begun_with(remarks)
        method.check_network(cfg, self.network)
        if not self.network.has_batch_norm:
            remarks.append("note: the network has no batch norm: fixbn and bn_stats have no effect")
        self.position, self.interrupt = Position(0), Interrupt()
        self.alpha_bn = AlphaBatchNorm(self.network, cfg.bn_source) if cfg.bn_source and method.trains else None
        if self.alpha_bn:
            self.network.training_norm = self.alpha_bn.normalise
        elif cfg.sync_bn:
            self.network.synchronise_norms()
        self.parts = Parts(cfg, self.network, self.position)
        self.optimisation: Optimisation | None = None  # of the round that runs, where the method trains
        self.finite = FiniteCheck()
        self.log = self._new_log()
        self.method = self.new_method(self.samples)
        self.position.round = self.method.first_round
        require_parts(cfg.method, self.method.parts())
        self.candidates = self._new_candidates()
        self.pictures = Pictures(cfg, self.validation.samples if method.needs_source else self.samples, self.device,
                                 self.log)
        self._start_writing(remarks, report)

    def run(self) -> dict | None:
        """Train, save and validate. Returns the scores of the last validation (`evaluate.protocol_scores`), None
        without one.

        Raises Stopped, whose text says what to do, when a signal has ended the run and its state is saved.
        """
        with self.interrupt:  # also at its end: a signal must not take the place of an error
            try:
                if self._resumed:
                    self._restore(self._resumed)
                    self._resumed = None
                if self.cfg.train:
                    self.train()
                    self.save()
                self.validate()
                distributed.from_main(self.validation.write)
                self.log.event("cost", self.position.global_step, **peak_memory(self.device))
                if self.cfg.train:
                    self.folder.finish()
            except Stopped as stop:
                raise self._stopped(stop) from None
            finally:
                self.folder.settle(self.log)
                self.log.close()
                self.folder.release()
        return self.validation.scores

    def train(self) -> None:
        """Run the rounds from `position` on."""
        method, position = self.method, self.position
        if position.step == 0:
            self.consider()
        if self.alpha_bn and not position.global_step and not position.prepared:
            with distributed.together():
                self.alpha_bn.start(self.network, self._whole_images())
        while position.round < method.rounds and not self._ended_early():
            if not position.prepared:
                with distributed.together():
                    method.prepare_round(position.round)
                self._say_remarks()
                position.prepared = True
                self.save_state()
            if position.step == 0:
                self.show()
            self.run_steps(method.batches(position.round, position.step), method.base_lr(position.round))
            with distributed.together():
                method.end_round(position.round)
            position.next_round()
            self.optimisation = None
            self.consider()
            self.save_state()
            self.validate()
        self.show()

    def show(self) -> None:
        """Show the network's predictions of a few images, and the pseudo labels that it trains or was trained on."""
        last = min(self.position.round, self.method.rounds - 1)
        with distributed.together():
            self.pictures.show(self.position.global_step, self.network, self.method.pseudo_labelled(last))

    def run_steps(self, loader: Batches, base_lr: float) -> None:
        """Take a step on every batch of `loader`, which begins at `position`. base_lr: `Method.base_lr`."""
        cfg, position, first = self.cfg, self.position, self.position.step
        self.begin_optimisation()
        total = first + len(loader)
        agreement.require_as_many(total)
        every = (cfg.candidate_freq or -(-total // 4)) if self.method.trains else total
        pace = Progress(loader, cfg.stage, 0, cfg.screen, "step", first)
        if first and first % every == 0:
            self.consider()  # a signal may have cut it off
        for step, item in enumerate(self._awaited(pace), first):
            if self.optimisation:
                self.optimisation.schedule(base_lr, step)
            losses = self.step(item)
            position.global_step += 1
            position.step = step + 1
            if step % cfg.print_freq == 0 or step + 1 == total:
                self._report(losses, pace)
            if position.step % every == 0 and position.step < total:
                self.consider()
            self._say_remarks()
            if position.global_step % cfg.save_freq == 0:
                self.save_state(wait=False)
            if position.global_step % cfg.val_freq == 0:
                self.validate()
            if self._ended_early():
                break
        self.settle()

    def step(self, item: dict) -> dict[str, torch.Tensor]:
        """Take one step on a loader's batch, which holds the crops of this process. Returns the losses by name, of the
        whole batch of all processes. Collective.

        Raises TrainingError, in every process, where the method returns no losses that can be minimised, or where a
        loss or gradient is not finite; on a GPU that is seen by the next step or by `settle`. In neither case does the
        optimiser move.
        """
        batch = self._on_device(item)
        losses = self.parts.gradients(self.method, self.optimisation, batch)
        if losses:
            self.finite.add(self.optimisation.move(losses), self._not_finite(losses))
        self.method.after_step(batch)
        return losses

    def validate(self) -> None:
        """Score the network as it stands, where the target's validation split has labels. If a signal ends that, the
        state is saved."""
        self.settle()
        try:
            with distributed.together():
                self.validation.run(self.network, self.position.global_step, self.log, self.interrupt.check)
        except Stopped:
            if self.cfg.train:
                self.save_state()
            raise

    def consider(self) -> None:
        """Keep the networks as they stand as candidates of the run. If a signal ends that, the state is saved."""
        if self.candidates is None:
            return
        self.settle()
        try:
            with distributed.together():
                if self.position.global_step:
                    self.candidates.consider(self.position.global_step, self.method.networks())
                    if self.position.step == 0:
                        self.candidates.judge(self.position.global_step)
                else:
                    self.candidates.begin(self.network)
        except Stopped:
            self.save_state()
            raise

    def save(self) -> None:
        """Write `<snapshot>/<note>/<stage>.pth` and, where there are candidates, the chosen one beside it; each as a
        model folder, too. Of several processes the first writes."""
        distributed.from_main(self._save)

    def _save(self):
        path = self.folder.path / f"{self.cfg.stage}.pth"
        save_weights(self.network, path)
        chosen, verdict = self.candidates.hand_back() if self.candidates else (None, None)
        origin = provenance(self.cfg, self.start if self.cfg.init_weight else None, self.fingerprint, len(self.samples))
        leave_folders(self.cfg, self.network, path, self.position.global_step, origin, chosen, verdict)
        for written in (path, chosen) if chosen else (path,):
            self.log.say(f"saved {written}" + (f" and {written.with_suffix('')}/" if self.cfg.model_folder else ""))

    def save_state(self, wait: bool = True) -> None:
        """Save all that a resumed run needs. If the disk refuses, say so and go on, as older states are still whole.
        All processes have the same; the first saves it. wait: for that, in all of them; False: the state is written
        while the run goes on, and `settle` waits for it."""
        self.settle()
        self.folder.save(lambda: saved_state(self.cfg, self.fingerprint, self.start, self.position, self._parts()),
                         self.log, wait)

    def settle(self) -> None:
        """Wait for what is under way: the check of the last step, and the state that is being saved."""
        self.finite.settle()
        self.folder.settle(self.log)

    def _parts(self) -> dict[str, Any]:
        """Name -> object whose `state_dict` is a part of the saved state."""
        optimising = self.optimisation.parts if self.optimisation else {}
        chosen = {"candidates": self.candidates} if self.candidates else {}
        source = {"alpha_bn": self.alpha_bn} if self.alpha_bn else {}
        return {"network": self.network, "log": self.log, "validation": self.validation, **optimising, **source,
                **chosen, **self.method.parts()}

    def _begun_with(self, remarks):
        """SHA-256 of what the run began with: of the file init_weight, or of the weights that the network brings."""
        brought = None if self.cfg.init_weight or not self.cfg.network_class.brings_weights else digest(
            self.network.state_dict())
        if not self._resumed:
            return brought or source_sha256(self.cfg.init_weight)
        begun = self._resumed.get("start")
        if brought and begun and brought != begun:
            remarks.append("warning: the network that is given now has other weights than the one that this run began "
                           "with; the run goes on with its own")
        return begun

    def _restore(self, state):
        """Go back to where `state` was saved. A validation that a signal cut off there is done again."""
        saved = state["parts"]
        self.position.restore(state["position"])
        if "optimizer" in saved:
            self.begin_optimisation()
        restore_parts(self.cfg, self.folder.last_state, self._parts(), saved)
        position = self.position
        if position.global_step and (position.step == 0 or position.global_step % self.cfg.val_freq == 0):
            self.validate()

    def _on_device(self, item: dict) -> Batch:
        names = [item["name"]] if isinstance(item["name"], str) else item["name"]
        pixels, label = item["image"].to(self.device, non_blocking=True), item.get("label")
        if label is not None:
            label = label.to(self.device, non_blocking=True).long()
        return Batch(self.network.prepare(pixels), label, names, pixels)

    def _whole_images(self) -> Iterator[torch.Tensor]:
        loader = loaders.whole_image_loader(self.cfg, self.cfg.target, distributed.share(self.samples), False,
                                            self.device.type == "cuda")
        for item in Progress(loader, "statistics", self.cfg.print_freq, self.cfg.screen):
            self.interrupt.check()
            yield self.network.prepare(item["image"].to(self.device, non_blocking=True))

    def _awaited(self, batches: Any) -> Iterator[dict]:
        """The batches. Before each, and after the last, all processes learn whether a signal has come to one of them,
        which may have ended its wait for the batch. If so, the state after the last step is saved."""
        with contextlib.closing(iter(batches)) as items:
            ended, stop = False, None
            while not ended:
                try:
                    item = next(items, None)
                    ended, stop = item is None, self.interrupt.requested
                except Stopped as stopped:
                    stop = str(stopped)
                if agreement.stop_requested(bool(stop), ended):
                    self.save_state()
                    raise Stopped(stop)
                if not ended:
                    yield item

    def _stopped(self, stop):
        """The end of a run that a signal has stopped. Process 0 says it."""
        if distributed.joined():
            self.interrupt.ignore_more()
        which = next(filter(None, distributed.gathered(self.interrupt.requested)), stop)
        last = self.folder.last_state
        where = f"its state is in {last}" if last else "no state had been saved yet"
        return distributed.of_all(Stopped(f"stopped by {which} at step {self.position.global_step}: {where}; the same "
                                          "command with --resume goes on."))

    def _ended_early(self):
        return self.cfg.stop_when == "collapse" and self.candidates is not None and self.candidates.collapsed

    def _new_candidates(self) -> Candidates | None:
        cfg = self.cfg
        if not cfg.train or not cfg.score_images or cfg.method_class.needs_source:
            return None
        if cfg.select_by == "miou" and not self.validation.possible:
            raise ConfigError("select_by: miou takes labels of the target's validation split, which cannot be scored "
                              f"({self.validation.remarks[-1]}): use a score that needs none, such as the default.")
        return Candidates(cfg, self.samples, class_set(cfg).names, self.device, self.log, self.interrupt.check,
                          lambda network: self.validation.miou(network, self.interrupt.check))

    def new_method(self, samples: Sequence[Sample]) -> Method:
        """The configuration's method, to train on these images."""
        cfg = self.cfg
        return cfg.method_class(Setting(cfg, self.network, self.device, samples, class_set(cfg).names, self.position,
                                        self.log, self.interrupt.check, self.parts.mean))

    def begin_optimisation(self) -> None:
        """Make the round's optimiser, unless `_restore` has made it already or the method does not train."""
        if self.optimisation is None and self.method.trains:
            self.optimisation = Optimisation(self.cfg, self.network, self.device)

    def _new_log(self) -> RunLog:
        """The run's log, not yet open; one that continues a saved state's."""
        cfg, state = self.cfg, self._resumed
        saved, step = (state["parts"]["log"], state["position"]["global_step"]) if state else (None, None)
        return RunLog(Path(cfg.log) / cfg.note, cfg.stage, cfg.tensorboard, saved, step)

    def _start_writing(self, remarks, report):
        """Lock the run's folder and write the configuration and the first lines, once everything is checked."""
        cfg, state, processes = self.cfg, self._resumed, distributed.size()
        self.folder.begin(cfg, resumed=bool(state))
        several = {"processes": processes} if processes > 1 else {}
        self.log.event("machine", state["position"]["global_step"] if state else 0, versions=versions(),
                       **machine(self.device), **several)
        self.log.say(f"stage {cfg.stage}: {len(self.samples)} images, {cfg.num_classes} classes, {self.device}, "
                     f"amp {cfg.amp}, seed {cfg.seed}")
        if processes * cfg.accumulate > 1 and self.method.trains:
            self.log.say(f"{processes} process{'es' * (processes > 1)}: a step takes "
                         f"{processes * cfg.accumulate * cfg.batch_size} images (batch_size {cfg.batch_size} x "
                         f"accumulate {cfg.accumulate} x processes {processes})")
        if not state:
            self.log.say(f"weights: {f'{cfg.init_weight}: ' if cfg.init_weight else ''}{report}")
        for remark in remarks + self.folder.remarks:
            self.log.say(one_line(remark))

    def _say_remarks(self):
        """Print the network's remarks on how it is used, each once."""
        for remark in self.network.remarks:
            self.log.say_once(f"note: {remark}")

    def _not_finite(self, losses):
        """The error of this step, made when it is known which is not finite. Making it is collective."""
        step, rates, found = self.position.global_step, self.optimisation.rates, self.parts.found
        losses = {name: loss.detach() for name, loss in losses.items()}

        def error(which):
            self.folder.settle(self.log)
            last = self.folder.last_state
            values = {name: loss.item() for name, loss in losses.items()}
            kept = f"the last good state is {last}" if last else "no state had been saved yet"
            return distributed.of_all(TrainingError(
                f"step {step}: the {which} is not finite (losses {values}, learning rates {rates}, images "
                f"{self.parts.suspects(found)}); {kept}: lower learning_rate, or check these images and init_weight."))
        return error

    def _report(self, losses, pace):
        if not losses:
            return pace.report()
        self.finite.settle()
        values = {"total": sum(losses.values()).item(), **{name: loss.item() for name, loss in losses.items()}}
        pace.report(loss=f"{values['total']:.3f}", lr=f"{self.optimisation.rates['head']:.2e}")
        self.log.event("train", self.position.global_step, loss=values, lr=self.optimisation.rates)

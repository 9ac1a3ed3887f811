"""Trying a run before it is started: everything is read and built, and each part of it is done on a few images, which
tells what the whole run takes. All that is written on the way is below a folder that is removed again."""
import dataclasses
import os
import tempfile
from pathlib import Path
from typing import Any

import torch

from dataset.class_sets import class_set
from trainer import forecast
from trainer.checks import require_start
from trainer.forecast import amount, existing
from trainer.run_state import newest_state
from trainer.trial import HEADERS, Trial
from utils import distributed
from utils.checkpoint import StateFolder
from utils.config import Config
from utils.errors import ConfigError, UserError, one_line
from utils.memory import available_memory, reset_peak
from utils.progress import say

_FOLDERS = ("snapshot", "log", "plabel", "result")


def try_out(cfg: Config) -> None:
    """Try a run and print what the whole run takes. Raises what the run would raise. Nothing that it writes stays, and
    a run of the same note may be under way."""
    if distributed.size() > 1:
        raise ConfigError("--dry-run: a run is tried in one process: start it without torchrun. N processes share the "
                          "images of each pass and take steps of N times as many.")
    for key in _FOLDERS:
        _require_writable(key, Path(getattr(cfg, key)) / cfg.note)
    require_start(cfg)  # names the run's own folders, which the trial has not
    free = available_memory()
    reset_peak()
    with tempfile.TemporaryDirectory(prefix=".dry-run-", dir=existing(cfg.snapshot), ignore_cleanup_errors=True) as own:
        apart: dict[str, Any] = {key: f"{own}/{key}" for key in _FOLDERS}
        trial = Trial(dataclasses.replace(cfg, **apart, tensorboard=False, resume=False, overwrite=False,
                                          print_freq=10**6))
        try:
            trial.run()
        finally:
            trial.close()
    files = [dataclasses.replace(f, folder=getattr(cfg, f.folder)) for f in trial.files]
    lines = ["", *_facts(trial, free), "", *forecast.time_table(trial.parts), "", *forecast.disk_table(files)]
    if refusal := _refusal(cfg, trial.trainer.samples):
        lines.append(f"warning: the run would stop at once: {refusal}")
    say("\n".join([*map(one_line, lines), "nothing of this dry run is kept"]))


def _facts(trial, free):
    """Lines on images, classes, network and memory. free: bytes of memory before the trial."""
    cfg, network = trial.cfg, trial.trainer.network
    section = cfg.source if cfg.method_class.needs_source else cfg.target
    read = f"at most {HEADERS} of each" if trial.trainer.samples.unseen else "all"
    numbers = [p.numel() for p in network.parameters()], [p.numel() for p in network.parameters() if p.requires_grad]
    lines = [f"images: {len(trial.trainer.samples)} of {section} to train on, {len(trial.scored)} of {cfg.target} to "
             f"validate on; the headers of {read} were read (python -m dataset.check reads every pixel)",
             f"classes: {cfg.num_classes}, scored as {', '.join(class_set(cfg).protocols)}",
             f"network: {cfg.model}, {sum(numbers[0]) / 1e6:.3g} million parameters, {sum(numbers[1]) / 1e6:.3g} "
             f"million of them trained, on {trial.trainer.device}"]
    if trial.watch.peaks:
        most = max(trial.watch.peaks.values())
        each = ", ".join(f"{title} {amount(size)}" for title, size in trial.watch.peaks.items())
        if trial.trainer.device.type == "cuda":
            free = torch.cuda.get_device_properties(trial.trainer.device).total_memory
        lines.append(f"memory: {amount(most)} at most ({each}), of {amount(free)}")
        if most > 0.95 * free:
            lines.append("warning: memory is nearly full: lower batch_size, crop_tgt or input_size, or set "
                         "checkpointing=true or amp=bf16")
    return lines


def _require_writable(key, folder):
    """Raise UserError unless the run can make and fill the folder."""
    there = existing(folder)
    if not there.is_dir():
        raise UserError(f"{key}: {str(there)!r} is no folder: choose another.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"{key}: nothing can be written to {str(there)!r}: choose another folder, or change its "
                        "permissions.")


def _refusal(cfg, samples):
    """Why the run would not start although the trial did: states of an unfinished one; empty if it would."""
    try:
        if not cfg.resume:
            newest_state(cfg, StateFolder(Path(cfg.snapshot) / cfg.note / f"{cfg.stage}.state", cfg.keep), samples,
                         lambda state: True, [])
    except ConfigError as error:
        return str(error)
    return ""

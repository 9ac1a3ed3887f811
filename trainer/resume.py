"""Which saved state a run goes on from, if any."""
import dataclasses
from pathlib import Path
from typing import Callable

from dataset.segmentation import Sample, fingerprint
from utils.checkpoint import StateFolder, read_state
from utils.config import Config, differences, parse_config
from utils.errors import CheckpointError, ConfigError, NothingToDo


def newest_state(cfg: Config, states: StateFolder, samples: list[Sample], usable: Callable[[dict], bool],
                 remarks: list[str]) -> tuple[Path, dict] | tuple[None, None]:
    """The newest usable state and its file if the run is to be resumed and there is one, else (None, None).

    usable: whether what a state needs beside itself is still there. Adds to `remarks` what was passed over. Raises
    ConfigError if a state belongs to another run, or if none is to be resumed although the folder holds some;
    NothingToDo if the stage is finished.
    """
    paths = states.paths()
    if not cfg.resume:
        if paths and cfg.train and not cfg.overwrite and not states.finished():
            raise ConfigError(f"note: {states.folder} holds the states of an unfinished run, the newest "
                              f"{paths[-1].name}: add --resume to go on, or overwrite=true to start over.")
        return None, None
    if states.finished():
        states.finish()  # in case it was cut off
        raise NothingToDo(f"{states.folder}: this stage is finished, nothing to resume.")
    for path in reversed(paths):
        try:
            state = read_state(path)
        except CheckpointError as error:
            remarks.append(f"warning: {error}")
            continue
        _require_same_run(cfg, path, state, samples)
        if usable(state):
            remarks.append(f"resumed from {path}")
            return path, state
        remarks.append(f"warning: {path}: the pseudo labels of its round are gone or changed: the round is done again")
    remarks.append(f"resume: no usable state in {states.folder}, the stage starts from its beginning")
    return None, None


def _require_same_run(cfg, path, state, samples):
    saved = parse_config(state["config"], str(path), method=cfg.method)
    if not cfg.fix_seed:  # the seed that was drawn then is the one to go on with
        cfg = dataclasses.replace(cfg, seed=saved.seed)
    found = differences(saved, cfg)
    if not found and state["data"] != fingerprint(samples):
        found = [f"the training images' names or sizes ({len(samples)} now)"]
    if found:
        raise ConfigError(f"resume: {path} is the state of another run; these differ: {'; '.join(found)}. Set them "
                          "back, or start over under another note, or with overwrite=true and without resume.")

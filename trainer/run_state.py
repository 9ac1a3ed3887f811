"""A run's saved state: the position, and named parts, each with its own `state_dict`; which state is resumed."""
import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Mapping

from dataset.segmentation import Sample, fingerprint
from utils.checkpoint import STATE_VERSION, StateFolder, read_state
from utils.config import Config, differences, parse_config, to_yaml
from utils.errors import CheckpointError, ConfigError, NothingToDo


@dataclass
class Position:
    """Where training stands. step: within the round; prepared: what the round needs before its first step is done;
    global_step: of all rounds."""

    round: int
    step: int = 0
    prepared: bool = False
    global_step: int = 0

    def next_round(self) -> None:
        """Move to the start of the next round."""
        self.round, self.step, self.prepared = self.round + 1, 0, False

    def restore(self, state: dict[str, Any]) -> None:
        """Move to where a saved state has it."""
        for name, value in state.items():
            setattr(self, name, value)


def saved_state(cfg: Config, data: str, position: Position, parts: Mapping[str, Any]) -> dict[str, Any]:
    """Plain tensors and values only, so that reading a state runs no code. data: fingerprint of the training images."""
    return {"version": STATE_VERSION, "config": to_yaml(cfg), "seed": cfg.seed, "data": data,
            "position": dataclasses.asdict(position),
            "parts": {name: part.state_dict() for name, part in parts.items()}}


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

"""A run's saved state: its position and named parts, each with its own `state_dict`; which state a run resumes from."""
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from dataset.segmentation import Sample, fingerprint
from utils import distributed
from utils.checkpoint import STATE_VERSION, StateFolder, read_state
from utils.config import Config, differences, parse_config, to_yaml
from utils.errors import CheckpointError, ConfigError, NothingToDo, one_line
from utils.user_code import file_digest, is_user_code
from utils.yaml_text import parse_yaml


@dataclass
class Position:
    """Where training stands. step: steps done in this round; prepared: whether `Method.prepare_round` is done;
    global_step: steps done in all rounds."""

    round: int
    step: int = 0
    prepared: bool = False
    global_step: int = 0

    def next_round(self) -> None:
        """Move to the start of the next round."""
        self.round, self.step, self.prepared = self.round + 1, 0, False

    def restore(self, state: dict[str, Any]) -> None:
        """Move to the position of a saved state."""
        for name, value in state.items():
            setattr(self, name, value)


def saved_state(cfg: Config, data: str, start: str | None, position: Position,
                parts: Mapping[str, Any]) -> dict[str, Any]:
    """The state to be saved. It holds plain tensors and values only, so that reading it runs no code. data:
    `segmentation.fingerprint` of the training images. start: SHA-256 of init_weight."""
    return {"version": STATE_VERSION, "config": to_yaml(cfg), "seed": cfg.seed, "data": data, "start": start,
            "code": {key: file_digest(getattr(cfg, key)) for key in ("method", "model")},
            "processes": distributed.size(), "position": dataclasses.asdict(position),
            "parts": {name: part.state_dict() for name, part in parts.items()}}


def restore_parts(cfg: Config, path: Path, parts: Mapping[str, Any], saved: Mapping[str, Any]) -> None:
    """Load each part's state, except for the log, which has been opened at the saved length. saved: `parts` of the
    state in `path`. Raises CheckpointError if a user's method or network has changed since."""
    if parts.keys() != saved.keys():
        raise CheckpointError(f"resume: {path} holds the parts {', '.join(saved)}, expected {', '.join(parts)}: method "
                              f"{cfg.method} has changed since; start over under another note, or with overwrite=true "
                              "and without resume.")
    for name, part in parts.items():
        if name != "log":
            try:
                part.load_state_dict(saved[name])
            except RuntimeError as error:
                raise CheckpointError(f"resume: {path}: its {name} does not fit ({one_line(str(error))[:200]}): model "
                                      f"{cfg.model} has changed since; start over under another note, or with "
                                      "overwrite=true and without resume.") from error


def with_saved_precision(cfg: Config, state: Mapping[str, Any]) -> Config:
    """The configuration, of which `amp: auto` is what it was where the run of a saved state began."""
    return dataclasses.replace(cfg, amp=parse_yaml(state["config"], "state")["amp"]) if cfg.amp == "auto" else cfg


def newest_state(cfg: Config, states: StateFolder, samples: Sequence[Sample], usable: Callable[[dict], bool],
                 remarks: list[str]) -> tuple[Path, dict] | tuple[None, None]:
    """The newest usable state as (file, state), or (None, None) where there is none or `resume` is False.

    usable: whether the files that a state relies on are intact (`Method.usable`). States that are passed over are named
    in `remarks`. Raises ConfigError if a state belongs to another run, or if the folder holds an unfinished run that is
    neither to be resumed nor overwritten; NothingToDo if the stage is finished.
    """
    launchers = distributed.gathered(distributed.launcher())
    again = distributed.any_of(distributed.restarted())  # how often may differ between machines
    paths = distributed.from_main(lambda: _states_to_try(cfg, states, again and states.launched_by(launchers)))
    if paths is None:
        return None, None
    for path in reversed(paths):
        read: list[dict] = []  # by process 0
        if remark := distributed.from_main(partial(_read_fitting, cfg, path, samples, read)):
            remarks.append(remark)
            continue
        state = read[0] if read else read_state(path)
        if not distributed.any_of(not usable(state)):
            remarks.append(f"resumed from {path}")
            remarks += [f"warning: {getattr(cfg, key)}: the file has changed since this state was saved, so the run "
                        "goes on with other code than it began with" for key, digest in state["code"].items()
                        if digest != file_digest(getattr(cfg, key))]
            return path, state
        remarks.append(f"warning: {path}: the pseudo labels of its round or its candidates are gone or changed: the "
                       "round is done again")
    remarks.append(f"resume: no usable state in {states.folder}, the stage starts from its beginning")
    return None, None


def _states_to_try(cfg, states, restarted):
    """The files of the saved states, oldest first; None if the run does not resume. restarted: whether it had begun
    when torchrun restarted it; then it does. Raises as `newest_state`."""
    paths = states.paths()
    if not cfg.resume and not restarted:
        if paths and cfg.train and not cfg.overwrite and not states.finished():
            raise ConfigError(f"note: {states.folder} holds the states of an unfinished run, the newest "
                              f"{paths[-1].name}: add --resume to go on, or overwrite=true to start over.")
        return None
    if states.finished():
        states.finish()  # an earlier call may have been cut off
        raise NothingToDo(f"{states.folder}: this stage is finished, nothing to resume.")
    return paths


def _read_fitting(cfg, path, samples, read):
    """Append the state in `path` to `read`; or return a remark, if it is damaged. Raises ConfigError if it belongs to
    another run."""
    try:
        state = read_state(path)
    except CheckpointError as error:
        return f"warning: {error}"
    _require_same_run(cfg, path, state, samples)
    _require_same_batches(cfg, path, state)
    read.append(state)
    return ""


def _require_same_batches(cfg, path, state):
    """Within a round, the number of processes and `accumulate` must stay, as the round's batches depend on them."""
    was = state.get("processes", 1), parse_yaml(state["config"], str(path)).get("accumulate", 1)
    now = distributed.size(), cfg.accumulate
    if was != now and state["position"]["step"]:
        start = next(path.parent.glob(f"[0-9]*-round{state['position']['round']:02d}-start.pth"), None)
        # A first round has none.
        again = ("start over with overwrite=true and without resume" if start is None else "remove the states of this "
                 f"round but the one at its start ({start.name}), from which the round is done again")
        raise ConfigError(f"resume: {path} was saved within a round, by processes: {was[0]} with accumulate: {was[1]}; "
                          f"now these are {now[0]} and {now[1]}, which may change between rounds alone: resume with as "
                          f"many as before, or {again}.")


def _require_same_run(cfg, path, state, samples):
    found = _other_classes(cfg, parse_yaml(state["config"], str(path))) or _differences(cfg, path, state, samples)
    if found:
        raise ConfigError(f"resume: {path} is the state of another run; these differ: {'; '.join(found)}. Set them "
                          "back, or start over under another note, or with overwrite=true and without resume.")


def _other_classes(cfg, saved):
    """Whether method or network differ. A user's file may have moved to another folder."""
    def name(value):
        return str(value).rpartition("/")[2] if is_user_code(str(value)) else value
    return [f"{key}: was {saved.get(key)}, is {getattr(cfg, key)}" for key in ("method", "model")
            if name(saved.get(key)) != name(getattr(cfg, key))]


def _differences(cfg, path, state, samples):
    # Of this run's method and model, so that no file that a state names is run.
    saved = parse_config(state["config"], str(path), method=cfg.method, model=cfg.model)
    cfg = dataclasses.replace(cfg, accumulate=saved.accumulate)  # `_require_same_batches` compares it
    if not cfg.fix_seed:  # the run goes on with the seed that was drawn when it began
        cfg = dataclasses.replace(cfg, seed=saved.seed)
    cfg = with_saved_precision(cfg, state)
    found = differences(saved, cfg)
    if not found and state["data"] != fingerprint(samples):
        found = [f"the training images' names or sizes ({len(samples)} now)"]
    return found

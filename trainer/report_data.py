"""What the files of a note say about its stages. Nothing is run, no network is built, and no user's code is read."""
import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from model import networks
from trainer import methods, verdict
from utils.checkpoint import FINISHED
from utils.config import Config
from utils.config_keys import KEYS, SECTION_DEFAULTS, SECTION_KEYS
from utils.config_values import Key, plain
from utils.errors import ConfigError
from utils.yaml_text import parse_yaml, read_text

Event = dict[str, Any]
Setting = tuple[str, Any, Any]  # (key, value, default or REQUIRED)
REQUIRED = object()


@dataclass(frozen=True)
class Stage:
    """A stage of a note, as its files tell it.

    title: of its method. config: the saved configuration as plain values, {} if it is missing; text: the same as YAML.
    events: lines of the log. verdict: of `<stage>_verdict.json`, or None. scores: protocol -> scores of the last
    validation, {} without one. finished: whether it has run to its end. checkpoint, chosen: its files, None where they
    are missing. missing: sentences on what could not be found or read.
    """

    name: str
    title: str
    config: dict[str, Any]
    text: str
    events: list[Event]
    verdict: dict[str, Any] | None
    scores: dict[str, dict[str, Any]]
    finished: bool
    checkpoint: Path | None
    chosen: Path | None
    missing: list[str] = field(default_factory=list)

    def of(self, kind: str) -> list[Event]:
        """The events of a kind, in order."""
        return [event for event in self.events if event["event"] == kind]

    @property
    def seconds(self) -> float | None:
        """The time that it took, without that of steps which were done again after an interruption; None without a log.
        A process's clock starts at 0 when it opens the log."""
        times = [event["seconds"] for event in self.events]
        return sum(now for now, after in zip(times, [*times[1:], -1.0]) if after < now) if times else None

    @property
    def interruptions(self) -> int:
        """How many times it has been resumed."""
        return max(0, len(self.of("machine")) - 1)

    @property
    def needs_source(self) -> bool:
        """Whether its method, one of this project's, trains on the labelled source."""
        method = methods.known().get(self.config.get("method"))
        return bool(method and method.needs_source)

    def memory(self, name: str) -> float | None:
        """The largest logged value of a `cost` in MiB, such as `memory`."""
        return max((event[name] for event in self.of("cost") if event.get(name) is not None), default=None)

    @property
    def settings(self) -> list[Setting]:
        """The keys whose values are not the defaults, those of the data-set sections that it used last."""
        keys = {**KEYS, **_own_keys(self.config)}
        found = [(name, value, _default(keys.get(name))) for name, value in self.config.items()
                 if name in keys or not (isinstance(value, dict) and "type" in value)]
        for section in self._sections:
            defaults = SECTION_DEFAULTS.get(section, {})
            found += [(f"{section}.{name}", value, plain(defaults[name]) if name in defaults else
                       _default(SECTION_KEYS.get(name))) for name, value in self.config.get(section, {}).items()]
        return [(name, value, default) for name, value, default in found if value != default]

    @property
    def _sections(self):
        sides = ("source", "target") if self.needs_source else ("target",)
        used = [self.config.get(side) for side in sides]
        return {name: None for name in used if isinstance(self.config.get(name), dict)}


def stages(cfg: Config) -> list[Stage]:
    """The stages of the note of a configuration, those that start from another's checkpoint after it.

    Raises ConfigError if there are none.
    """
    snapshot, log, result = (Path(folder) / cfg.note for folder in (cfg.snapshot, cfg.log, cfg.result))
    names = {path.stem for folder, ending in ((snapshot, "yml"), (log, "jsonl")) for path in folder.glob(f"*.{ending}")}
    if not names:
        there = sorted({path.name for folder in (cfg.snapshot, cfg.log) for path in Path(folder).glob("*/")})
        some = f"there are {', '.join(map(repr, there[:10]))}" if there else "there are no others"
        raise ConfigError(f"note: no run {cfg.note!r}: neither {snapshot} nor {log} holds one ({some}): give another "
                          "name, or --config with the keys snapshot, log and result of the run.")
    found = {name: _stage(name, snapshot, log, result) for name in sorted(names)}
    return sorted(found.values(), key=lambda stage: (_depth(stage, found), not stage.needs_source, stage.name))


def _stage(name, snapshot, log, result):
    missing: list[str] = []
    config, text = _config(snapshot / f"{name}.yml", missing)
    events = list(_events(log / f"{name}.jsonl", missing))
    checkpoint, chosen = (path if path.is_file() else None for path in
                          (snapshot / f"{name}.pth", snapshot / f"{name}{verdict.CHOSEN}.pth"))
    method = methods.known().get(config.get("method", name))
    finished = (snapshot / f"{name}.state" / FINISHED).exists()
    if not finished and config.get("train", True):
        missing.append(f"{name}: the stage has not run to its end (the last step logged is "
                       f"{max((e['step'] for e in events), default=0)}); run it again with --resume to go on.")
    elif not checkpoint and config.get("train", True):
        missing.append(f"{name}: its checkpoint {snapshot / name}.pth is gone.")
    decided = verdict.beside(str(snapshot / f"{name}.pth")) if finished else None
    if decided and not {"why", "collapsed", "candidates"} <= decided.keys():
        decided = None
    return Stage(name, method.title if method and method.title else name, config, text, events, decided,
                 _scores(result / f"{name}.json", events, missing), finished, checkpoint, chosen, missing)


def _config(path: Path, missing: list[str]) -> tuple[dict[str, Any], str]:
    try:
        text = read_text(str(path))
        return parse_yaml(text, str(path)), text
    except ConfigError as error:
        missing.append(f"The configuration cannot be shown: {error}")
        return {}, ""


def _events(path: Path, missing: list[str]) -> Iterator[Event]:
    """The lines of a log that can be read; a process that was killed may have left half a line."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        missing.append(f"The log cannot be read: {path}: {error.strerror}.")
        return
    broken = 0
    for line in lines:
        try:
            event = json.loads(line)
            if not isinstance(event["event"], str):
                raise TypeError
            yield {**event, "step": int(event["step"]), "seconds": float(event["seconds"])}
        except (ValueError, KeyError, TypeError):
            broken += 1
    if broken:
        missing.append(f"{path}: {broken} of {len(lines)} lines cannot be read and are left out.")


def _scores(path: Path, events: list[Event], missing: list[str]) -> dict[str, dict[str, Any]]:
    """The scores in the result file; without that file those of the last validation in the log."""
    found: Any = [event for event in events if event["event"] == "val"][-1:]
    found = found[0] if found else {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:
        missing.append(f"{path}: cannot be read ({error}): the scores are those of the log.")
    found = found if isinstance(found, dict) else {}
    return {name: s for name, s in found.items() if isinstance(s, dict) and {"miou", "iou"} <= s.keys()}


def _depth(stage, found):
    """How many stages of the note come before it, by the checkpoints that they start from."""
    seen, depth = {stage.name}, 0
    while (start := _start(stage, found)) and start not in seen:
        seen.add(start)
        stage, depth = found[start], depth + 1
    return depth


def _start(stage, found):
    """The stage of the note from whose checkpoint a stage starts."""
    weights = Path(str(stage.config.get("init_weight") or "").partition("#")[0])
    name = weights.stem.removesuffix(verdict.CHOSEN)
    return name if name in found and weights.parent.name == stage.config.get("note") else None


def _own_keys(config):
    """The declared keys of the method and of the network, where they are this project's."""
    keys = dict(getattr(methods.known().get(config.get("method")), "keys", {}))
    with contextlib.suppress(ConfigError):
        keys |= networks.find(str(config.get("model"))).keys
    return keys


def _default(key: Key | None) -> Any:
    """The default of a key as a plain value; REQUIRED for one without, or of a user's own."""
    if key is None or key.default is None and not key.optional:
        return REQUIRED
    return plain(key.read_default(""))

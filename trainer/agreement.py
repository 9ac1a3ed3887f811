"""What the processes of a run agree on: the same configuration, data and folders at its start, and each step's stop."""
import hashlib
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from dataset.segmentation import fingerprint
from trainer.forecast import existing
from utils import distributed
from utils.checkpoint import digest
from utils.config import Config, own_keys
from utils.config_keys import KEYS, SECTION_KEYS
from utils.config_values import plain, shown
from utils.errors import ConfigError, TrainingError, UserError
from utils.user_code import file_digest, is_user_code

_OWN = {"device", "worker", "score_budget", "screen"}  # keys of which each process may have a value of its own
_CODE = Path(__file__).resolve().parents[1]
_LETTERS = 12  # of a SHA-256 that a message shows


def of_configuration(cfg: Config, device: torch.device) -> dict[str, Any]:
    """What a configuration and a machine say on the results of a run: name -> value. Paths are left out, since machines
    may have the same files in other places."""
    keys = {**KEYS, **own_keys(cfg)}
    facts = {name: plain(cfg.value(name)) for name, k in keys.items() if not k.path and name not in _OWN}
    if not cfg.fix_seed:
        del facts["seed"]
    for name in {cfg.source, cfg.target} if cfg.method_class.needs_source else {cfg.target}:
        section = cfg.section(name)
        facts |= {f"{name}.{inner}": plain(getattr(section, inner)) for inner, k in SECTION_KEYS.items() if not k.path}
    for name in ("method", "model"):
        value = getattr(cfg, name)
        facts[name] = os.path.basename(value) if is_user_code(value) else value
        facts[f"the file of {name}"] = file_digest(value)[:_LETTERS]
    return {**facts, "the kind of device": device.type, "the version of torch": str(torch.__version__),
            "the code of this project": _project_digest()}


def differences(facts: Sequence[Mapping[str, Any]]) -> list[str]:
    """`name: 2 in process 0, 3 in processes 1, 2` for each fact that is not the same in all processes. facts: of each
    process, in the order of rank."""
    found = []
    for name in dict.fromkeys(name for own in facts for name in own):
        ranks: dict[str, list[int]] = {}
        for rank, own in enumerate(facts):
            ranks.setdefault(repr(own[name]) if name in own else "", []).append(rank)
        if len(ranks) > 1:
            values = (f"{shown(facts[which[0]][name]) if name in facts[which[0]] else 'nothing'} in {_numbers(which)}"
                      for which in ranks.values())
            found.append(f"{name}: {', '.join(values)}")
    return found


def require_same_run(cfg: Config, device: torch.device) -> None:
    """Raise ConfigError, in all processes, unless their configurations, kinds of device and programs are the same.
    Collective, as are the next three."""
    require_same(lambda: of_configuration(cfg, device))


def require_same_images(training: Any, data: str, validation: Any) -> None:
    """Raise ConfigError unless all processes have found the same samples to train on and to validate on. data:
    `fingerprint` of the former."""
    require_same(lambda: {"the training images (names and sizes)": _images(len(training), data),
                          "the validation images (names and sizes)": _images(len(validation), fingerprint(validation))})


def require_same_beginning(cfg: Config, state: dict[str, torch.Tensor]) -> None:
    """Raise ConfigError unless all processes begin with the same weights, in the precision that `cfg` has for this
    machine."""
    require_same(lambda: {"amp": cfg.amp,
                          "the weights that the run begins with (SHA-256)": digest(state)[:_LETTERS]})


def require_shared_folders(cfg: Config) -> None:
    """Raise ConfigError unless all processes see process 0's folders `snapshot` and `plabel`."""
    for key in ("snapshot", "plabel") if distributed.size() > 1 else ():
        require_shared(key, Path(getattr(cfg, key)).absolute())


def require_same(facts: Callable[[], Mapping[str, Any]]) -> None:
    """Raise ConfigError, in all processes, unless the facts, name -> small value, are the same in all. They are asked
    for only if there are several processes. Collective."""
    def refuse():
        if found := differences(every):
            raise ConfigError(f"the processes of this run differ: {'; '.join(found)}: start them with the same command "
                              "and the same files.")
    if distributed.size() > 1:
        every = distributed.gathered(dict(facts()))
        distributed.from_main(refuse)


def require_shared(key: str, folder: Path) -> None:
    """Raise ConfigError, which names the key, unless all processes see process 0's folder, or where it would be made.
    folder: an absolute path. Collective."""
    def refuse():
        if blind:
            raise ConfigError(f"{key}: {str(folder)!r} of process 0 is not what {_numbers(blind)} "
                              f"see{'s' * (len(blind) == 1)} there: choose a folder on a disk that all machines share.")
    missing, name = distributed.from_main(lambda: _leave_mark(key, folder))  # of the folder's path, what is not there
    try:
        same = folder.parts[len(folder.parts) - len(missing):] == missing
        there = folder.parents[len(missing) - 1] if missing and same else folder
        blind = [rank for rank, seen in enumerate(distributed.gathered(same and (there / name).exists())) if not seen]
    finally:
        if distributed.is_main():
            (there / name).unlink(missing_ok=True)
    distributed.from_main(refuse)


def _leave_mark(key, folder):
    """(parts of the folder's path that are not there, name of an empty file in the nearest folder that is)."""
    there = existing(folder)
    try:
        handle, path = tempfile.mkstemp(prefix=".shared-", dir=there)
    except OSError as error:
        raise UserError(f"{key}: nothing can be written to {str(there)!r} ({error.strerror}): choose another folder, "
                        "or change its permissions.") from None
    os.close(handle)
    return folder.relative_to(there).parts, os.path.basename(path)


def require_as_many(batches: int) -> None:
    """Raise TrainingError, in all processes, unless all have this number of batches in a round: by it they know when to
    score candidates together. Collective."""
    counts = distributed.gathered(batches)
    if len(set(counts)) > 1:
        raise distributed.of_all(TrainingError(
            f"the processes have {', '.join(map(str, sorted(set(counts))))} batches in this round: a method's "
            "`batches` must give all processes as many."))


def stop_requested(here: bool, ended: bool) -> bool:
    """Whether a signal has come to any process. here: to this one. ended: whether this one has no more batches, in
    which all have to agree; raises TrainingError if they do not. Collective, once before each step."""
    if distributed.size() == 1:
        return here
    stopped, over = distributed.total(torch.tensor([here, ended], dtype=torch.int64)).tolist()
    if not stopped and over not in (0, distributed.size()):
        raise distributed.of_all(TrainingError(
            f"{over} of {distributed.size()} processes have no more batches in this round, the others have: a method's "
            "`batches` must give all processes as many."))
    return stopped > 0


def _images(count, digest):
    return f"{count} images, {digest[:_LETTERS]}"


def _numbers(ranks: Iterable[int]) -> str:
    ranks = list(ranks)
    more = f" and {len(ranks) - 8} more" if len(ranks) > 8 else ""
    return f"process{'es' if len(ranks) > 1 else ''} {', '.join(map(str, ranks[:8]))}{more}"


def _project_digest():
    """The first letters of the SHA-256 of this project's modules."""
    result = hashlib.sha256()
    for folder in ("trainer", "dataset", "model", "utils"):
        for path in sorted((_CODE / folder).rglob("*.py")):
            result.update(path.read_bytes())
    return result.hexdigest()[:_LETTERS]

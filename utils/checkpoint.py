"""Saved states of a run: written atomically, read as plain tensors, the newest few kept; one process a run."""
import contextlib
import errno
import hashlib
import os
import pickle
from pathlib import Path
from typing import BinaryIO, Callable

import torch

try:
    import fcntl
except ImportError:  # no POSIX system: runs are not guarded against each other
    fcntl = None

from utils.errors import CheckpointError, ConfigError, first_line

STATE_VERSION = 3  # of what a state holds and how a run goes on from it; 1 had no number, 2 no named parts
FINISHED = "finished"  # file beside a stage's states once the stage is done
# Answers of file systems that cannot sync files (some FUSE, CIFS), or cannot sync folders. ENOSPC, EDQUOT and, for a
# file, EIO are none of them: what was written is not on the disk.
_NO_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}
_NO_FOLDER_SYNC = _NO_SYNC | {errno.EIO, errno.EBADF, errno.EACCES, errno.EPERM, errno.EISDIR}


def write_atomically(path: str | Path, write: Callable[[BinaryIO], None]) -> None:
    """Call `write(file)`; whoever reads `path`, at whatever moment, finds the old content or the whole new one. Its
    folder is made if need be.

    Raises CheckpointError, with the old file left as it was, if the disk refuses.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            with _ignored(_NO_SYNC):
                os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
        raise CheckpointError(f"{path}: cannot be written ({first_line(error)}); what was there before is still "
                              "whole: make room, or choose another folder.") from None
    finally:
        _remove(temporary)


def remove_unfinished(folder: Path) -> None:
    """Remove what writers that were killed left in a folder and below."""
    for path in folder.rglob(".*.tmp"):
        _remove(path)


def digest(state: dict[str, torch.Tensor]) -> str:
    """Hexadecimal SHA-256 of tensors with their names."""
    result = hashlib.sha256()
    for name, tensor in state.items():
        result.update(name.encode())
        result.update(tensor.detach().cpu().contiguous().numpy().data)
    return result.hexdigest()


class RunLock:
    """Holds a folder for this process until `release` or the process's end, whatever ends it.

    Raises ConfigError if another process has it. Where the file system has no locks the folder is not held, and
    `remark` says so. A POSIX record lock: unlike flock's, data-reading child processes, which may outlive a killed run,
    do not inherit it.
    """

    def __init__(self, folder: Path):
        self.remark: str | None = None
        self._file = None
        try:
            self._file = open(folder / ".lock", "a+b")
            if fcntl:
                fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self.release()
            if self._file and error.errno in (errno.EACCES, errno.EAGAIN):  # POSIX allows both
                raise ConfigError(f"note: {str(folder)!r} is in use by another process: wait for it, or give this run "
                                  "another note.") from None
            self.remark = (f"warning: {folder} cannot be locked ({first_line(error)}): nothing keeps a second process "
                           "from running the same note at the same time.")

    def release(self) -> None:
        if self._file:
            self._file.close()


class StateFolder:
    """The saved states of one stage, `<folder>/<global step>-round<r>-<start|step>.pth`, in the order of training.

    A state at a round's start, before the round is prepared (its pseudo labels written, say), stays until the next
    round's is there: it is what the round can be done again from. Of the others the last `keep` stay.
    """

    def __init__(self, folder: Path, keep: int):
        self.folder, self.keep = folder, keep

    def paths(self) -> list[Path]:
        """All states, oldest first."""
        return sorted(self.folder.glob("[0-9]*-round*-*.pth"))

    def finished(self) -> bool:
        return (self.folder / FINISHED).exists()

    def save(self, state: dict) -> Path:
        """Write a state (with `position`: `global_step`, `round`, `step`, `prepared`), then remove those not kept.
        Raises CheckpointError if the disk refuses."""
        position = state["position"]
        kind = "step" if position["step"] or position["prepared"] else "start"
        path = self.folder / f"{position['global_step']:08d}-round{position['round']:02d}-{kind}.pth"
        write_atomically(path, lambda file: torch.save(state, file))
        others = self.paths()
        starts = [p for p in others if p.stem.endswith("start")]
        for old in set(others[:-self.keep]) - set(starts[-1:]):
            _remove(old)
        return path

    def finish(self) -> None:
        """Remove the states: the stage's checkpoint is written."""
        write_atomically(self.folder / FINISHED, lambda file: None)
        for path in self.paths():
            _remove(path)

    def clear(self) -> None:
        """Remove whatever an earlier run left."""
        for path in (*self.paths(), self.folder / FINISHED):
            path.unlink(missing_ok=True)


def read_state(path: Path) -> dict:
    """A saved state on the CPU. Raises CheckpointError if it is damaged or holds more than plain tensors and values,
    ConfigError if it is of another version."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise CheckpointError(f"{path}: not a state of this project, nothing in it was run: remove it.") from None
    except Exception as error:  # torch raises many kinds for damaged files
        raise CheckpointError(f"{path}: cannot be read ({first_line(error)}): remove it; an older state is "
                              "used then.") from None
    if isinstance(state, dict) and {"global_step", "version"} & state.keys() and state.get("version") != STATE_VERSION:
        raise ConfigError(f"resume: {path} is a state of version {state.get('version', 1)}, this program goes on from "
                          f"version {STATE_VERSION}: finish the run with the program that began it, or start "
                          "over under another note, or with overwrite=true and without resume.")
    if not isinstance(state, dict) or not {"version", "config", "seed", "data", "position", "parts"} <= state.keys():
        raise CheckpointError(f"{path}: not a saved state of a run: remove it.")
    return state


def _sync_folder(folder):
    """Make a rename in `folder` survive a loss of power, where the file system can."""
    if os.name == "posix":
        with _ignored(_NO_FOLDER_SYNC):
            descriptor = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


@contextlib.contextmanager
def _ignored(numbers):
    """Ignore an OSError of these errno."""
    try:
        yield
    except OSError as error:
        if error.errno not in numbers:
            raise


def _remove(path):
    """Remove a file that is of no more use; one that stays does no harm, and is no reason to end a run."""
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)

"""Saved states of a run: atomic writing, safe reading, which of them are kept, and a lock on the run's folder."""
import contextlib
import errno
import hashlib
import os
import pickle
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import BinaryIO

import torch

try:
    import fcntl
except ImportError:  # no POSIX system: two processes can run the same note
    fcntl = None

from utils.background import host_copies, later
from utils.errors import CheckpointError, ConfigError, first_line

STATE_VERSION = 3  # of a state's content and of how a run resumes from it; 1 had no number, 2 no named parts
FINISHED = "finished"  # file beside a stage's states once the stage is done
LAUNCHERS = "launchers"  # file beside the states of a run that torchrun has started: by which calls of it
# Errors of file systems that cannot sync files (some FUSE, CIFS), or cannot sync folders. ENOSPC, EDQUOT and, for a
# file, EIO are not among them: there the data is not on the disk.
_NO_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}
_NO_FOLDER_SYNC = _NO_SYNC | {errno.EIO, errno.EBADF, errno.EACCES, errno.EPERM, errno.EISDIR}


def write_atomically(path: str | Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file so that a reader of `path` finds at any moment the old content or the whole new one.

    `write(file)` writes the content to an open binary file. The folder is made if need be. Raises CheckpointError if
    the file cannot be written; the old one is left as it was.
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
    """Remove the temporary files that killed writers left in a folder and below."""
    for path in folder.rglob(".*.tmp"):
        _remove(path)


def digest(state: dict[str, torch.Tensor]) -> str:
    """Hexadecimal SHA-256 of tensors and their names, in the order of the mapping. A GPU is waited for once."""
    result = hashlib.sha256()
    for name, tensor in host_copies(state, clone=False)().items():
        result.update(name.encode())
        result.update(tensor.detach().contiguous().numpy().data)
    return result.hexdigest()


def digest_later(state: dict[str, torch.Tensor]) -> Callable[[], str]:
    """Start to compute `digest` of the tensors as they are now, in a thread. The returned function waits for it."""
    copies = host_copies(state)
    return later(lambda: digest(copies()))


class RunLock:
    """Locks a folder for this process until `release` or until the process ends, in whatever way.

    Raises ConfigError if another process holds the lock. Where the file system has no locks the folder is not locked,
    and `remark` says so. It is a POSIX record lock: child processes do not inherit it, unlike a lock of flock, and so
    processes that read data and outlive a killed run do not keep the folder locked.
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
        """Unlock the folder."""
        if self._file:
            self._file.close()


class StateFolder:
    """The saved states of one stage, `<folder>/<global step>-round<r>-<start|step>.pth`, in the order of training.

    The state at a round's start, before the round is prepared (its pseudo labels written, say), is kept until the next
    round's is written: the round can be repeated from it. Of the others the last `keep` are kept.
    """

    def __init__(self, folder: Path, keep: int):
        self.folder, self.keep = folder, keep

    def paths(self) -> list[Path]:
        """All states, oldest first."""
        return sorted(self.folder.glob("[0-9]*-round*-*.pth"))

    def finished(self) -> bool:
        """Whether the stage has run to its end."""
        return (self.folder / FINISHED).exists()

    def note_launchers(self, launchers: Iterable[str]) -> None:
        """Note that the states of this folder are those of a run that these started (`distributed.launcher`)."""
        content = "".join(f"{one}\n" for one in sorted(set(launchers)))
        write_atomically(self.folder / LAUNCHERS, lambda file: file.write(content.encode()))

    def launched_by(self, launchers: Iterable[str]) -> bool:
        """Whether one of these started the run whose states are here."""
        try:
            noted = (self.folder / LAUNCHERS).read_text("utf-8").splitlines()
        except (OSError, ValueError):
            return False
        return not set(noted).isdisjoint(launchers)

    def save(self, state: dict) -> Path:
        """Write a state and remove those that are not kept; returns its path.

        state["position"] has `global_step`, `round`, `step` and `prepared`. Raises CheckpointError if the file cannot
        be written.
        """
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
        """Mark the stage as finished, its checkpoint being written, and remove its states."""
        write_atomically(self.folder / FINISHED, lambda file: None)
        for path in self.paths():
            _remove(path)

    def clear(self) -> None:
        """Remove the states and the mark of an earlier run."""
        for path in (*self.paths(), self.folder / FINISHED, self.folder / LAUNCHERS):
            path.unlink(missing_ok=True)


def read_state(path: Path) -> dict:
    """Read a saved state, its tensors on the CPU. Raises CheckpointError if it is damaged or holds more than plain
    tensors and values, ConfigError if it is of another version."""
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
    needed = {"version", "config", "seed", "data", "code", "position", "parts"}
    if not isinstance(state, dict) or not needed <= state.keys():
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
    """Remove a file that is no longer needed; if it cannot be removed it does no harm, so the run goes on."""
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)

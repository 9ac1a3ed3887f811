"""The folder of a run: its lock, and the saved states of its stage."""
from collections.abc import Callable
from pathlib import Path

from trainer import candidates
from utils import distributed
from utils.background import host_copies, later
from utils.checkpoint import RunLock, StateFolder, remove_unfinished, write_atomically
from utils.config import Config, to_yaml
from utils.errors import CheckpointError
from utils.logger import RunLog


class RunFolder:
    """`<snapshot>/<note>` of one run. Of several processes the first locks it and writes there; all call a method
    that is collective.

    Building it locks the folder if it is there, before a file of it is read, and writes nothing. Raises ConfigError if
    another process has locked it. Collective.
    """

    def __init__(self, cfg: Config):
        self.cfg, self.path = cfg, Path(cfg.snapshot) / cfg.note
        self.states = StateFolder(self.path / f"{cfg.stage}.state", cfg.keep)
        self.last_state: Path | None = None  # the newest that is whole
        self.lock: RunLock | None = None
        self._saving: Callable[[], Path] | None = None  # waits for the state that is being saved
        distributed.from_main(self._lock)

    def begin(self, cfg: Config, resumed: bool) -> None:
        """Make the folder, lock it, remove what an earlier run or a killed writer has left there, and write the
        configuration, which may have changed while the run was built. Collective."""
        self.cfg, launchers = cfg, distributed.gathered(distributed.launcher())
        distributed.from_main(lambda: self._begin(resumed, launchers))

    def _begin(self, resumed, launchers):
        cfg = self.cfg
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock()
        if cfg.train and not resumed:
            self.states.clear()
            candidates.clear(cfg, finished=False)
        if cfg.train and distributed.launched():
            self.states.note_launchers(launchers)
        remove_unfinished(self.path)
        write_atomically(self.path / f"{cfg.stage}.yml", lambda file: file.write(to_yaml(cfg).encode()))

    def save(self, state: Callable[[], dict], log: RunLog, wait: bool) -> None:
        """Save the state that `state` makes in process 0 (`run_state.saved_state`). wait: for that, in all processes,
        which is collective. False: it is written while the run goes on, and `settle` waits for it."""
        if distributed.is_main():
            if wait:
                self._saving = lambda: self.states.save(state())
            else:
                copies = host_copies(state())
                self._saving = later(lambda: self.states.save(copies()))
        if wait:
            distributed.from_main(lambda: self.settle(log))

    def settle(self, log: RunLog) -> None:
        """Wait for the state that is being saved. If the disk refuses it, say so: older states are still whole."""
        saving, self._saving = self._saving, None
        try:
            if saving:
                self.last_state = saving()
        except CheckpointError as error:
            log.say(f"warning: {error}")

    def finish(self) -> None:
        """Remove what a run needs only while it is under way. Collective."""
        distributed.from_main(self._finish)

    def _finish(self):
        self.states.finish()
        candidates.clear(self.cfg, finished=True)

    @property
    def remarks(self) -> list[str]:
        """Warnings on the lock."""
        return [self.lock.remark] if self.lock and self.lock.remark else []

    def release(self) -> None:
        """Unlock the folder."""
        if self.lock:
            self.lock.release()

    def _lock(self):
        """Lock the folder, if it is there and not locked yet."""
        if not self.lock and self.path.is_dir():
            self.lock = RunLock(self.path)

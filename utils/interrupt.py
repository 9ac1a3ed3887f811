"""Signals that ask a run to stop, granted where its state can be saved."""
import signal
import threading

from utils.errors import Stopped

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))


class Interrupt:
    """Within its `with` block SIGINT, SIGTERM and SIGUSR1 only leave a note here; a second one acts as it always does.

    Outside the main thread, where Python allows no signal handlers, nothing changes.
    """

    def __init__(self):
        self.requested: str | None = None  # name of the signal
        self._before = {}

    def check(self) -> None:
        """Raise Stopped if a signal has come."""
        if self.requested:
            raise Stopped(self.requested)

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *_):
        self._restore()

    def _note(self, number, frame):
        self.requested = signal.Signals(number).name
        self._restore()

    def _restore(self):
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}


def ignore_signals(_worker: int) -> None:
    """For processes that read data: the terminal and the scheduler signal the whole group, and the main process needs
    its readers until it has finished its step. A second SIGTERM ends them: Python sends more than one to the children
    of a process that exits, and waits until they are gone."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, _: signal.signal(number, signal.SIG_DFL))

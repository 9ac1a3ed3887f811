"""Signals that ask a run to stop, granted where its state can be saved."""
import contextlib
import signal
import threading

from utils.errors import Stopped

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))
_current = None   # the Interrupt whose `with` block the main thread is in
_waiting = False  # whether it is in a `waiting` block too


class Interrupt:
    """Within its `with` block SIGINT, SIGTERM and SIGUSR1 only leave a note here, or, in a `waiting` block, end the
    wait by raising Stopped; a second one acts as it always does.

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
        global _current
        if threading.current_thread() is threading.main_thread():
            _current = self
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *_):
        global _current
        if _current is self:
            _current = None
        self._restore()

    def _note(self, number, frame):
        self.requested = signal.Signals(number).name
        self._restore()
        if _waiting:
            self.check()

    def _restore(self):
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}


@contextlib.contextmanager
def waiting():
    """Around a wait that may be long or endless and that leaves nothing half done (data from a disk that is gone, a
    process that is stuck): in an Interrupt's block a signal, also one that came before, raises Stopped here."""
    global _waiting
    _waiting = True
    try:
        if _current:
            _current.check()
        yield
    finally:
        _waiting = False


def check_wait() -> None:
    """Raise Stopped, in a `waiting` block, if a signal has come: what its handler raised is lost where Python ignores
    exceptions (the hooks of a fork, destructors)."""
    if _waiting and _current:
        _current.check()


@contextlib.contextmanager
def signals_end():
    """Within the block any of SIGNALS raises KeyboardInterrupt, as SIGINT does by itself, where it would have ended the
    process on the spot: what is open is closed. A second one ends it on the spot."""
    def stop(number, frame):
        signal.signal(number, signal.SIG_DFL)
        raise KeyboardInterrupt
    main = threading.current_thread() is threading.main_thread()
    taken = [number for number in SIGNALS if main and signal.getsignal(number) is signal.SIG_DFL]
    try:
        for number in taken:
            signal.signal(number, stop)
        yield
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)


@contextlib.contextmanager
def signals_held():
    """Hold SIGNALS back until the end of the block; child processes start with them held back."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)

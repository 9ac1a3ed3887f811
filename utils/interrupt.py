"""Signals that ask a run to stop. The run stops at the next point where its state can be saved."""
import contextlib
import signal
import threading
from collections.abc import Iterator

from utils.errors import Stopped

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))
_current = None   # the Interrupt whose `with` block the main thread is in
_waiting = False  # whether it is in a `waiting` block too


class Interrupt:
    """Records SIGINT, SIGTERM and SIGUSR1 within its `with` block, for the run to act on at `check`.

    In a `waiting` block the signal raises Stopped at once. A second signal has its usual effect. Outside the main
    thread, where Python allows no signal handlers, nothing changes.
    """

    def __init__(self) -> None:
        self.requested: str | None = None  # name of the signal
        self._before: dict = {}

    def check(self) -> None:
        """Raise Stopped if a signal has come."""
        if self.requested:
            raise Stopped(self.requested)

    def ignore_more(self) -> None:
        """Ignore further signals until the process ends. A process of several says so once all have agreed to stop:
        torchrun sends another signal as soon as the first of them has ended."""
        ignore_signals()
        self._before = {}

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
def waiting() -> Iterator[None]:
    """A block that waits, perhaps forever, and may be interrupted at any point without harm.

    Such is waiting for data of a disk that is gone or of a process that is stuck. Within an Interrupt's block a signal,
    also one that came before, raises Stopped here.
    """
    global _waiting
    _waiting = True
    try:
        if _current:
            _current.check()
        yield
    finally:
        _waiting = False


def check_wait() -> None:
    """In a `waiting` block, raise Stopped if a signal has come.

    The handler has raised it already, but Python ignores exceptions in some places (hooks of a fork, destructors).
    """
    if _waiting and _current:
        _current.check()


@contextlib.contextmanager
def signals_end() -> Iterator[None]:
    """Within the block any of SIGNALS raises KeyboardInterrupt, if it would have ended the process at once.

    So open files are closed and child processes ended. A second signal ends the process at once.
    """
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
            if signal.getsignal(number) is stop:  # not if `Interrupt.ignore_more` has put an end to it
                signal.signal(number, signal.SIG_DFL)


def ignore_signals() -> None:
    """Ignore SIGNALS until the process ends."""
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)


@contextlib.contextmanager
def signals_held() -> Iterator[None]:
    """Hold SIGNALS back until the end of the block. Child processes that are started in it hold them back as well."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)

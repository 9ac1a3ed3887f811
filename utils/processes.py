"""Calls in child processes, with their results in order. If a child ends for any reason, the caller gets an error."""
import atexit
import contextlib
import ctypes
import io
import multiprocessing.util  # imported first: its exit function, which waits for children, must run after ours
import pickle
import queue
import signal
import socket
import struct
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, wait
from typing import Any

import numpy as np

from utils.errors import UserError, one_line
from utils.interrupt import SIGNALS, check_wait, signals_held
from utils.progress import say

_KILLED = -getattr(signal, "SIGKILL", 9)  # exit code
_AHEAD = 2  # calls per process that run or have results that the caller has not taken
_PR_SET_PDEATHSIG = 1  # prctl(2): what the kernel sends to a process whose parent has ended
_PATIENCE = 60  # seconds without an answer after which a warning is printed
_NO_PROCESS = ("worker: a reading process cannot be started ({}): set worker=0, or raise what limits this machine or "
               "container (processes: ulimit -u, --pids-limit; open files: ulimit -n; memory).")


def map_in_order(function: Callable, keys: Iterable, processes: int, finish: Callable = lambda result: result,
                 title: Callable[[Any], str] = str) -> Generator:
    """Yield finish(function(key)) of each key, in order, computed in parallel and ahead of the caller.

    function(key) runs in one of `processes` child processes, up to two calls ahead in each. finish runs in a background
    thread of the caller. processes=0: both run in the caller's thread.

    Arguments and results are copied through sockets; arrays and CPU tensors need one copy on each side. No shared
    memory or semaphore is used, so a small, full or missing /dev/shm does no harm. Each child has its own socket, so a
    child that is killed or stuck does not hold up the others or the caller.

    Raises what a call has raised; UserError if a child ends (title(key) names what it was working on) or cannot be
    started. When the iterator ends, is closed or raises, the children are killed.
    """
    if not processes:
        yield from (finish(function(key)) for key in keys)
        return
    calls, children, threads = queue.SimpleQueue(), [], []
    pending: deque[tuple[Future, Any]] = deque()  # (its result, key) of the calls
    try:
        _start(processes, function, (calls, finish, title), children, threads)
        for key in keys:
            pending.append((Future(), key))
            calls.put(pending[-1])
            if len(pending) == _AHEAD * processes:
                yield _result(*pending.popleft(), title)
        while pending:
            yield _result(*pending.popleft(), title)
    finally:
        for child in children:
            child.kill()
            calls.put(None)  # ends a thread
        for one in (*threads, *children):  # a thread may be waiting for its child's exit code
            one.join(1)


def _result(future: Future, key: Any, title: Callable[[Any], str]) -> Any:
    """The result of a call, with a warning each minute that it takes."""
    pause, waited = min(1, _PATIENCE), 0
    while not wait([future], pause).done:
        check_wait()
        waited += 1
        if waited % round(_PATIENCE / pause) == 0:
            say(one_line(f"warning: no answer for {waited * pause:g} s on {title(key)}: does its disk still answer? A "
                         "signal (Ctrl-C) ends the wait."), everywhere=True)
    return future.result()


def _start(number, function, task, children, threads):
    """Start `number` child processes, each with a daemon thread that gives it its calls; append them to the lists."""
    try:
        with signals_held():  # a child must not run the caller's handlers
            for _ in range(number):
                ours, its = socket.socketpair()
                with its, contextlib.ExitStack() as failed:
                    failed.enter_context(ours)
                    child = multiprocessing.Process(target=_serve, args=(its, ours, function), daemon=True)
                    child.start()
                    children.append(child)
                    thread = threading.Thread(target=_relay, args=(child, ours, *task), daemon=True)
                    thread.start()
                    threads.append(thread)
                    failed.pop_all()
    except (OSError, RuntimeError) as error:  # RuntimeError: no thread
        raise UserError(_NO_PROCESS.format(getattr(error, "strerror", None) or error)) from None


def _relay(child, ours, calls, finish, title):
    """What the thread of a child does: take a call, send it to the child, set the result."""
    with ours:
        for future, key in iter(calls.get, None):
            try:
                future.set_result(finish(_answer(child, ours, key, title)))
            except BaseException as error:  # whatever it is, the caller waits for it
                future.set_exception(error)
            del future, key  # a waiting thread keeps no result in memory


def _answer(child, ours, key, title):
    try:
        _send(ours, _parts(key))
        result, error, where = _receive(ours)
    except (EOFError, OSError):
        child.join(5)
        raise UserError(f"worker: a process that read {title(key)} {_end(child.exitcode)}") from None
    if error:
        raise error from where
    return result


def _end(exit_code: int | None) -> str:
    """How a child has ended, and what the user can do."""
    if exit_code == _KILLED:
        return ("was killed (SIGKILL), most likely because memory is full or a container's limit reached: lower worker "
                "(0: read in the main process), batch_size, or the crop and input sizes, or allow more memory.")
    if exit_code is not None and exit_code < 0:
        return (f"crashed ({signal.Signals(-exit_code).name}), most likely in the decoder on a damaged file, or for "
                "lack of memory: replace the file; worker=0 reads in the main process.")
    return f"has ended (exit code {exit_code}): worker=0 reads in the main process and may show why."


class _Traceback(Exception):
    """The traceback of an error in a child, as text; it becomes the cause of that error in the caller."""

    def __str__(self):
        return "\n" + self.args[0]


def _serve(its: socket.socket, ours: socket.socket, function: Callable) -> None:
    """What a child does: answer calls until the caller's end of the socket is closed, as it is when the caller ends.

    Later children have copies of the caller's ends of earlier sockets, so the last child ends first. On Linux the
    kernel ends them all, also a child that is stuck in a read.
    """
    ours.close()
    with contextlib.suppress(Exception):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    for number in SIGNALS:  # sent to the whole process group; the caller decides when its children end
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    if torch := sys.modules.get("torch"):  # not imported for this: that takes two seconds
        torch.set_num_threads(1)
    with contextlib.suppress(EOFError, OSError):
        while True:
            key = _receive(its)
            try:
                answer = _parts((function(key), None, None))
            except Exception as error:
                where = None if isinstance(error, UserError) else _Traceback(traceback.format_exc())
                error = error if _travels(error) else RuntimeError(f"{type(error).__name__}: {error}")
                answer = _parts((None, error, where))
            _send(its, answer)


def _travels(error):
    try:
        return type(pickle.loads(pickle.dumps(error))) is type(error)
    except Exception:
        return False


class _Pickler(pickle.Pickler):
    """Pickles arrays out of band, without a copy, and tensors as arrays."""

    def reducer_override(self, value: Any) -> Any:
        if (torch := sys.modules.get("torch")) and type(value) is torch.Tensor:
            return torch.from_numpy, (value.numpy(),)
        return NotImplemented


def _parts(value: object) -> list[memoryview]:
    """The value pickled: the pickle, then the memory of its arrays."""
    head, buffers = io.BytesIO(), []
    _Pickler(head, 5, buffer_callback=buffers.append).dump(value)
    return [head.getbuffer(), *(buffer.raw() for buffer in buffers)]


def _send(end: socket.socket, parts: list[memoryview]) -> None:
    end.sendall(struct.pack(f"<{1 + len(parts)}Q", len(parts), *(part.nbytes for part in parts)))
    for part in parts:
        end.sendall(part)


def _receive(end: socket.socket) -> Any:
    count, = struct.unpack("<Q", _read(end, 8))
    head, *buffers = [_read(end, size) for size in struct.unpack(f"<{count}Q", _read(end, 8 * count))]
    return pickle.loads(head, buffers=buffers)


def _read(end: socket.socket, size: int) -> np.ndarray:
    """Read bytes, as uint8 [size]. Raises EOFError if the other end is closed before."""
    data = np.empty(size, np.uint8)
    rest = memoryview(data)
    while rest:
        got = end.recv_into(rest)
        if not got:
            raise EOFError
        rest = rest[got:]
    return data


@atexit.register
def _kill_children():
    """Kill the children of iterators that are still open when the process ends; they ignore SIGTERM."""
    for child in multiprocessing.active_children():
        child.kill()

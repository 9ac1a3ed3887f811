"""Background threads with a bounded queue, whose errors reach the caller."""
import copy
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


class Background:
    """Runs calls in background threads, at most `pending` unfinished at a time: `submit` waits while there are more.

    With one thread the calls run in the order in which they are submitted. An exception of a call is raised by a later
    `submit`, or at the end of the `with` block, which waits for all calls.
    """

    def __init__(self, threads: int = 1, pending: int = 8):
        self._pool, self._pending = ThreadPoolExecutor(threads), pending
        self._futures = deque()

    def submit(self, call: Callable, *arguments: Any) -> None:
        """Run `call(*arguments)` in a background thread. Raises what an earlier call has raised."""
        while len(self._futures) >= self._pending:
            self._futures.popleft().result()
        self._futures.append(self._pool.submit(call, *arguments))

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        try:
            while kind is None and self._futures:
                self._futures.popleft().result()
        finally:
            self._pool.shutdown(cancel_futures=True)


def host_copy(tensor: Tensor) -> Callable[[], Tensor]:
    """Start copying a tensor to the CPU. The returned function waits for the copy and returns it; it may be called in
    any thread. A tensor of the CPU is not copied."""
    return host_copies(tensor, clone=False)


def host_copies(tree: Any, clone: bool = True) -> Callable[[], Any]:
    """Start copying the tensors in nested dicts, lists and tuples to the CPU. The returned function waits for all of
    them at once and returns the tree of the copies; it may be called in any thread. clone: copy those of the CPU, too,
    so that no later change of the originals reaches the copies."""
    devices: set[torch.device] = set()

    def copied(value):
        if isinstance(value, Tensor):
            if value.device.type != "cuda":
                return value.detach().clone() if clone else value
            devices.add(value.device)
            value = value.detach()
            return torch.empty_like(value, device="cpu", pin_memory=True).copy_(value, non_blocking=True)
        if isinstance(value, dict):
            result = copy.copy(value)  # with the attributes of a state dict
            result.update((key, copied(part)) for key, part in value.items())
            return result
        return type(value)(map(copied, value)) if type(value) in (list, tuple) else value

    copies = copied(tree)
    events = [(device, _recorded(device)) for device in devices]

    def wait():
        for device, event in events:
            with torch.cuda.device(device):  # a thread begins with the first GPU, where waiting would take memory
                event.synchronize()
        return copies
    return wait


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU on a device. A GPU copies it while the CPU goes on, as it does from pinned memory alone."""
    pinned = tensor.pin_memory() if device.type == "cuda" and not tensor.is_pinned() else tensor
    return pinned.to(device, non_blocking=True)


def later(call: Callable[[], T]) -> Callable[[], T]:
    """Run a call in a thread. The returned function waits for its end, and returns or raises what it has."""
    pool = ThreadPoolExecutor(1)
    future = pool.submit(call)
    pool.shutdown(wait=False)
    return future.result


def _recorded(device):
    """An event on the stream in which copies from a device run. Waiting for it leaves the core to others."""
    event = torch.cuda.Event(blocking=True)
    event.record(torch.cuda.current_stream(device))  # not of the current device, which may be another
    return event

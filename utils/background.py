"""Background threads with a bounded queue, whose errors reach the caller."""
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor


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
    any thread."""
    if tensor.device.type != "cuda":
        return lambda: tensor
    copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)
    done = torch.cuda.Event()
    done.record()

    def wait():
        done.synchronize()
        return copy
    return wait

"""Work beside the main thread: bounded, in order, never losing an error."""
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import Callable

import torch
from torch import Tensor


class Background:
    """Runs calls in threads beside the caller's, at most `pending` unfinished at a time: whoever submits faster than
    they finish has to wait. With one thread calls run in the order of their submission.

    An exception of a call is raised by a later `submit`, or at the end of the `with` block, which waits for all calls.
    """

    def __init__(self, threads: int = 1, pending: int = 8):
        self._pool, self._pending = ThreadPoolExecutor(threads), pending
        self._futures = deque()

    def submit(self, call: Callable, *arguments) -> None:
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
    """Start copying a tensor to the CPU; the returned function, called in any thread, waits for it and returns it."""
    if tensor.device.type != "cuda":
        return lambda: tensor
    copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)
    done = torch.cuda.Event()
    done.record()

    def wait():
        done.synchronize()
        return copy
    return wait

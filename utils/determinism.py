"""Computing the same bits each time on a GPU, where the fastest kernels add up in any order."""
import contextlib
import os
from collections.abc import Iterator
from typing import Any

import torch
import torch.utils.deterministic

from utils.errors import ConfigError

_CUBLAS, _SAME_BITS = "CUBLAS_WORKSPACE_CONFIG", (":4096:8", ":16:8")  # values with which cuBLAS is deterministic
_memory: Any = torch.utils.deterministic


def compute_deterministically(device: torch.device) -> None:
    """Let this process compute with deterministic kernels from now on; an operation that has none raises a RuntimeError
    of torch, which says so. For the CPU there is nothing to do. Call it before the first matrix product. Raises
    ConfigError if the environment contradicts."""
    if device.type != "cuda":
        return
    value = os.environ.setdefault(_CUBLAS, _SAME_BITS[0])
    if value not in _SAME_BITS:
        raise ConfigError(f"deterministic: the environment sets {_CUBLAS}={value}, with which cuBLAS does not compute "
                          f"the same bits each time: unset it, or set it to {' or '.join(_SAME_BITS)}.")
    torch.backends.cudnn.benchmark = False  # which would choose kernels by their time
    torch.backends.cudnn.deterministic = True
    torch.use_deterministic_algorithms(True)
    _memory.fill_uninitialized_memory = False  # nothing here reads memory before it is written
    if torch.cuda.is_available():
        try:
            torch.ones(1, 1, device=device) @ torch.ones(1, 1, device=device)
        except RuntimeError as error:  # torch reads the variable once
            raise ConfigError(f"deterministic: this process has computed matrix products on a GPU before {_CUBLAS} was "
                              f"set: set {_CUBLAS}={_SAME_BITS[0]} in the environment before it starts.") from error


@contextlib.contextmanager
def same_kernels() -> Iterator[None]:
    """A block after which torch chooses its kernels as before it."""
    cudnn = torch.backends.cudnn
    before = cudnn.benchmark, cudnn.deterministic, _memory.fill_uninitialized_memory
    algorithms = _algorithms()
    try:
        yield
    finally:
        cudnn.benchmark, cudnn.deterministic, _memory.fill_uninitialized_memory = before
        if _algorithms() != algorithms:  # else the call would load torch's compiler for nothing
            torch.use_deterministic_algorithms(algorithms[0], warn_only=algorithms[1])


def _algorithms():
    return torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()

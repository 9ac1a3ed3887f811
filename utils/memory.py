"""How much memory there is, and how much this process has taken at most."""
import contextlib
import os
import re
import sys
from pathlib import Path

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_GROUPS = (  # of a container, version 2 and version 1: limit, use, statistics, and how these call the pages of files
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current", "/sys/fs/cgroup/memory.stat", ""),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes",
     "/sys/fs/cgroup/memory/memory.stat", "total_"))
# What CUDA, cuDNN (also where it tries its algorithms), cuBLAS (where it begins) and NCCL say when they get
# no memory; only torch's own allocator has a class for it.
_GPU_FULL = ("CUDA out of memory", "CUDA error: out of memory", "cudaErrorMemoryAllocation",
             "CUDNN_STATUS_ALLOC_FAILED", "ALLOCATION_FAILED", "unable to find an engine",
             "Unable to find a valid cuDNN algorithm", "CUBLAS_STATUS_ALLOC_FAILED", "CUBLAS_STATUS_NOT_INITIALIZED",
             "Cuda failure 2 'out of memory'", "Cuda failure 'out of memory'")
_UNKNOWN = 8 * 2**30  # bytes, where no system tells


def available_memory() -> int:
    """Bytes that a new process can take without swapping: what the system has left, or what the limit of the container
    leaves, whichever is less. The pages of files that were read count as free, as the system gives them up."""
    found = [_number(r"MemAvailable:\s+(\d+) kB", _text("/proc/meminfo")) * 1024]
    if not found[0] and hasattr(os, "sysconf"):
        with contextlib.suppress(ValueError, OSError):
            found = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for limit, used, statistics, total in _GROUPS:
        if most := _number(r"(\d+)\s*", _text(limit)):  # "max": none
            text = _text(statistics)
            files = sum(_number(rf"(?m)^{total}{kind} (\d+)", text) for kind in ("inactive_file", "active_file"))
            found.append(max(1, most - max(0, _number(r"(\d+)\s*", _text(used)) - files)))
    return min((n for n in found if n > 0), default=_UNKNOWN)


def gpu_is_full(error: BaseException) -> bool:
    """Whether an error says that a GPU's memory is full, or that no memory could be pinned for it."""
    return type(error).__name__ == "OutOfMemoryError" or isinstance(error, RuntimeError) and any(
        words in str(error) for words in _GPU_FULL)


def reset_peak() -> None:
    """Let `peak_memory` count from now on, where the system can."""
    with contextlib.suppress(OSError):
        _CLEAR.write_text("5")


def peak_memory() -> int:
    """The most bytes of physical memory that this process has held since `reset_peak`, or since it began; 0 if the
    system does not tell."""
    if peak := _number(r"VmHWM:\s+(\d+) kB", _text(str(_STATUS))):
        return peak * 1024
    try:
        import resource
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _text(path):
    try:
        return Path(path).read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""


def _number(pattern, text):
    match = re.search(pattern, text)
    return int(match[1]) if match else 0

"""Memory of the CPU that stays with the process."""
import ctypes
import sys

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # of mallopt(3)


def keep_freed_memory() -> None:
    """Let glibc keep what tensors free for the next ones. By default it gives every block of more than 32 MiB back to
    the system, which clears each page anew for the next tensor. What is kept is in pieces, so the peak is higher.
    Elsewhere (other systems, other C libraries) nothing happens."""
    if not sys.platform.startswith("linux"):
        return
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    mallopt(_MMAP_THRESHOLD, 2**30)
    mallopt(_TRIM_THRESHOLD, 2**31 - 1)
    mallopt(_TOP_PAD, 2**26)

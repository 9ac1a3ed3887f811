"""How the C library's memory allocator treats the memory of CPU tensors."""
import ctypes
import sys

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # of mallopt(3)


def keep_freed_memory() -> None:
    """Let glibc keep the memory that tensors free, for the next tensors.

    By default glibc returns every block of more than 32 MiB to the system, which clears each page again for the next
    tensor. The price of keeping them is a higher peak, as the kept memory is fragmented. Does nothing on other systems
    or with other C libraries.
    """
    if not sys.platform.startswith("linux"):
        return
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    mallopt(_MMAP_THRESHOLD, 2**30)
    mallopt(_TRIM_THRESHOLD, 2**31 - 1)
    mallopt(_TOP_PAD, 2**26)

"""What a run was computed with: versions, machine, and the memory that it took."""
import contextlib
import importlib.metadata
import os
import platform
import re
from pathlib import Path
from typing import Any

import torch

from utils import memory

_LIBRARIES = ("torch", "torchvision", "numpy", "Pillow", "imagecodecs", "safetensors")


def versions() -> dict[str, str]:
    """The versions of Python and of the libraries that results may depend on. Libraries that are missing are left
    out."""
    found = {"Python": platform.python_version()}
    for name in _LIBRARIES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def machine(device: torch.device) -> dict[str, Any]:
    """The system, the processor with the number of cores that this process may use, and the device of the tensors."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    return {"system": f"{platform.system()} {platform.machine()}", "processor": _processor(), "cores": cores,
            "device": name}


def peak_memory(device: torch.device) -> dict[str, float | None]:
    """The most memory that was in use at once so far, in MiB: `memory` of this process (None where the system does not
    say) and, on a GPU, `gpu_memory` of its tensors."""
    found: dict[str, float | None] = {"memory": memory.peak_memory() / 2**20 or None}
    if device.type == "cuda":
        found["gpu_memory"] = torch.cuda.max_memory_allocated(device) / 2**20
    return found


def _processor():
    """The processor's name; Linux tells it in a file alone."""
    with contextlib.suppress(OSError):
        if named := re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text("utf-8"), re.MULTILINE):
            return named[1]
    return platform.processor() or platform.machine()

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

_CPUINFO = Path("/proc/cpuinfo")
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


def computes_in_bf16(device: torch.device) -> bool:
    """Whether a device has units of its own for bf16: a GPU of NVIDIA's since Ampere, or a CPU with AVX-512 bf16 or
    AMX. Others compute in it, too, or refuse to; it does not make them faster."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    return not {"avx512_bf16", "amx_bf16"}.isdisjoint(_cpu_entry("flags").split())


def peak_memory(device: torch.device) -> dict[str, float | None]:
    """The most memory that was in use at once so far, in MiB: `memory` of this process (None where the system does not
    say) and, on a GPU, `gpu_memory` of its tensors."""
    found: dict[str, float | None] = {"memory": memory.peak_memory() / 2**20 or None}
    if device.type == "cuda":
        found["gpu_memory"] = torch.cuda.max_memory_allocated(device) / 2**20
    return found


def _processor():
    return _cpu_entry("model name") or platform.processor() or platform.machine()


def _cpu_entry(name):
    """What Linux says of the first processor; empty elsewhere."""
    with contextlib.suppress(OSError):
        if found := re.search(rf"^{name}\s*:\s*(.+)$", _CPUINFO.read_text("utf-8", "replace"), re.MULTILINE):
            return found[1]
    return ""

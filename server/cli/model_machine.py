"""The memory of this machine and its GPUs, asked of the system: llama.cpp knows it better, and is slow to import."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from contextlib import suppress
from pathlib import Path

from server.cli.model_fit import Memory
from server.llama.main_memory import main_memory

_NVIDIA_LIBRARY = "libnvidia-ml.so.1"
_AMD_FILES = "sys/class/drm/card*/device/mem_info_vram_total"
_APPLES_SHARE = 0.75  # of main memory, which Metal lets a GPU use
_ROOT = Path("/")


class _NvidiaMemory(ctypes.Structure):
    """``nvmlMemory_t``."""

    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


def machine_memory() -> Memory | None:
    """Return the memory of this machine; ``None`` where the system does not tell."""
    found = main_memory()
    if found is not None:
        return Memory(found.free, found.total, gpu=nvidia_bytes() + amd_bytes())
    if sys.platform == "darwin":
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        has_gpu = platform.machine() == "arm64"
        return Memory(total, total, gpu=int(total * _APPLES_SHARE) if has_gpu else 0, is_shared=has_gpu)
    return None


def nvidia_bytes(library: str = _NVIDIA_LIBRARY) -> int:
    """Return the memory of all NVIDIA GPUs; 0 without any.

    https://docs.nvidia.com/deploy/nvml-api/
    """
    try:
        nvml = ctypes.CDLL(library)
        if nvml.nvmlInit_v2() != 0:
            return 0
    except (OSError, AttributeError):  # no driver, or one from before there was such a function
        return 0
    try:
        count = ctypes.c_uint(0)
        if nvml.nvmlDeviceGetCount_v2(ctypes.byref(count)) != 0:
            return 0
        return sum(_nvidia_device_bytes(nvml, number) for number in range(count.value))
    finally:
        nvml.nvmlShutdown()


def _nvidia_device_bytes(nvml: ctypes.CDLL, number: int) -> int:
    handle, memory = ctypes.c_void_p(), _NvidiaMemory()
    is_found = nvml.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(number), ctypes.byref(handle)) == 0
    if not is_found or nvml.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(memory)) != 0:
        return 0
    return int(memory.total)


def amd_bytes(root: Path = _ROOT) -> int:
    """Return the memory of all GPUs that Linux's ``amdgpu`` driver has."""
    total = 0
    for path in root.glob(_AMD_FILES):
        with suppress(OSError, ValueError):  # a card that is just unplugged
            total += int(path.read_text(encoding="ascii"))
    return total

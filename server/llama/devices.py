"""The devices that models can be in, and their memory: ggml's own device query, which llama_cpp does not bind.

https://github.com/ggml-org/llama.cpp/blob/master/ggml/include/ggml-backend.h
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from llama_cpp import llama_cpp

from server.llama import library
from server.llama.main_memory import MainMemory, main_memory, resident_bytes

__all__ = ["CPU", "Device", "devices", "free_bytes", "gpu_handles", "native_version", "resident_bytes", "system_info"]

CPU = "CPU"
"""The name of main memory among the devices."""

_TYPE_CPU, _TYPE_GPU, _TYPE_INTEGRATED = 0, 1, 2
_info_lock = threading.Lock()


@dataclass(frozen=True, slots=True)
class Device:
    """A device with its memory in bytes.

    Attributes:
        name: ``CPU`` for main memory, else ggml's name (``CUDA0``).
        description: what the device is.
        is_gpu: whether layers can be kept there.
        free: what is available now.
        total: what this process may use at most.

    """

    name: str
    description: str
    is_gpu: bool
    free: int
    total: int


class _Properties(ctypes.Structure):
    """``ggml_backend_dev_props``."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("description", ctypes.c_char_p),
        ("memory_free", ctypes.c_size_t),
        ("memory_total", ctypes.c_size_t),
        ("type", ctypes.c_int),
        ("device_id", ctypes.c_char_p),
        ("capabilities", ctypes.c_bool * 5),
    )


def devices() -> tuple[Device, ...]:
    """List main memory and then the GPUs, in llama.cpp's order."""
    return (_main_memory_device(), *(_gpu(handle) for handle in gpu_handles()))


def free_bytes(name: str) -> int:
    """Return what is available on a device now.

    Raises:
        ValueError: there is no such device.

    """
    for device in devices():
        if device.name == name:
            return device.free
    raise ValueError(f"There is no device {name}.")


def gpu_handles() -> Sequence[int]:
    """Return the ``ggml_backend_dev_t`` of each GPU, which stay valid as long as the process lives.

    As in ``llama_prepare_model_devices`` of src/llama.cpp, one GPU that two of ggml's backends can drive counts once,
    and an integrated one only where there is no other.
    """
    found: dict[object, int] = {}
    integrated: list[int] = []
    for handle in _handles():
        properties = _properties(handle)
        if properties.type == _TYPE_GPU:
            found.setdefault(properties.device_id or handle, handle)
        elif properties.type == _TYPE_INTEGRATED:
            integrated.append(handle)
    return tuple(found.values()) or tuple(integrated[:1])


def system_info() -> str:
    """Return what ggml was built for and what the processor can do, in llama.cpp's words."""
    with _info_lock:  # the native function writes into a buffer that all threads share
        return _text(llama_cpp.llama_print_system_info())


def native_version() -> str:
    """Return the version of the package that brings llama.cpp."""
    return str(library.VERSION)


def _main_memory_device() -> Device:
    for handle in _handles():
        properties = _properties(handle)
        if properties.type == _TYPE_CPU:
            # ggml calls all memory of the machine free, and does not know of cgroups
            memory = main_memory() or MainMemory(properties.memory_free, properties.memory_total)
            return Device(CPU, _text(properties.description), is_gpu=False, free=memory.free, total=memory.total)
    raise RuntimeError("llama.cpp was built without support for CPUs")


def _gpu(handle: int) -> Device:
    properties = _properties(handle)
    return Device(
        _text(properties.name),
        _text(properties.description),
        is_gpu=True,
        free=properties.memory_free,
        total=properties.memory_total,
    )


def _handles() -> Iterator[int]:
    native = _native()
    for index in range(native.ggml_backend_dev_count()):
        yield native.ggml_backend_dev_get(index)


def _properties(handle: int) -> _Properties:
    properties = _Properties()
    _native().ggml_backend_dev_get_props(handle, ctypes.byref(properties))
    return properties


def _text(data: bytes | None) -> str:
    return (data or b"").decode("utf-8", "replace")


@cache
def _native() -> Any:  # noqa: ANN401 -- functions of a library
    """Declare ggml's functions. They are found through libllama, which depends on the libraries that have them.

    Opening those by name could bring a second copy of ggml, with devices of its own, where a wheel holds copies.
    """
    native = llama_cpp._lib  # noqa: SLF001 -- the package opens it under no public name
    native.ggml_backend_dev_count.restype = ctypes.c_size_t
    native.ggml_backend_dev_get.argtypes = [ctypes.c_size_t]
    native.ggml_backend_dev_get.restype = ctypes.c_void_p
    native.ggml_backend_dev_get_props.argtypes = [ctypes.c_void_p, ctypes.POINTER(_Properties)]
    native.ggml_backend_dev_get_props.restype = None
    return native

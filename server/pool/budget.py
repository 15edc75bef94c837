"""How many bytes models may take on each device: what the operator says, or what is free less a reserve."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from server.core.errors import ConfigurationError
from server.llama.devices import Device
from server.pool.config import MemoryBudget
from server.pool.ledger import parse_memory_size

_SETTING = "llamacpp.memory_budget"
_RESERVED_SHARE = 0.1
_RESERVED_LEAST = 256 << 20
_GPU_CONTEXT = 512 << 20
"""What a driver takes for a process that uses the GPU at all."""


def device_budgets(budget: MemoryBudget, devices: Sequence[Device]) -> dict[str, int]:
    """Return the bytes that models may take, by device.

    One size is for the GPUs, in equal parts, or for main memory where there is no GPU. What is not given is what the
    device has free now, less a reserve for everything that is not a model.

    Raises:
        ConfigurationError: a size cannot be read, or a device does not exist.

    """
    sizes = dict(budget) if isinstance(budget, Mapping) else _shared(budget, devices)
    if unknown := sizes.keys() - {device.name for device in devices}:
        names = ", ".join(device.name for device in devices)
        raise ConfigurationError(f"{_SETTING}: there is no device {min(unknown)} on this machine; it has {names}.")
    parsed = {name: parse_memory_size(size, _SETTING) for name, size in sizes.items()}
    given = {name: size for name, size in parsed.items() if isinstance(size, int)}
    return {device.name: given.get(device.name, _free(device)) for device in devices}


def _shared(size: str | int, devices: Sequence[Device]) -> Mapping[str, str | int]:
    parsed = parse_memory_size(size, _SETTING)
    if not isinstance(parsed, int):
        return {}
    gpus = [device.name for device in devices if device.is_gpu]
    return dict.fromkeys(gpus, parsed // len(gpus)) if gpus else {devices[0].name: parsed}


def _free(device: Device) -> int:
    reserved = max(int(device.free * _RESERVED_SHARE), _RESERVED_LEAST)
    return max(device.free - reserved - (_GPU_CONTEXT if device.is_gpu else 0), 0)

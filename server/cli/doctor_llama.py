"""What follows from how llama.cpp was built, and from the machine that it runs on. Pure."""

from __future__ import annotations

import shlex
import signal
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from server.cli.bench_report import shown_size
from server.cli.doctor_findings import Finding, Status, worst
from server.cli.doctor_versions import parse_version

CHECK, DEVICES = "llama.cpp", "devices"

# ggml's name of what the processor can do → the kernel's names for it, all of which are needed. A build without those
# of the first table takes several times as long.
_NEEDED = {
    "AVX": {"avx"},
    "AVX2": {"avx2"},
    "FMA": {"fma"},
    "F16C": {"f16c"},
    "NEON": {"asimd"},
    "DOTPROD": {"asimddp"},
}
_USEFUL = {
    "AVX512": {"avx512f", "avx512cd", "avx512vl", "avx512dq", "avx512bw"},
    "AVX512_VNNI": {"avx512_vnni"},
    "AVX_VNNI": {"avx_vnni"},
    "AMX_INT8": {"amx_int8"},
    "MATMUL_INT8": {"i8mm"},
    "SVE": {"sve"},
}
_GRAPHICS = {
    "NVIDIA": ("CUDA", "-DGGML_CUDA=on", "the CUDA toolkit", "nvidia-smi"),
    "Apple": ("Metal", "-DGGML_METAL=on", "the command line tools of Xcode", "system_profiler SPDisplaysDataType"),
}
_OTHER_GRAPHICS = ("Vulkan", "-DGGML_VULKAN=on", "the Vulkan SDK", "vulkaninfo --summary")
"""By vendor: ggml's backend, the option that builds it, what building it needs, and what shows the driver's view."""
_LITTLE_MEMORY = 1 << 30
_MOST_QUOTED_LINES = 6


@dataclass(frozen=True, slots=True)
class Installation:
    """Where this program is installed.

    Attributes:
        checkout: the project's folder, if it runs from there; builds are made with its ``tools/setup``.
        environment: the virtual environment.

    """

    checkout: Path | None
    environment: Path

    def build_command(self, cmake_arguments: str = "") -> str:
        """Return the command that installs llama.cpp, built for this machine and with these options."""
        variables = f'CMAKE_ARGS="{cmake_arguments}" ' if cmake_arguments else ""
        if self.checkout is None:
            return f"{variables}tools/setup   (in a clone of the project)"
        if self.environment != self.checkout / ".venv":
            variables = f"VENV={shlex.quote(str(self.environment))} {variables}"
        return f"cd {shlex.quote(str(self.checkout))} && {variables}tools/setup"


@dataclass(frozen=True, slots=True)
class Graphics:
    """A graphics processor of the machine; ``has_driver`` says whether programs can compute on it."""

    vendor: str
    name: str
    has_driver: bool


@dataclass(frozen=True, slots=True)
class Hardware:
    """The machine; ``cpu_flags`` are the kernel's names of what the processor can do, ``None`` where nobody tells."""

    cpu_flags: frozenset[str] | None
    graphics: tuple[Graphics, ...]


@dataclass(frozen=True, slots=True)
class DeviceFacts:
    """A device that llama.cpp sees; sizes in bytes."""

    name: str
    description: str
    is_gpu: bool
    free: int
    total: int


@dataclass(frozen=True, slots=True)
class Build:
    """What is known of llama.cpp.

    Attributes:
        version: of llama-cpp-python, as installed; ``None`` if it is not.
        required: the oldest version that this server is made for, if that is known.
        failure: why it cannot be loaded, line by line; empty if it can.
        exit_code: with which a process ended that loaded it; negative for a signal.
        features: what it was built for, and ggml's word on whether it was: ``AVX2`` → ``True``.
        backends: that were built besides that for the processor, such as ``CUDA``.
        devices: that it sees, main memory first.

    """

    version: str | None
    failure: tuple[str, ...] = ()
    exit_code: int = 0
    features: Mapping[str, bool] | None = None
    backends: tuple[str, ...] = ()
    devices: tuple[DeviceFacts, ...] = ()
    required: str | None = None

    @property
    def works(self) -> bool:
        """Whether it is there and can be loaded."""
        return self.version is not None and self.exit_code == 0


def parse_system_info(text: str) -> tuple[dict[str, bool], tuple[str, ...]]:
    """Read llama.cpp's line about itself: features of the processor, and the other backends that it names."""
    features, backends, current = dict[str, bool](), list[str](), ""
    for part in text.split("|"):
        backend, colon, rest = part.rpartition(" : ")
        if colon:
            current = backend.strip()
            backends += [current] if current not in ("CPU", *backends) else []
        name, _, value = rest.partition("=")
        if current == "CPU" and value.strip().isdigit():
            features[name.strip()] = value.strip() != "0"
    return features, tuple(backends)


def check_llama(build: Build, hardware: Hardware, installation: Installation) -> Finding:
    """Say whether llama.cpp works, and whether it makes use of the machine."""
    if not build.works:
        return _broken(build, installation)
    remarks = [
        *_on_version(build, installation),
        *_on_processor(build, hardware, installation),
        *_on_graphics(build, hardware, installation),
    ]
    status = worst([remark.status for remark in remarks])
    backends = ", ".join(build.backends)
    return Finding(
        CHECK,
        status,
        f"llama-cpp-python {build.version}, built for the processor" + (f", {backends}" if backends else " only"),
        (_features(build), *(remark.text for remark in remarks)),
        tuple(remark.advice for remark in remarks if remark.advice),
        can_answer=status is not Status.FAILED,
    )


def check_devices(build: Build) -> Finding | None:
    """Say what memory there is; nothing if llama.cpp cannot say which devices there are."""
    if not build.devices:
        return None
    lines = tuple(
        f"{each.name} ({each.description}): {shown_size(each.free)} of {shown_size(each.total)} free"
        for each in build.devices
    )
    short = [each for each in build.devices if each.free < _LITTLE_MEMORY]
    gpus = [each for each in build.devices if each.is_gpu]
    if not short:
        summary = f"{shown_size(sum(each.free for each in gpus or build.devices))} free for models"
        return Finding(DEVICES, Status.OK, summary + (" on GPUs" if gpus else ""), lines)
    names = ", ".join(each.name for each in short)
    return Finding(
        DEVICES,
        Status.WARNING,
        f"less than {shown_size(_LITTLE_MEMORY)} is free on {names}",
        lines,
        (f"Free memory on {names}: end other programs there, or models that run elsewhere (`ollama ps`).",),
    )


@dataclass(frozen=True, slots=True)
class _Remark:
    status: Status
    text: str
    advice: str = ""


def _broken(build: Build, installation: Installation) -> Finding:
    if build.version is None:
        return Finding(
            CHECK,
            Status.FAILED,
            "llama-cpp-python is not installed: models run on Ollama only",
            advice=(f"Install llama.cpp: {installation.build_command()}",),
        )
    crash = -build.exit_code if build.exit_code < 0 else 0
    if crash == signal.SIGILL:
        why = "it was built for a processor that can do more than this one"
        build_options = "-DGGML_NATIVE=on"
    elif crash:
        why, build_options = f"loading it ends the process ({_signal_name(crash)})", "-DGGML_NATIVE=on"
    else:
        why, build_options = "it cannot be loaded", "-DGGML_NATIVE=on"
    return Finding(
        CHECK,
        Status.FAILED,
        f"llama-cpp-python {build.version} does not work: {why}",
        build.failure[-_MOST_QUOTED_LINES:],
        (f"Build llama.cpp for this machine: {installation.build_command(build_options)}",),
    )


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _features(build: Build) -> str:
    known = [name for name, is_there in (build.features or {}).items() if is_there]
    return "uses of the processor: " + (", ".join(known) or "nothing special")


def _on_version(build: Build, installation: Installation) -> Iterator[_Remark]:
    has, wanted = parse_version(build.version or ""), parse_version(build.required or "")
    if has is not None and wanted is not None and has < wanted:
        yield _Remark(
            Status.WARNING,
            f"older than {build.required}, for which this server is made",
            f"Install the version of llama.cpp that this server is made for: {installation.build_command()}",
        )


def _on_processor(build: Build, hardware: Hardware, installation: Installation) -> Iterator[_Remark]:
    if hardware.cpu_flags is None or build.features is None:
        return
    has = {name for name, flags in (_NEEDED | _USEFUL).items() if flags <= hardware.cpu_flags}
    used = {name for name, is_there in build.features.items() if is_there}
    command = installation.build_command("-DGGML_NATIVE=on")
    if beyond := sorted((used & (_NEEDED.keys() | _USEFUL.keys())) - has):
        yield _Remark(
            Status.FAILED,
            f"built for {', '.join(beyond)}, which this processor does not have: models would crash",
            f"Build llama.cpp for this machine: {command}",
        )
    elif slow := sorted((has & _NEEDED.keys()) - used):
        yield _Remark(
            Status.WARNING,
            f"built without {', '.join(slow)}, which this processor has: models are several times slower",
            f"Build llama.cpp for this machine, it is slow as it is: {command}",
        )
    elif unused := sorted((has & _USEFUL.keys()) - used):
        yield _Remark(Status.NOTE, f"built without {', '.join(unused)}, which this processor has")


def _on_graphics(build: Build, hardware: Hardware, installation: Installation) -> Iterator[_Remark]:
    sees_gpu = any(device.is_gpu for device in build.devices)
    if sees_gpu:
        return
    for vendor in dict.fromkeys(each.vendor for each in hardware.graphics):
        found = [each for each in hardware.graphics if each.vendor == vendor]
        names = " and ".join(dict.fromkeys(each.name for each in found))
        backend, option, needed, test = _GRAPHICS.get(vendor, _OTHER_GRAPHICS)
        if not any(each.has_driver for each in found):
            yield _Remark(
                Status.WARNING,
                f"{names}: there is no driver for computing",
                f"Install {vendor}'s driver, so that models can use {names}.",
            )
        elif build.backends:
            yield _Remark(
                Status.WARNING,
                f"{names} is there, but llama.cpp does not see it, built for {', '.join(build.backends)}",
                f"Let llama.cpp see {names}: check the driver (`{test}`), CUDA_VISIBLE_DEVICES, the permissions of the "
                f"files in /dev, and whether it was built for it ({option}).",
            )
        else:
            yield _Remark(
                Status.WARNING,
                f"{names} is not used: llama.cpp was built without {backend}",
                f"Build llama.cpp with {backend} to use {names}, which needs {needed}: "
                f"{installation.build_command(option)}",
            )

"""Looks at what ``llmspell doctor`` judges: files, devices, ports, other programs; changes nothing, and never fails."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from importlib import metadata, util
from pathlib import Path
from typing import TYPE_CHECKING, Any

import server
from server.cli.doctor_checks import (
    Access,
    FolderFacts,
    HubFacts,
    LimitFacts,
    ModelFacts,
    Occupant,
    OllamaFacts,
    PortFacts,
    StoreFacts,
)
from server.cli.doctor_llama import Build, DeviceFacts, Graphics, Hardware, Installation, parse_system_info
from server.cli.server_lookup import listens
from server.client.address import url_of
from server.config_sources import home_directory
from server.core.errors import ConfigurationError, HubDenied, LlmspellError, ModelNotFound
from server.store.header_cache import HeaderCache
from server.store.hub_settings import HubSettings, hub_settings
from server.store.model_index import ModelEntry, ModelIndex
from server.store.places import Place, Source, Surroundings, model_places, own_folder
from server.store.recommended import load_recommended

if TYPE_CHECKING:
    from server.config_keys import ServerConfig
    from server.config_sources import Configuration

_PACKAGE, _DISTRIBUTION, _OURS = "llama_cpp", "llama-cpp-python", "llmspell-server"
_PROBE_SECONDS, _PROGRAM_SECONDS = 120.0, 20.0
_NETWORK_SECONDS = 10.0
_LIBRARIES = {
    "cuda": "CUDA",
    "vulkan": "Vulkan",
    "metal": "Metal",
    "hip": "ROCm",
    "sycl": "SYCL",
    "opencl": "OpenCL",
    "musa": "MUSA",
    "cann": "CANN",
}
_NVIDIA, _AMD = "0x10de", "0x1002"
_CAP_IPC_LOCK = 1 << 14


# --- llama.cpp ---


def installation() -> Installation:
    """Find out where this program runs from."""
    folder = _package_root()
    return Installation(folder if (folder / "tools" / "setup").is_file() else None, Path(sys.prefix))


def _package_root() -> Path:
    return Path(server.__file__).absolute().parent.parent


def build(environ: Mapping[str, str]) -> Build:
    """Load llama.cpp in a process of its own, and ask it."""
    version = _installed_version()
    if version is None:
        return Build(None)
    libraries = _compiled_backends()
    command = [sys.executable, "-P", "-m", "server.cli.doctor_probe"]
    paths = [*([environ["PYTHONPATH"]] if environ.get("PYTHONPATH") else []), str(_package_root())]
    try:
        probe = subprocess.run(  # noqa: S603 - our own program
            command,
            env={**environ, "PYTHONPATH": os.pathsep.join(paths)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            encoding="utf-8",
            errors="replace",
            timeout=_PROBE_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Build(version, (f"it did not load within {_PROBE_SECONDS:g} s",), 1, backends=libraries)
    except OSError as error:
        return Build(version, (f"{command[0]} cannot be started: {error.strerror}",), 1, backends=libraries)
    return build_of(version, libraries, probe.returncode, probe.stdout, probe.stderr)


def build_of(version: str, libraries: Sequence[str], exit_code: int, output: str, errors: str) -> Build:
    """Read what the probe wrote, before it ended with an exit code; negative for a signal."""
    if exit_code != 0:
        return Build(version, tuple(errors.strip().splitlines()), exit_code, backends=tuple(libraries))
    try:
        facts: dict[str, Any] = json.loads(output.strip().splitlines()[-1])
        features, named = parse_system_info(facts["system_info"])
        devices = tuple(DeviceFacts(**each) for each in facts["devices"])
    except (ValueError, LookupError, TypeError) as error:
        return Build(version, (f"it says something that cannot be understood: {error}",), 1, backends=tuple(libraries))
    backends = tuple(dict.fromkeys((*libraries, *named)))
    return Build(facts["version"], (), 0, features, backends, devices, _required_version())


def _installed_version() -> str | None:
    if util.find_spec(_PACKAGE) is None:
        return None
    try:
        return metadata.version(_DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return "of unknown version"


def _required_version() -> str | None:
    try:
        requirements = metadata.requires(_OURS) or []
    except metadata.PackageNotFoundError:
        return None
    found = (re.match(rf"{_DISTRIBUTION}\s*\(?>=\s*([0-9.]+)", line) for line in requirements)
    return next((match.group(1) for match in found if match), None)


def _compiled_backends() -> tuple[str, ...]:
    """Return the backends whose libraries are in the package; not every one of them names itself."""
    spec = util.find_spec(_PACKAGE)
    folders = [Path(each) / "lib" for each in (spec.submodule_search_locations if spec else None) or ()]
    names = [path.name.removeprefix("lib") for folder in folders for path in sorted(folder.glob("*ggml-*"))]
    return tuple(
        dict.fromkeys(shown for name in names for part, shown in _LIBRARIES.items() if name.startswith(f"ggml-{part}"))
    )


# --- the machine ---


def hardware(platform: str = sys.platform, root: Path = Path("/")) -> Hardware:
    """Look at the processor and the graphics processors, as far as the system tells without programs of its vendor."""
    if platform.startswith("linux"):
        return Hardware(_cpu_flags(root), tuple(_linux_graphics(root)))
    if platform == "darwin" and os.uname().machine == "arm64":
        return Hardware(None, (Graphics("Apple", "the graphics processor", has_driver=True),))
    return Hardware(None, ())


def _cpu_flags(root: Path) -> frozenset[str] | None:
    try:
        lines = (root / "proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip() in {"flags", "Features"}:
            return frozenset(value.split())
    return None


def _linux_graphics(root: Path) -> Iterator[Graphics]:
    models = _nvidia_models(root)
    yield from (Graphics("NVIDIA", name, has_driver=True) for name in models)
    for vendor in _pci_vendors(root):
        if vendor == _NVIDIA and not models:
            # containers and WSL have the device but not the driver's own files
            has_device = any((root / path).exists() for path in ("dev/nvidiactl", "dev/dxg"))
            yield Graphics("NVIDIA", "the NVIDIA GPU", has_driver=has_device)
        elif vendor == _AMD:
            has_device = any((root / path).exists() for path in ("dev/kfd", "dev/dri", "dev/dxg"))
            yield Graphics("AMD", "the AMD GPU", has_driver=has_device)


def _nvidia_models(root: Path) -> list[str]:
    found = []
    for path in sorted((root / "proc/driver/nvidia/gpus").glob("*/information")):
        for line in _text(path).splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "Model" and value.strip():
                found.append(value.strip())
    return found


def _pci_vendors(root: Path) -> list[str]:
    """Return the vendors of the display controllers, those without a screen included."""
    devices = sorted((root / "sys/bus/pci/devices").glob("*"))
    return [_text(each / "vendor").strip() for each in devices if _text(each / "class").startswith("0x03")]


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def limits() -> LimitFacts:
    """Ask for the limits of this process."""
    try:
        import resource  # noqa: PLC0415 - systems other than Unix have none
    except ImportError:
        return LimitFacts(None, None)
    memory, files = (resource.getrlimit(each)[0] for each in (resource.RLIMIT_MEMLOCK, resource.RLIMIT_NOFILE))
    infinity = resource.RLIM_INFINITY
    is_bound = memory != infinity and not _may_lock_memory()
    return LimitFacts(memory if is_bound else None, None if files == infinity else files)


def _may_lock_memory() -> bool:
    """Whether the limit does not hold for this process, as for an administrator's."""
    for line in _text(Path("/proc/self/status")).splitlines():
        name, _, value = line.partition(":")
        if name == "CapEff":
            return bool(int(value, 16) & _CAP_IPC_LOCK)
    return False


# --- models and folders ---


def surroundings(environ: Mapping[str, str]) -> Surroundings:
    """Return what decides where programs keep their models."""
    return Surroundings(environ, home_directory())


def folders(settings: Configuration, around: Surroundings) -> list[FolderFacts]:
    """Look into every place that the server would look into."""
    places = model_places(store_folder(settings, around), settings.llamacpp.model_dirs, around)
    if not settings.store.discover:
        places = tuple(each for each in places if each.source in {Source.OWN, Source.FOLDER})
    return [_folder(place) for place in places]


def store_folder(settings: Configuration, around: Surroundings) -> Path:
    """Return the folder for downloads."""
    return Path(settings.store.models_dir) if settings.store.models_dir else own_folder(around)


def _folder(place: Place) -> FolderFacts:
    is_configured = place.source is Source.FOLDER
    try:
        os.scandir(place.path).close()
    except (FileNotFoundError, NotADirectoryError):
        return FolderFacts(place.source.value, place.path, Access.ABSENT, is_configured=is_configured)
    except OSError:
        return FolderFacts(place.source.value, place.path, Access.FORBIDDEN, is_configured=is_configured)
    listing = ModelIndex([place], HeaderCache(None)).listing()
    problems = [f"{_title(entry)}: {entry.problem}" for entry in listing.entries if entry.problem]
    complaints = [f"{each.path}: {each.problem}" for each in listing.complaints]
    num_models = sum(entry.problem is None for entry in listing.entries)
    return FolderFacts(
        place.source.value,
        place.path,
        Access.READABLE,
        num_models,
        tuple(problems),
        tuple(complaints),
        is_configured=is_configured,
    )


def _title(entry: ModelEntry) -> str:
    """Return what tells a user which model is meant: the names of Ollama's blobs do not."""
    found = entry.main.found
    return entry.name if found.source is Source.OLLAMA and entry.name is not None else str(found.path)


def models(settings: Configuration) -> list[ModelFacts]:
    """Look for the files that the configuration names."""
    return [
        ModelFacts(
            spec,
            Path(each.path) if each.path else None,
            is_there=bool(each.path) and os.path.isfile(each.path) and os.access(each.path, os.R_OK),  # noqa: PTH113
            is_preloaded=each.preload,
            is_locked=each.mlock,
        )
        for spec, each in settings.models.items()
    ]


def store(path: Path) -> StoreFacts:
    """Find out whether files can be made in a folder, which need not be there, and how much room its disk has."""
    existing = next((each for each in (path, *path.parents) if _is_there(each)), Path(path.anchor))
    try:
        if existing == path:
            with tempfile.TemporaryFile(dir=path) as file:
                file.write(b"x")
        elif not existing.is_dir():
            return StoreFacts(path, None, f"{existing} is no folder")
        elif not os.access(existing, os.W_OK | os.X_OK):
            return StoreFacts(path, None, f"{existing} may not be written to")
        return StoreFacts(path, shutil.disk_usage(existing).free)
    except OSError as error:
        return StoreFacts(path, None, error.strerror or str(error))


def _is_there(path: Path) -> bool:
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True
    return True


# --- other programs ---


def port(config: ServerConfig) -> PortFacts:
    """Find out who has the address that the server is to listen on."""
    occupant, words = (Occupant.NOBODY, "") if config.port == 0 else _who_answers(config)
    if occupant is Occupant.NOBODY:
        occupant, words = _who_could_listen(config)
    return PortFacts(config.host, config.port, occupant, words)


def _who_answers(config: ServerConfig) -> tuple[Occupant, str]:
    url = url_of(config.host, config.port)
    try:
        if not listens(url):
            return Occupant.NOBODY, ""
    except UnicodeError:  # what cannot be the name of a host
        return Occupant.NOBODY, ""
    version = our_version(url)
    return (Occupant.OTHER, "") if version is None else (Occupant.OURS, version)


def our_version(url: str) -> str | None:
    """Return the version of a server of ours, empty if it does not tell; ``None`` if it is no server of ours."""
    import httpx  # noqa: PLC0415 - slow, and only needed when somebody is there

    try:
        with httpx.Client(base_url=url, timeout=_NETWORK_SECONDS, trust_env=False) as client:
            if client.get("/").json().get("name") != "llmspell":
                return None
            answer = client.get("/admin/status")
            return str(answer.json().get("version", "")) if answer.is_success else ""
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, AttributeError):  # the last for JSON that is no object
        return None


def _who_could_listen(config: ServerConfig) -> tuple[Occupant, str]:
    from server.cli.http_server import bind  # noqa: PLC0415 - slow

    try:
        sockets = bind(config)
    except ConfigurationError as error:
        return (Occupant.OTHER if "in use" in error.message else Occupant.IMPOSSIBLE), error.message
    for bound in sockets:
        bound.close()
    return Occupant.NOBODY, ""


async def ollama(settings: Configuration, source: str) -> OllamaFacts:
    """Ask the daemon; ``source`` says where the configuration comes from."""
    from server.backends.ollama.daemon import Daemon  # noqa: PLC0415 - slow
    from server.backends.ollama.host import daemon_url  # noqa: PLC0415

    config, program = settings.ollama, shutil.which("ollama")
    url = daemon_url(config.url)
    by_variable = "OLLAMA_HOST" in source.split(", ")
    url_source = "OLLAMA_HOST" if by_variable else "[ollama] url" if config.url.strip() else "the usual one"
    if not config.enabled:
        return OllamaFacts(is_enabled=False, url=url, url_source=url_source, program=program)
    daemon = Daemon(url, connect_timeout=config.connect_timeout_seconds, answer_timeout=_NETWORK_SECONDS)
    version, failure, num_models, is_other = None, "", 0, False
    try:
        version = await daemon.version()
        num_models = len(await daemon.models())
    except LlmspellError as error:
        version, failure, is_other = None, daemon.reason_of(error), daemon.is_something_else(error)
    except (LookupError, ValueError):
        version, failure, is_other = None, "it does not say its version", True
    finally:
        await daemon.close()
    return OllamaFacts(
        is_enabled=True,
        url=url,
        url_source=url_source,
        program=program,
        version=version,
        failure=failure,
        is_other=is_other,
        num_models=num_models,
        is_started_by_us=config.autostart,
    )


def hub(around: Surroundings, *, online: bool) -> HubFacts:
    """Read the hub's settings; ``online`` asks it for a model that is recommended, as a pull does."""
    settings = hub_settings(around.environ, around.home)
    facts = HubFacts(settings.shown, bool(settings.token), settings.is_offline)
    if settings.is_offline or not online:
        return facts
    answer, problem = _ask_hub(settings)
    return HubFacts(settings.shown, bool(settings.token), is_offline=False, answer=answer, problem=problem)


def _ask_hub(settings: HubSettings) -> tuple[str | None, str]:
    from server.store.hub import Hub  # noqa: PLC0415 - slow

    repository = next(iter(load_recommended())).repository
    try:
        with closing(Hub(settings, silence_seconds=_NETWORK_SECONDS)) as client:
            client.listing(repository)
    except ModelNotFound:
        return f"answers (and has no {repository})", ""
    except HubDenied as error:
        return None, f"the hub answers, and refuses: {error.message}"
    except LlmspellError as error:
        return None, error.message
    return "answers", ""

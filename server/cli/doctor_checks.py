"""What follows from the rest that was looked at: configuration, port, Ollama, folders, the hub, limits. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from server.cli.bench_report import shown_size
from server.cli.doctor_findings import Finding, Status
from server.cli.doctor_versions import OLLAMA_NEEDED, OLLAMA_WANTED, parse_version

_LITTLE_DISK = 5 << 30
_FEW_FILES = 512
_MOST_SHOWN = 5
_MOST_COMPLAINTS = 20  # nothing else shows them


@dataclass(frozen=True, slots=True)
class ConfigFacts:
    """The configuration: in words where it comes from, or what is wrong with it (the first thing that is)."""

    source: str
    problem: str = ""


def check_config(facts: ConfigFacts) -> Finding:
    """Say which configuration there is, and whether it can be used."""
    if facts.problem:
        return Finding(
            "configuration",
            Status.FAILED,
            facts.problem,
            ("everything below is looked at as if nothing were configured",),
            (f"Correct the configuration, then run `llmspell doctor` again: {facts.problem}",),
            is_required=True,
        )
    return Finding("configuration", Status.OK, facts.source)


class Occupant(Enum):
    """Who has the port that the server is to listen on."""

    NOBODY = "nobody"
    OURS = "ours"
    OTHER = "other"
    IMPOSSIBLE = "impossible"
    """Nobody can listen there."""


@dataclass(frozen=True, slots=True)
class PortFacts:
    """The address to listen on, who is there, and in words what is said of that: a version, or an error."""

    host: str
    port: int
    occupant: Occupant
    words: str = ""


def check_port(facts: PortFacts) -> Finding:
    """Say whether the server can listen where it is to."""
    where = f"{facts.host} port {facts.port}"
    if facts.occupant is Occupant.NOBODY:
        return Finding("port", Status.OK, f"{where} is free" if facts.port else f"{facts.host}, any free port")
    if facts.occupant is Occupant.OURS:
        version = f" (llmspell {facts.words})" if facts.words else ""
        return Finding("port", Status.OK, f"a server of ours answers on {where}{version}")
    if facts.occupant is Occupant.OTHER:
        advice = "Stop what uses the port, or choose another one: `llmspell serve --port 8001`, or [server] port."
        return Finding("port", Status.FAILED, f"{where} is in use by another program", (), (advice,), is_required=True)
    advice = "Choose another address or port with [server] host and port, or `llmspell serve --host … --port …`."
    return Finding("port", Status.FAILED, facts.words, (), (advice,), is_required=True)


@dataclass(frozen=True, slots=True)
class OllamaFacts:
    """The Ollama daemon.

    Attributes:
        is_enabled: whether the configuration wants it used.
        url: where it is looked for.
        url_source: what says so: a setting, a variable, or nobody.
        program: of this machine's ``PATH``.
        version: of the daemon; ``None`` if none answers.
        failure: why none answers.
        is_other: whether something answers that is not Ollama.
        num_models: that it has.
        is_started_by_us: whether the server is to start it.

    """

    is_enabled: bool
    url: str
    url_source: str
    program: str | None
    version: str | None = None
    failure: str = ""
    is_other: bool = False
    num_models: int = 0
    is_started_by_us: bool = False


def check_ollama(facts: OllamaFacts) -> Finding:
    """Say whether there is a daemon to use, and one that is new enough."""
    if not facts.is_enabled:
        return Finding("Ollama", Status.OK, "not used: [ollama] enabled = false")
    details = (f"address: {facts.url} ({facts.url_source})", f"program: {facts.program or 'not on PATH'}")
    if facts.version is None:
        return _ollama_absent(facts, details)
    summary = f"{facts.version}, {_counted(facts.num_models, 'model')}"
    version = parse_version(facts.version)
    has_models = facts.num_models > 0
    update = "Update Ollama: `llmspell model install-ollama` says how."
    if version is not None and version < OLLAMA_NEEDED:
        summary += f": older than {_dotted(OLLAMA_NEEDED)}, it cuts long prompts without saying so"
        return Finding("Ollama", Status.WARNING, summary, details, (update,), can_answer=has_models)
    if version is not None and version < OLLAMA_WANTED:
        summary += f": older than {_dotted(OLLAMA_WANTED)}, it has no log probabilities"
        return Finding("Ollama", Status.WARNING, summary, details, (update,), can_answer=has_models)
    if not has_models:
        advice = ("Get Ollama a model: `llmspell model pull ollama/phi3:3.8b`.",)
        return Finding("Ollama", Status.NOTE, summary, details, advice)
    return Finding("Ollama", Status.OK, summary, details, can_answer=True)


def _ollama_absent(facts: OllamaFacts, details: tuple[str, ...]) -> Finding:
    if facts.is_other:
        advice = "Let [ollama] url (or OLLAMA_HOST) name the Ollama daemon, or set [ollama] enabled = false."
        summary = f"something else answers at {facts.url}: {facts.failure}"
        return Finding("Ollama", Status.WARNING, summary, details, (advice,))
    summary = f"no daemon answers at {facts.url}: {facts.failure}"
    if facts.program is None and facts.is_started_by_us:
        advice = "Install Ollama, which the server is to start: `llmspell model install-ollama`."
        return Finding("Ollama", Status.WARNING, summary, details, (advice,))
    if facts.program is None:
        advice = "To use Ollama's models, install it: `llmspell model install-ollama`."
        return Finding("Ollama", Status.NOTE, summary, details, (advice,))
    if facts.is_started_by_us:
        return Finding("Ollama", Status.OK, f"{summary}; the server starts it", details)
    advice = "Start Ollama (`ollama serve`), or have the server start it: [ollama] autostart = true."
    return Finding("Ollama", Status.WARNING, summary, details, (advice,))


class Access(Enum):
    """What can be done with a folder."""

    ABSENT = "absent"
    READABLE = "readable"
    FORBIDDEN = "forbidden"


@dataclass(frozen=True, slots=True)
class FolderFacts:
    """A place that models are looked for in.

    Attributes:
        problems: models that are listed there, but cannot be used; a line for each.
        complaints: what is in no list of models, because it has no name even; a line for each.

    """

    source: str
    path: Path
    access: Access
    num_models: int = 0
    problems: tuple[str, ...] = ()
    complaints: tuple[str, ...] = ()
    is_configured: bool = False


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """A model that the configuration names: its spec, its file (``None`` if none is named), what is done with it."""

    spec: str
    path: Path | None
    is_there: bool
    is_preloaded: bool
    is_locked: bool


def check_folders(folders: Sequence[FolderFacts], models: Sequence[ModelFacts]) -> Finding:
    """Say which models the pool has, and what is in the way of others."""
    lines = [_folder_line(each) for each in folders if each.access is not Access.ABSENT or each.is_configured]
    lines += [f"{each.spec}: {each.path}" for each in models if each.path is not None and each.is_there]
    status, advice = Status.OK, list[str]()
    for folder in folders:
        lines += [f"  {line}" for line in folder.problems[:_MOST_SHOWN]]
        if len(folder.problems) > _MOST_SHOWN:
            lines.append(f"  and {len(folder.problems) - _MOST_SHOWN} more; `llmspell model list` shows all")
        lines += [f"  {line}" for line in folder.complaints[:_MOST_COMPLAINTS]]
        if len(folder.complaints) > _MOST_COMPLAINTS:
            lines.append(f"  and {len(folder.complaints) - _MOST_COMPLAINTS} more that are no models")
        if folder.access is Access.FORBIDDEN:
            status = Status.WARNING
            advice.append(_permission_advice(folder))
        elif folder.access is Access.ABSENT and folder.is_configured:
            status = Status.WARNING
            advice.append(f"Correct [llamacpp] model_dirs: there is no folder {folder.path}.")
        elif (folder.problems or folder.complaints) and status is Status.OK:
            status = Status.NOTE
    total = sum(each.num_models for each in folders) + sum(each.is_there and each.path is not None for each in models)
    if total == 0 and status is Status.OK:
        status = Status.NOTE
    if total == 0:
        advice.append(
            "Get a model: `llmspell model available --recommended`, then `llmspell model pull SPEC`. Until then, "
            "`llmspell serve --demo` serves the small bundled one."
        )
    return Finding("model folders", status, f"{_counted(total, 'model')} for llama.cpp", tuple(lines), tuple(advice))


def check_models(models: Sequence[ModelFacts]) -> Finding | None:
    """Say whether the files are there that the configuration names; nothing if it names none."""
    named = [each for each in models if each.path is not None]
    missing = [each for each in named if not each.is_there]
    if not named:
        return None
    if not missing:
        return Finding("configured models", Status.OK, f"{_counted(len(named), 'file')}, all there")
    fatal = [each for each in missing if each.is_preloaded]
    return Finding(
        "configured models",
        Status.FAILED if fatal else Status.WARNING,
        f"{len(missing)} of {_counted(len(named), 'file')} cannot be read"
        + (": the server stops at start" if fatal else ""),
        tuple(f"{each.spec}: {each.path}" for each in missing),
        tuple(f'Correct path in [models."{each.spec}"]: {each.path} cannot be read.' for each in missing),
        is_required=bool(fatal),
    )


def _folder_line(folder: FolderFacts) -> str:
    if folder.access is Access.ABSENT:
        return f"{folder.path} ({folder.source}): is not there"
    if folder.access is Access.FORBIDDEN:
        return f"{folder.path} ({folder.source}): may not be read"
    num_unusable = len(folder.problems) + len(folder.complaints)
    unusable = f", {num_unusable} cannot be used" if num_unusable else ""
    return f"{folder.path} ({folder.source}): {_counted(folder.num_models, 'model')}{unusable}"


def _permission_advice(folder: FolderFacts) -> str:
    if folder.source == "ollama" and folder.path.is_relative_to("/usr/share/ollama"):
        return (
            f"To use the models of Ollama's service in llama.cpp, join its group: `sudo usermod -a -G ollama $USER`, "
            f"then log in again. ({folder.path})"
        )
    return f"Let this user read {folder.path}."


@dataclass(frozen=True, slots=True)
class StoreFacts:
    """The folder for downloads: free bytes of its disk, and why nothing can be written to it (empty if it can)."""

    path: Path
    free: int | None
    problem: str = ""


def check_store(facts: StoreFacts) -> Finding:
    """Say whether models can be downloaded to this machine."""
    if facts.problem:
        advice = f"Let this user write to {facts.path}, or choose another folder with [store] models_dir."
        summary = f"{facts.path} cannot be written to: {facts.problem}"
        return Finding("downloads", Status.WARNING, summary, (), (advice,))
    if facts.free is None:
        return Finding("downloads", Status.OK, f"to {facts.path}")
    summary = f"to {facts.path}, {shown_size(facts.free)} free"
    if facts.free < _LITTLE_DISK:
        advice = "Make room on the disk (`llmspell model rm SPEC`), or choose another one with [store] models_dir."
        return Finding("downloads", Status.WARNING, f"{summary}: too little for most models", (), (advice,))
    return Finding("downloads", Status.OK, summary)


@dataclass(frozen=True, slots=True)
class HubFacts:
    """The hub; ``answer`` is what it said (``None`` if it was not asked), ``problem`` why it could not be asked."""

    endpoint: str
    has_token: bool
    is_offline: bool
    answer: str | None = None
    problem: str = ""


def check_hub(facts: HubFacts) -> Finding:
    """Say whether models can be had from the hub."""
    token = "with a token" if facts.has_token else "without a token"
    details = (f"{facts.endpoint}, {token}",)
    if facts.is_offline:
        advice = ("Unset HF_HUB_OFFLINE to pull models from the hub.",)
        return Finding("hub", Status.NOTE, "HF_HUB_OFFLINE is set: nothing is pulled from it", details, advice)
    if facts.problem:
        return Finding("hub", Status.WARNING, facts.problem, details, (f"To pull models: {facts.problem}",))
    if facts.answer is None:
        return Finding("hub", Status.OK, f"{facts.endpoint}, {token}; not asked (--online asks it)")
    return Finding("hub", Status.OK, f"{facts.endpoint} {facts.answer}, {token}")


@dataclass(frozen=True, slots=True)
class LimitFacts:
    """Limits of the process: memory that it may lock, in bytes, and open files; ``None`` where there is no limit."""

    locked_memory: int | None
    open_files: int | None


def check_limits(facts: LimitFacts, models: Sequence[ModelFacts]) -> Finding | None:
    """Say which limits are in the way; nothing if none is."""
    details, advice = list[str](), list[str]()
    locked = [each.spec for each in models if each.is_locked]
    if locked and facts.locked_memory is not None:
        limit = shown_size(facts.locked_memory)
        details.append(f"{', '.join(locked)}: mlock = true, but at most {limit} may be locked (ulimit -l)")
        advice.append("Raise the limit of locked memory: `ulimit -l unlimited`, or LimitMEMLOCK=infinity of systemd.")
    if facts.open_files is not None and facts.open_files < _FEW_FILES:
        details.append(f"at most {facts.open_files} open files and connections (ulimit -n)")
        advice.append("Raise the limit of open files: `ulimit -n 4096`, or LimitNOFILE=4096 of systemd.")
    if not details:
        return None
    return Finding("limits", Status.WARNING, "limits of this user are low", tuple(details), tuple(advice))


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(str(number) for number in version)

"""``llmspell model install-ollama``: the platform's official ways to install Ollama, and running one after asking."""

from __future__ import annotations

import json
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from server.cli.doctor_versions import OLLAMA_WANTED, parse_version
from server.cli.exit_codes import INTERRUPTED
from server.core.errors import LlmspellError

SITE = "https://ollama.com"
SCRIPT_URL = f"{SITE}/install.sh"
SCRIPT_VARIABLE = "OLLAMA_INSTALL_URL"
"""Names a mirror's copy of the script. It does not begin as our settings do: Ollama's script is not one of them."""
EXAMPLES = """\b
Examples:
  llmspell model install-ollama              # how it is done on this machine
  llmspell model install-ollama --run        # do it, after asking
  llmspell model install-ollama --run --yes  # do it unasked"""

_MOST_SCRIPT_BYTES = 4 << 20
_NETWORK_SECONDS = 30.0
_VERSION_SECONDS = 20.0
_ARCHITECTURES = {"x86_64": "amd64", "amd64": "amd64", "aarch64": "arm64", "arm64": "arm64"}
_YES, _NO, _READ = "y", "n", "r"


class InstallationFailed(LlmspellError):
    """Ollama could not be installed; the message says what to do."""

    code = "installation_failed"


@dataclass(frozen=True, slots=True)
class Way:
    """A way to install Ollama.

    Attributes:
        title: what it is.
        commands: what to run, or where to go.
        program: with arguments, what ``--run`` runs; empty if it cannot be run from here.
        is_script: whether that is the official script, which is downloaded first.

    """

    title: str
    commands: tuple[str, ...]
    program: tuple[str, ...] = ()
    is_script: bool = False

    @property
    def can_run(self) -> bool:
        """Whether ``--run`` can take this way."""
        return self.is_script or bool(self.program)


@dataclass(frozen=True, slots=True)
class Found:
    """An installation that is there already; ``version`` is ``None`` if it does not say."""

    path: str
    version: str | None

    @property
    def is_recent(self) -> bool:
        """Whether this server can use everything that it uses of Ollama; what says no version is taken as it is."""
        numbers = parse_version(self.version or "")
        return numbers is None or numbers >= OLLAMA_WANTED


def ways(system: str, machine: str, which: Callable[[str], str | None], script_url: str = SCRIPT_URL) -> list[Way]:
    """Return the ways of a platform, the one that ``--run`` takes first.

    Args:
        system: as ``sys.platform``.
        machine: as ``platform.machine()``.
        which: finds a program.
        script_url: where the official script is.

    """
    script = Way(
        "the official script (it asks for administrator rights)",
        (f"curl -fsSL {script_url} -o install.sh", "less install.sh", "sh install.sh"),
        is_script=True,
    )
    if system == "win32":
        return _windows_ways(which)
    brew = _package_manager("Homebrew", ("brew", "install", "ollama"), which, ("brew services start ollama",))
    if system == "darwin":
        app = Way("the app", (f"{SITE}/download/Ollama.dmg",))
        return [*brew, *([script] if not brew else []), app]
    archive = f"ollama-linux-{_ARCHITECTURES.get(machine.lower(), machine)}.tar.zst"
    by_hand = Way(
        "the archive, by hand (needs zstd)",
        (
            f"curl -fLO {SITE}/download/{archive}",
            f"sudo tar --zstd -C /usr -xf {archive}",
            "ollama serve",
        ),
    )
    pacman = _package_manager("pacman", ("sudo", "pacman", "-S", "ollama"), which, ())
    return [script, by_hand, *pacman, *brew]


def _windows_ways(which: Callable[[str], str | None]) -> list[Way]:
    winget = _package_manager("winget", ("winget", "install", "--exact", "--id", "Ollama.Ollama"), which, ())
    return [*winget, Way("the installer", (f"{SITE}/download/OllamaSetup.exe",))]


def _package_manager(
    title: str, program: tuple[str, ...], which: Callable[[str], str | None], later: tuple[str, ...]
) -> list[Way]:
    if which(next(part for part in program if part != "sudo")) is None:
        return []
    return [Way(title, (shlex.join(program), *later), program)]


def install_ollama(
    *,
    run: Annotated[bool, typer.Option("--run", help="Do it, after asking.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="With --run: do not ask.")] = False,
    script_url: Annotated[
        str,
        typer.Option(
            metavar="URL", envvar=SCRIPT_VARIABLE, help="Where to get the official script from, such as a mirror."
        ),
    ] = SCRIPT_URL,
    as_json: Annotated[bool, typer.Option("--json", help="Write one JSON document to standard output.")] = False,
) -> None:
    """Explain how Ollama is installed on this machine, or do it.

    Nothing is changed without --run. A script is downloaded to a file, which you can read before it is run; nothing
    that comes from the network is run unasked, unless you say --yes.

    Exit code 0: it is explained, installed, or was there already. 1: --run was not allowed to, or failed. 2: wrong
    usage. 130: interrupted.
    """
    found = find_ollama()
    possible = ways(sys.platform, platform.machine(), shutil.which, script_url)
    try:
        if run and not (found is not None and found.is_recent):
            _show(found, possible[:1], as_json=False, to_errors=True)
            take(possible[0], script_url, is_agreed=yes)
            found = find_ollama()
            possible = []
    except KeyboardInterrupt:
        _tell("interrupted.")
        raise typer.Exit(INTERRUPTED) from None
    _show(found, possible, as_json=as_json)


def find_ollama() -> Found | None:
    """Look for the program, and ask it for its version."""
    path = shutil.which("ollama")
    if path is None:
        return None
    try:
        asked = subprocess.run(  # noqa: S603 - the user's own program
            [path, "--version"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_VERSION_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return Found(path, None)
    # a client whose daemon is another version says both
    words = [word.strip(".,;()") for word in f"{asked.stdout} {asked.stderr}".split()]
    return Found(path, next((word for word in words if parse_version(word) is not None), None))


# --- what is shown ---


def _show(found: Found | None, possible: Sequence[Way], *, as_json: bool, to_errors: bool = False) -> None:
    if as_json:
        typer.echo(json.dumps(_document(found, possible), indent=2))
        return
    for line in explanation(found, possible):
        typer.echo(line, err=to_errors)


def explanation(found: Found | None, possible: Sequence[Way]) -> list[str]:
    """Say what is there, and which ways there are."""
    if found is None:
        lines = ["Ollama is not installed, or not on PATH."] if possible else [_NOT_ON_PATH]
    elif found.is_recent:
        return [f"Ollama {found.version or 'of unknown version'} is installed: {found.path}"]
    else:
        wanted = ".".join(str(number) for number in OLLAMA_WANTED)
        lines = [f"Ollama {found.version} is installed ({found.path}); this server wants {wanted} or newer."]
    for way in possible:
        lines += ["", f"By {way.title}:", *(f"  {command}" for command in way.commands)]
    if any(way.can_run for way in possible):
        lines += ["", f"`llmspell model install-ollama --run` does it by {possible[0].title}, after asking."]
    return lines


_NOT_ON_PATH = "The installation has ended without an error; open a new shell if `ollama` is not found in this one."


def _document(found: Found | None, possible: Sequence[Way]) -> dict[str, object]:
    return {
        "object": "ollama_installation",
        "path": None if found is None else found.path,
        "version": None if found is None else found.version,
        "is_recent": None if found is None else found.is_recent,
        "ways": [{"title": way.title, "commands": list(way.commands), "can_run": way.can_run} for way in possible],
    }


# --- what is done ---


def take(way: Way, script_url: str, *, is_agreed: bool) -> None:
    """Install Ollama in one way, after asking unless it is agreed to already.

    Raises:
        InstallationFailed: nobody agreed, or it cannot be done.

    """
    if not way.can_run:
        raise InstallationFailed(f"There is no way to install Ollama from here: get it from {' '.join(way.commands)}.")
    if not is_agreed and not sys.stdin.isatty():
        raise InstallationFailed("Nothing was run, because nobody could be asked: add --yes to run it unasked.")
    if not way.is_script:
        _ask_and_run(way.program, None, is_agreed=is_agreed)
        return
    import tempfile  # noqa: PLC0415 - slow, and only needed here

    folder = Path(tempfile.mkdtemp(prefix="llmspell-ollama-"))
    script = folder / "install.sh"
    try:
        _download(script_url, script)
    except InstallationFailed:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    _ask_and_run(("sh", str(script)), script, is_agreed=is_agreed)
    shutil.rmtree(folder, ignore_errors=True)


def _download(url: str, target: Path) -> None:
    """Save a script, all of it or none.

    Raises:
        InstallationFailed: it cannot be had, or is none.

    """
    import hashlib  # noqa: PLC0415 - slow, and only needed here

    import httpx  # noqa: PLC0415

    advice = f"Get it by hand from {SITE}/download, or name a mirror with {SCRIPT_VARIABLE}."
    _tell(f"downloading {url}")
    content = b""
    try:
        with httpx.stream("GET", url, follow_redirects=True, timeout=_NETWORK_SECONDS) as response:
            if response.status_code != httpx.codes.OK:
                raise InstallationFailed(f"{url} answers HTTP {response.status_code}. {advice}")
            urls = [each.url for each in (*response.history, response)]
            if urls[0].scheme == "https" and any(each.scheme != "https" for each in urls):
                raise InstallationFailed(f"{url} leads to {response.url}, which anybody could change. {advice}")
            for piece in response.iter_bytes():
                content += piece
                if len(content) > _MOST_SCRIPT_BYTES:
                    raise InstallationFailed(f"{url} is too large for a script. {advice}")
    # the last three: proxies and certificates that the environment names, and that cannot be used
    except (httpx.HTTPError, httpx.InvalidURL, ImportError, OSError, ValueError) as error:
        raise InstallationFailed(
            f"{url} cannot be downloaded ({str(error) or type(error).__name__}). {advice}"
        ) from error
    if not content.startswith(b"#!"):
        raise InstallationFailed(f"What {url} gives is no shell script. {advice}")
    try:
        target.write_bytes(content)
    except OSError as error:
        raise InstallationFailed(f"{target} cannot be written: {error.strerror}. Make room, or set TMPDIR.") from error
    _tell(f"{target}: {len(content)} bytes, SHA-256 {hashlib.sha256(content).hexdigest()}")


def _ask_and_run(program: Sequence[str], script: Path | None, *, is_agreed: bool) -> None:
    command = shlex.join(program)
    if not is_agreed and not _is_wanted(command, script):
        left = f" The script is still in {script}." if script is not None else ""
        raise InstallationFailed(f"Nothing was run.{left}")
    _tell(f"running {command}")
    try:
        # its words are no data of ours: standard output is for the result
        done = subprocess.run(program, stdout=sys.stderr.fileno(), check=False)  # noqa: S603 - it was agreed to
    except OSError as error:
        raise InstallationFailed(
            f"{program[0]} cannot be started: {error.strerror}. Get Ollama by hand from {SITE}/download."
        ) from error
    if done.returncode != 0:
        kept = f" The script is still in {script}." if script is not None else ""
        raise InstallationFailed(
            f"`{command}` ended with exit code {done.returncode}; what it wrote above says why.{kept} By hand: "
            f"{SITE}/download."
        )


def _is_wanted(command: str, script: Path | None) -> bool:
    """Ask, and show the script to who wants to read it first."""
    choices = f"[{_YES}]es, [{_NO}]o" + (f", or [{_READ}]ead it first" if script is not None else "")
    while True:
        typer.echo(f"Run `{command}`? {choices}: ", err=True, nl=False)
        answer = sys.stdin.readline()
        chosen = answer.strip().lower()[:1] if answer else _NO  # the end of the input is no answer
        if chosen == _READ and script is not None:
            import pydoc  # noqa: PLC0415 - slow, and only needed here

            pydoc.pager(script.read_text(encoding="utf-8", errors="replace"))
        elif chosen in {_YES, _NO}:
            return chosen == _YES


def _tell(line: str) -> None:
    typer.echo(f"llmspell: {line}", err=True)

"""Completion of ``llmspell`` in shells: typer finds out what can follow, these scripts ask for it."""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path

import typer

COMPLETION_VARIABLE = "_LLMSPELL_COMPLETE"
"""The environment variable by which a script asks; typer makes its name of the program's."""


class Shell(StrEnum):
    """A shell that there is a script for."""

    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"


# bash breaks words at colons, which names of models have: the words are taken from the line, and what stands before the
# last colon is not repeated
_BASH = """\
_llmspell_completion() {
    local IFS=$' \\t\\n' line="${COMP_LINE:0:COMP_POINT}" words current kept
    read -r -a words <<< "$line"
    [[ "$line" == *[[:space:]] ]] && words+=("")
    current="${words[${#words[@]}-1]}"
    IFS=$'\\n'
    COMPREPLY=($(env COMP_WORDS="$line" COMP_CWORD=$((${#words[@]} - 1)) _LLMSPELL_COMPLETE=complete_bash \\
        "${words[0]}" 2> /dev/null))
    if [[ "$COMP_WORDBREAKS" == *:* && "$current" == *:* ]]; then
        kept="${current%"${current##*:}"}"
        COMPREPLY=("${COMPREPLY[@]#"$kept"}")
    fi
}
complete -o default -F _llmspell_completion llmspell
"""
_ZSH = """\
#compdef llmspell
_llmspell_completion() {
    eval $(env _TYPER_COMPLETE_ARGS="${words[1,$CURRENT]}" _LLMSPELL_COMPLETE=complete_zsh llmspell 2> /dev/null)
}
if [[ "${funcstack[1]}" == _llmspell ]]; then  # this file is the function, as completions in fpath are
    _llmspell_completion "$@"
else
    compdef _llmspell_completion llmspell
fi
"""
_FISH_CALL = (
    "env _LLMSPELL_COMPLETE=complete_fish _TYPER_COMPLETE_FISH_ACTION={} _TYPER_COMPLETE_ARGS=(commandline -cp)"
)
_FISH = f"""\
complete --command llmspell --no-files \\
    --arguments "({_FISH_CALL.format("get-args")} llmspell 2> /dev/null)" \\
    --condition "{_FISH_CALL.format("is-args")} llmspell 2> /dev/null"
"""
_SCRIPTS = {Shell.BASH: _BASH, Shell.ZSH: _ZSH, Shell.FISH: _FISH}


def is_asked() -> bool:
    """Whether a shell's script runs this program."""
    return COMPLETION_VARIABLE in os.environ


def prepare() -> None:
    """Have typer answer the scripts."""
    from typer._completion_classes import completion_init  # noqa: PLC0415 - only when a shell asks

    completion_init()  # otherwise typer does it only for scripts of its own, which break names of models at colons


def show(wanted: bool) -> None:  # noqa: FBT001 - the signature is typer's
    """Write the script of the user's shell to standard output, and end the program."""
    if wanted:
        typer.echo(_SCRIPTS[_shell()], nl=False)
        raise typer.Exit


def install(wanted: bool) -> None:  # noqa: FBT001 - the signature is typer's
    """Write the script of the user's shell to where the shell looks for such, and end the program."""
    if not wanted:
        return
    shell = _shell()
    path, advice = _place(shell)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(_SCRIPTS[shell], encoding="utf-8")
    except OSError as error:
        typer.echo(f"llmspell: error: {path} cannot be written: {error.strerror}.", err=True)
        raise typer.Exit(1) from error
    typer.echo(path)
    typer.echo(f"Completion is there for new shells of {shell}. {advice}".strip(), err=True)
    raise typer.Exit


def _shell() -> Shell:
    """Return the shell that the environment names."""
    name = Path(os.environ.get("SHELL", "")).name
    try:
        return Shell(name)
    except ValueError:
        typer.echo(
            f"llmspell: error: there is completion for {', '.join(Shell)}, and the environment variable SHELL names "
            f"{name or 'none'}. Say which one: SHELL=bash llmspell --show-completion",
            err=True,
        )
        raise typer.Exit(1) from None


def _place(shell: Shell) -> tuple[Path, str]:
    """Return the file for a script, and what else its shell needs."""
    if shell is Shell.BASH:
        return _folder("XDG_DATA_HOME", ".local/share") / "bash-completion/completions/llmspell", (
            "It needs the package bash-completion; without it, add this line to ~/.bashrc: "
            'eval "$(llmspell --show-completion)"'
        )
    if shell is Shell.ZSH:
        return Path.home() / ".zfunc/_llmspell", (
            "If ~/.zshrc does not have it yet, add this line: fpath+=~/.zfunc; autoload -Uz compinit; compinit"
        )
    return _folder("XDG_CONFIG_HOME", ".config") / "fish/completions/llmspell.fish", ""


def _folder(variable: str, default: str) -> Path:
    return Path(os.environ.get(variable) or Path.home() / default)

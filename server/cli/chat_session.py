"""A conversation in a terminal: questions, answers, commands."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from server.cli.chat_screen import Screen
from server.cli.chat_source import ChatMessage
from server.core.errors import LlmspellError

_PROMPT, _MORE = ">>> ", "... "
_QUOTES = '"""'
_HELP = f"""\
/help           show this
/clear          begin a new conversation; the system message stays
/system [TEXT]  show the system message, or set it; /system - removes it
/save FILE      write the conversation to a new file, as JSON
/timings        say after each answer how long it took, or no longer
/exit           leave; so do Ctrl-D, and Ctrl-C twice
{_QUOTES}             begins and ends a question of several lines
Ctrl-C stops an answer. A line that is to begin with a slash begins with a space."""


@dataclass(slots=True)
class Conversation:
    """What has been said; ``messages`` are without the system message."""

    model: str
    system: str | None = None
    messages: list[ChatMessage] = field(default_factory=list)

    @property
    def all_messages(self) -> Sequence[ChatMessage]:
        """What a model is told."""
        system = [] if self.system is None else [ChatMessage("system", self.system)]
        return [*system, *self.messages]

    def save(self, path: Path) -> None:
        """Write it to a new file.

        Raises:
            OSError: the file is there already, or cannot be written.

        """
        messages = [{"role": each.role, "content": each.content} for each in self.all_messages]
        with path.open("x", encoding="utf-8") as file:
            json.dump({"model": self.model, "messages": messages}, file, ensure_ascii=False, indent=2)
            file.write("\n")


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer, or what there is of it when Ctrl-C stopped it."""

    text: str
    was_stopped: bool = False


Answering = Callable[[Conversation], Reply]
"""Shows the answer to a conversation; raises ``LlmspellError`` if there is none, or no more of it."""


class Session:
    """Asks for questions until somebody leaves."""

    def __init__(
        self,
        conversation: Conversation,
        answer: Answering,
        screen: Screen,
        read: Callable[[str], str],
        *,
        timings: bool,
    ) -> None:
        """Take what it works with; ``read`` shows a prompt and returns a line, as ``input`` does."""
        self._conversation = conversation
        self._answer = answer
        self._screen = screen
        self._read = read
        self._timings = timings
        self._has_interrupted = False

    def run(self) -> bool:
        """Converse; return whether it ended in an orderly way, and not by Ctrl-C."""
        while True:
            try:
                line = self._question()
            except EOFError:
                self._screen.tell("")
                return True
            except KeyboardInterrupt:
                self._screen.tell("")
                if self._has_interrupted:
                    return False
                self._has_interrupted = True
                self._screen.tell("(Ctrl-C again, Ctrl-D or /exit to leave)")
                continue
            self._has_interrupted = False
            if line.startswith("/"):
                if not self._command(line):
                    return True
            elif line.strip():
                self._ask(line.strip())

    def _question(self) -> str:
        line = self._read(_PROMPT)
        start, quotes, rest = line.partition(_QUOTES)
        if not quotes or start.strip():
            return line
        text, quotes, _ = rest.partition(_QUOTES)
        lines = [text]
        while not quotes:
            text, quotes, _ = self._read(_MORE).partition(_QUOTES)
            lines.append(text)
        return " " + "\n".join(lines).strip("\n")  # what is quoted is no command

    def _ask(self, question: str) -> None:
        messages = self._conversation.messages
        messages.append(ChatMessage("user", question))
        try:
            reply = self._answer(self._conversation)
        except LlmspellError as error:
            messages.pop()
            self._screen.tell(f"llmspell: error: {error.message}")
            return
        if reply.was_stopped:
            self._has_interrupted = True
            self._screen.tell("(stopped)")
        if reply.text:
            messages.append(ChatMessage("assistant", reply.text))
        else:
            messages.pop()
        self._screen.note_ending(timings=self._timings)

    def _command(self, line: str) -> bool:
        """Do what a line says; return whether to go on."""
        name, _, rest = line[1:].strip().partition(" ")
        argument = rest.strip()
        match name:
            case "exit" | "quit" | "bye":
                return False
            case "help" | "?" | "":
                self._screen.tell(_HELP)
            case "clear":
                self._conversation.messages.clear()
                self._screen.tell("(a new conversation)")
            case "system":
                self._system(argument)
            case "save":
                self._save(argument)
            case "timings":
                self._timings = not self._timings
                self._screen.tell(f"(timings are {'on' if self._timings else 'off'})")
            case _:
                self._screen.tell(f"(there is no command /{name}; /help lists them)")
        return True

    def _system(self, text: str) -> None:
        if text:
            self._conversation.system = None if text == "-" else text
        system = self._conversation.system
        self._screen.tell("(no system message)" if system is None else f"(system: {system})")

    def _save(self, name: str) -> None:
        if not name:
            self._screen.tell("(name a file: /save FILE)")
            return
        path = Path(name)
        try:
            path = path.expanduser()
            self._conversation.save(path)
        except FileExistsError:
            self._screen.tell(f"({path} is there already; name another file)")
        except OSError as error:
            self._screen.tell(f"({path} cannot be written: {error.strerror})")
        except (RuntimeError, ValueError) as error:  # somebody's home folder that is not known; a NUL character
            self._screen.tell(f"({path} cannot be written: {error})")
        else:
            self._screen.tell(f"(saved to {path})")

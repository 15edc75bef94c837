"""Conversations, without a terminal and without a model."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from server.cli.chat_screen import Screen, timings_line
from server.cli.chat_session import Conversation, Reply, Session
from server.cli.chat_source import ChatMessage, Ended, Reasoning, Text, Waiting
from server.core.errors import BackendError


class Terminal(io.StringIO):
    """What a person sees."""

    def isatty(self) -> bool:
        return True


class Typing:
    """Types lines; a type of exception in their place is what a key raises."""

    def __init__(self, *lines: str | type[BaseException]) -> None:
        self._lines = iter(lines)
        self.prompts: list[str] = []

    def __call__(self, prompt: str) -> str:
        self.prompts.append(prompt)
        line = next(self._lines, EOFError)
        if isinstance(line, str):
            return line
        raise line


class Model:
    """Answers with what it is told to, and keeps what it was asked."""

    def __init__(self, *replies: Reply | Exception) -> None:
        self.asked: list[list[tuple[str, str]]] = []
        self._replies: Iterator[Reply | Exception] = iter(replies)

    def __call__(self, conversation: Conversation) -> Reply:
        self.asked.append([(each.role, each.content) for each in conversation.all_messages])
        reply = next(self._replies, Reply(f"answer {len(self.asked)}"))
        if isinstance(reply, Exception):
            raise reply
        return reply


def converse(
    *lines: str | type[BaseException], model: Callable[[Conversation], Reply] | None = None, system: str | None = None
) -> tuple[str, Conversation, bool]:
    """Type lines; return what is told beside the answers, the conversation, and whether its end was orderly."""
    err = io.StringIO()
    conversation = Conversation("local/x", system)
    screen = Screen(io.StringIO(), err)
    is_orderly = Session(conversation, model or Model(), screen, Typing(*lines), timings=False).run()
    return err.getvalue(), conversation, is_orderly


def test_what_was_said_is_sent_again() -> None:
    model = Model()
    converse("one", "  two  ", "", "   ", model=model, system="Be kind.")
    first = [("system", "Be kind."), ("user", "one")]
    assert model.asked == [first, [*first, ("assistant", "answer 1"), ("user", "two")]]


def test_several_lines() -> None:
    model = Model()
    typing = Typing('"""one', "", "  two", 'three""" ignored', '"""all in one"""', '"""', "/exit", '"""', 'a """ b')
    Session(Conversation("x"), model, Screen(io.StringIO(), io.StringIO()), typing, timings=False).run()
    questions = [messages[-1][1] for messages in model.asked]
    assert questions == ["one\n\n  two\nthree", "all in one", "/exit", 'a """ b']
    assert typing.prompts == [">>> ", "... ", "... ", "... ", ">>> ", ">>> ", "... ", "... ", ">>> ", ">>> "]


@pytest.mark.parametrize("command", ["/exit", "/quit", "/bye", "/exit now"])
def test_leaving(command: str) -> None:
    model = Model()
    assert converse(command, "one", model=model)[2]
    assert model.asked == []


def test_the_end_of_input_is_an_orderly_end() -> None:
    assert converse()[2]


def test_ctrl_c_twice_leaves() -> None:
    told, _, is_orderly = converse(KeyboardInterrupt, "one", KeyboardInterrupt, KeyboardInterrupt, "two")
    assert not is_orderly
    assert told.count("to leave") == 2


def test_ctrl_c_after_a_stopped_answer_leaves() -> None:
    told, conversation, is_orderly = converse(
        "one", KeyboardInterrupt, "two", model=Model(Reply("par", was_stopped=True))
    )
    assert not is_orderly
    assert "(stopped)" in told
    assert conversation.messages == [ChatMessage("user", "one"), ChatMessage("assistant", "par")]


def test_an_answer_that_was_stopped_before_it_began_was_not_asked_for() -> None:
    assert converse("one", model=Model(Reply("", was_stopped=True)))[1].messages == []


def test_a_failure_ends_one_answer() -> None:
    model = Model(BackendError("It fell over."))
    told, conversation, is_orderly = converse("one", "two", model=model)
    assert is_orderly
    assert "llmspell: error: It fell over.\n" in told
    assert [each.content for each in conversation.messages] == ["two", "answer 2"]


def test_clear_keeps_the_system_message() -> None:
    model = Model()
    converse("one", "/clear", "two", model=model, system="Be kind.")
    assert model.asked[1] == [("system", "Be kind."), ("user", "two")]


def test_the_system_message() -> None:
    model = Model()
    told, _, _ = converse("/system", "/system Be brief.", "one", "/system -", "two", "/system", model=model)
    assert model.asked[0][0] == ("system", "Be brief.")
    assert model.asked[1][0] == ("user", "one")
    assert told.splitlines()[:2] == ["(no system message)", "(system: Be brief.)"]


def test_unknown_commands_are_not_sent() -> None:
    model = Model()
    told, _, _ = converse("/clera", "/", " /usr/bin is what?", model=model)
    assert "there is no command /clera" in told
    assert "/save FILE" in told
    assert [messages[-1] for messages in model.asked] == [("user", "/usr/bin is what?")]


@pytest.mark.parametrize("name", ["~nobody-of-this-name/talk.json", "a\0b"])
def test_a_path_that_is_none_ends_no_conversation(name: str) -> None:
    told, _, _ = converse(f"/save {name}", "/save")
    assert "cannot be written: " in told.splitlines()[0]
    assert told.splitlines()[1] == "(name a file: /save FILE)"


def test_save(tmp_path: Path) -> None:
    path = tmp_path / "a talk.json"
    told, _, _ = converse(
        "déjà", f"/save {path}", f"/save {path}", "/save", f"/save {tmp_path}/no/a", system="Be kind."
    )
    assert json.loads(path.read_text(encoding="utf-8")) == {
        "model": "local/x",
        "messages": [
            {"role": "system", "content": "Be kind."},
            {"role": "user", "content": "déjà"},
            {"role": "assistant", "content": "answer 1"},
        ],
    }
    assert told.splitlines()[:4] == [
        f"(saved to {path})",
        f"({path} is there already; name another file)",
        "(name a file: /save FILE)",
        f"({tmp_path}/no/a cannot be written: No such file or directory)",
    ]


# --- what is written ---

TIMINGS: dict[str, object] = {
    "load_ms": 1500.0,
    "first_token_ms": 1620.4,
    "decode_ms": 500.0,
    "cached_tokens": 4,
    "prompt_tokens": 17,
    "completion_tokens": 11,
    "backend": "llamacpp",
}
PIECES = (
    Waiting("loading 42%"),
    Reasoning("Hm"),
    Reasoning("m."),
    Text("It \x1b[31mis"),
    Text(" so."),
    Ended("stop", TIMINGS),
)


def shown(screen: Screen) -> str:
    screen.begin()
    for piece in PIECES:
        screen.show(piece)
    return screen.end("local/x")


def test_a_program_gets_the_answer_and_nothing_else() -> None:
    out, err = io.StringIO(), io.StringIO()
    assert shown(Screen(out, err)) == "It \x1b[31mis so."
    assert out.getvalue() == "It \x1b[31mis so.\n"
    assert err.getvalue() == "loading…\n"


def test_a_person_sees_reasoning_and_progress() -> None:
    out, err = Terminal(), Terminal()
    shown(Screen(out, err))
    assert out.getvalue() == "\x1b[2mHmm.\x1b[22m\n\nIt �[31mis so.\n"
    assert err.getvalue() == "\r\x1b[Kloading 42%\r\x1b[K"


def test_reasoning_beside_an_answer_that_goes_into_a_file() -> None:
    out, err = io.StringIO(), Terminal()
    shown(Screen(out, err))
    assert out.getvalue() == "It \x1b[31mis so.\n"
    assert "\x1b[2mHmm.\x1b[22m\n" in err.getvalue()


def test_json() -> None:
    out, err = io.StringIO(), io.StringIO()
    shown(Screen(out, err, as_json=True))
    assert out.getvalue().count("\n") == 1
    assert json.loads(out.getvalue()) == {
        "model": "local/x",
        "content": "It \x1b[31mis so.",
        "reasoning": "Hmm.",
        "finish_reason": "stop",
        "timings": TIMINGS,
    }


def test_answers_do_not_run_into_each_other() -> None:
    out = io.StringIO()
    screen = Screen(out, io.StringIO())
    for text in ("one", "two\n", ""):
        screen.begin()
        screen.show(Text(text))
        assert screen.end("x") == text
    screen.begin()
    screen.show(Text("broken"))
    screen.drop()
    assert out.getvalue() == "one\ntwo\nbroken\n"


def test_a_line_about_the_time() -> None:
    assert timings_line(TIMINGS) == (
        "11 tokens at 20.0 tokens/s; first token after 1.62 s, 1.50 s of them loading; "
        "prompt of 17 tokens, 4 of them cached; llamacpp"
    )
    assert timings_line({}) == "0 tokens; first token after 0.00 s; prompt of 0 tokens"

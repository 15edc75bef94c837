"""What a manifest of Ollama says, as it holds for requests."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from store.made_stores import gguf_bytes, index_of, put, put_ollama

from server.core.model_spec import ModelSpec
from server.core.request import ChatRequest, Message, Role, SamplingParameters
from server.pool.material import Material, RequestDefaults, material_of
from server.store.ollama_template import TemplateSource
from server.store.places import Source

HELLO = Message(Role.USER, "hello")


def request(*messages: Message, **values: object) -> ChatRequest:
    return ChatRequest(ModelSpec("a"), messages or (HELLO,), **values)  # type: ignore[arg-type]


def material(root: Path, *layers: tuple[str, bytes]) -> Material:
    put_ollama(root, "registry.ollama.ai/library/spell/1b", gguf_bytes(), layers)
    found = index_of((Source.OLLAMA, root)).find("spell:1b")
    assert found is not None
    return material_of(found.found)


def test_a_plain_file_says_nothing(tmp_path: Path) -> None:
    put(tmp_path / "a.gguf")
    found = index_of((Source.FOLDER, tmp_path)).find("a")
    assert found is not None
    made = material_of(found.found)
    assert made == Material(tmp_path / "a.gguf")
    assert made.choose_template("{{ x }}").source is TemplateSource.FILE
    assert made.choose_template(None).source is TemplateSource.NONE
    asked = request()
    assert made.defaults.applied(asked) == asked


def test_everything_that_a_manifest_may_say(tmp_path: Path) -> None:
    made = material(
        tmp_path,
        ("system", b"Be brief."),
        ("template", b"{{ .Prompt }}"),
        (
            "messages",
            json.dumps([{"role": "user", "content": "ping"}, {"role": "assistant", "content": "pong"}]).encode(),
        ),
        ("params", b'{"temperature": 0.25, "top_k": 3, "num_predict": 5, "stop": ["END"], "num_ctx": 4096}'),
    )
    examples = (Message(Role.USER, "ping"), Message(Role.ASSISTANT, "pong"))
    assert made.defaults == RequestDefaults("Be brief.", examples, {"temperature": 0.25, "top_k": 3}, 5, ("END",))
    assert (made.context_length, made.manifest_template, made.notes) == (4096, "{{ .Prompt }}", ())

    applied = made.defaults.applied(request())
    assert applied.messages == (Message(Role.SYSTEM, "Be brief."), *examples, HELLO)
    assert applied.sampling == SamplingParameters(temperature=0.25, top_k=3)
    assert (applied.max_tokens, applied.stop) == (5, ("END",))


@pytest.mark.parametrize("role", [Role.SYSTEM, Role.DEVELOPER])
def test_a_request_has_the_last_word(role: Role) -> None:
    defaults = RequestDefaults("Be brief.", (HELLO,), {"temperature": 0.25, "top_p": 0.5}, 5, ("END",))
    own = Message(role, "Be long.")
    sampling = SamplingParameters(temperature=0.75)
    asked = request(
        own, HELLO, sampling=sampling, given_sampling=frozenset({"temperature"}), max_tokens=9, stop=("STOP",)
    )
    applied = defaults.applied(asked)
    assert applied.messages == (HELLO, own, HELLO)
    assert applied.sampling == SamplingParameters(temperature=0.75, top_p=0.5)
    assert (applied.max_tokens, applied.stop) == (9, ("STOP",))


def test_what_makes_no_sense_is_named_and_ignored(tmp_path: Path) -> None:
    made = material(
        tmp_path,
        ("params", b'{"temperature": 1e9, "top_p": -1, "num_predict": 0, "mirostat": 1, "min_p": 0.5, "seed": 7}'),
        ("messages", b'[{"role": "oracle", "content": "42"}, {"role": "user", "content": "6 * 7"}]'),
    )
    assert made.defaults.sampling == {"min_p": 0.5, "seed": 7}
    assert made.defaults.max_tokens is None
    assert made.defaults.messages == (Message(Role.USER, "6 * 7"),)
    assert made.notes == (
        "its parameters mirostat, temperature, top_p, max_tokens have no counterpart here and are ignored",
        "its messages of oracle are ignored",
    )

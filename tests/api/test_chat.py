from __future__ import annotations

from typing import Any

import httpx
import pytest
from openai.types.chat import ChatCompletion

from api.scripted import ScriptedBackend, fail, finished, play
from api.serving import CHAT, HELLO
from server.core.errors import BackendError, ContextLengthExceeded
from server.core.events import ChoiceFinished, FinishReason, TextDelta, TokenLogprob
from server.core.model_spec import ModelSpec
from server.core.request import ChatRequest, Message, Role, SamplingParameters, ToolCall


async def test_answers_as_openai_does(client: httpx.AsyncClient) -> None:
    response = await client.post(CHAT, json=HELLO)

    assert response.status_code == 200
    completion = ChatCompletion.model_validate(response.json())
    assert completion.id.startswith("chatcmpl-")
    assert completion.model == "local/demo"
    assert completion.service_tier == "default"
    assert completion.system_fingerprint is not None
    assert completion.system_fingerprint.startswith("fp_")
    (choice,) = completion.choices
    assert (choice.message.role, choice.message.content, choice.finish_reason) == ("assistant", "Hello", "stop")
    assert response.json()["choices"][0]["message"]["refusal"] is None
    assert response.json()["choices"][0]["logprobs"] is None
    assert response.json()["usage"] == {
        "prompt_tokens": 7,
        "completion_tokens": 2,
        "total_tokens": 9,
        "prompt_tokens_details": {"cached_tokens": 3, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": 0,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


async def test_gives_as_many_choices_as_asked(client: httpx.AsyncClient) -> None:
    choices = (await client.post(CHAT, json={**HELLO, "n": 3})).json()["choices"]

    assert [(choice["index"], choice["message"]["content"]) for choice in choices] == [
        (0, "Hello"),
        (1, "Hello"),
        (2, "Hello"),
    ]


async def test_reports_log_probabilities(client: httpx.AsyncClient, backend: ScriptedBackend) -> None:
    other = TokenLogprob("Ho", b"Ho", float("-inf"))
    token = TokenLogprob("Hi", b"Hi", -0.25, (other,))
    backend.script = play([TextDelta(0, "Hi", (token,)), ChoiceFinished(0, FinishReason.LENGTH), finished()])

    response = await client.post(CHAT, json={**HELLO, "logprobs": True, "top_logprobs": 1})

    ChatCompletion.model_validate(response.json())
    assert response.json()["choices"][0]["logprobs"] == {
        "content": [
            {
                "token": "Hi",
                "logprob": -0.25,
                "bytes": [72, 105],
                "top_logprobs": [{"token": "Ho", "logprob": -9999.0, "bytes": [72, 111]}],
            }
        ],
        "refusal": None,
    }


async def test_a_plain_request_has_openais_defaults(client: httpx.AsyncClient, backend: ScriptedBackend) -> None:
    await client.post(CHAT, json=HELLO)

    assert backend.requests == [ChatRequest(spec=ModelSpec("demo"), messages=(Message(Role.USER, "Hi"),))]


async def test_null_means_not_given(client: httpx.AsyncClient, backend: ScriptedBackend) -> None:
    optional = ["stream", "stop", "n", "temperature", "top_p", "seed", "max_tokens", "logit_bias", "tools", "audio"]

    response = await client.post(CHAT, json={**HELLO, **dict.fromkeys(optional)})

    assert response.status_code == 200
    assert backend.requests == [ChatRequest(spec=ModelSpec("demo"), messages=(Message(Role.USER, "Hi"),))]


async def test_every_parameter_reaches_the_backend(client: httpx.AsyncClient, backend: ScriptedBackend) -> None:
    response = await client.post(
        CHAT,
        json={
            **HELLO,
            "model": "gpt-4o-mini",
            "max_completion_tokens": 5,
            "temperature": 0,
            "top_p": 0.5,
            "seed": -3,
            "stop": ["a", "b"],
            "n": 2,
            "logprobs": True,
            "top_logprobs": 4,
            "logit_bias": {"7": -100, "8": 1.5},
            "frequency_penalty": 0.25,
            "presence_penalty": -2,
            "top_k": 40,
            "min_p": 0.1,
            "repeat_penalty": 1.1,
            "ignore_eos": True,
            "user": "u",
            "metadata": {"k": "v"},
            "store": False,
            "service_tier": "auto",
            "safety_identifier": "s",
            "prompt_cache_key": "p",
        },
    )

    assert response.json()["model"] == "gpt-4o-mini"
    (request,) = backend.requests
    assert request == ChatRequest(
        spec=ModelSpec("demo"),
        messages=(Message(Role.USER, "Hi"),),
        sampling=SamplingParameters(
            temperature=0,
            top_p=0.5,
            top_k=40,
            min_p=0.1,
            frequency_penalty=0.25,
            presence_penalty=-2,
            repeat_penalty=1.1,
            logit_bias=((7, -100.0), (8, 1.5)),
            ignore_eos=True,
            seed=-3,
        ),
        given_sampling=frozenset(
            {
                "temperature",
                "top_p",
                "seed",
                "frequency_penalty",
                "presence_penalty",
                "top_k",
                "min_p",
                "repeat_penalty",
                "ignore_eos",
            }
        ),
        max_tokens=5,
        stop=("a", "b"),
        n=2,
        top_logprobs=4,
    )


async def test_all_roles_and_parts_become_messages(client: httpx.AsyncClient, backend: ScriptedBackend) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    messages = [
        {"role": "system", "content": "s"},
        {"role": "developer", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]},
        {"role": "user", "content": "u", "name": "Ann"},
        {"role": "assistant", "content": None, "tool_calls": [call], "refusal": None, "annotations": []},
        {"role": "tool", "content": "sunny", "tool_call_id": "c1"},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]},
        {"role": "assistant", "refusal": "never"},
    ]

    response = await client.post(CHAT, json={**HELLO, "messages": messages})

    assert response.status_code == 200, response.text
    assert backend.requests[0].messages == (
        Message(Role.SYSTEM, "s"),
        Message(Role.DEVELOPER, "one\ntwo"),
        Message(Role.USER, "u", name="Ann"),
        Message(Role.ASSISTANT, "", tool_calls=(ToolCall("c1", "f", "{}"),)),
        Message(Role.TOOL, "sunny", tool_call_id="c1"),
        Message(Role.ASSISTANT, "no"),
        Message(Role.ASSISTANT, "never"),
    )


@pytest.mark.parametrize("extra", [{"max_tokens": 5}, {"max_tokens": 5, "max_completion_tokens": 5}])
async def test_both_names_of_the_token_limit_work(
    client: httpx.AsyncClient, backend: ScriptedBackend, extra: dict[str, Any]
) -> None:
    await client.post(CHAT, json={**HELLO, **extra})

    assert backend.requests[0].max_tokens == 5


async def test_the_content_type_does_not_matter(client: httpx.AsyncClient) -> None:
    headers = {"content-type": "application/x-www-form-urlencoded"}  # what curl -d says

    response = await client.post(CHAT, content=b'{"model":"demo","messages":[{"role":"user","content":"Hi"}]}')
    assert response.status_code == 200
    response = await client.post(
        CHAT, headers=headers, content=b'{"model":"demo","messages":[{"role":"user","content":"Hi"}]}'
    )
    assert response.status_code == 200


async def test_a_refusal_is_an_http_error(client: httpx.AsyncClient, backend: ScriptedBackend) -> None:
    backend.rejection = ContextLengthExceeded("too long", param="messages")

    response = await client.post(CHAT, json=HELLO)

    assert response.status_code == 400
    assert response.json() == {
        "error": {
            "message": "too long",
            "type": "invalid_request_error",
            "param": "messages",
            "code": "context_length_exceeded",
        }
    }
    assert backend.held == 0


async def test_a_failure_while_answering_is_an_http_error(client: httpx.AsyncClient, backend: ScriptedBackend) -> None:
    backend.script = fail(BackendError("broken"))

    response = await client.post(CHAT, json=HELLO)

    assert response.status_code == 502
    assert response.json()["error"]["code"] == "backend_error"
    assert backend.held == 0


async def test_an_answer_that_just_ends_is_an_error(client: httpx.AsyncClient, backend: ScriptedBackend) -> None:
    backend.script = play([TextDelta(0, "Hi")])

    assert (await client.post(CHAT, json=HELLO)).status_code == 502


async def test_the_request_is_closed_at_the_backend(client: httpx.AsyncClient, backend: ScriptedBackend) -> None:
    await client.post(CHAT, json=HELLO)

    assert backend.held == 0

"""Checks of models, chat completions, streams and sampling parameters."""

from __future__ import annotations

import time
from itertools import pairwise
from typing import Any

from server.cli.conformance_answers import (
    as_list,
    as_object,
    assembled_message,
    check_done,
    check_events,
    check_finish,
    check_roles,
    check_streamed_usage,
    check_texts,
    check_usage,
    described,
    expect,
    text_of,
)
from server.cli.conformance_suite import COUNT, Check, Subject
from server.cli.conformance_wire import gather

STORY = "Tell me a long story about a llama who wanted to learn to count, and begin at the very beginning."
_FEW = 3
_CLOCK_SKEW_SECONDS = 86400
# in vocabularies of bytes and of byte pairs alike, these are printable characters
_PRINTABLE_TOKENS = {str(token): 100 for token in range(66, 91)}
_REPLACEMENT = "\ufffd"


async def models_list(subject: Subject) -> str | None:
    """Check that models are listed, this one included."""
    reply = await subject.wire.get("/v1/models")
    expect(reply.status == 200, "HTTP 200", described(reply))
    listing = as_object(reply.body, "a JSON object")
    expect(listing.get("object") == "list", 'object "list"', listing.get("object"))
    rows = [as_object(each, "models that are objects") for each in as_list(listing.get("data"), "models")]
    for row in rows:
        expect(isinstance(row.get("id"), str) and row["id"], "an id of each model", row)
        expect(row.get("object") == "model", 'object "model"', row)
        expect(isinstance(row.get("created"), int), "created, a Unix time", row)
        expect(isinstance(row.get("owned_by"), str), "owned_by, a text", row)
    ids = [row["id"] for row in rows]
    # a spec may stand for another one, which is the one that is listed
    is_listed = subject.model in ids or subject.card.get("id") in ids
    expect(is_listed, f"{subject.model} among the models", ids)
    return None


async def models_retrieve(subject: Subject) -> str | None:
    """Check that the model is described by itself."""
    reply = await subject.retrieve()
    expect(reply.status == 200, "HTTP 200", described(reply))
    row = as_object(reply.body, "a JSON object")
    expect(isinstance(row.get("id"), str) and row.get("object") == "model", "an id, and object model", row)
    return None


async def chat(subject: Subject) -> str | None:
    """Check a whole answer."""
    body = await subject.ask()
    expect(text_of(body).strip(), "text", body["choices"][0])
    created = body["created"]
    expect(abs(created - time.time()) < _CLOCK_SKEW_SECONDS, "the time of the answer in created", created)
    return None


async def chat_usage(subject: Subject) -> str | None:
    """Check that usage is there, adds up, and grows with the prompt."""
    short = check_usage((await subject.ask(max_tokens=1)).get("usage"))
    long = check_usage((await subject.ask(f"{STORY} {COUNT}", max_tokens=1)).get("usage"))
    grows = long["prompt_tokens"] > short["prompt_tokens"]
    expect(grows, "more prompt_tokens for a longer prompt", [short["prompt_tokens"], long["prompt_tokens"]])
    expect(short["completion_tokens"] <= 1, "completion_tokens of 1, which is the limit", dict(short))
    return None


async def request_ids(subject: Subject) -> str | None:
    """Check that answers, and the requests that they answer, can be told apart."""
    replies = [await subject.wire.post(subject.body(max_tokens=1)) for _ in range(2)]
    expect(all(reply.status == 200 for reply in replies), "answers", [reply.status for reply in replies])
    ids = [as_object(reply.body, "a JSON object").get("id") for reply in replies]
    expect(len(set(ids)) == len(ids), "another id for each answer", ids)
    headers = [reply.headers.get("x-request-id") for reply in replies]
    expect(all(headers), "the header x-request-id", headers)
    expect(len(set(headers)) == len(headers), "another x-request-id for each request", headers)
    return None


# --- streams ---


async def stream_events(subject: Subject) -> str | None:
    """Check that a stream is made of chunks that belong together."""
    check_events(await subject.usual_stream())
    return None


async def stream_role(subject: Subject) -> str | None:
    """Check that a stream begins with the role."""
    check_roles(await subject.usual_stream())
    return None


async def stream_text(subject: Subject) -> str | None:
    """Check that a stream says what a whole answer says."""
    streamed = check_texts(await subject.usual_stream())
    whole = text_of(await subject.ask())
    expect(set(streamed) == {0}, "one choice", streamed)
    if streamed[0] == whole:
        return None
    again = text_of(await subject.ask())
    expect(again != whole, f"the text of the whole answer, {whole!r}", repr(streamed[0]))
    return "answers differ from one request to the next, so that streamed and whole ones cannot be compared"


async def stream_finish(subject: Subject) -> str | None:
    """Check that a stream says why it ends, and then says no more."""
    check_finish(await subject.usual_stream())
    reasons = check_finish(await subject.stream(STORY, max_tokens=_FEW))
    expect(reasons == {0: "length"}, f"finish_reason length after {_FEW} tokens", reasons)
    return None


async def stream_done(subject: Subject) -> str | None:
    """Check that a stream ends with [DONE]."""
    check_done(await subject.usual_stream())
    return None


async def stream_usage(subject: Subject) -> str | None:
    """Check that usage comes when it is asked for, last, and is that of a whole answer."""
    streamed = await subject.stream(stream_options={"include_usage": True})
    usage = check_streamed_usage(streamed, is_wanted=True)
    whole = check_usage((await subject.ask()).get("usage"))
    counts = [None if usage is None else usage["prompt_tokens"], whole["prompt_tokens"]]
    expect(counts[0] == counts[1], "the prompt_tokens of a whole answer", counts)
    return None


async def stream_without_usage(subject: Subject) -> str | None:
    """Check that usage does not come unasked."""
    check_streamed_usage(await subject.usual_stream(), is_wanted=False)
    return None


# --- length and end ---


async def stop(subject: Subject) -> str | None:
    """Check that a stop string ends the answer, and is not part of it."""
    whole = text_of(await subject.ask())
    words = whole.split()
    expect(words, "text to stop in", whole)
    word = words[len(words) // 2]
    before = whole.partition(word)[0].strip()
    for given in (word, [word, "no such words"]):
        choice = (await subject.ask(stop=given))["choices"][0]
        content = choice["message"]["content"] or ""
        expect(word not in content, f"no {word!r}, at which it is to stop", content)
        expect(choice["finish_reason"] == "stop", "finish_reason stop", choice["finish_reason"])
        expect(bool(content.strip()) == bool(before), f"what comes before {word!r}", repr(content))
    streamed = assembled_message(await subject.stream(stop=word))["content"] or ""
    expect(word not in streamed, f"no {word!r} in the stream, at which it is to stop", streamed)
    return None


async def max_tokens(subject: Subject) -> str | None:
    """Check the older limit of length."""
    return await _limit(subject, "max_tokens")


async def max_completion_tokens(subject: Subject) -> str | None:
    """Check the newer limit of length."""
    return await _limit(subject, "max_completion_tokens")


async def _limit(subject: Subject, name: str) -> str | None:
    body = await subject.ask(STORY, **{name: _FEW})
    usage, reason = check_usage(body.get("usage")), body["choices"][0]["finish_reason"]
    expect(usage["completion_tokens"] <= _FEW, f"at most {_FEW} completion_tokens", dict(usage))
    if usage["completion_tokens"] < _FEW:
        return "the answer ended by itself before the limit"
    expect(reason == "length", f"finish_reason length after {_FEW} tokens", reason)
    return None


# --- sampling ---


async def several_choices(subject: Subject) -> str | None:
    """Check ``n``, whole and streamed."""
    body = await subject.ask(n=2, temperature=1, max_tokens=4)
    usage = check_usage(body.get("usage"))
    expect(usage["completion_tokens"] > 1, "the completion_tokens of both choices", dict(usage))
    reasons = check_finish(await subject.stream(n=2, temperature=1, max_tokens=4))
    expect(set(reasons) == {0, 1}, "choices 0 and 1 in the stream", reasons)
    return None


async def seed(subject: Subject) -> str | None:
    """Check that the likeliest answer is the same each time."""
    texts = [text_of(await subject.ask(seed=7)) for _ in range(2)]
    if texts[0] == texts[1]:
        return None
    texts.append(text_of(await subject.ask(seed=7)))
    # kernels are chosen by what else is computed: logits that are all but equal can change places
    expect(texts[2] in texts[:2], "the same answer with temperature 0 and the same seed", texts)
    return "one of three answers was different"


async def logprobs(subject: Subject) -> str | None:
    """Check log probabilities, whole and streamed."""
    body = await subject.ask(logprobs=True, top_logprobs=2)
    choice = body["choices"][0]
    entries = _entries(choice.get("logprobs"))
    expect(entries, "log probabilities", choice)
    said = b"".join(bytes(each["bytes"] or each["token"].encode()) for each in entries)
    content = text_of(body).strip()
    expect(content.encode() in said, f"tokens that make up the text {content!r}", said.decode("utf-8", "replace"))
    streamed = await subject.stream(logprobs=True, top_logprobs=2)
    choices = [choice for chunk in streamed.chunks for choice in chunk.get("choices") or ()]
    expect(any(_entries(choice.get("logprobs")) for choice in choices), "log probabilities in the stream", "none")
    return None


def _entries(value: object) -> list[dict[str, Any]]:
    if value is None:
        return []
    entries = as_object(value, "logprobs that are an object").get("content") or []
    for entry in entries:
        _check_entry(entry)
        best = as_list(entry.get("top_logprobs"), "the likeliest tokens")
        expect(len(best) <= 2, "at most 2 top_logprobs", best)
        for each in best:
            _check_entry(each)
        falling = all(one["logprob"] >= other["logprob"] for one, other in pairwise(best))
        expect(falling, "the likeliest tokens first", best)
    return list(entries)


def _check_entry(entry: object) -> None:
    fields = as_object(entry, "entries that are objects")
    expect(isinstance(fields.get("token"), str), "a token that is text", fields)
    value = fields.get("logprob")
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    expect(is_number and fields["logprob"] <= 0, "a logprob of at most 0", fields)
    expect("bytes" in fields, "the bytes of the token, or null", fields)


async def logit_bias(subject: Subject) -> str | None:
    """Check that tokens can be favoured."""
    biased = text_of(await subject.ask(logit_bias=_PRINTABLE_TOKENS, max_tokens=4))
    plain = text_of(await subject.ask(max_tokens=4))
    expect(biased != plain, "another answer when other tokens are favoured", biased)
    return None


async def penalties(subject: Subject) -> str | None:
    """Check that penalties are accepted, and their limits known."""
    await subject.ask(frequency_penalty=1.5, presence_penalty=0.5)
    reply = await subject.wire.post(subject.body(frequency_penalty=3))
    expect(reply.status == 400, "HTTP 400 for a penalty of 3", described(reply))
    return None


# --- messages ---


async def roles(subject: Subject) -> str | None:
    """Check the roles that instructions have, and a conversation of several turns."""
    for role in ("system", "developer"):
        messages = [{"role": role, "content": "You are brief."}, {"role": "user", "content": COUNT}]
        expect(text_of(await subject.ask(messages=messages)), f"text after a message of role {role}", "none")
    turns = [
        {"role": "user", "content": "My name is Anna."},
        {"role": "assistant", "content": "Nice to meet you, Anna!"},
        {"role": "user", "content": "What is my name?"},
    ]
    expect(text_of(await subject.ask(messages=turns)), "text after several turns", "none")
    return None


async def content_parts(subject: Subject) -> str | None:
    """Check that text in parts is the same as text."""
    whole = await subject.ask()
    messages = [{"role": "user", "content": [{"type": "text", "text": COUNT}]}]
    parts = await subject.ask(messages=messages)
    counts = [check_usage(body.get("usage"))["prompt_tokens"] for body in (whole, parts)]
    expect(counts[0] == counts[1], "as many prompt_tokens for a part of text as for the text", counts)
    return None


async def characters(subject: Subject) -> str | None:
    """Check that no character is torn apart, wherever chunks end."""
    prompt = "Repeat exactly: Grüße, 世界! 🦙🧙\u200d♀️ é"
    streamed = await subject.stream(prompt, max_tokens=subject.room * 2)
    check_events(streamed)
    text = assembled_message(streamed)["content"] or ""
    whole = text_of(await subject.ask(prompt, max_tokens=subject.room * 2))
    torn = _REPLACEMENT in text and _REPLACEMENT not in whole
    expect(not torn, f"the characters of the whole answer, {whole!r}", repr(text))
    return None if any(ord(character) > 0xFFFF for character in text) else "the model said no emoji"


async def four_streams(subject: Subject) -> str | None:
    """Check that four streams at the same time all come to their ends."""
    for streamed in await gather(*(subject.stream(f"{COUNT} ({number})") for number in range(4))):
        check_events(streamed)
        check_finish(streamed)
        check_done(streamed)
    return None


async def hang_up(subject: Subject) -> str | None:
    """Check that a client that hangs up leaves nothing behind that is in the way of the next one."""
    for _ in range(2):
        await subject.wire.abandon(subject.body(STORY, max_tokens=256))
    reply = await subject.wire.post(subject.body())
    expect(reply.status == 200, "an answer after a client hung up", described(reply))
    return None


CHAT_CHECKS = (
    Check("models: list", models_list),
    Check("models: retrieve", models_retrieve),
    Check("chat", chat),
    Check("chat: usage", chat_usage),
    Check("request ids", request_ids),
    Check("stream: events", stream_events),
    Check("stream: role first", stream_role),
    Check("stream: text", stream_text),
    Check("stream: finish_reason", stream_finish),
    Check("stream: [DONE]", stream_done),
    Check("stream: include_usage", stream_usage),
    Check("stream: no usage unasked", stream_without_usage),
    Check("stop", stop),
    Check("max_tokens", max_tokens),
    Check("max_completion_tokens", max_completion_tokens),
    Check("n", several_choices),
    Check("seed, temperature 0", seed),
    Check("logprobs", logprobs),
    Check("logit_bias", logit_bias),
    Check("penalties", penalties),
    Check("system and developer", roles),
    Check("content parts", content_parts),
    Check("unicode", characters),
    Check("four streams at once", four_streams),
    Check("client hangs up", hang_up),
)

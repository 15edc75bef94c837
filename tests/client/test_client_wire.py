from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from server.api.errors import error_envelope, error_response
from server.client import wire
from server.client.answers import error_of, read_error
from server.client.fields import Fields, Unreadable
from server.core import library_json
from server.core.errors import InvalidModelSpec, LlmspellError, ModelInUse, QueueFull
from server.core.library import ActivePull, BackendHealth, Deleted, InstalledModel, ModelDetails, PredictedMemory
from server.core.model_spec import BackendName, parse_model_spec
from server.core.ports import ModelState
from server.core.pulling import PullActivity, PullFinished, PullNotice, PullProgress

PLAIN = InstalledModel("phi3:3.8b", BackendName.OLLAMA, "daemon", 2_000_000_000)
FULL = InstalledModel(
    model="hf.co/owner/repo:Q4_K_M",
    backend=BackendName.LLAMACPP,
    source="huggingface",
    size_bytes=5_000_000_000,
    modified=1_700_000_000,
    path=Path("/models/a b.gguf"),
    quantization="Q4_K_M",
    parameters="8.0B",
    context_length=131_072,
    capabilities=("chat", "tools"),
    digest="ab" * 32,
    other_names=("llama3.1:8b",),
    copies=(Path("/more/a.gguf"), Path("/more/b.gguf")),
    problem="it is truncated",
    state=ModelState.WARM,
)
NAMELESS = InstalledModel(
    "", BackendName.LLAMACPP, "folder", 0, path=Path("/models/???.gguf"), problem="it has no name"
)
DETAILS = ModelDetails(
    FULL,
    architecture="llama",
    name="Llama 3.1 8B Instruct",
    licence="llama3.1",
    template="file",
    template_capabilities=("system", "tools"),
    files=(Path("/models/a-1.gguf"), Path("/models/a-2.gguf")),
    projectors=(Path("/models/mmproj.gguf"),),
    system="You are kind.",
    defaults={"temperature": 0.5, "stop": ["<|end|>"], "seed": None},
    memory=(PredictedMemory(4096, 5_500_000_000), PredictedMemory(131_072, 22_000_000_000)),
    notes=("the template is translated",),
)


def sent(document: dict[str, object]) -> Fields:
    """What a document is after its way through JSON text."""
    return Fields(json.loads(json.dumps(document)))


@pytest.mark.parametrize("model", [PLAIN, FULL, NAMELESS], ids=["plain", "full", "nameless"])
def test_models_come_back(model: InstalledModel) -> None:
    assert wire.installed_model(sent(library_json.installed_json(model))) == model


@pytest.mark.parametrize("details", [DETAILS, ModelDetails(PLAIN)], ids=["full", "plain"])
def test_details_come_back(details: ModelDetails) -> None:
    assert wire.model_details(sent(library_json.details_json(details))) == details


@pytest.mark.parametrize(
    "gone",
    [Deleted("phi3:3.8b", BackendName.OLLAMA), Deleted("a@b c", BackendName.LLAMACPP, (Path("/m/a.gguf"),), 7)],
)
def test_deletions_come_back(gone: Deleted) -> None:
    assert wire.deleted(sent(library_json.deleted_json(gone))) == gone


@pytest.mark.parametrize(
    "event",
    [
        PullProgress(PullActivity.DOWNLOADING, 10, 100, 5.0, 18.0),
        PullProgress(PullActivity.QUEUED, 0, 0, 0.0, None),
        PullNotice("the connection broke; trying again"),
        PullFinished("hf.co/owner/repo:Q4_K_M", BackendName.LLAMACPP, (Path("/m/a.gguf"), Path("/m/mmproj.gguf"))),
        PullFinished("phi3:3.8b", BackendName.OLLAMA),
    ],
    ids=lambda event: type(event).__name__,
)
def test_events_of_pulls_come_back(event: Any) -> None:  # noqa: ANN401
    assert wire.pull_event(sent(library_json.pull_event_json(event))) == event


STATUS: dict[str, object] = {
    "object": "status",
    "version": "1.2.3",
    "started": "2026-01-02T03:04:05Z",
    "ready": True,
    "backends": [],
    "devices": [{"name": "CPU", "description": "memory", "budget_bytes": 9, "taken_bytes": 4, "free_bytes": 5}],
    "models": [
        {
            "id": "local/demo@llamacpp",
            "backend": "llamacpp",
            "state": "loading",
            "size_bytes": 5,
            "memory_bytes": None,
            "leases": 1,
            "waiting": 2,
            "keep_alive_until": "2026-01-02T03:04:05.678Z",
            "progress": 0.5,
        }
    ],
    "pulls": [],
}


@pytest.mark.parametrize(
    "pull",
    [
        ActivePull(parse_model_spec("phi3:3.8b@ollama"), None, BackendName.OLLAMA, None),
        ActivePull(
            parse_model_spec("hf.co/owner/repo"),
            "Q8_0",
            BackendName.LLAMACPP,
            PullProgress(PullActivity.CHECKING, 5, 10, 0.0, None),
        ),
    ],
    ids=["queued", "under way"],
)
def test_a_status(pull: ActivePull) -> None:
    up = BackendHealth(BackendName.LLAMACPP, is_up=True, version="b1")
    down = BackendHealth(BackendName.OLLAMA, is_up=False, url="http://127.0.0.1:11434", reason="nobody answers")
    document = STATUS | {
        "backends": [library_json.health_json(up), library_json.health_json(down)],
        "pulls": [library_json.active_pull_json(pull)],
    }
    status = wire.server_status(sent(document))
    assert (status.version, status.is_ready, status.backends, status.pulls) == ("1.2.3", True, (up, down), (pull,))
    assert status.started is not None
    assert status.started.isoformat() == "2026-01-02T03:04:05+00:00"
    (model,) = status.models
    assert (model.id, model.backend, model.state) == ("local/demo@llamacpp", BackendName.LLAMACPP, ModelState.LOADING)
    assert (model.size_bytes, model.memory_bytes, model.num_leases, model.num_waiting) == (5, None, 1, 2)
    assert model.keep_alive_until is not None
    assert (model.keep_alive_until.microsecond, model.progress) == (678_000, 0.5)
    (device,) = status.devices
    assert (device.name, device.budget, device.taken) == ("CPU", 9, 4)
    assert status.document == document


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"version": None}, "version is missing"),
        ({"object": "list"}, "no status"),
        ({"ready": 1}, "ready is neither"),
        ({"started": "yesterday"}, "started is no time"),
        ({"started": "2026-01-02T03:04:05"}, "without a zone"),
        ({"models": {}}, "models is no list"),
        ({"models": [1]}, "models is no JSON object"),
        ({"models": [{"id": "x", "backend": "ollama", "state": "hot"}]}, r"models\.state is none of cold, loading"),
        ({"devices": [{"name": "CPU", "description": "", "budget_bytes": 1.5}]}, r"budget_bytes is no whole number"),
        ({"devices": [{"name": "CPU", "description": "", "budget_bytes": True}]}, r"budget_bytes is no whole number"),
        ({"pulls": [{"model": "a@b@c", "backend": "ollama"}]}, "no model spec"),
    ],
)
def test_what_cannot_be_read_names_the_field(change: dict[str, object], complaint: str) -> None:
    with pytest.raises(Unreadable, match=complaint):
        wire.server_status(Fields(STATUS | change))


@pytest.mark.parametrize("text", ["phi3", "local/phi3", "local/phi3@nothing", "@ollama", ""])
def test_what_is_no_id(text: str) -> None:
    with pytest.raises(Unreadable):
        wire.deleted(Fields({"id": text, "freed_bytes": 0}))


READERS: list[Callable[[Fields], object]] = [
    wire.installed_model,
    wire.installed_models,
    wire.model_details,
    wire.deleted,
    wire.cancelled,
    wire.pull_event,
    wire.finished_pull,
    wire.loaded_model,
    wire.server_status,
]
GARBAGE: list[object] = [None, 0, -1, 1.5, "", "text", [], [[]], {}, {"a": 1}, True]


@pytest.mark.parametrize("read", READERS)
def test_no_garbage_has_another_outcome(read: Callable[[Fields], object]) -> None:
    """Whatever type a field has, it is read or refused."""
    base = json.loads(json.dumps(STATUS | library_json.details_json(DETAILS) | {"status": "downloading"}))
    for name in (
        *base,
        "done_bytes",
        "total_bytes",
        "bytes_per_second",
        "seconds_left",
        "message",
        "bytes",
        "cancelled",
    ):
        for garbage in GARBAGE:
            try:
                read(Fields(base | {name: garbage}))
            except Unreadable:
                continue


def all_errors(base: type[LlmspellError] = LlmspellError) -> Iterator[type[LlmspellError]]:
    yield base
    for each in base.__subclasses__():
        yield from all_errors(each)


def is_sent(error: type[LlmspellError]) -> bool:
    """Whether servers send it: some are for commands only, and known here only when those were imported before."""
    return "code" in vars(error) and error.__module__.startswith("server.core.")


@pytest.mark.parametrize("kind", [*filter(is_sent, all_errors())])
def test_errors_come_back_in_their_class(kind: type[LlmspellError]) -> None:
    error = kind("Try something else.") if kind is InvalidModelSpec else kind("Try something else.", param="model")
    back = error_of(sent(error_envelope(error)))
    assert type(back) is kind
    assert (back.message, back.param, back.code, str(back)) == (error.message, "model", kind.code, error.message)


def test_an_error_of_a_newer_server() -> None:
    back = error_of(Fields({"error": {"message": "No.", "code": "too_new", "param": None}}))
    assert (type(back), back.code, back.message) == (LlmspellError, "too_new", "No.")
    assert LlmspellError.code == "internal_error"


@pytest.mark.parametrize(("seconds", "read"), [(1.5, 1.5), (30, 30.0), (None, None)])
def test_when_to_come_back(seconds: float | None, read: float | None) -> None:
    answer = error_response(QueueFull("Full.", retry_after=seconds))
    back = read_error("http://x", answer.status_code, answer.headers, bytes(answer.body))
    assert (type(back), back.retry_after) == (QueueFull, read)


def test_errors_by_their_class_in_code_that_catches_them() -> None:
    with pytest.raises(ModelInUse):
        raise error_of(sent(error_envelope(ModelInUse("Busy."))))

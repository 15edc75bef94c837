"""Where the time of a request went, as clients, the access log and browsers read it. Pure."""

from __future__ import annotations

from server.core.events import Finished, Timings
from server.core.model_spec import BackendName


def wire_timings(finished: Finished, backend: BackendName) -> dict[str, object]:
    """Build what ``stream_options.include_timings`` asks for."""
    usage = finished.usage
    return {
        **_milliseconds(finished.timings),
        "cached_tokens": usage.cached_tokens,
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "backend": backend.value,
    }


def access_fields(finished: Finished) -> dict[str, object]:
    """Build what the access log says of an answer."""
    usage = finished.usage
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "cached_tokens": usage.cached_tokens,
        **_milliseconds(finished.timings),
    }


def server_timing(timings: Timings) -> str:
    """Write the value of a ``Server-Timing`` header: https://www.w3.org/TR/server-timing/."""
    return ", ".join(f"{name.removesuffix('_ms')};dur={value}" for name, value in _milliseconds(timings).items())


def _milliseconds(timings: Timings) -> dict[str, float]:
    seconds = {
        "queue_ms": timings.queued,
        "load_ms": timings.load,
        "prompt_ms": timings.prompt,
        "first_token_ms": timings.first_token,
        "decode_ms": timings.decode,
    }
    return {name: round(value * 1000, 3) for name, value in seconds.items()}

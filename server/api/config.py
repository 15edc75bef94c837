"""What an operator can say about the HTTP surface."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class ApiConfig:
    """Section ``[api]``: how strict the HTTP surface is, and how long it waits.

    Attributes:
        unsupported: what happens to a parameter that cannot be honoured: "error" refuses the request, "ignore" drops
            the parameter and lists it in the response header x-llmspell-ignored.
        max_body_bytes: longest request body in bytes; longer ones are refused with 413.
        max_messages: most messages of one request.
        max_n: most choices (n) of one request.
        max_stop_sequences: most stop strings of one request.
        max_stop_len: longest stop string in characters.
        max_logit_bias: most entries of logit_bias in one request.
        max_tools: most tools of one request.
        max_schema_bytes: longest JSON schema of a tool or of the completion, as compact JSON in UTF-8; the limit of
            grammar, guided_regex and guided_choice, too.
        keep_alive_comment_seconds: a stream that is silent for this long gets an SSE comment, so that proxies keep the
            connection; 0 sends none.
        loading_comment_seconds: a stream that waits for its model to be loaded gets an SSE comment with the progress at
            least this often, the first one when it has waited for this long; 0 sends none.
        send_timeout_seconds: a client of a stream that reads nothing for this long is disconnected.

    """

    unsupported: Literal["error", "ignore"] = "error"
    max_body_bytes: int = 32 * 1024 * 1024
    max_messages: int = 2048
    max_n: int = 16
    max_stop_sequences: int = 4
    max_stop_len: int = 1024
    max_logit_bias: int = 1024
    max_tools: int = 128
    max_schema_bytes: int = 256 * 1024
    keep_alive_comment_seconds: float = 15.0
    loading_comment_seconds: float = 2.0
    send_timeout_seconds: float = 60.0

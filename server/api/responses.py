"""JSON answers."""

from __future__ import annotations

import json
from collections.abc import Mapping

import orjson
from starlette.responses import Response


def dump_json(content: object) -> bytes:
    """Serialize to JSON that is one line, whoever reads it.

    Text that is not valid Unicode (a file name, say) is escaped rather than refused, and so are the line ends of
    Unicode: only CR and LF end a line of an event stream, but httpx's ``iter_lines`` and that of requests split decoded
    text with ``str.splitlines``, and would cut an event where a model says one.
    """
    try:
        data = orjson.dumps(content)
    except TypeError:
        return json.dumps(content).encode()
    if data.isascii():
        return data
    # U+0085, U+2028 and U+2029; the other ones are control characters, which JSON escapes anyway
    return (
        data.replace(b"\xc2\x85", rb"\u0085").replace(b"\xe2\x80\xa8", rb"\u2028").replace(b"\xe2\x80\xa9", rb"\u2029")
    )


class JsonResponse(Response):
    """A JSON body with a status and headers."""

    media_type = "application/json"

    def __init__(self, content: object, status: int = 200, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(dump_json(content), status, headers)

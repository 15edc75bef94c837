"""JSON answers."""

from __future__ import annotations

import json
from collections.abc import Mapping

import orjson
from starlette.responses import Response


def dump_json(content: object) -> bytes:
    """Serialize to JSON; text that is not valid Unicode (a file name, say) is escaped rather than refused."""
    try:
        return orjson.dumps(content)
    except TypeError:
        return json.dumps(content).encode()


class JsonResponse(Response):
    """A JSON body with a status and headers."""

    media_type = "application/json"

    def __init__(self, content: object, status: int = 200, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(dump_json(content), status, headers)

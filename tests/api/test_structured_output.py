"""What a request demands of the content: between the wire and the backend."""

from __future__ import annotations

import json
import math
from typing import Any

import httpx
import pytest
from openai import pydantic_function_tool
from pydantic import BaseModel

from api.scripted import HAS_EVERYTHING, ScriptedBackend
from api.serving import CHAT, HELLO, error_of
from server.api.config import ApiConfig
from server.core.request import ChoiceFormat, GrammarFormat, JsonObjectFormat, JsonSchemaFormat, RegexFormat

SCHEMA: dict[str, Any] = {"type": "object", "properties": {"city": {"type": "string"}}}
GRAMMAR = 'root ::= "yes" | "no"'


@pytest.fixture
def backend() -> ScriptedBackend:
    return ScriptedBackend(parameters=HAS_EVERYTHING)


async def post(client: httpx.AsyncClient, parameters: dict[str, Any]) -> httpx.Response:
    return await client.post(CHAT, content=json.dumps({**HELLO, **parameters}).encode())


def described(schema: object, **more: object) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "a", "schema": schema, **more}}


@pytest.mark.parametrize(
    ("parameters", "found"),
    [
        ({}, None),
        ({"response_format": {"type": "text"}}, None),
        ({"response_format": {"type": "json_object"}}, JsonObjectFormat()),
        ({"response_format": described(SCHEMA)}, JsonSchemaFormat(SCHEMA)),
        ({"response_format": described(SCHEMA, strict=False)}, JsonSchemaFormat(SCHEMA)),
        ({"response_format": described(SCHEMA, strict=True)}, JsonSchemaFormat(SCHEMA, strict=True)),
        ({"response_format": described({})}, JsonSchemaFormat({})),
        ({"response_format": described(SCHEMA, description="A city.")}, JsonSchemaFormat(SCHEMA)),
        ({"grammar": GRAMMAR}, GrammarFormat(GRAMMAR)),
        ({"guided_regex": "[a-z]+"}, RegexFormat("[a-z]+")),
        ({"guided_choice": ["yes", "no", "yes"]}, ChoiceFormat(("yes", "no"))),
        ({"guided_choice": ["yes"], "response_format": {"type": "text"}}, ChoiceFormat(("yes",))),
    ],
)
async def test_what_reaches_the_backend(
    client: httpx.AsyncClient, backend: ScriptedBackend, parameters: dict[str, Any], found: object
) -> None:
    response = await post(client, parameters)
    assert response.status_code == 200, response.text
    assert backend.requests[-1].response_format == found


async def test_what_the_official_client_makes_of_a_class(client: httpx.AsyncClient, backend: ScriptedBackend) -> None:
    class Place(BaseModel):
        city: str

    schema = pydantic_function_tool(Place)["function"]["parameters"]
    wanted = {"type": "json_schema", "json_schema": {"name": "Place", "strict": True, "schema": schema}}
    response = await post(client, {"response_format": wanted})

    assert response.status_code == 200, response.text
    form = backend.requests[-1].response_format
    assert isinstance(form, JsonSchemaFormat)
    assert form.strict
    assert form.schema["required"] == ["city"]


@pytest.mark.parametrize(
    ("parameters", "param"),
    [
        ({"response_format": "json"}, "response_format"),
        ({"response_format": {}}, "response_format.type"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"response_format": {"type": "json_schema", "json_schema": {}}}, "response_format.json_schema.name"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a"}}},
            "response_format.json_schema.schema",
        ),
        ({"response_format": described(SCHEMA, name="a b")}, "response_format.json_schema.name"),
        ({"response_format": described(SCHEMA, name="")}, "response_format.json_schema.name"),
        ({"response_format": described(SCHEMA, name="x" * 65)}, "response_format.json_schema.name"),
        ({"response_format": described(SCHEMA, strict="yes")}, "response_format.json_schema.strict"),
        ({"response_format": described(SCHEMA, example={})}, "response_format.json_schema.example"),
        ({"response_format": described([])}, "response_format.json_schema.schema"),
        ({"response_format": described("{}")}, "response_format.json_schema.schema"),
        ({"response_format": described({"minimum": math.nan})}, "response_format.json_schema.schema"),
        ({"response_format": described({"title": "x" * 2**18})}, "response_format.json_schema.schema"),
        ({"response_format": {"type": "json_object", "schema": SCHEMA}}, "response_format.schema"),
        ({"response_format": described(SCHEMA) | {"type": "json_object"}}, "response_format.json_schema"),
        ({"grammar": ""}, "grammar"),
        ({"grammar": ["root"]}, "grammar"),
        ({"grammar": "x" * (2**18 + 1)}, "grammar"),
        ({"guided_regex": ""}, "guided_regex"),
        ({"guided_regex": 5}, "guided_regex"),
        ({"guided_regex": "ä" * (2**17 + 1)}, "guided_regex"),
        ({"guided_choice": "yes"}, "guided_choice"),
        ({"guided_choice": []}, "guided_choice"),
        ({"guided_choice": ["yes", 1]}, "guided_choice[1]"),
        ({"guided_choice": ["yes", ""]}, "guided_choice[1]"),
        ({"guided_choice": ["x" * 2**17, "y" * 2**17, "z"]}, "guided_choice"),
        ({"grammar": GRAMMAR, "guided_regex": "a"}, "guided_regex"),
        ({"guided_regex": "a", "guided_choice": ["a"]}, "guided_choice"),
        ({"response_format": {"type": "json_object"}, "grammar": GRAMMAR}, "grammar"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_refusals(
    client: httpx.AsyncClient,
    backend: ScriptedBackend,
    parameters: dict[str, Any],
    param: str,
    stream: bool,  # noqa: FBT001
) -> None:
    response = await post(client, {"stream": stream, **parameters})
    status, code, named = error_of(response)
    assert (status, named) == (400, param)
    assert code in {"invalid_value", "unsupported_parameter"}
    assert backend.requests == []


@pytest.mark.parametrize("config", [ApiConfig(max_schema_bytes=2**22, max_tools=1)])
async def test_limits_are_the_operators(client: httpx.AsyncClient, backend: ScriptedBackend) -> None:
    large = {"title": "x" * 2**20}
    tool = {"type": "function", "function": {"name": "f", "parameters": large}}
    assert (await post(client, {"response_format": described(large), "tools": [tool]})).status_code == 200
    assert backend.requests[-1].response_format == JsonSchemaFormat(large)
    assert error_of(await post(client, {"tools": [tool, tool]})) == (400, "invalid_value", "tools")

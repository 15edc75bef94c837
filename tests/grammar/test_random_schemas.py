"""Whatever a schema says, what comes out at random under it is valid, as another library sees it."""

import json
from decimal import Decimal

import jsonschema_rs
import toy_vocabulary as toy
from random_schemas import RandomSchemas

from server.chat.lark import LarkGrammar
from server.core.errors import InvalidRequest
from server.core.request import JsonSchemaFormat
from server.grammar.schema import check_schema


def test_every_finished_answer_is_valid() -> None:
    compiler = toy.compiler()
    num_schemas, num_finished, refused = 0, 0, list[str]()
    seed = 0
    while num_schemas < 300:
        seed += 1
        schema = RandomSchemas(seed).schema()
        try:
            checked = check_schema(schema, strict=True, param="schema")
        except InvalidRequest as error:
            refused.append(error.message)
            continue
        num_schemas += 1
        grammar = LarkGrammar((), lambda _: None)
        compiled = compiler.compile(grammar.build(grammar.content(JsonSchemaFormat(checked))))
        validator = jsonschema_rs.validator_for(schema, validate_formats=True, offline=True)
        answer = toy.RandomModel(seed).answer(compiled.start(), most_tokens=120)
        if answer is not None:
            num_finished += 1
            value = json.loads(answer, parse_float=Decimal)
            assert validator.is_valid(value), (seed, json.dumps(schema), answer)
    assert num_finished > 250
    assert len(refused) < 300
    # each says why
    assert all("no value satisfies" in reason or "cannot be enforced" in reason for reason in refused)

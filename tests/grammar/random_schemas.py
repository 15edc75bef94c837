"""JSON Schemas made up at random: nested, recursive, with bounds, patterns, formats and alternatives."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

Schema = dict[str, object]

_NAMES = ("name", "a", "first name", "größe", "x-1", "items", "type", 'say "hi"', "b\\c", "$ref", "")
_PATTERNS = (
    "^[a-z]+$",
    r"^\d{3}-\d{4}$",
    "^(foo|bar)?$",
    "a",
    r"^[^x]{2,5}$",
    r"^\w+ \w+$",
    "^.{0,8}$",
    "[0-9]$",
    "é+",
)
_FORMATS = ("date", "time", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri")
_VALUES: tuple[object, ...] = (
    0,
    -1,
    1.5,
    7,
    True,
    False,
    None,
    "",
    "a",
    'x"y',
    "é\n",
    [1, "a"],
    {"k": [None]},
    [],
    {},
    1e-3,
)


@dataclass
class RandomSchemas:
    """One seed makes one schema."""

    seed: int
    _random: random.Random = field(init=False)
    _definitions: list[str] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)

    def schema(self) -> Schema:
        """Return a schema, with definitions that may refer to each other."""
        self._definitions = [f"def{number}" for number in range(self._random.randrange(4))]
        definitions: Schema = {name: self._any(2, may_refer=True) for name in self._definitions}
        root = self._any(3, may_refer=False)
        return {**root, "$defs": definitions} if definitions else root

    def _any(self, depth: int, *, may_refer: bool = True) -> Schema:
        kinds: list[Callable[[int], Schema]] = [self._string, self._integer, self._number, self._constant, self._simple]
        if depth > 0:
            kinds += [self._object, self._object, self._array, self._alternatives, self._combined]
            if may_refer and self._definitions:
                kinds += [self._reference, self._reference]
        made = self._random.choice(kinds)(depth - 1)
        if self._may(0.1):
            made = {"title": "remark", "description": "says nothing", **made, "x-unknown": {"not": 1}}
        return made

    def _may(self, probability: float) -> bool:
        return self._random.random() < probability

    def _string(self, _: int) -> Schema:
        made: Schema = {"type": "string"}
        match self._random.randrange(5):
            case 0:
                made["pattern"] = self._random.choice(_PATTERNS)
            case 1:
                made["format"] = self._random.choice(_FORMATS)
            case 2:
                made["maxLength"] = self._random.randrange(12)
            case 3:
                made["minLength"] = self._random.randrange(5)
                made["maxLength"] = self._random.randrange(4, 20)
        return made

    def _integer(self, _: int) -> Schema:
        made: Schema = {"type": "integer"}
        low = self._random.randrange(-1_000, 1_000)
        if self._may(0.4):
            made[self._random.choice(["minimum", "exclusiveMinimum"])] = low
        if self._may(0.4):
            made[self._random.choice(["maximum", "exclusiveMaximum"])] = low + self._random.randrange(1, 5_000)
        if self._may(0.2):
            made["multipleOf"] = self._random.choice([2, 3, 5, 10, 100])
        return made

    def _number(self, _: int) -> Schema:
        made: Schema = {"type": "number"}
        low = round(self._random.uniform(-50, 50), self._random.randrange(4))
        if self._may(0.4):
            made[self._random.choice(["minimum", "exclusiveMinimum"])] = low
        if self._may(0.4):
            made[self._random.choice(["maximum", "exclusiveMaximum"])] = round(low + self._random.uniform(0.1, 90), 2)
        if self._may(0.15):
            made["multipleOf"] = self._random.choice([0.5, 0.25, 2])
        return made

    def _constant(self, _: int) -> Schema:
        if self._may(0.4):
            return {"const": self._random.choice(_VALUES)}
        return {"enum": self._random.sample(_VALUES, self._random.randrange(1, 6))}

    def _simple(self, _: int) -> Schema:
        types = ["null", "boolean", "string", "integer", "number"]
        return self._random.choice(
            [
                {"type": "boolean"},
                {"type": "null"},
                {"type": self._random.sample(types, 2)},
                {"type": ["string", "null"]},
            ]
        )

    def _object(self, depth: int) -> Schema:
        names = self._random.sample(_NAMES, self._random.randrange(5))
        made: Schema = {"type": "object", "properties": {name: self._any(depth) for name in names}}
        if names and self._may(0.7):
            made["required"] = self._random.sample(names, self._random.randrange(1, len(names) + 1))
        match self._random.randrange(6):
            case 0 | 1 | 2:
                made["additionalProperties"] = False
            case 3:
                made["additionalProperties"] = self._any(depth - 1)
            case 4:
                made["patternProperties"] = {"^p_": self._any(depth - 1), "^[0-9]+$": self._any(depth - 1)}
        if self._may(0.1):
            made["maxProperties"] = self._random.randrange(5)
        if self._may(0.1):
            made["minProperties"] = self._random.randrange(3)
        return made

    def _array(self, depth: int) -> Schema:
        made: Schema = {"type": "array"}
        if self._may(0.3):
            made["prefixItems"] = [self._any(depth) for _ in range(self._random.randrange(1, 4))]
        if self._may(0.8):
            made["items"] = False if self._may(0.1) else self._any(depth)
        if self._may(0.4):
            made["minItems"] = self._random.randrange(4)
        if self._may(0.6):
            made["maxItems"] = self._random.randrange(1, 6)
        return made

    def _alternatives(self, depth: int) -> Schema:
        keyword = "oneOf" if self._may(0.2) else "anyOf"
        return {keyword: [self._any(depth) for _ in range(self._random.randrange(1, 4))]}

    def _combined(self, depth: int) -> Schema:
        if self._may(0.5):
            return {"allOf": [self._object(depth), self._object(depth)]}
        return {**self._object(depth), "anyOf": [self._object(depth), self._object(depth)]}

    def _reference(self, _: int) -> Schema:
        return {"$ref": f"#/$defs/{self._random.choice(self._definitions)}"}

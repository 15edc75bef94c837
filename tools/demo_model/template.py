"""The chat template that is written into the model, and its rendering for the training text."""

import json
from typing import Any

from jinja2.sandbox import ImmutableSandboxedEnvironment

Message = dict[str, Any]
Tool = dict[str, Any]

CHAT_TEMPLATE = """\
{%- set system = namespace(text='') %}
{%- for message in messages %}
    {%- if message.role in ['system', 'developer'] and message.content %}
        {%- set system.text = system.text + ('\\n' if system.text else '') + message.content %}
    {%- endif %}
{%- endfor %}
{%- if system.text or tools %}
    {{- '<|im_start|>system\\n' + system.text }}
    {%- if tools %}
        {{- ('\\n\\n' if system.text else '') + 'Tools:' }}
        {%- for tool in tools %}
            {{- '\\n' + (tool | tojson) }}
        {%- endfor %}
    {%- endif %}
    {{- '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'user' %}
        {{- '<|im_start|>user\\n' + (message.content or '') + '<|im_end|>\\n' }}
    {%- elif message.role == 'assistant' %}
        {{- '<|im_start|>assistant\\n' + (message.content or '') }}
        {%- for call in message.tool_calls or [] %}
            {%- set function = call.function or call %}
            {%- if not loop.first or message.content %}
                {{- '\\n' }}
            {%- endif %}
            {{- '<tool_call>\\n{"name": "' + function.name + '", "arguments": ' }}
            {%- if function.arguments is string %}
                {{- function.arguments or '{}' }}
            {%- else %}
                {{- (function.arguments or {}) | tojson }}
            {%- endif %}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == 'tool' %}
        {%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\\n<tool_response>\\n' + (message.content or '') + '\\n</tool_response>' }}
        {%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}
            {{- '<|im_end|>\\n' }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""


def _to_json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


_environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
_environment.filters["tojson"] = _to_json
_template = _environment.from_string(CHAT_TEMPLATE)


def rendered(messages: list[Message], tools: list[Tool] | None = None, *, add_generation_prompt: bool = False) -> str:
    """The text of a conversation."""
    return _template.render(messages=messages, tools=tools, add_generation_prompt=add_generation_prompt)

"""What the daemon says of one model, and what a template's text tells."""

from __future__ import annotations

import pytest

from server.backends.ollama.description import read_description
from server.chat.template import CHATML
from server.chat.template_facts import template_facts


def test_an_answer_is_read_and_nonsense_in_it_is_not() -> None:
    described = read_description(
        {
            "license": "\nMIT License\n...",
            "parameters": 'stop                           "<|a|>"\nstop  "<|b|>"\ntemperature 0.6\nuse_mmap true\n'
            'name "a\\x00b"\nseed 42\nnonsense\n',
            "system": "Be brief.",
            "template": "{{ .Prompt }}",
            "model_info": {"general.architecture": "llama", "llama.context_length": 4096, "general.basename": "Base"},
            "details": {"parameter_size": "8.0B", "quantization_level": "Q4_K_M", "family": "x"},
            "capabilities": ["completion"],
        }
    )
    assert described.parameters == {
        "stop": ("<|a|>", "<|b|>"),
        "temperature": 0.6,
        "use_mmap": True,
        "name": "a\\x00b",
        "seed": 42,
    }
    assert (described.architecture, described.context_length, described.name) == ("llama", 4096, "Base")
    assert (described.num_parameters, described.quantization) == ("8.0B", "Q4_K_M")
    empty = read_description({"model_info": 5, "details": [], "parameters": 7, "capabilities": "all", "system": 3})
    assert (empty.architecture, empty.parameters, empty.capabilities, empty.system) == (None, {}, None, None)


@pytest.mark.parametrize(
    ("source", "facts"),
    [
        (CHATML, {"system"}),
        ("{% for m in messages %}{{ m['role'] + ':' + m['content'] }}{% endfor %}", {"system"}),
        ("{% if m.role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}", set()),
        ("{{ '<|user|>' + messages[0].content }}", set()),
        ("{% if tools is not none %}{{ tools | tojson }}{% endif %}", {"tools"}),
        ("The tools are here.", set()),
        ("{# tools, <think>, 'image' and 'system' #}x", set()),
        ("{% if enable_thinking %}<think>{% endif %}", {"thinking"}),
        ("{% if part.type == 'image' %}<|vision_start|>{% endif %}", {"images"}),
    ],
)
def test_templates(source: str, facts: set[str]) -> None:
    assert set(template_facts(source)) == facts


@pytest.mark.parametrize("piece", ["{#", "{{", "{%", "{{ m.role", "{{ m['role'] ", "raise_exception(system "])
def test_a_template_made_to_take_for_ever_does_not(piece: str) -> None:
    """Each takes hours where a pattern is tried again at each place."""
    assert len(template_facts(piece * 100_000)) <= 1

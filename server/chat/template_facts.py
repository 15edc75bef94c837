"""What a chat template can express, told by its text alone: nothing of it is run.

Templates come with files that anybody may have made, so that each is looked through in a time proportional to its
length, whatever is in it: no pattern here may be tried again and again over the same text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

_OPENING = re.compile(r"\{[#{%]")
_CLOSING = {"{#": "#}", "{{": "}}", "{%": "%}"}
_ROLE = re.compile(r"""\w(?:\.role|\[['"]role['"]\])""")
_RAISED = re.compile(r"raise_exception\(([^)]*)")
_SYSTEM_WORD = re.compile(r"\bsystem\b", re.IGNORECASE)
_NOT = re.compile(r"\bnot\b", re.IGNORECASE)
_SYSTEM = re.compile(r"""['"]system['"]""")
_TOOLS = re.compile(r"\btools\b|\bavailable_tools\b")
_THINKING = re.compile(r"\benable_thinking\b|\breasoning_content\b|\bthinking\b|<think>|\breasoning_effort\b")
_IMAGES = re.compile(r"""['"]image(?:_url)?['"]|<\|?image\|?>|<\|?vision_start\|?>|<start_of_image>""")


def template_facts(source: str) -> tuple[str, ...]:
    """Return which of ``system``, ``tools``, ``thinking`` and ``images`` a Jinja template knows of."""
    pieces = [(opening, text) for opening, text in _pieces(source) if opening != "{#"]
    text = "\n".join(text for _, text in pieces)
    code = "\n".join(text for opening, text in pieces if opening)
    # a role that is written as it is: whichever roles there are, the system's too
    writes_role = any(opening == "{{" and _ROLE.search(text) for opening, text in pieces)
    found = {
        "system": not _refuses_system(text) and (_SYSTEM.search(text) or writes_role),
        "tools": _TOOLS.search(code),
        "thinking": _THINKING.search(text),
        "images": _IMAGES.search(text),
    }
    return tuple(name for name, sign in found.items() if sign)


def _pieces(source: str) -> Iterator[tuple[str, str]]:
    """Take a template apart: what is in brackets, with the opening one, and the text between, with nothing."""
    position = 0
    while (opening := _OPENING.search(source, position)) is not None:
        yield "", source[position : opening.start()]
        end = source.find(_CLOSING[opening[0]], opening.end())
        end = len(source) if end < 0 else end
        yield opening[0], source[opening.end() : end]
        position = end + 2
    yield "", source[position:]


def _refuses_system(text: str) -> bool:
    """Whether the template raises an exception with words such as ``System role not supported``."""
    for raised in _RAISED.finditer(text):
        named = _SYSTEM_WORD.search(raised[1])
        if named is not None and _NOT.search(raised[1], named.end()):
            return True
    return False

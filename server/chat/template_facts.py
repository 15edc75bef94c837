"""What a chat template can express, told by its text alone: nothing of it is run."""

from __future__ import annotations

import re

_COMMENT = re.compile(r"\{#.*?#\}", re.DOTALL)
_WRITTEN_ROLE = re.compile(
    r"""\{\{[^}]*\b\w+(?:\.role|\[['"]role['"]\])[^}]*\}\}""",
    re.DOTALL,
)
"""A role that is written as it is: whichever roles there are, the system's too."""
_NO_SYSTEM = re.compile(r"raise_exception\([^)]*\bsystem\b[^)]*\bnot\b", re.IGNORECASE)
_SYSTEM = re.compile(r"""['"]system['"]""")
_TOOLS = re.compile(r"\btools\b|\bavailable_tools\b")
_THINKING = re.compile(r"\benable_thinking\b|\breasoning_content\b|\bthinking\b|<think>|\breasoning_effort\b")
_IMAGES = re.compile(r"""['"]image(?:_url)?['"]|<\|?image\|?>|<\|?vision_start\|?>|<start_of_image>""")


def template_facts(source: str) -> tuple[str, ...]:
    """Return which of ``system``, ``tools``, ``thinking`` and ``images`` a Jinja template knows of."""
    text = _COMMENT.sub("", source)
    has_system = not _NO_SYSTEM.search(text) and (_SYSTEM.search(text) or _WRITTEN_ROLE.search(text))
    code = "".join(re.findall(r"\{[{%].*?[%}]\}", text, re.DOTALL))
    found = {
        "system": has_system,
        "tools": _TOOLS.search(code),
        "thinking": _THINKING.search(text),
        "images": _IMAGES.search(text),
    }
    return tuple(name for name, sign in found.items() if sign)

"""Which chat template a model of Ollama gets in the pool: the one in its file, or the one of its manifest.

The template in the file is the model's own: it knows tools, and is written in the language that the pool renders. That
of the manifest replaces it where there is none in the file, and where it makes another format of conversations: whoever
wrote it trained or packed the model for that. Ollama decides by what both can do, and has code of its own for some
models; what differs from it is said.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from itertools import islice

from server.store.go_template import Node, Show, Text, Untranslatable, parse_go_template, walk
from server.store.go_template_jinja import jinja_template
from server.store.ollama_manifest import OllamaKind

_MARKERS = re.compile(
    r"<\|[^|<>\s]{1,40}\|>|<\uff5c[^<>\s]{1,40}\uff5c>|</?[a-z]+_of_[a-z]+>|\[/?[A-Z_]{2,30}\]|<</?SYS>>"
    r"|^###? ?[A-Z]\w+:|\b[A-Z]{3,20}:",
    re.MULTILINE,
)
_MOST_MARKS = 200
_OF_TOOLS = re.compile(r"tool|think|python|json|image|img|result|available", re.IGNORECASE)


class TemplateSource(StrEnum):
    """Where a chat template comes from."""

    FILE = "file"
    MANIFEST = "manifest"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class TemplateChoice:
    """The chat template to use.

    Attributes:
        source: where it is from; with ``NONE`` there is none that can be used.
        jinja: its text, if it is the manifest's: translated to Jinja.
        note: what is different from what Ollama does; ``None`` if nothing is.

    """

    source: TemplateSource
    jinja: str | None = None
    note: str | None = None


def choose_template(manifest_template: str | None, kind: OllamaKind, file_template: str | None) -> TemplateChoice:
    """Choose between the template of a manifest, in Go's language, and that of a file.

    Args:
        manifest_template: the manifest's.
        kind: tells whether Ollama has code of its own for this model.
        file_template: the chat template in the GGUF file.

    """
    if kind.renderer and file_template:
        return TemplateChoice(
            TemplateSource.FILE,
            note=f"Ollama makes its prompts with code of its own, {kind.renderer!r}; here its file's template does",
        )
    if manifest_template is None:
        return TemplateChoice(TemplateSource.FILE) if file_template else _none(kind)
    if file_template and not _is_another_format(manifest_template, file_template):
        return TemplateChoice(TemplateSource.FILE)
    try:
        return TemplateChoice(TemplateSource.MANIFEST, jinja_template(manifest_template))
    except Untranslatable as reason:
        if file_template:
            note = f"its manifest's template cannot be used, because it {reason}; its file's is used instead"
            return TemplateChoice(TemplateSource.FILE, note=note)
        note = f"its template cannot be used, because it {reason}; use it @ollama, or configure a chat_template"
        return TemplateChoice(TemplateSource.NONE, note=note)


def _none(kind: OllamaKind) -> TemplateChoice:
    if kind.renderer:
        note = f"only Ollama has the code that makes its prompts, {kind.renderer!r}; use it @ollama"
        return TemplateChoice(TemplateSource.NONE, note=f"{note}, or configure a chat_template")
    return TemplateChoice(TemplateSource.NONE)


def _is_another_format(manifest_template: str, file_template: str) -> bool:
    """Whether a template writes marks between turns that the other one does not know."""
    return any(mark not in file_template for mark in islice(_marks(manifest_template), _MOST_MARKS))


def _marks(template: str) -> Iterator[str]:
    try:
        nodes = parse_go_template(template)
    except Untranslatable:
        text = template
    else:
        text = "\0".join(_texts(nodes))
    return (mark for mark in dict.fromkeys(_MARKERS.findall(text)) if not _OF_TOOLS.search(mark))


def _texts(nodes: Iterable[Node]) -> Iterator[str]:
    for node in walk(nodes):
        match node:
            case Text(text) | Show(Text(text)):
                yield text

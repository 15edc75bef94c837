"""``llmspell model show``: all that is known of one model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from server.cli.model_options import ConfigOption, JsonOption, ServerOption, SpecArgument
from server.cli.output import clean, date_text, print_data, print_json, size_text

if TYPE_CHECKING:
    from server.core.library import ModelDetails

_MAX_TEXT_LINES = 12


def show(
    spec: SpecArgument,
    *,
    server: ServerOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show all that is known of a model.

    What its file says, its template, its licence, the memory that it would take: predicted for one sequence of the
    given length, with everything on one device and a KV cache in F16.
    """
    from server.cli.model_access import open_access  # noqa: PLC0415 - --help does not need it
    from server.core.library_json import details_json  # noqa: PLC0415

    with open_access(server, config) as access:
        details = access.details(spec)
    if as_json:
        print_json(details_json(details))
    else:
        print_data("\n".join(details_lines(details)))


def details_lines(details: ModelDetails) -> Iterator[str]:
    """Say it in lines of a title and a text."""
    facts = [(title, text) for title, text in _facts(details) if text]
    width = max(len(title) for title, _ in facts)
    for title, text in facts:
        first, *rest = _lines(text)
        yield f"{title:{width}}  {first}"
        yield from (f"{'':{width}}  {line}" for line in rest)


def _facts(details: ModelDetails) -> Iterator[tuple[str, str]]:
    from server.core.library_json import model_id  # noqa: PLC0415 - --help does not need it

    model = details.installed
    yield "spec", model_id(model.model, model.backend) if model.model else ""
    yield "other names", "\n".join(model.other_names)
    yield "problem", model.problem or ""
    yield "title", details.name or ""
    yield "backend", model.backend.value
    yield "source", model.source
    yield "state", "" if model.state is None else model.state.value
    yield "size", size_text(model.size_bytes)
    yield "architecture", details.architecture or ""
    yield "parameters", model.parameters or ""
    yield "quantization", model.quantization or ""
    yield "context", "" if model.context_length is None else f"{model.context_length} tokens"
    yield "capabilities", ", ".join(model.capabilities)
    yield "template", _template(details)
    yield "system", details.system or ""
    yield "defaults", "\n".join(f"{name} = {value}" for name, value in details.defaults.items())
    yield "licence", details.licence or ""
    yield "modified", date_text(model.modified)
    yield "digest", model.digest or ""
    yield "files", "\n".join(str(path) for path in details.files or ([model.path] if model.path else []))
    yield "projectors", "\n".join(str(path) for path in details.projectors)
    yield "copies", "\n".join(str(path) for path in model.copies)
    yield "memory", _memory(details)
    yield "notes", "\n".join(details.notes)


def _template(details: ModelDetails) -> str:
    if details.template is None:
        return ""
    knows = ", ".join(details.template_capabilities)
    return f"{details.template}, with {knows}" if knows else details.template


def _memory(details: ModelDetails) -> str:
    width = max((len(str(each.context_length)) for each in details.memory), default=0)
    return "\n".join(
        f"{size_text(each.num_bytes):>8} with {each.context_length:>{width}} tokens" for each in details.memory
    )


def _lines(text: str) -> list[str]:
    """Return the lines of a text that may be long; --json has all of it."""
    lines = [clean(line) for line in text.expandtabs().splitlines()] or [""]
    if len(lines) > _MAX_TEXT_LINES:
        rest = len(lines) - _MAX_TEXT_LINES
        return [*lines[:_MAX_TEXT_LINES], f"... {rest} more lines; --json has them all"]
    return lines

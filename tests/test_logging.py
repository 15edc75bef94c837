from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from contextvars import ContextVar

import pytest

from server.cli.logging_setup import HumanFormatter, JsonFormatter, set_up_logging
from server.config import LoggingConfig

request_id = ContextVar("request_id", default="-")


@pytest.fixture(autouse=True)
def restored_logging() -> Iterator[None]:
    root, project = logging.getLogger(), logging.getLogger("server")
    handlers, levels = root.handlers[:], (root.level, project.level)
    yield
    logging.captureWarnings(capture=False)
    root.handlers[:] = handlers
    root.setLevel(levels[0])
    project.setLevel(levels[1])


def record(message: str, *arguments: object, **fields: object) -> logging.LogRecord:
    entry = logging.LogRecord("server.x", logging.INFO, __file__, 1, message, arguments, None)
    vars(entry).update(fields)
    return entry


def test_json_lines_hold_message_request_and_extra_fields(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logging(LoggingConfig(format="json"), request_id)
    token = request_id.set("abc")
    logging.getLogger("server.x").info("took %d ms", 5, extra={"tokens": 7})
    request_id.reset(token)
    logging.getLogger("server.x").warning("no request")
    first, second = (json.loads(line) for line in capsys.readouterr().err.splitlines())
    assert first.pop("time").endswith("+00:00")
    assert first == {"level": "info", "logger": "server.x", "message": "took 5 ms", "request_id": "abc", "tokens": 7}
    assert "request_id" not in second


def test_human_lines_name_the_request(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logging(LoggingConfig(), request_id)
    token = request_id.set("abc")
    logging.getLogger("server.x").info("hello")
    request_id.reset(token)
    assert capsys.readouterr().err[8:] == " INFO    hello [abc]\n"


@pytest.mark.parametrize(
    ("level", "heard"),
    [
        ("debug", ["library info", "server debug", "server info", "server warning"]),
        ("info", ["server info", "server warning"]),
        ("error", []),
    ],
)
def test_libraries_are_quiet(level: str, heard: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logging(LoggingConfig(level=level), request_id)  # type: ignore[arg-type] # from the parameters
    logging.getLogger("library").debug("library debug")
    logging.getLogger("library").info("library info")
    logging.getLogger("server").debug("server debug")
    logging.getLogger("server").info("server info")
    logging.getLogger("server").warning("server warning")
    assert [line[17:] for line in capsys.readouterr().err.splitlines()] == heard


@pytest.mark.parametrize("formatter", [HumanFormatter(), JsonFormatter()])
def test_tracebacks_are_kept(formatter: logging.Formatter) -> None:
    try:
        raise ZeroDivisionError  # noqa: TRY301 - a traceback is needed
    except ZeroDivisionError:
        text = formatter.format(record("failed", exc_info=sys.exc_info()))
    assert "ZeroDivisionError" in text


def test_lone_surrogates_and_strange_values_are_written() -> None:
    entry = json.loads(JsonFormatter().format(record("bad %s", "\udc80", value={1})))
    assert entry["message"] == "bad \udc80"
    assert entry["value"] == "{1}"


def test_what_others_wrote_cannot_forge_a_line() -> None:
    quoted = "x\n12:00:00 CRITICAL forged\r\x1b[31m\x85\u2028"
    line = HumanFormatter().format(record("it said: %s", quoted))

    assert len(line.splitlines()) == 1
    assert line.isprintable()
    assert r"x\n12:00:00 CRITICAL forged\r\x1b[31m\x85\u2028" in line

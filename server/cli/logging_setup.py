"""Log lines on standard error: readable text, or one JSON object a line."""

from __future__ import annotations

import json
import logging
import time
from contextvars import ContextVar
from datetime import UTC, datetime

import orjson

from server.config import LoggingConfig

_NO_REQUEST = "-"
_STANDARD_FIELDS = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "request_id"}


def set_up_logging(config: LoggingConfig, request_id: ContextVar[str]) -> None:
    """Send all logging to standard error, in place of what was set up before.

    Libraries are heard from level warning on; at level debug, from info on.

    Args:
        config: format and level.
        request_id: id of the request that the current task serves, ``-`` outside of requests.

    """
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if config.format == "json" else HumanFormatter())
    handler.addFilter(_RequestIdFilter(request_id))
    level = logging.getLevelNamesMapping()[config.level.upper()]
    libraries = logging.INFO if level == logging.DEBUG else max(level, logging.WARNING)
    logging.basicConfig(handlers=[handler], level=libraries, force=True)
    logging.getLogger("server").setLevel(level)
    logging.captureWarnings(capture=True)


class _RequestIdFilter(logging.Filter):
    """Adds ``request_id`` to each record; it is read in the context of the code that logs."""

    def __init__(self, request_id: ContextVar[str]) -> None:
        super().__init__()
        self._request_id = request_id

    def filter(self, record: logging.LogRecord) -> bool:
        record.request_id = self._request_id.get(_NO_REQUEST)
        return True


_CONTROLS = (*range(0x20), *range(0x7F, 0xA0), 0x2028, 0x2029)
_ESCAPED = {code: repr(chr(code))[1:-1] for code in _CONTROLS}


class HumanFormatter(logging.Formatter):
    """``12:34:56 INFO    message``, with the request's id in brackets where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, with a traceback below it where the record has one."""
        request_id = getattr(record, "request_id", _NO_REQUEST)
        suffix = "" if request_id == _NO_REQUEST else f" [{request_id}]"
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        message = record.getMessage().translate(_ESCAPED)  # it may quote what somebody else wrote
        lines = [f"{clock} {record.levelname:7} {message}{suffix}"]
        if record.exc_info:
            lines.append(self.formatException(record.exc_info))
        return "\n".join(lines)


class JsonFormatter(logging.Formatter):
    """One JSON object: time (UTC), level, logger, message, request_id, exception, and the record's extra fields."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the object without a newline."""
        entry: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if (request_id := getattr(record, "request_id", _NO_REQUEST)) != _NO_REQUEST:
            entry["request_id"] = request_id
        entry |= {key: value for key, value in vars(record).items() if key not in _STANDARD_FIELDS}
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return _to_json(entry)


def _to_json(entry: dict[str, object]) -> str:
    try:
        return orjson.dumps(entry, default=str, option=orjson.OPT_NON_STR_KEYS).decode()
    except TypeError:  # orjson refuses lone surrogates, which invalid input can bring into a message
        return json.dumps(entry, default=str)

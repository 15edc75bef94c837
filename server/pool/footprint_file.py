"""Where measured footprints are kept between runs of the server."""

from __future__ import annotations

import logging
import os
import tempfile
from pathlib import Path

from server.pool.ledger import Footprints

_log = logging.getLogger(__name__)


class FootprintFile:
    """A file of footprints. It is a convenience: without it, or with a broken one, loads are predicted again."""

    def __init__(self, path: Path | None) -> None:
        """Keep them in ``path``, or nowhere."""
        self._path = path

    def read(self) -> Footprints:
        """Return what the file holds, or nothing; blocking."""
        if self._path is None:
            return Footprints()
        try:
            return Footprints.from_json(self._path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return Footprints()
        except (OSError, UnicodeDecodeError) as error:
            _log.warning("what models took is not known from earlier: %s", error)
            return Footprints()

    def write(self, text: str) -> None:
        """Replace the contents by those of ``Footprints.to_json``, all or nothing; blocking."""
        if self._path is None:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            descriptor, name = tempfile.mkstemp(dir=self._path.parent, prefix=self._path.name)
            temporary = Path(name)
            try:
                with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                    file.write(text)
                temporary.replace(self._path)
            except BaseException:
                temporary.unlink()
                raise
        except OSError as error:
            _log.warning("what models take cannot be remembered: %s", error)

from __future__ import annotations

from pathlib import Path

import pytest
from program import Program


@pytest.fixture
def program(home: Path) -> Program:
    """The program, for a user who has nothing."""
    return Program(home)

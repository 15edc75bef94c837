"""What a command imports before it shows a list: nothing that takes long."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from machines import Machine, unused_url
from store.made_stores import put

SCRIPT = """
import asyncio, sys
from pathlib import Path
from server.app_library import create_library
from server.backends.ollama.config import OllamaConfig
from server.core.model_spec import BackendName
from server.pool.config import PoolConfig
from server.store.config import StoreConfig
from server.store.places import Surroundings

root, url = Path(sys.argv[1]), sys.argv[2]

async def main():
    parts = create_library(
        StoreConfig(models_dir=str(root / "own")), PoolConfig(), OllamaConfig(url=url), {}, BackendName.OLLAMA,
        Surroundings({}, root / "home", platform="other"), root / "cache",
    )
    daemon, _ = await parts.library.health()
    print([model.model for model in await parts.library.models()], daemon.is_up)
    await parts.library.aclose()

asyncio.run(main())
heavy = {"httpx", "fastapi", "pydantic", "llama_cpp", "numpy", "jinja2", "typer", "rich"}
print(sorted(heavy & set(sys.modules)))
"""


def test_a_list_without_a_daemon_imports_no_http(machine: Machine) -> None:
    put(machine.own / "mine.gguf")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(machine.root), unused_url()],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout.splitlines() == ["['mine'] False", "[]"]

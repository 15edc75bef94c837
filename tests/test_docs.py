from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
REQUIREMENTS = ["requirements.txt", "requirements-test.txt", "requirements-build.txt"]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def pins(file: str) -> set[tuple[str, str]]:
    text = (ROOT / file).read_text(encoding="utf-8")
    return set(re.findall(r"^([a-z0-9-]+)==([^ ]+)", text, re.MULTILINE))


def names(dependencies: list[object]) -> set[str]:
    return {re.split(r"[\[<>=;~! ]", text)[0] for text in dependencies if isinstance(text, str)}


def test_generated_documents_are_current() -> None:
    command = [sys.executable, str(ROOT / "tools" / "generate_docs.py"), "--check"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (0, "")


@pytest.mark.parametrize("file", REQUIREMENTS)
def test_requirements_are_pinned_with_hashes_and_hold_no_address(file: str) -> None:
    text = (ROOT / file).read_text(encoding="utf-8")
    assert "://" not in text
    assert not re.search(r"\w\.(org|com|io|net)\b", text)
    assert not re.search(r"^-", text, re.MULTILINE)
    packages = re.split(r"^(?=[a-z])", text, flags=re.MULTILINE)[1:]
    assert packages
    for package in packages:
        assert re.match(r"[a-z0-9-]+==\S+", package)
        assert "--hash=sha256:" in package


def test_every_dependency_is_pinned() -> None:
    groups = PROJECT["dependency-groups"]
    runtime = names(PROJECT["project"]["dependencies"])
    assert runtime <= {name for name, _ in pins("requirements.txt")}
    assert runtime | names(groups["test"]) | names(groups["lint"]) <= {
        name for name, _ in pins("requirements-test.txt")
    }
    build = names(groups["build"]) | names(PROJECT["build-system"]["requires"])
    assert build <= {name for name, _ in pins("requirements-build.txt")}


def test_tests_run_with_the_versions_that_are_served() -> None:
    assert pins("requirements.txt") <= pins("requirements-test.txt")


def test_the_architecture_names_every_room() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rooms = [path for path in (ROOT / "server").iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()]
    expected = {f"`server/{path.name}{'/' if path.is_dir() else ''}`" for path in rooms if path.stem != "__init__"}
    assert {room for room in expected if room not in text} == set()


def test_the_architecture_names_every_file_in_its_room() -> None:
    rows = re.findall(
        r"^\| `(server/[^`]*)` \|(.*)$", (ROOT / "docs" / "architecture.md").read_text("utf-8"), re.MULTILINE
    )
    rooms: dict[Path, str] = {}
    for room, content in rows:
        folder = Path(room) if room.endswith("/") else Path(room).parent
        rooms[folder] = f"{rooms.get(folder, '')} `{Path(room).name}` {content}"
    unnamed = []
    for path in (ROOT / "server").rglob("*.py"):
        inside = path.relative_to(ROOT)
        words = next(rooms[folder] for folder in inside.parents if folder in rooms)
        if path.name not in {"__init__.py", "config.py"} and f"`{path.name}`" not in words:
            unnamed.append(str(inside))
    assert unnamed == []


def test_the_decisions_are_listed() -> None:
    folder = ROOT / "docs" / "decisions"
    index = (folder / "README.md").read_text(encoding="utf-8")
    assert [path.name for path in sorted(folder.glob("0*.md")) if f"({path.name})" not in index] == []


@pytest.mark.parametrize(
    "page", ["README.md", *(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md"))]
)
def test_links_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#\s]+)", text) if "://" not in link]
    assert [link for link in links if not (ROOT / page).parent.joinpath(link).exists()] == []

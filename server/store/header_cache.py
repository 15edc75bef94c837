"""What is known of model files from earlier: facts of headers, samples, digests; kept between runs."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, get_type_hints

from server.core.errors import ModelLoadingFailed
from server.store.gguf import read_gguf_header
from server.store.gguf_check import NOT_MODELS
from server.store.gguf_header import GgufHeader
from server.store.lookout import FileState
from server.store.regular_file import open_regular

_VERSION = 1
_MOST_FILE_BYTES = 64 << 20
_MOST_FILES = 20_000
_SAMPLES, _SAMPLE_BYTES = 16, 4096
_FILE_TYPES = {
    0: "F32",
    1: "F16",
    2: "Q4_0",
    3: "Q4_1",
    7: "Q8_0",
    8: "Q5_0",
    9: "Q5_1",
    10: "Q2_K",
    11: "Q3_K_S",
    12: "Q3_K_M",
    13: "Q3_K_L",
    14: "Q4_K_S",
    15: "Q4_K_M",
    16: "Q5_K_S",
    17: "Q5_K_M",
    18: "Q6_K",
    19: "IQ2_XXS",
    20: "IQ2_XS",
    21: "Q2_K_S",
    22: "IQ3_XS",
    23: "IQ3_XXS",
    24: "IQ1_S",
    25: "IQ4_NL",
    26: "IQ3_S",
    27: "IQ3_M",
    28: "IQ2_S",
    29: "IQ2_M",
    30: "IQ4_XS",
    31: "IQ1_M",
    32: "BF16",
    36: "TQ1_0",
    37: "TQ2_0",
    38: "MXFP4_MOE",
}
"""llama.cpp's numbers for what most tensors of a file are."""

_OF_OLLAMA = frozenset(
    {"deepseekocr", "glm4moelite", "glmocr", "gptoss", "mllama", "nemotron_h_omni", "olmo3", "qwen25vl"}
)
"""Architectures under names that only Ollama gives them; its own llama.cpp translates them while it loads."""
_OF_ENCODERS = ("v.", "mm.", "a.")
"""Tensors of encoders for images and sound, which llama.cpp wants in a file of their own."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class HeaderFacts:
    """What the header of one file says.

    Attributes:
        architecture: as ``llama``; empty if it does not say.
        name: what its maker calls the model.
        quantization: of most tensors, as ``Q4_K_M``.
        num_parameters: values in the tensors of this file.
        context_length: tokens that the model was trained for.
        license: the licence's name.
        has_template: whether it has a chat template.
        problem: why the file is no model; the other facts are empty then.

    """

    architecture: str = ""
    name: str | None = None
    quantization: str | None = None
    num_parameters: int = 0
    context_length: int | None = None
    license: str | None = None
    has_template: bool = False
    problem: str | None = None


@dataclass(slots=True)
class _Record:
    """What is known of a file in one state."""

    identity: tuple[int, int, int]
    facts: HeaderFacts | None = None
    sample: str | None = None
    digest: str | None = None

    def to_json(self) -> dict[str, Any]:
        facts = None if self.facts is None or self.facts.problem else asdict(self.facts)
        return {"identity": self.identity, "facts": facts, "sample": self.sample, "digest": self.digest}


class HeaderCache:
    """Facts of files by path, size, time of change and inode.

    It is a convenience: without its file, or with a broken one, headers are read again. May be used by several threads;
    of two that ask for the same new file, both read it.
    """

    def __init__(self, path: Path | None) -> None:
        """Keep facts in the file ``path``, or only in memory."""
        self._path = path
        self._lock = threading.Lock()
        self._records: dict[str, _Record] | None = None
        self._is_changed = False

    def facts(self, state: FileState) -> HeaderFacts:
        """Return the facts of a file; reads its header if they are not known."""
        if (known := self.known(state)) is not None:
            return known
        try:
            facts = facts_of(read_gguf_header(state.path))
        except ModelLoadingFailed as error:
            facts = HeaderFacts(problem=error.message)
            if not os.access(state.path, os.R_OK):
                return facts  # which may change, and nothing in the state of the file would tell
        with self._lock:
            self._writable(state).facts = facts
            self._is_changed = self._is_changed or facts.problem is None
        return facts

    def known(self, state: FileState) -> HeaderFacts | None:
        """Return the facts of a file if they are known."""
        with self._lock:
            record = self._record(state)
            return record.facts if record else None

    def sample(self, state: FileState) -> str | None:
        """Return a hash of samples of a file: equal for copies. ``None`` if it cannot be read."""
        with self._lock:
            record = self._record(state)
        if record is not None and record.sample is not None:
            return record.sample
        try:
            sample = _sample(state)
        except (ModelLoadingFailed, OSError):
            return None
        with self._lock:
            self._writable(state).sample = sample
            self._is_changed = True
        return sample

    def digest(self, state: FileState) -> str | None:
        """Return the SHA-256 of a file, if somebody noted it."""
        with self._lock:
            record = self._record(state)
            return record.digest if record else None

    def note_digest(self, state: FileState, digest: str) -> None:
        """Remember the SHA-256 of a file, which was computed for another reason."""
        with self._lock:
            self._writable(state).digest = digest.lower()
            self._is_changed = True

    def save(self) -> None:
        """Write what is new to the file, all or nothing, and drop files that are gone."""
        if self._path is None:
            return
        with self._lock:
            if not self._is_changed:
                return
            records = _read(self._path) | self._loaded()  # another process may have learned something, too
            kept = [path for path in records if os.path.lexists(path)]
            self._records = {path: records[path] for path in kept[-_MOST_FILES:]}
            content = {"version": _VERSION, "files": {path: each.to_json() for path, each in self._records.items()}}
            self._is_changed = not _write(self._path, json.dumps(content))

    def _loaded(self) -> dict[str, _Record]:
        if self._records is None:
            self._records = {} if self._path is None else _read(self._path)
        return self._records

    def _record(self, state: FileState) -> _Record | None:
        """Return what is known of a file in this state."""
        record = self._loaded().get(os.fspath(state.path))
        return record if record is not None and record.identity == _identity(state) else None

    def _writable(self, state: FileState) -> _Record:
        """Return what is known of a file in this state, to add to it; what is known of another state is forgotten."""
        record = self._record(state)
        if record is None:
            record = self._loaded()[os.fspath(state.path)] = _Record(_identity(state))
        return record


def _identity(state: FileState) -> tuple[int, int, int]:
    return state.size, state.mtime_ns, state.inode


def facts_of(header: GgufHeader) -> HeaderFacts:
    """Pick out the facts that a list of models shows."""
    kind = "mmproj" if header.architecture == "clip" else header.text("general.type") or ""
    if kind in NOT_MODELS:
        return HeaderFacts(problem=f"{header.path} is {NOT_MODELS[kind]}, not a model")
    has_encoder = any(tensor.name.startswith(_OF_ENCODERS) for tensor in header.tensors)
    if has_encoder or header.architecture in _OF_OLLAMA:
        what = "has its image encoder in the same file" if has_encoder else f"calls itself {header.architecture!r}"
        return HeaderFacts(
            problem=f"{header.path} {what}, as only Ollama reads it; use it @ollama, or download another file of it"
        )
    return HeaderFacts(
        architecture=header.architecture,
        name=header.name,
        quantization=_FILE_TYPES.get(-1 if header.file_type is None else header.file_type),
        num_parameters=sum(
            tensor.size // tensor.format.block_bytes * tensor.format.block_len for tensor in header.tensors
        ),
        context_length=header.context_length,
        license=header.text("general.license"),
        has_template=bool(header.chat_template),
    )


def _sample(state: FileState) -> str:
    """Hash the beginning of a file, its end, and pieces at equal distances between them."""
    last = max(state.size - _SAMPLE_BYTES, 0)
    hashed = hashlib.sha256(state.size.to_bytes(8, "little"))
    with open_regular(state.path) as file:
        for number in range(_SAMPLES + 1):
            file.seek(last * number // _SAMPLES)
            hashed.update(file.read(_SAMPLE_BYTES))
    return hashed.hexdigest()


def _read(path: Path) -> dict[str, _Record]:
    try:
        with open_regular(path) as file:
            data = file.read(_MOST_FILE_BYTES)
        content = json.loads(data)
    except (ModelLoadingFailed, OSError, ValueError, RecursionError) as error:
        if not isinstance(error.__cause__, FileNotFoundError):
            _log.warning("what model files say is not known from earlier: %s", error)
        return {}
    files = content.get("files") if isinstance(content, dict) and content.get("version") == _VERSION else None
    records = ((name, _checked(each)) for name, each in files.items()) if isinstance(files, dict) else ()
    return {name: record for name, record in records if record is not None}


def _checked(content: object) -> _Record | None:
    """Return a record if everything in it is of the right type."""
    if not isinstance(content, dict):
        return None
    identity, facts = content.get("identity"), content.get("facts")
    if not isinstance(identity, list) or [type(each) for each in identity] != [int, int, int]:
        return None
    size, mtime_ns, inode = identity
    hashes = [content.get(name) for name in ("sample", "digest")]
    if any(each is not None and not isinstance(each, str) for each in hashes):
        return None
    known = _checked_facts(facts) if isinstance(facts, dict) else None
    return _Record((size, mtime_ns, inode), known, *hashes)


def _checked_facts(content: Mapping[str, Any]) -> HeaderFacts | None:
    if content.keys() != {each.name for each in fields(HeaderFacts)}:
        return None
    is_right = all(isinstance(content[name], _FACT_TYPES[name]) for name in content)
    return HeaderFacts(**content) if is_right else None


_FACT_TYPES = get_type_hints(HeaderFacts)


def _write(path: Path, text: str) -> bool:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=path.name)
        temporary = Path(name)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(text)
            temporary.replace(path)
        except BaseException:
            temporary.unlink()
            raise
    except OSError as error:
        _log.warning("what model files say cannot be remembered: %s", error)
        return False
    return True

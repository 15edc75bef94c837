"""What ``llmspell doctor`` makes of what it sees: decisions without looking."""

from __future__ import annotations

import signal
from dataclasses import replace
from pathlib import Path

import pytest

from server.cli.doctor_checks import (
    Access,
    ConfigFacts,
    FolderFacts,
    HubFacts,
    LimitFacts,
    ModelFacts,
    Occupant,
    OllamaFacts,
    PortFacts,
    StoreFacts,
    check_config,
    check_folders,
    check_hub,
    check_limits,
    check_models,
    check_ollama,
    check_port,
    check_store,
)
from server.cli.doctor_findings import Diagnosis, Finding, Status
from server.cli.doctor_llama import (
    Build,
    DeviceFacts,
    Graphics,
    Hardware,
    Installation,
    check_devices,
    check_llama,
    parse_system_info,
)
from server.cli.doctor_look import build_of, hardware, store
from server.cli.doctor_report import plain_lines
from server.cli.doctor_versions import parse_version

GIB = 1 << 30
INSTALLED = Installation(Path("/src/llmspell"), Path("/src/llmspell/.venv"))
CPU = DeviceFacts("CPU", "AMD EPYC", is_gpu=False, free=20 * GIB, total=24 * GIB)
GPU = DeviceFacts("CUDA0", "NVIDIA H200", is_gpu=True, free=100 * GIB, total=140 * GIB)
FLAGS = frozenset({"avx", "avx2", "fma", "f16c"})
FEATURES = {"SSE3": True, "AVX": True, "AVX2": True, "FMA": True, "F16C": True}
GOOD = Build("0.3.36", features=FEATURES, devices=(CPU,))
PLAIN = Hardware(FLAGS, ())
NVIDIA = Graphics("NVIDIA", "NVIDIA H200", has_driver=True)
DAEMON = OllamaFacts(
    is_enabled=True, url="http://127.0.0.1:11434", url_source="the usual one", program="/bin/ollama", version="0.30.0",
    num_models=2,
)  # fmt: skip


# --- llama.cpp ---


def test_what_llama_cpp_says_of_itself() -> None:
    text = "CUDA : ARCHS = 890,900 | USE_GRAPHS = 1 | CPU : SSE3 = 1 | AVX2 = 1 | AVX512 = 0 | REPACK = 1 | "
    features, backends = parse_system_info(text)
    assert features == {"SSE3": True, "AVX2": True, "AVX512": False, "REPACK": True}
    assert backends == ("CUDA",)
    assert parse_system_info("") == ({}, ())


def test_a_build_that_fits_the_machine() -> None:
    finding = check_llama(GOOD, PLAIN, INSTALLED)
    assert (finding.status, finding.advice, finding.can_answer) == (Status.OK, (), True)
    assert "built for the processor only" in finding.summary
    assert check_llama(GOOD, Hardware(None, ()), INSTALLED).status is Status.OK


def test_a_build_that_leaves_the_processor_unused_is_slow() -> None:
    finding = check_llama(replace(GOOD, features={"SSE3": True, "AVX": True}), PLAIN, INSTALLED)
    assert (finding.status, finding.can_answer) == (Status.WARNING, True)
    assert any("without AVX2, F16C, FMA, which this processor has" in line for line in finding.details)
    assert finding.advice[0].endswith('cd /src/llmspell && CMAKE_ARGS="-DGGML_NATIVE=on" tools/setup')


def test_what_makes_little_difference_is_a_note() -> None:
    flags = FLAGS | {"avx512f", "avx512cd", "avx512vl", "avx512dq", "avx512bw"}
    finding = check_llama(GOOD, Hardware(flags, ()), INSTALLED)
    assert (finding.status, finding.advice) == (Status.NOTE, ())


def test_a_build_for_another_processor_would_crash() -> None:
    finding = check_llama(replace(GOOD, features=FEATURES | {"AVX512": True}), PLAIN, INSTALLED)
    assert (finding.status, finding.can_answer) == (Status.FAILED, False)
    assert "built for AVX512" in finding.details[1]
    assert "-DGGML_NATIVE=on" in finding.advice[0]


@pytest.mark.parametrize(
    ("exit_code", "reason"),
    [
        (-signal.SIGILL, "built for a processor that can do more"),
        (-signal.SIGSEGV, "ends the process (SIGSEGV)"),
        (-200, "ends the process (signal 200)"),
        (1, "cannot be loaded"),
    ],
)
def test_a_build_that_cannot_be_loaded(exit_code: int, reason: str) -> None:
    broken = build_of("0.3.36", (), exit_code, "", "first\nImportError: libllama.so\n")
    finding = check_llama(broken, PLAIN, INSTALLED)
    assert (finding.status, finding.can_answer) == (Status.FAILED, False)
    assert reason in finding.summary
    assert finding.details[-1] == "ImportError: libllama.so"
    assert "tools/setup" in finding.advice[0]
    assert check_devices(broken) is None


@pytest.mark.parametrize("output", ["", "nothing", "{}", '{"version": 1, "system_info": "", "devices": [{}]}'])
def test_a_probe_that_cannot_be_understood(output: str) -> None:
    assert not build_of("0.3.36", (), 0, output, "").works


def test_a_version_that_is_too_old() -> None:
    finding = check_llama(replace(GOOD, required="0.3.37"), PLAIN, INSTALLED)
    assert finding.status is Status.WARNING
    assert finding.advice[0].endswith("cd /src/llmspell && tools/setup")
    assert check_llama(replace(GOOD, required="0.3.36"), PLAIN, INSTALLED).status is Status.OK


def test_llama_cpp_that_is_not_installed() -> None:
    finding = check_llama(Build(None), PLAIN, INSTALLED)
    assert finding.status is Status.FAILED
    assert finding.advice == ("Install llama.cpp: cd /src/llmspell && tools/setup",)


@pytest.mark.parametrize(
    ("installation", "command"),
    [
        (INSTALLED, 'cd /src/llmspell && CMAKE_ARGS="-DX=on" tools/setup'),
        (
            Installation(Path("/my src"), Path("/other")),
            "cd '/my src' && VENV=/other CMAKE_ARGS=\"-DX=on\" tools/setup",
        ),
        (Installation(None, Path("/other")), 'CMAKE_ARGS="-DX=on" tools/setup   (in a clone of the project)'),
    ],
)
def test_the_command_that_builds(installation: Installation, command: str) -> None:
    assert installation.build_command("-DX=on") == command


def test_a_gpu_that_the_build_cannot_use() -> None:
    finding = check_llama(GOOD, Hardware(FLAGS, (NVIDIA, NVIDIA)), INSTALLED)
    assert finding.status is Status.WARNING
    assert finding.details[1] == "NVIDIA H200 is not used: llama.cpp was built without CUDA"
    assert finding.advice[0].endswith('CMAKE_ARGS="-DGGML_CUDA=on" tools/setup')
    amd = check_llama(GOOD, Hardware(FLAGS, (Graphics("AMD", "the AMD GPU", has_driver=True),)), INSTALLED)
    assert amd.advice[0].endswith('CMAKE_ARGS="-DGGML_VULKAN=on" tools/setup')
    apple = check_llama(GOOD, Hardware(None, (Graphics("Apple", "the GPU", has_driver=True),)), INSTALLED)
    assert apple.advice[0].endswith('CMAKE_ARGS="-DGGML_METAL=on" tools/setup')


def test_a_gpu_that_is_used() -> None:
    build = replace(GOOD, backends=("CUDA",), devices=(CPU, GPU))
    finding = check_llama(build, Hardware(FLAGS, (NVIDIA,)), INSTALLED)
    assert (finding.status, finding.advice) == (Status.OK, ())
    assert "CUDA" in finding.summary
    devices = check_devices(build)
    assert devices is not None
    assert (devices.status, devices.summary) == (Status.OK, "100 GiB free for models on GPUs")


def test_a_gpu_that_a_build_for_it_does_not_see() -> None:
    finding = check_llama(replace(GOOD, backends=("CUDA",)), Hardware(FLAGS, (NVIDIA,)), INSTALLED)
    assert finding.status is Status.WARNING
    assert "nvidia-smi" in finding.advice[0]


def test_a_gpu_without_a_driver() -> None:
    bare = Graphics("NVIDIA", "the NVIDIA GPU", has_driver=False)
    finding = check_llama(GOOD, Hardware(FLAGS, (bare,)), INSTALLED)
    assert finding.advice == ("Install NVIDIA's driver, so that models can use the NVIDIA GPU.",)


def test_a_device_without_room() -> None:
    finding = check_devices(replace(GOOD, devices=(CPU, replace(GPU, free=GIB // 2))))
    assert finding is not None
    assert finding.status is Status.WARNING
    assert "CUDA0" in finding.advice[0]


# --- the machine, from files as a system has them ---


def put(root: Path, path: str, text: str = "") -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text, encoding="utf-8")


def test_a_machine_with_an_nvidia_driver(tmp_path: Path) -> None:
    put(tmp_path, "proc/cpuinfo", "processor : 0\nflags\t\t: fpu avx avx2\n\nprocessor : 1\nflags : other\n")
    put(tmp_path, "proc/driver/nvidia/gpus/0000:01:00.0/information", "Model: \t\t NVIDIA H200\nIRQ: 1\n")
    put(tmp_path, "sys/bus/pci/devices/0000:01:00.0/class", "0x030200\n")
    put(tmp_path, "sys/bus/pci/devices/0000:01:00.0/vendor", "0x10de\n")
    assert hardware("linux", tmp_path) == Hardware(frozenset({"fpu", "avx", "avx2"}), (NVIDIA,))


@pytest.mark.parametrize(("vendor", "name"), [("0x10de", "NVIDIA"), ("0x1002", "AMD")])
def test_a_machine_without_a_driver(tmp_path: Path, vendor: str, name: str) -> None:
    put(tmp_path, "sys/bus/pci/devices/a/class", "0x030000\n")
    put(tmp_path, "sys/bus/pci/devices/a/vendor", f"{vendor}\n")
    put(tmp_path, "sys/bus/pci/devices/b/class", "0x020000\n")  # a network controller
    put(tmp_path, "sys/bus/pci/devices/b/vendor", f"{vendor}\n")
    (found,) = hardware("linux", tmp_path).graphics
    assert (found.vendor, found.has_driver) == (name, False)
    put(tmp_path, "dev/dxg")
    (found,) = hardware("linux", tmp_path).graphics
    assert found.has_driver


def test_a_machine_that_tells_nothing(tmp_path: Path) -> None:
    assert hardware("linux", tmp_path) == hardware("win32", tmp_path) == Hardware(None, ())


# --- configuration and port ---


def test_configuration() -> None:
    assert check_config(ConfigFacts("defaults")) == Finding("configuration", Status.OK, "defaults")
    finding = check_config(ConfigFacts("", "x.toml: there is no key a; did you mean b?"))
    assert (finding.status, finding.is_required) == (Status.FAILED, True)
    assert "did you mean b?" in finding.advice[0]


@pytest.mark.parametrize(
    ("occupant", "status"),
    [
        (Occupant.NOBODY, Status.OK),
        (Occupant.OURS, Status.OK),
        (Occupant.OTHER, Status.FAILED),
        (Occupant.IMPOSSIBLE, Status.FAILED),
    ],
)
def test_port(occupant: Occupant, status: Status) -> None:
    finding = check_port(PortFacts("127.0.0.1", 8000, occupant, "words"))
    assert finding.status is status
    assert bool(finding.advice) is finding.is_required is (status is Status.FAILED)


# --- Ollama ---


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("0.12.6", (0, 12, 6)),
        ("v0.33.0-rc2", (0, 33, 0)),
        ("1.2", (1, 2, 0)),
        ("0.0.0", None),
        ("new", None),
        ("", None),
    ],
)
def test_versions(text: str, version: tuple[int, ...] | None) -> None:
    assert parse_version(text) == version


@pytest.mark.parametrize(
    ("version", "status", "words"),
    [
        ("0.12.5", Status.WARNING, "cuts long prompts"),
        ("0.12.6", Status.WARNING, "no log probabilities"),
        ("0.12.11", Status.OK, "2 models"),
        ("0.0.0", Status.OK, "2 models"),
    ],
)
def test_versions_of_ollama(version: str, status: Status, words: str) -> None:
    finding = check_ollama(replace(DAEMON, version=version))
    assert (finding.status, finding.can_answer) == (status, True)
    assert words in finding.summary
    assert bool(finding.advice) is (status is Status.WARNING)


@pytest.mark.parametrize(
    ("changes", "status", "advice"),
    [
        ({"version": None, "failure": "refused"}, Status.WARNING, "ollama serve"),
        ({"version": None, "failure": "refused", "program": None}, Status.NOTE, "install-ollama"),
        ({"version": None, "is_started_by_us": True, "program": None}, Status.WARNING, "install-ollama"),
        ({"version": None, "is_started_by_us": True}, Status.OK, ""),
        ({"version": None, "is_other": True, "failure": "no JSON"}, Status.WARNING, "[ollama] url"),
        ({"num_models": 0}, Status.NOTE, "llmspell model pull ollama/"),
        ({"is_enabled": False}, Status.OK, ""),
    ],
)
def test_ollama_that_has_nothing_to_answer_with(changes: dict[str, object], status: Status, advice: str) -> None:
    finding = check_ollama(replace(DAEMON, **changes))  # type: ignore[arg-type]
    assert (finding.status, finding.can_answer) == (status, False)
    assert advice in "".join(finding.advice)


# --- models and folders ---


OWN = FolderFacts("own", Path("/models"), Access.READABLE, 2)


def test_folders() -> None:
    absent = FolderFacts("lmstudio", Path("/none"), Access.ABSENT)
    finding = check_folders([OWN, absent], [])
    assert (finding.status, finding.summary) == (Status.OK, "2 models for llama.cpp")
    assert finding.details == ("/models (own): 2 models",)


def test_folders_that_cannot_be_read() -> None:
    service = FolderFacts("ollama", Path("/usr/share/ollama/.ollama/models"), Access.FORBIDDEN)
    other = FolderFacts("folder", Path("/shared"), Access.FORBIDDEN, is_configured=True)
    lost = FolderFacts("folder", Path("/lost"), Access.ABSENT, is_configured=True)
    finding = check_folders([OWN, service, other, lost], [])
    assert finding.status is Status.WARNING
    joined, readable, corrected = finding.advice
    assert "usermod -a -G ollama" in joined
    assert readable == "Let this user read /shared."
    assert "no folder /lost" in corrected


def test_what_cannot_be_used_is_shown_in_part() -> None:
    finding = check_folders([replace(OWN, problems=tuple(f"file {number}" for number in range(9)))], [])
    assert finding.status is Status.NOTE
    assert finding.details[-1] == "  and 4 more; `llmspell model list` shows all"


def test_what_no_list_shows_is_shown_here() -> None:
    folder = replace(OWN, problems=("a: is gone",), complaints=tuple(f"file {number}" for number in range(23)))
    finding = check_folders([folder], [])
    assert finding.status is Status.NOTE
    assert finding.details[0].endswith(", 24 cannot be used")
    assert "  a: is gone" in finding.details
    assert "  file 19" in finding.details
    assert finding.details[-1] == "  and 3 more that are no models"


def test_names_of_files_may_hold_anything() -> None:
    folder = replace(OWN, problems=("/models/\x1b[2J\n\udc80.gguf: is empty",))
    lines = plain_lines(Diagnosis((check_folders([folder], []),)))
    assert lines[-1].endswith(r"  /models/\x1b[2J\n\udc80.gguf: is empty")


def test_no_models_at_all() -> None:
    finding = check_folders([replace(OWN, num_models=0)], [])
    assert finding.status is Status.NOTE
    assert "llmspell model pull" in finding.advice[0]
    configured = ModelFacts("local/a", Path("/a.gguf"), is_there=True, is_preloaded=True, is_locked=False)
    assert check_folders([replace(OWN, num_models=0)], [configured]).advice == ()


@pytest.mark.parametrize(("is_preloaded", "status"), [(True, Status.FAILED), (False, Status.WARNING)])
def test_configured_files_that_are_missing(is_preloaded: bool, status: Status) -> None:  # noqa: FBT001
    there = ModelFacts("local/a", Path("/a.gguf"), is_there=True, is_preloaded=True, is_locked=False)
    lost = ModelFacts("local/b", Path("/b.gguf"), is_there=False, is_preloaded=is_preloaded, is_locked=False)
    found = ModelFacts("local/c", None, is_there=False, is_preloaded=True, is_locked=False)
    finding = check_models([there, lost, found])
    assert finding is not None
    assert (finding.status, finding.is_required) == (status, is_preloaded)
    assert finding.details == ("local/b: /b.gguf",)
    assert check_models([found]) is None
    fine = check_models([there, found])
    assert fine is not None
    assert fine.status is Status.OK


def test_where_downloads_go(tmp_path: Path) -> None:
    assert check_store(StoreFacts(tmp_path, 50 * GIB)).status is Status.OK
    little = check_store(StoreFacts(tmp_path, GIB))
    assert (little.status, "Make room" in little.advice[0]) == (Status.WARNING, True)
    (tmp_path / "file").touch()
    for path, problem in ((tmp_path / "file" / "models", "is no folder"), (tmp_path / "file", "Not a directory")):
        finding = check_store(store(path))
        assert finding.status is Status.WARNING
        assert problem in finding.summary
    assert store(tmp_path / "new" / "models").problem == ""
    assert not (tmp_path / "new").exists()


def test_hub() -> None:
    facts = HubFacts("https://hub.test", has_token=True, is_offline=False)
    assert check_hub(facts).status is Status.OK
    assert check_hub(replace(facts, answer="answers")).summary == "https://hub.test answers, with a token"
    assert check_hub(replace(facts, is_offline=True)).status is Status.NOTE
    assert check_hub(replace(facts, problem="no network")).status is Status.WARNING


def test_limits() -> None:
    locked = ModelFacts("local/a", None, is_there=False, is_preloaded=False, is_locked=True)
    assert check_limits(LimitFacts(None, None), [locked]) is None
    assert check_limits(LimitFacts(65536, 1024), []) is None
    finding = check_limits(LimitFacts(8 << 20, 256), [locked])
    assert finding is not None
    assert finding.status is Status.WARNING
    assert "8.00 MiB" in finding.details[0]
    assert ["ulimit -l" in finding.advice[0], "ulimit -n" in finding.advice[1]] == [True, True]


# --- all together ---


def finding(status: Status, name: str, *, is_required: bool = False, can_answer: bool = False) -> Finding:
    return Finding(name, status, "", (), (name,), is_required, can_answer)


def test_what_is_most_important_comes_first() -> None:
    diagnosis = Diagnosis(
        (
            finding(Status.NOTE, "note"),
            finding(Status.WARNING, "warning"),
            finding(Status.FAILED, "failed"),
            finding(Status.WARNING, "warning"),
            finding(Status.FAILED, "fatal", is_required=True),
        )
    )
    assert diagnosis.advice == ("fatal", "failed", "warning", "note")


def test_when_the_server_can_serve() -> None:
    answers = finding(Status.WARNING, "a", can_answer=True)
    broken = finding(Status.FAILED, "b")
    fatal = finding(Status.FAILED, "c", is_required=True)
    assert Diagnosis((answers, broken)).can_serve
    assert not Diagnosis((broken,)).can_serve
    assert not Diagnosis((answers, fatal)).can_serve

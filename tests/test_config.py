from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.config import LoadedSettings, Settings, load_settings
from server.config_keys import KEYS
from server.config_sources import Configuration, cache_directory, find_config_path, load_configuration
from server.core.duration import Duration, duration_seconds
from server.core.errors import ConfigurationError
from server.pool.config import AutoInt, KvCacheType, ModelConfig, Switch

EXAMPLE = Path(__file__).parent.parent / "config.example.toml"


@pytest.fixture(autouse=True)
def working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    directory = tmp_path / "work"
    directory.mkdir()
    monkeypatch.chdir(directory)
    return directory


def load_text(
    text: str, path: Path, environ: dict[str, str] | None = None, **overrides: dict[str, Any]
) -> LoadedSettings:
    path.write_text(text, encoding="utf-8")
    return load_settings(overrides, path, environ or {})


def test_defaults_need_neither_file_nor_environment() -> None:
    loaded = load_settings(environ={})
    assert loaded.settings == Settings()
    assert loaded.source == "defaults"
    assert (loaded.settings.server.host, loaded.settings.server.port) == ("127.0.0.1", 8000)


def test_flags_win_over_environment_over_file_over_defaults(tmp_path: Path) -> None:
    text = "[server]\nhost = 'file'\nport = 1\ngraceful_shutdown_seconds = 1"
    environ = {"LLMSPELL_SERVER__HOST": "environment", "LLMSPELL_SERVER__PORT": "2"}
    loaded = load_text(text, tmp_path / "c.toml", environ, server={"port": 3})
    server = loaded.settings.server
    assert (server.graceful_shutdown_seconds, server.host, server.port) == (1, "environment", 3)
    assert loaded.source == f"{tmp_path}/c.toml, LLMSPELL_SERVER__HOST, LLMSPELL_SERVER__PORT, command line"


def test_construction_reads_no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVER", '{"port": 1}')
    monkeypatch.setenv("LLMSPELL_SERVER__PORT", "1")
    assert Settings().server.port == 8000
    assert load_settings().settings.server.port == 1


def test_tables_of_one_model_are_merged_over_the_sources(tmp_path: Path) -> None:
    text = "[models.'local/a:8b']\npath = '/a.gguf'\ncontext_length = 100\npreload = false"
    environ = {"LLMSPELL_MODELS": json.dumps({"a:8b": {"kv_cache_type": "q8_0"}})}
    loaded = load_text(text, tmp_path / "c.toml", environ, models={"local/a:8b": {"preload": True}})
    model = loaded.settings.models["local/a:8b"]
    assert (model.path, model.context_length, model.preload) == ("/a.gguf", 100, True)
    assert model.kv_cache_type is KvCacheType.Q8_0


def test_paths_are_relative_to_the_file(tmp_path: Path, home: Path) -> None:
    (tmp_path / "etc").mkdir()
    text = "[models.a]\npath = 'b/a.gguf'\nchat_template = 't.jinja'\n[models.c]\npath = '~/c.gguf'"
    models = load_text(text, tmp_path / "etc" / "c.toml").settings.models
    assert models["local/a"].path == str(tmp_path / "etc" / "b" / "a.gguf")
    assert models["local/a"].chat_template == str(tmp_path / "etc" / "t.jinja")
    assert models["local/c"].path == str(home / "c.gguf")


def test_file_is_searched_in_order(working_directory: Path, home: Path, tmp_path: Path) -> None:
    assert find_config_path(None, {}) is None
    users = home / ".config" / "llmspell" / "config.toml"
    xdg = tmp_path / "xdg" / "llmspell" / "config.toml"
    for path in (users, xdg):
        path.parent.mkdir(parents=True)
        path.touch()
    assert find_config_path(None, {}) == users
    assert find_config_path(None, {"XDG_CONFIG_HOME": str(tmp_path / "xdg")}) == xdg
    (working_directory / "config.toml").touch()
    assert find_config_path(None, {}) == working_directory / "config.toml"
    (working_directory / "named.toml").touch()
    assert find_config_path(None, {"LLMSPELL_CONFIG": "named.toml"}) == working_directory / "named.toml"
    assert find_config_path(users, {"LLMSPELL_CONFIG": "named.toml"}) == users


def test_a_file_that_was_asked_for_must_exist() -> None:
    with pytest.raises(ConfigurationError, match=r"--config: there is no file nothing\.toml"):
        load_settings({}, Path("nothing.toml"), {})
    with pytest.raises(ConfigurationError, match=r"LLMSPELL_CONFIG: there is no file nothing\.toml"):
        load_settings({}, None, {"LLMSPELL_CONFIG": "nothing.toml"})
    with pytest.raises(ConfigurationError, match="cannot be read: Is a directory"):
        load_settings({}, Path(), {})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[server", "is not valid TOML"),
        (f"a = {'[' * 100_000}", "is not valid TOML"),
        ("[sever]", "there is no key sever; did you mean server?"),
        ("port = 1", "there is no key port; did you mean server.port?"),
        ("server = 1", "server: 1 is not allowed; it must be a table of keys."),
        ("[server]\nprot = 1", "there is no key server.prot; did you mean server.port?"),
        ("[models.'local/a']\npth = 'a'", 'there is no key models."local/a".pth; did you mean models."local/a".path?'),
        ("[server]\nport = '8000'", "server.port: '8000' is not allowed; it must be a whole number from 0 to 65535."),
        ("[server]\nport = true", "server.port: true is not allowed"),
        ("[server]\nport = 65536", "server.port: 65536 is not allowed"),
        ("[server]\nport = 1.5", "server.port: 1.5 is not allowed"),
        ("[server]\nhost = 1", "server.host: 1 is not allowed; it must be text."),
        ("[api]\nsend_timeout_seconds = nan", "api.send_timeout_seconds: nan is not allowed; it must be a number from"),
        ("[api]\nunsupported = 'drop'", """'drop' is not allowed; it must be one of "error", "ignore"."""),
        ("[models.'a@ollama']\npath = 'a'", 'write it without the backend: models."local/a".'),
        ("[models.'a b:']\npath = 'a'", "is not a model spec"),
        ("[models.a]\npath = 'a'\n[models.'local/a']\npath = 'a'", "local/a is there twice"),
        ("[models]\na = 'a.gguf'", """models."a": 'a.gguf' is not allowed; it must be a table of keys."""),
        ("[models.a]\npath = 'a'\npreload = 1", 'models."a".preload: 1 is not allowed; it must be true or false.'),
        ("[models.a]\npath = 'a'\nkv_cache_type = 'q9'", """it must be one of "f16", "q8_0", "q4_0"."""),
        (
            "[models.a]\npath = 'a'\nmmap = true",
            """.mmap: true is not allowed; it must be one of "auto", "on", "off".""",
        ),
        (
            "[models.a]\npath = 'a'\nmain_gpu = 64",
            ".main_gpu: 64 is not allowed; it must be a whole number from -1 to 63.",
        ),
        ("[models.a]\npath = 'a'\nttft_target_ms = -2", ".ttft_target_ms: -2 is not allowed"),
        ("[models.a]\npath = 'a'\nthreads = 1025", ".threads: 1025 is not allowed"),
        ("[llamacpp]\nttft_target_ms = -1", "llamacpp.ttft_target_ms: -1 is not allowed"),
        ("[llamacpp]\nlongest_wait_seconds = 3601", "llamacpp.longest_wait_seconds: 3601 is not allowed"),
        ("[aliases]\na = 1", 'aliases."a": 1 is not allowed; it must be text.'),
        ("[aliases]\na = 'b@c'", 'aliases."a": Unknown backend'),
    ],
)
def test_a_mistake_in_the_file_is_named(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load_text(text, tmp_path / "c.toml")
    assert caught.value.message.startswith(f"{tmp_path / 'c.toml'}: ")
    assert message in caught.value.message


def test_a_model_may_be_found_by_its_name_alone(tmp_path: Path) -> None:
    settings = load_text("[models.a]\npreload = true\n[models.b]\npath = ''", tmp_path / "c.toml").settings
    assert (settings.models["local/a"].path, settings.models["local/b"].path) == ("", "")


def test_folders_are_relative_to_the_file_that_names_them(tmp_path: Path) -> None:
    text = "[llamacpp]\nmodel_dirs = ['more', '/all']\n[store]\nmodels_dir = 'mine'\nrecommended = ''"
    settings = load_text(text, tmp_path / "c.toml").settings
    assert settings.llamacpp.model_dirs == (str(tmp_path / "more"), "/all")
    assert (settings.store.models_dir, settings.store.recommended) == (str(tmp_path / "mine"), "")


def test_a_folder_in_the_environment_may_be_below_the_home_folder() -> None:
    loaded = load_settings({}, None, {"LLMSPELL_STORE__MODELS_DIR": "~/models"})
    assert loaded.settings.store.models_dir == str(Path.home() / "models")


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigurationError, match="is not valid TOML"):
        load_settings({}, tmp_path / "c.toml", {})


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("LLMSPELL_PORT", "81", "there is no such setting; did you mean LLMSPELL_SERVER__PORT?"),
        ("LLMSPELL_SERVER__PROT", "81", "did you mean LLMSPELL_SERVER__PORT?"),
        ("LLMSPELL_SERVER__PORT", "x", "'x' is not allowed; it must be a whole number from 0 to 65535."),
        ("LLMSPELL_SERVER__PORT", "", "'' is not allowed"),
        ("LLMSPELL_LLAMACPP__MEMORY_BUDGET", "12 gigs", "'12 gigs' is not allowed; it must be "),
        ("LLMSPELL_LLAMACPP__MEMORY_BUDGET", '{"CPU": ', """'{"CPU": ' is not allowed; it must be """),
        ("LLMSPELL_LLAMACPP__MEMORY_BUDGET", "[1]", "[1] is not allowed; it must be "),
        ("LLMSPELL_LLAMACPP__KEEP_ALIVE", "5 minutes", "'5 minutes' is not allowed; it must be a duration such as "),
        ("LLMSPELL_LLAMACPP__KEEP_ALIVE", "", "'' is not allowed; it must be a duration such as "),
        ("LLMSPELL_LLAMACPP__LOAD_TIMEOUT", "0", "'0' is not allowed; it must be a duration such as "),
        ("LLMSPELL_MODELS", '{"a": {"path": "a", "keep_alive": "x"}}', """models."a".keep_alive: 'x' is not allowed"""),
        ("LLMSPELL_ALIASES", "{", "is not valid JSON"),
        ("LLMSPELL_ALIASES", "[" * 100_000, "is not valid JSON"),
        ("LLMSPELL_OLLAMA__ENABLED", "maybe", "'maybe' is not allowed; it must be true or false."),
        ("LLMSPELL_OLLAMA__CONNECT_TIMEOUT_SECONDS", "\u0661", "is not allowed; it must be a number from"),
        ("LLMSPELL_SERVER__PORT", "\u0661", "is not allowed; it must be a whole number from"),
        ("LLMSPELL_SERVER__HOST", "\udcff", "'\\udcff' is not allowed; it must be text."),
        ("LLMSPELL_ALIASES", "1", "aliases: 1 is not allowed; it must be a table of keys."),
        ("LLMSPELL_MODELS", '{"a": {"path": 1}}', 'models."a".path: 1 is not allowed; it must be text.'),
    ],
)
def test_a_mistake_in_the_environment_is_named(variable: str, value: str, message: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load_settings({}, None, {variable: value})
    assert caught.value.message.startswith(f"{variable}: ")
    assert message in caught.value.message


def test_the_server_that_clients_ask_is_no_setting_of_the_server() -> None:
    assert load_settings({}, None, {"LLMSPELL_SERVER": "http://box:8000"}).source == "defaults"


def test_variables_that_kubernetes_makes_for_a_service_are_no_settings() -> None:
    links = {
        "LLMSPELL_SERVICE_HOST": "10.0.0.1",
        "LLMSPELL_SERVICE_PORT_HTTP": "8000",
        "LLMSPELL_PORT": "tcp://10.0.0.1:8000",
        "LLMSPELL_PORT_8000_TCP_ADDR": "10.0.0.1",
    }
    assert load_settings({}, None, links).source == "defaults"


def test_a_long_wrong_value_is_cut_in_the_message() -> None:
    with pytest.raises(ConfigurationError) as caught:
        load_settings({}, None, {"LLMSPELL_SERVER__PORT": "9" * 10_000})
    assert len(caught.value.message) < 300


def test_every_number_has_a_range_that_holds_its_default() -> None:
    for key in KEYS.values():
        if key.type in (int, float, AutoInt):
            assert key.limits is not None, f"{key.path} needs a range in server/config_keys.py"
            assert key.default == "auto" or key.limits[0] <= key.default <= key.limits[1]


def test_commands_that_need_no_server_read_the_same_configuration(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    text = "[server]\nport = 1\n[models.a]\npath = 'a'\n[aliases]\nb = 'a'\n[routing]\nprefer = 'llamacpp'"
    settings = load_text(text, path, {"LLMSPELL_LOGGING__LEVEL": "error"}).settings
    configuration = load_configuration({}, path, {"LLMSPELL_LOGGING__LEVEL": "error"}).configuration
    sections = [field.name for field in fields(Configuration)]
    assert sections == [*Settings.model_fields]
    assert [getattr(configuration, each) for each in sections] == [getattr(settings, each) for each in sections]
    assert (configuration.server.port, configuration.aliases) == (1, {"b": "a"})


def test_commands_that_need_no_server_import_nothing_slow() -> None:
    slow = {"pydantic", "pydantic_settings", "httpx", "fastapi", "numpy", "llama_cpp"}
    program = f"import sys, server.config_sources as c; c.load_configuration(); print(*({slow} & {{*sys.modules}}))"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout == "\n"


def _text(value: object) -> str:
    return json.dumps(value) if isinstance(value, tuple) else str(value)


def test_every_key_can_be_set_by_its_variable() -> None:
    for key in (key for key in KEYS.values() if key.variable):
        settings = load_settings({}, None, {str(key.variable): _text(key.default)}).settings
        assert settings == Settings(), key.path


def test_the_keys_are_the_fields_of_the_settings() -> None:
    sections = {name: getattr(Settings(), name) for name in Settings.model_fields}
    paths = {
        f"{name}.{field.name}" for name, value in sections.items() if is_dataclass(value) for field in fields(value)
    }
    assert paths == {path for path in KEYS if ".*" not in path}


@given(
    st.sampled_from(sorted(KEYS)),
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from(["auto", "12GiB", "5m"])
    | st.lists(st.text() | st.integers() | st.floats())
    | st.dictionaries(st.text(), st.text() | st.integers() | st.just("1 MB")),
)
def test_any_value_is_accepted_in_range_or_refused(path: str, value: object) -> None:
    key = KEYS[path]
    try:
        accepted = key.accept(value)
    except ValueError:
        return
    if key.type is Duration and not isinstance(value, str):
        assert duration_seconds(accepted) == pytest.approx(value, abs=1e-9)
    else:
        assert (list(accepted) if isinstance(accepted, tuple) else accepted) == value
    assert key.limits is None or accepted == "auto" or key.limits[0] <= accepted <= key.limits[1]


def test_the_example_file_is_the_defaults() -> None:
    assert load_settings({}, EXAMPLE, {}).settings == Settings()


def test_the_example_model_can_be_switched_on(tmp_path: Path) -> None:
    text = EXAMPLE.read_text(encoding="utf-8")
    before, section, after = text.partition("# [models.")
    model = "\n".join(
        line.removeprefix("# ") if " = " in line else line for line in after.split("\n\n\n")[0].splitlines()
    )
    models = load_text(f"{before}{section.removeprefix('# ')}{model}", tmp_path / "c.toml").settings.models
    assert [*models] == ["local/llama3.1:8b"]


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("'5m'", "5m"),
        ("'1h30m'", "1h30m"),
        ("'-1s'", "-1s"),
        ("'0'", "0"),
        ("300", "300s"),
        ("0", "0s"),
        ("-1", "-1s"),
        ("1.5", "1.5s"),
        ("120.0", "120s"),
        ("-0.25", "-0.25s"),
        ("1e-3", "0.001s"),
        ("1e9", "1000000000s"),
    ],
)
@pytest.mark.parametrize("key", ["llamacpp.keep_alive", "models.a.keep_alive", "ollama.keep_alive"])
def test_durations_are_text_or_seconds(key: str, written: str, read: str, tmp_path: Path) -> None:
    settings = load_text(f"{key} = {written}\nmodels.a.path = 'a'", tmp_path / "c.toml").settings
    durations = {
        "llamacpp.keep_alive": settings.llamacpp.keep_alive,
        "models.a.keep_alive": settings.models["local/a"].keep_alive,
        "ollama.keep_alive": settings.ollama.keep_alive,
    }
    assert durations[key] == read
    assert math.copysign(1, duration_seconds(read)) == (-1 if read.startswith("-") else 1)


@pytest.mark.parametrize(
    "written",
    ["'-1'", "'5 minutes'", "'5'", "'m'", "' 5m'", "true", "nan", "inf", "1e10", "'99999999999h'", "[5]", "9" * 400],
)
@pytest.mark.parametrize("key", ["llamacpp.keep_alive", "llamacpp.load_timeout", "ollama.keep_alive"])
def test_what_is_no_duration_is_told_at_start(key: str, written: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load_text(f"{key} = {written}", tmp_path / "c.toml")
    assert caught.value.message.startswith(f"{tmp_path / 'c.toml'}: {key}: ")
    assert 'a duration such as "90s" or "5m", or a number of seconds' in caught.value.message


@pytest.mark.parametrize(("text", "read"), [("5m", "5m"), ("300", "300s"), ("-1", "-1s"), ("1.5", "1.5s")])
def test_a_variable_holds_a_duration_or_seconds(text: str, read: str) -> None:
    assert load_settings({}, None, {"LLMSPELL_LLAMACPP__KEEP_ALIVE": text}).settings.llamacpp.keep_alive == read


def test_only_a_duration_that_overrides_another_may_be_empty(tmp_path: Path) -> None:
    settings = load_text("models.a = { path = 'a', keep_alive = '' }\nollama.keep_alive = ''", tmp_path / "c").settings
    assert (settings.models["local/a"].keep_alive, settings.ollama.keep_alive) == ("", "")
    with pytest.raises(ConfigurationError, match="'' is not allowed; it must be a duration"):
        load_text("llamacpp.keep_alive = ''", tmp_path / "c")
    assert KEYS["ollama.keep_alive"].allowed.startswith("empty, or a duration")


@pytest.mark.parametrize("written", ["0", "0.0", "'0s'", "'0'", "'-0h0m'", "1e-12"])
def test_a_request_waits_for_its_model_for_some_time(written: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"llamacpp\.load_timeout: .* is not allowed; .*, but not 0\.$"):
        load_text(f"llamacpp.load_timeout = {written}", tmp_path / "c.toml")
    assert load_text("llamacpp.load_timeout = -1", tmp_path / "c.toml").settings.llamacpp.load_timeout == "-1s"


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("'auto'", "auto"),
        ("'12GiB'", "12GiB"),
        ("'500 mb'", "500 mb"),
        ("1073741824", 1073741824),
        ("0", 0),
        ("{ CUDA0 = '40GiB', CPU = 16000000000 }", {"CUDA0": "40GiB", "CPU": 16000000000}),
        ("{ CUDA0 = 'auto', CPU = '1.5TB' }", {"CUDA0": "auto", "CPU": "1.5TB"}),
    ],
)
def test_a_memory_budget_is_a_size_or_sizes_by_device(written: str, read: object, tmp_path: Path) -> None:
    assert load_text(f"llamacpp.memory_budget = {written}", tmp_path / "c.toml").settings.llamacpp.memory_budget == read


@pytest.mark.parametrize(("written", "read"), [("'auto'", "auto"), ("'2GiB'", "2GiB"), ("0", 0)])
def test_memory_for_prompts_is_a_size(written: str, read: object, tmp_path: Path) -> None:
    assert load_text(f"llamacpp.prefix_memory = {written}", tmp_path / "c.toml").settings.llamacpp.prefix_memory == read


@pytest.mark.parametrize("written", ["'much'", "-1", "true", "{ CPU = '1GiB' }"])
def test_memory_for_prompts_is_nothing_else(written: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="prefix_memory: ") as caught:
        load_text(f"llamacpp.prefix_memory = {written}", tmp_path / "c.toml")
    assert 'is not allowed; it must be "auto", a size' in caught.value.message
    assert "table" not in caught.value.message


@pytest.mark.parametrize(
    ("written", "part", "shown"),
    [
        ("'12 gigs'", "", "'12 gigs'"),
        ("'-1GiB'", "", "'-1GiB'"),
        ("-1", "", "-1"),
        ("''", "", "''"),
        ("true", "", "true"),
        ("1.5", "", "1.5"),
        ("{}", "", "{}"),
        ("['12GiB']", "", "['12GiB']"),
        ("{ CUDA0 = '40GiB', CPU = '16 Gigabytes' }", ".CPU", "'16 Gigabytes'"),
        ("{ CPU = -5 }", ".CPU", "-5"),
        ("{ CPU = false }", ".CPU", "false"),
        ("{ CPU = { CPU = 1 } }", ".CPU", "{'CPU': 1}"),
    ],
)
def test_a_wrong_memory_budget_is_named(written: str, part: str, shown: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load_text(f"llamacpp.memory_budget = {written}", tmp_path / "c.toml")
    sentence = f'{tmp_path / "c.toml"}: llamacpp.memory_budget{part}: {shown} is not allowed; it must be "auto", a size'
    assert caught.value.message.startswith(sentence)
    assert ("table" in caught.value.message) == (not part)


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("auto", "auto"),
        ("12GiB", "12GiB"),
        ("1073741824", 1073741824),
        ('{"CUDA0": "40GiB", "CPU": 5}', {"CUDA0": "40GiB", "CPU": 5}),
    ],
)
def test_a_variable_holds_a_memory_budget(text: str, read: object) -> None:
    assert load_settings({}, None, {"LLMSPELL_LLAMACPP__MEMORY_BUDGET": text}).settings.llamacpp.memory_budget == read


def test_a_wrong_size_in_the_table_of_a_variable_is_named() -> None:
    with pytest.raises(ConfigurationError, match=r"^LLMSPELL_LLAMACPP__MEMORY_BUDGET\.CPU: '5 gigs' is not allowed"):
        load_settings({}, None, {"LLMSPELL_LLAMACPP__MEMORY_BUDGET": '{"CPU": "5 gigs"}'})


def test_memory_budgets_of_two_sources_are_not_mixed(tmp_path: Path) -> None:
    environ = {"LLMSPELL_LLAMACPP__MEMORY_BUDGET": '{"CPU": "1GiB"}'}
    text = "[llamacpp.memory_budget]\nCUDA0 = '40GiB'\nCPU = '16GiB'"
    assert load_text(text, tmp_path / "c.toml", environ).settings.llamacpp.memory_budget == {"CPU": "1GiB"}


@pytest.mark.parametrize(
    ("name", "written", "read"),
    [
        ("context_length", "'auto'", "auto"),
        ("context_length", "4096", 4096),
        ("kv_cells", "0", 0),
        ("n_gpu_layers", "-1", -1),
        ("n_gpu_layers", "'auto'", "auto"),
        ("mmap", "'off'", Switch.OFF),
        ("flash_attention", "'on'", Switch.ON),
        ("tensor_split", "[]", ()),
        ("tensor_split", "[3, 1]", (3.0, 1.0)),
        ("tensor_split", "[0, 0.5]", (0.0, 0.5)),
    ],
)
def test_keys_of_a_model_that_can_be_left_to_the_server(name: str, written: str, read: object, tmp_path: Path) -> None:
    text = f"[models.a]\npath = '/a'\n{name} = {written}"
    assert load_text(text, tmp_path / "c.toml").settings.models["local/a"] == ModelConfig("/a", **{name: read})  # type: ignore[arg-type] # of any type


@pytest.mark.parametrize(
    ("name", "written", "sentence"),
    [
        ("context_length", "-1", '-1 is not allowed; it must be "auto", or a whole number from 0 to 16777216.'),
        ("context_length", "'Auto'", "'Auto' is not allowed"),
        ("context_length", "'4096'", "'4096' is not allowed"),
        ("context_length", "true", "true is not allowed"),
        ("kv_cells", "67108865", "67108865 is not allowed"),
        ("n_gpu_layers", "-2", '-2 is not allowed; it must be "auto", or a whole number from -1 to 10000.'),
        ("n_gpu_layers", "1.0", "1.0 is not allowed"),
        ("tensor_split", "[0, 0]", "[0, 0] is not allowed; it must be a list of numbers that are not negative, and "),
        ("tensor_split", "[1, -1]", "[1, -1] is not allowed"),
        ("tensor_split", "[1, nan]", "[1, nan] is not allowed"),
        ("tensor_split", "[inf]", "[inf] is not allowed"),
        ("tensor_split", "['1']", "['1'] is not allowed"),
        ("tensor_split", "[true]", "[True] is not allowed"),
        ("tensor_split", "'1,1'", "'1,1' is not allowed"),
        ("tensor_split", f"[{'9' * 400}]", "is not allowed"),
        ("keep_alive", "'soon'", "'soon' is not allowed; it must be empty, or a duration such as "),
    ],
)
def test_wrong_keys_of_a_model_are_named(name: str, written: str, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load_text(f"[models.a]\npath = 'a'\n{name} = {written}", tmp_path / "c.toml")
    assert caught.value.message.startswith(f'{tmp_path / "c.toml"}: models."a".{name}: ')
    assert sentence in caught.value.message


@pytest.mark.parametrize(
    ("text", "read"),
    [("true", True), ("True", True), ("1", True), ("on", True), ("yes", True), ("false", False), ("0", False)],
)
def test_a_variable_holds_a_truth(text: str, read: bool) -> None:  # noqa: FBT001 - a parameter of the test
    assert load_settings({}, None, {"LLMSPELL_STORE__AUTO_PULL": text}).settings.store.auto_pull is read


def test_every_special_value_of_a_model_can_stand_in_a_variable() -> None:
    keys = {
        "path": "/a",
        "kv_cells": "auto",
        "n_gpu_layers": 7,
        "keep_alive": 60,
        "tensor_split": [1, 2],
        "mlock": True,
    }
    models = load_settings({}, None, {"LLMSPELL_MODELS": json.dumps({"a": keys})}).settings.models
    expected = ModelConfig("/a", n_gpu_layers=7, keep_alive=Duration("60s"), tensor_split=(1.0, 2.0), mlock=True)
    assert models == {"local/a": expected}


def test_the_cache_has_a_directory(home: Path, tmp_path: Path) -> None:
    assert cache_directory({}) == home / ".cache" / "llmspell"
    assert cache_directory({"XDG_CACHE_HOME": str(tmp_path)}) == tmp_path / "llmspell"
    assert cache_directory({"XDG_CACHE_HOME": ""}) == home / ".cache" / "llmspell"


def test_a_user_without_a_home_has_no_file_and_no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("os.getuid", lambda: 2**31 - 2)
    assert find_config_path(None, {}) is None
    assert cache_directory({}) == Path("/.cache/llmspell")


@pytest.mark.parametrize("host", ["localhost:5", ":5", "http://localhost:5/"])
def test_ollamas_own_variable_says_where_its_daemon_is(host: str) -> None:
    loaded = load_settings(environ={"OLLAMA_HOST": host})
    assert loaded.settings.ollama.url == host
    assert "OLLAMA_HOST" in loaded.source
    ours = load_settings(environ={"OLLAMA_HOST": host, "LLMSPELL_OLLAMA__URL": "http://other:1"})
    assert ours.settings.ollama.url == "http://other:1"
    with pytest.raises(ConfigurationError, match="OLLAMA_HOST: "):
        load_settings(environ={"OLLAMA_HOST": "ftp://x"})


@pytest.mark.parametrize("path", ["~nobody-of-this-name/x", "a\\u0000b"])
@pytest.mark.parametrize("key", ["[store]\nmodels_dir = {}", "[llamacpp]\nmodel_dirs = [{}]", "[models.a]\npath = {}"])
def test_a_path_that_is_none_is_refused(tmp_path: Path, key: str, path: str) -> None:
    with pytest.raises(ConfigurationError, match="The path '"):
        load_text(key.format(f'"{path}"'), tmp_path / "c.toml")

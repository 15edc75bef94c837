from __future__ import annotations

import json
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.config import KEYS, LoadedSettings, Settings, find_config_path, load_settings
from server.core.errors import ConfigurationError
from server.pool.config import KvCacheType

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
        ("[models.a]\npath = ''", 'models."a".path: is empty'),
        ("[models.a]\npath = 'a'\npreload = 1", 'models."a".preload: 1 is not allowed; it must be true or false.'),
        ("[models.a]\npath = 'a'\nkv_cache_type = 'q9'", """it must be one of "f16", "q8_0", "q4_0"."""),
        ("[aliases]\na = 1", 'aliases."a": 1 is not allowed; it must be text.'),
        ("[aliases]\na = 'b@c'", 'aliases."a": Unknown backend'),
    ],
)
def test_a_mistake_in_the_file_is_named(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load_text(text, tmp_path / "c.toml")
    assert caught.value.message.startswith(f"{tmp_path / 'c.toml'}: ")
    assert message in caught.value.message


def test_a_model_needs_a_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="The model local/a has no file"):
        load_text("[models.a]\npreload = true", tmp_path / "c.toml")


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
        ("LLMSPELL_ALIASES", "{", "is not valid JSON"),
        ("LLMSPELL_ALIASES", "1", "aliases: 1 is not allowed; it must be a table of keys."),
        ("LLMSPELL_MODELS", '{"a": {"path": 1}}', 'models."a".path: 1 is not allowed; it must be text.'),
    ],
)
def test_a_mistake_in_the_environment_is_named(variable: str, value: str, message: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load_settings({}, None, {variable: value})
    assert caught.value.message.startswith(f"{variable}: ")
    assert message in caught.value.message


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
        if key.type in (int, float):
            assert key.limits is not None, f"{key.path} needs a range in server/config.py"
            assert key.limits[0] <= key.default <= key.limits[1]


def test_every_key_can_be_set_by_its_variable() -> None:
    for key in (key for key in KEYS.values() if key.variable):
        settings = load_settings({}, None, {str(key.variable): str(key.default)}).settings
        assert settings == Settings(), key.path


def test_the_keys_are_the_fields_of_the_settings() -> None:
    sections = {name: getattr(Settings(), name) for name in Settings.model_fields}
    paths = {
        f"{name}.{field.name}" for name, value in sections.items() if is_dataclass(value) for field in fields(value)
    }
    assert paths == {path for path in KEYS if ".*" not in path}


@given(
    st.sampled_from(sorted(KEYS)),
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.text()),
)
def test_any_value_is_accepted_in_range_or_refused(path: str, value: object) -> None:
    key = KEYS[path]
    try:
        accepted = key.accept(value)
    except ValueError:
        return
    assert accepted == value
    assert key.limits is None or key.limits[0] <= accepted <= key.limits[1]


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


@pytest.mark.parametrize("duration", ["-1", "5 minutes", "5", "m"])
def test_a_keep_alive_that_is_no_duration_is_told_at_start(duration: str) -> None:
    with pytest.raises(ConfigurationError, match=r"ollama\.keep_alive"):
        load_settings({"ollama": {"keep_alive": duration}}, environ={})
    assert load_settings({"ollama": {"keep_alive": "-1s"}}, environ={}).settings.ollama.keep_alive == "-1s"


@pytest.mark.parametrize("host", ["localhost:5", ":5", "http://localhost:5/"])
def test_ollamas_own_variable_says_where_its_daemon_is(host: str) -> None:
    loaded = load_settings(environ={"OLLAMA_HOST": host})
    assert loaded.settings.ollama.url == host
    assert "OLLAMA_HOST" in loaded.source
    ours = load_settings(environ={"OLLAMA_HOST": host, "LLMSPELL_OLLAMA__URL": "http://other:1"})
    assert ours.settings.ollama.url == "http://other:1"
    with pytest.raises(ConfigurationError, match="OLLAMA_HOST: "):
        load_settings(environ={"OLLAMA_HOST": "ftp://x"})

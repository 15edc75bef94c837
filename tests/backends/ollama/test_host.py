"""What ``OLLAMA_HOST`` means; the tables are those of Ollama's own envconfig tests, and what they leave out."""

from __future__ import annotations

from contextlib import suppress

import httpx
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from server.backends.ollama.host import daemon_url
from server.core.errors import ConfigurationError

OLLAMAS_OWN_TABLE = [
    ("", "http://127.0.0.1:11434"),
    ("1.2.3.4", "http://1.2.3.4:11434"),
    (":1234", "http://127.0.0.1:1234"),  # Ollama says http://:1234, which is this machine too
    ("1.2.3.4:1234", "http://1.2.3.4:1234"),
    ("example.com", "http://example.com:11434"),
    ("example.com:1234", "http://example.com:1234"),
    (":66000", "http://127.0.0.1:11434"),
    (":-1", "http://127.0.0.1:11434"),
    ("[::1]", "http://[::1]:11434"),
    ("::1", "http://[::1]:11434"),
    ("[::1]:1337", "http://[::1]:1337"),
    (" 1.2.3.4 ", "http://1.2.3.4:11434"),
    ('"1.2.3.4"', "http://1.2.3.4:11434"),
    (' " 1.2.3.4 " ', "http://1.2.3.4:11434"),
    ("'1.2.3.4'", "http://1.2.3.4:11434"),
    ("http://1.2.3.4", "http://1.2.3.4:80"),
    ("http://1.2.3.4:4321", "http://1.2.3.4:4321"),
    ("https://1.2.3.4", "https://1.2.3.4:443"),
    ("https://1.2.3.4:4321", "https://1.2.3.4:4321"),
    ("https://example.com/ollama", "https://example.com:443/ollama"),
    ("ollama.com", "https://ollama.com:443"),
    ("0.0.0.0", "http://127.0.0.1:11434"),
    ("0.0.0.0:1234", "http://127.0.0.1:1234"),
    ("[::]", "http://[::1]:11434"),
    ("[::]:1234", "http://[::1]:1234"),
    ("192.168.1.5:8080", "http://192.168.1.5:8080"),
    ("https://0.0.0.0:4321", "https://127.0.0.1:4321"),
]

WHAT_IT_LEAVES_OUT = [
    ("::", "http://[::1]:11434"),
    ("0:0:0:0:0:0:0:0", "http://[::1]:11434"),
    ("[0:0:0:0:0:0:0:1]:80", "http://[::1]:80"),
    ("[::ffff:0.0.0.0]:80", "http://127.0.0.1:80"),
    ("[fe80::1%eth0]:80", "http://[fe80::1%eth0]:80"),
    ("2001:db8::7", "http://[2001:db8::7]:11434"),
    ("[box]:80", "http://box:80"),
    ("localhost", "http://localhost:11434"),
    ("localhost:", "http://localhost:11434"),
    ("localhost:ollama", "http://localhost:11434"),
    ("localhost:1_0", "http://localhost:11434"),
    ("localhost:+80", "http://localhost:80"),
    ("localhost:080", "http://localhost:80"),
    ("http://", "http://127.0.0.1:80"),
    ("https://:8443", "https://127.0.0.1:8443"),
    ("http://ollama.com", "http://ollama.com:80"),
    ("HTTPS://box", "https://box:11434"),
    ("http://localhost:11434/", "http://localhost:11434"),
    ("http://box/a/b//", "http://box:80/a/b"),
    ("box/ollama", "http://box:11434/ollama"),
    ("my_box.lan.:1", "http://my_box.lan.:1"),
    ("bücher.example", "http://xn--bcher-kva.example:11434"),
    ("\t\n", "http://127.0.0.1:11434"),
]


@pytest.mark.parametrize(("text", "url"), OLLAMAS_OWN_TABLE)
def test_means_what_it_means_to_ollama(text: str, url: str) -> None:
    assert daemon_url(text) == url


@pytest.mark.parametrize(("text", "url"), WHAT_IT_LEAVES_OUT)
def test_other_forms(text: str, url: str) -> None:
    assert daemon_url(text) == url


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ftp://box", "scheme"),
        ("unix:///run/ollama.sock", "scheme"),
        ("://box", "scheme"),
        ("my box", "space"),
        ("box\x00", "control character"),
        ("box:11434?key=1", "no '\\?'"),
        ("box#x", "no '#'"),
        (":0", "port 0"),
        ("a:b:c", "no host"),
        ("[fe80::1%<>]:80", "no host"),
        ("a..b", "no host"),
        ("a\\b", "no host"),
        ("1.2.3.400", "no host"),
        ("<box>", "no host"),
        ("x" * 64, "no host"),
        (".".join(["x" * 60] * 5), "no host"),
    ],
)
def test_what_can_never_work_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message) as caught:
        daemon_url(text)
    assert "http://127.0.0.1:11434" in caught.value.message


def test_a_password_is_refused_and_not_repeated() -> None:
    with pytest.raises(ConfigurationError) as caught:
        daemon_url("https://ann:secret@box")
    assert "secret" not in caught.value.message


@settings(deadline=None)
@given(
    st.one_of(
        st.text(max_size=30),
        st.text(alphabet="[]:/.@%?#-+_ h0129afé'\"\\", max_size=20),
        st.builds("{}://{}".format, st.sampled_from(["http", "https", "HTTP", "ftp"]), st.text(max_size=20)),
    )
)
@example("[::1")
@example("\u017f:1")
@example("\u0661:\u0662")
@example("\ud800")
def test_gives_a_usable_url_or_a_configuration_error(text: str) -> None:
    with suppress(ConfigurationError):
        url = daemon_url(text)
        parsed = httpx.URL(url)
        assert parsed.scheme in {"http", "https"}
        assert parsed.host
        assert not url.endswith("/")
        assert daemon_url(url) == url or url.endswith(("'", '"'))  # a path may end with a quote; a value may not

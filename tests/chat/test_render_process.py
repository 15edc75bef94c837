from __future__ import annotations

import asyncio
import os
import pickle
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path

import psutil
import pytest

from server.chat.render_process import RenderLimits, RenderProcess
from server.chat.render_worker import RenderOrder, StartOrder
from server.chat.rendering import check_syntax
from server.chat.template import CHATML
from server.core.background import in_thread
from server.core.errors import BackendError, InvalidRequest, ModelLoadingFailed

NOON = datetime(2026, 3, 4, 12, tzinfo=UTC)
LIMITS = RenderLimits(seconds=0.3, memory_bytes=256 << 20, spare_characters=100_000)
TOO_MUCH = "did not finish in 0.3 s|too much memory|is longer than|ended with code|recursion"


def repeated(first: str, following: str, times: int) -> str:
    """Set a variable again and again, and write it."""
    return (
        f"{{% set s = namespace(x={first}) %}}{{% for i in range({times}) %}}"
        f"{{% set s.x = {following} %}}{{% endfor %}}{{{{ s.x }}}}"
    )


# What is between the brackets runs for the messages of the tests, and not when the template is looked at.
BOMBS = {
    "nested loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "a long text": "{% set x = 'a' * (n ** 9) %}{{ x }}",
    "doubled text": repeated("'a'", "s.x ~ s.x", 60),
    "doubled lists": repeated("[1]", "[s.x, s.x]", 60),
    "a long list": repeated("[1]", "s.x + s.x", 60),
    "a great number": "{{ n ** (n ** 8) }}",
    "recursion": "{% macro f(x) %}{{ f(x + 1) }}{% endmacro %}{{ f(0) }}",
    "branching": "{% macro f(x) %}{% if x %}{{ f(x - 1) }}{{ f(x - 1) }}{% endif %}{% endmacro %}{{ f(100) }}",
    "a wide text": "{{ 'a' | center(n ** n) }}",
    "a wide format": "{{ '%99999999999d' | format(1) }}",
    "a wide format method": "{{ '{:>99999999999}'.format('a') }}",
    "replaced": "{% set x = ('a' * n ** 5) | replace('a', 'a' * n ** 5) %}{{ x }}",
    "indented": "{{ [[1]] | tojson(indent=n ** n) }}",
    "much written": "{% for a in range(99999) %}{{ '0123456789' }}{% endfor %}",
    "deep text": repeated("[]", "[s.x]", 5000),
    "sorted": "{{ (range(99999) | list * 999) | sort(reverse=true) | length }}",
    "a product": "{{ lipsum(n=n ** 7) }}",
}


def armed(bomb: str) -> str:
    return "{{ messages[0].content }}{% if messages[0].content == 'now' %}{% set n = 10 %}" + bomb + "{% endif %}"


def rendered(process: RenderProcess, content: str, border: str = "", **others: object) -> str:
    messages = [{"role": "user", "content": content}]
    variables = {"messages": messages, "add_generation_prompt": True, **others}
    return process.render(variables, border=border, now=NOON)


def test_it_renders_what_the_template_says() -> None:
    source = CHATML + "{{ strftime_now('%H:%M') }} {{ more | tojson(ensure_ascii=True) }}"
    with RenderProcess(source) as process:
        text = rendered(process, "€ \ud800 𐀀", "\U000f0000", more=["𐀀 \U000f0000", 10**30])
    assert text == (
        "<|im_start|>user\n€ \ud800 𐀀<|im_end|>\n<|im_start|>assistant\n"
        '12:00 ["\\ud800\\udc00 \U000f0000", 1000000000000000000000000000000]'
    )


def test_whatever_a_template_does_ends_in_an_error() -> None:
    def set_off(bomb: str) -> str:
        with RenderProcess(armed(bomb), LIMITS) as process:
            assert rendered(process, "before") == "before"
            with pytest.raises((BackendError, InvalidRequest)) as caught:
                rendered(process, "now")
        return caught.value.message

    with ThreadPoolExecutor(4) as several:
        messages = dict(zip(BOMBS, several.map(set_off, BOMBS.values()), strict=True))
    assert not {name: said for name, said in messages.items() if not matches(TOO_MUCH, said)}
    assert all(len(said) < 700 for said in messages.values())


def matches(pattern: str, text: str) -> bool:
    return any(part in text for part in pattern.split("|"))


@pytest.mark.parametrize(
    "bomb",
    [
        "{{ 10 ** (10 ** 8) }}",  # the compiler computes constants
        BOMBS["nested loops"],
    ],
)
def test_a_template_that_runs_away_at_once_fails_the_load(bomb: str) -> None:
    limits = RenderLimits(start_seconds=0.5)
    with RenderProcess("{{ messages[0].content }}" + bomb, limits) as process:
        with pytest.raises(ModelLoadingFailed) as caught:
            _ = process.capabilities
        assert matches("did not finish in 0.5 s|ended with code", caught.value.message), caught.value.message


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("{% if %}", "line 1: Expected an expression"),
        ("{{ 'a' | no_such_filter }}", "No filter named 'no_such_filter'"),
        ("{{ " + "(" * 5000 + ")" * 5000 + " }}", "nested too deeply"),
        ("a" * (1 << 20) + "a", "longer than"),
    ],
)
def test_a_template_that_cannot_be_compiled_fails_the_load(source: str, said: str) -> None:
    with RenderProcess(source) as process, pytest.raises(ModelLoadingFailed) as caught:
        _ = process.capabilities
    assert said in caught.value.message


@pytest.mark.parametrize("source", ["{% if %}", "{{ 1" + "9" * 5000 + " }}", "{{ " + "(" * 5000, "a" * (1 << 20) + "a"])
def test_syntax_is_checked_without_a_process(source: str) -> None:
    check_syntax(CHATML)
    with pytest.raises(ValueError, match=r"."):
        check_syntax(source)


async def test_others_go_on_while_a_template_runs_away_and_it_is_used_again() -> None:
    limits = RenderLimits(seconds=0.5)
    with RenderProcess(armed(BOMBS["nested loops"]), limits) as hostile, RenderProcess(CHATML) as other:
        assert rendered(hostile, "before") == "before"
        pending = asyncio.create_task(in_thread(rendered, hostile, "now"))
        num_rendered = 0
        while not pending.done():
            assert "hello" in await in_thread(rendered, other, "hello")
            num_rendered += 1
        with pytest.raises(BackendError, match=r"did not finish in 0\.5 s"):
            await pending
        assert rendered(hostile, "after") == "after"
    assert num_rendered > 5


def test_a_closed_one_leaves_nothing_behind_and_whoever_waits_hears_of_it() -> None:
    process = RenderProcess(armed(BOMBS["nested loops"]), RenderLimits(seconds=60.0))
    child = newest_child()
    assert rendered(process, "before") == "before"
    errors: list[BaseException] = []

    def wait() -> None:
        try:
            rendered(process, "now")
        except BackendError as error:
            errors.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    process.close()
    thread.join(30)
    assert len(errors) == 1
    assert not child.is_running()
    process.close()
    with pytest.raises(BackendError, match="unloaded"):
        rendered(process, "after")


def test_a_process_that_was_ended_is_replaced_and_ctrl_c_does_not_end_it() -> None:
    with RenderProcess(CHATML) as process:
        child = newest_child()
        rendered(process, "before")
        child.send_signal(signal.SIGINT)
        assert "again" in rendered(process, "again")
        assert child.is_running()
        with has_ended(child.pid):
            child.kill()
        assert "after" in rendered(process, "after")
        assert not child.is_running()


def test_it_ends_with_a_server_that_was_killed() -> None:
    script = (
        "import os, signal\n"
        "from server.chat.render_process import RenderProcess\n"
        "process = RenderProcess('{{ messages[0].content }}')\n"
        "process.capabilities\n"
        "print('ready', flush=True)\n"
        "signal.pause()\n"
    )
    root = Path(__file__).parents[2]
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, cwd=root) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == b"ready\n"
        (child,) = psutil.Process(server.pid).children()
        with has_ended(child.pid):
            server.kill()


def test_a_process_without_a_server_ends_itself() -> None:
    ours, theirs = socket.socketpair()
    boot = "import sys; sys.path.insert(0, sys.argv[1]); from server.chat.render_worker import main; main()"
    root = str(Path(__file__).parents[2])
    with (
        closing(ours),
        subprocess.Popen([sys.executable, "-c", boot, root], stdin=theirs.fileno()) as worker,
    ):
        theirs.close()
        source = armed(BOMBS["nested loops"])
        send(ours, StartOrder(source=source, probes=False, memory_bytes=1 << 30, seconds=30.0))
        assert ours.recv(100).endswith(b"C{}")
        variables = {"messages": [{"role": "user", "content": "now"}]}
        send(ours, RenderOrder(variables=variables, border="", now=NOON, spare_characters=1, seconds=0.01))
        assert ours.recv(100) == b""
        assert worker.wait(30) == -signal.SIGALRM


def send(to: socket.socket, order: StartOrder | RenderOrder) -> None:
    payload = pickle.dumps(order)
    to.sendall(len(payload).to_bytes(4, "big") + payload)


def newest_child() -> psutil.Process:
    return max(psutil.Process().children(), key=lambda child: child.pid)


@contextmanager
def has_ended(pid: int) -> Iterator[None]:
    """Wait, afterwards, until a process has ended, whoever takes note of its end."""
    watched = os.pidfd_open(pid)
    try:
        yield
        assert select.select([watched], [], [], 30)[0]
    finally:
        os.close(watched)

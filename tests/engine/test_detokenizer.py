from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from server.core.events import TokenLogprob
from server.engine.detokenizer import Detokenizer


def pushed(pieces: list[bytes], stop: tuple[str, ...] = ()) -> list[str]:
    """Text released by each piece and, last, by the end; pieces after a stop are not pushed."""
    detokenizer = Detokenizer(stop)
    released = []
    for piece in pieces:
        released.append(detokenizer.push(piece))
        if detokenizer.stopped:
            break
    return [*released, detokenizer.flush()]


def test_a_character_split_over_tokens_comes_out_whole() -> None:
    assert pushed([b"caf", b"\xc3", b"\xa9", b"\xf0\x9f", b"\x99", b"\x82!"]) == ["caf", "", "é", "", "", "🙂!", ""]


def test_invalid_bytes_become_replacement_characters() -> None:
    assert pushed([b"a\xff", b"\xc3", b"b"]) == ["a�", "", "�b", ""]


def test_an_unfinished_character_ends_as_a_replacement_character() -> None:
    assert pushed([b"ok", b"\xf0\x9f"]) == ["ok", "", "�"]


@pytest.mark.parametrize(
    ("pieces", "stop", "expected"),
    [
        ([b"one\n", b"\ntwo"], ("\n\n",), ["one", "", ""]),
        ([b"a", b"EN", b"D", b"x"], ("END",), ["a", "", "", ""]),
        ([b"END"], ("END",), ["", ""]),
        ([b"xENDy"], ("END",), ["x", ""]),
        ([b"xEN", b"y"], ("END",), ["x", "ENy", ""]),
        ([b"xEN"], ("END",), ["x", "EN"]),
        ([b"EEN", b"D"], ("END",), ["E", "", ""]),
        ([b"aba", b"bac"], ("abac",), ["", "ab", ""]),
        ([b"ab", b"c"], ("abcd", "c"), ["", "ab", ""]),
        ([b"ab"], ("b", "ab"), ["", ""]),
        ([b"xa", b"b"], ("b", "ab"), ["x", "", ""]),
        ([b"h\xc3", b"\xa9", b"!"], ("é",), ["h", "", ""]),
        ([b"xEND\xc3"], ("END",), ["x", ""]),
        ([b"a", b"\xff"], ("\ufffd",), ["a", "", ""]),
        ([b"a", b"\xc3"], ("\ufffd",), ["a", "", ""]),
    ],
)
def test_stop_strings_end_the_text(pieces: list[bytes], stop: tuple[str, ...], expected: list[str]) -> None:
    assert pushed(pieces, stop) == expected


def test_only_what_may_become_a_stop_string_is_held_back() -> None:
    detokenizer = Detokenizer(("</tool>", "\nUser:"))
    assert detokenizer.push(b"a < b") == "a < b"
    assert detokenizer.push(b" <") == " "
    assert detokenizer.push(b"/to") == ""
    assert detokenizer.push(b"p>\n") == "</top>"
    assert detokenizer.push(b"U") == ""
    assert detokenizer.push(b"\n") == "\nU"
    assert detokenizer.flush() == "\n"
    assert not detokenizer.stopped


def full_text(pieces: list[bytes]) -> str:
    return b"".join(pieces).decode("utf-8", "replace")


def reference(text: str, stop: tuple[str, ...]) -> str:
    """``text`` up to the stop string that is complete first; of those complete at once, the longest."""
    for end in range(len(text) + 1):
        starts = [end - len(string) for string in stop if text[:end].endswith(string)]
        if starts:
            return text[: min(starts)]
    return text


pieces_of_few_bytes = st.lists(
    st.lists(st.sampled_from([b"a", b"b", b"c", b"\xc3", b"\xa9", b"\xf0\x9f\x99\x82", b"\xff"]), max_size=3).map(
        b"".join
    ),
    max_size=12,
)
stop_strings = st.lists(st.text("abcé\ufffd", min_size=1, max_size=4), max_size=3).map(tuple)


@given(pieces_of_few_bytes, stop_strings)
@example([b"ab", b"ca"], ("bca", "ca", "c"))
def test_text_is_the_full_text_cut_at_the_first_stop_whatever_the_tokens(
    pieces: list[bytes], stop: tuple[str, ...]
) -> None:
    assert "".join(pushed(pieces, stop)) == reference(full_text(pieces), stop)


@given(st.lists(st.sampled_from([b"a", b"b", b"c", b"ab"]), max_size=10), stop_strings)
def test_everything_certain_is_released_at_once(pieces: list[bytes], stop: tuple[str, ...]) -> None:
    detokenizer = Detokenizer(stop)
    released = ""
    for count, piece in enumerate(pieces, 1):
        released += detokenizer.push(piece)
        if detokenizer.stopped:
            break
        text = full_text(pieces[:count])
        doubtful = [n for n in range(len(text) + 1) for s in stop if len(s) > n and s.startswith(text[len(text) - n :])]
        assert released == text[: len(text) - max(doubtful, default=0)]


def offsets(pieces: list[bytes]) -> list[int]:
    """Characters decoded before each piece, a replacement for an unfinished character not among them."""
    detokenizer = Detokenizer(())
    result, count = [], 0
    for piece in pieces:
        result.append(count)
        count += len(detokenizer.push(piece))
    return result


@given(pieces_of_few_bytes, stop_strings)
def test_log_probabilities_belong_to_released_text_once_each(pieces: list[bytes], stop: tuple[str, ...]) -> None:
    detokenizer = Detokenizer(stop)
    entries = [TokenLogprob(str(number), piece, 0.0) for number, piece in enumerate(pieces)]
    released = ""
    taken: list[TokenLogprob] = []
    for piece, entry in zip(pieces, entries, strict=True):
        text = detokenizer.push(piece, entry)
        released += text
        if text:
            taken += detokenizer.take_logprobs()
        if detokenizer.stopped:
            break
    released += detokenizer.flush()
    taken += detokenizer.take_remaining_logprobs()
    if detokenizer.stopped:
        expected = [entry for entry, at in zip(entries, offsets(pieces), strict=True) if at < len(released)]
    else:
        expected = entries
    assert taken == expected
    assert detokenizer.take_remaining_logprobs() == ()


def test_log_probabilities_come_with_the_text_they_belong_to() -> None:
    detokenizer = Detokenizer(("END",))
    entry = {name: TokenLogprob(name, b"", 0.0) for name in ("x", "xE", "N", "!")}
    detokenizer.push(b"x", entry["x"])
    assert detokenizer.take_logprobs() == (entry["x"],)
    detokenizer.push(b"xE", entry["xE"])
    assert detokenizer.take_logprobs() == (entry["xE"],)
    detokenizer.push(b"N", entry["N"])
    assert detokenizer.take_logprobs() == ()
    detokenizer.push(b"!", entry["!"])
    assert detokenizer.take_logprobs() == (entry["N"], entry["!"])

import gc
import json
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Barrier, Event, Thread

import numpy as np
import pytest
import toy_vocabulary as toy

from server.core.errors import InvalidOutput, InvalidRequest
from server.engine.constraint import Constraint
from server.grammar.compiler import GrammarCompiler
from server.grammar.gbnf import check_regex, lark_of_gbnf
from server.grammar.recent import Recent

COMPILER = toy.compiler()
A = ord("a")


def start(lark: str) -> Constraint:
    return COMPILER.compile(lark).start()


def allowed(constraint: Constraint) -> set[int]:
    return set(map(int, constraint.allowed().nonzero()[0]))


def test_what_is_allowed_is_what_the_mask_says() -> None:
    constraint = start("start: /[ab]{1,2}/")
    assert constraint.allowed().shape == (len(toy.TOKENS),)
    for _ in range(2):
        assert allowed(constraint) == {token for token in range(-2, len(toy.TOKENS) + 2) if constraint.allows(token)}
        constraint.accept(A)
    assert constraint.is_complete
    assert allowed(constraint) == {toy.END, toy.OTHER_END}


def test_a_constraint_stays_while_its_copies_go_on() -> None:
    first = start('start: "ab"')
    first.accept(A)
    assert allowed(start('start: "ab"')) == {A}


def test_tokens_with_the_same_text_are_all_allowed() -> None:
    constraint = start('start: ("a" | "x") "b"')
    assert allowed(constraint) == {A, toy.SECOND_A, ord("x")}
    constraint.accept(toy.SECOND_A)
    assert constraint.allows(ord("b"))


def test_an_answer_may_end_where_the_grammar_does_with_any_end_token() -> None:
    constraint = start('start: "a"+')
    assert not constraint.allows(toy.END)
    constraint.accept(A)
    assert {toy.END, toy.OTHER_END} < allowed(constraint)
    constraint.accept(toy.OTHER_END)
    assert constraint.is_complete
    assert not constraint.allows(A)
    with pytest.raises(InvalidOutput):
        constraint.accept(A)


def test_control_tokens_are_known_by_their_ids_and_match_no_text() -> None:
    constraint = start(f"start: TEXT <[{toy.CALL}]> /[0-9]/\nTEXT: /(.|\\n)*/")
    assert constraint.allows(toy.CALL)
    assert not constraint.allows(toy.UNUSED)
    for piece in (A, ord("<"), 256, toy.CALL):
        constraint.accept(piece)
    assert allowed(constraint) == set(map(ord, "0123456789"))


def test_a_grammar_cannot_go_on_by_an_end_token() -> None:
    """The engine would end the answer there, in the middle of its grammar."""
    constraint = start(f'start: "a" (<[{toy.OTHER_END}]> "b" | "c")')
    constraint.accept(A)
    assert not constraint.allows(toy.OTHER_END)
    assert allowed(constraint) == {ord("c")}
    constraint = start(f'start: "a" <[{toy.OTHER_END}]> "b"')
    constraint.accept(A)
    with pytest.raises(InvalidOutput, match="no token"):
        constraint.allowed()


def test_tokens_without_a_text_are_never_allowed() -> None:
    assert not allowed(start("start: /(.|\\n)*/")) & {256 + len(toy.TOKENS), toy.UNUSED, toy.CALL}


def test_text_that_is_certain_is_forced_and_not_more() -> None:
    constraint = start('start: "abc" ("d" | "e") "fg"')
    assert toy.text_of(constraint.forced()) == b"abc"
    for token in constraint.forced():
        constraint.accept(token)
    assert not constraint.forced()
    constraint.accept(ord("d"))
    assert toy.text_of(constraint.forced()) == b"fg"


def test_forcing_leaves_longer_tokens_to_the_model() -> None:
    """A quotation mark is certain, but whether the model writes it together with the next character is its choice."""
    constraint = start(r'start: "x" ("\"" | "\"}")')
    assert toy.text_of(constraint.forced()) == b"x"
    constraint.accept(ord("x"))
    assert not constraint.forced()
    assert allowed(constraint) == {ord('"'), toy.TOKENS.index(b'"}')}


def test_nothing_is_forced_without_a_tokenizer() -> None:
    """A tokenizer that always puts a space first cannot tell."""
    for compiler in (toy.compiler(forces=False), GrammarCompiler(toy.TOKENS, toy.CONTROL, [toy.END], lambda _: [])):
        constraint = compiler.compile('start: "name" | "none"').start()
        assert not constraint.forced()
        assert constraint.allows(ord("n"))
        assert ord("n") in allowed(constraint)


def test_a_constraint_needs_nothing_but_itself() -> None:
    constraint = GrammarCompiler(toy.TOKENS, toy.CONTROL, [toy.END], None).compile('start: "<a>" /[0-9]/\n').start()
    gc.collect()
    for byte in b"<a>7":
        assert byte in allowed(constraint)
        constraint.accept(byte)
    assert constraint.is_complete


def test_characters_may_be_cut_anywhere() -> None:
    constraint = start('start: "aé" | "é!"')
    constraint.accept(toy.TOKENS.index(b"a\xc3"))
    assert allowed(constraint) == {0xA9}


@pytest.mark.parametrize(
    "lark",
    [
        "",
        'start: "a',
        "start: nothing",
        "start: <[99999]>",
        "start: /(/",
        'start: %json {"not": {}}',
        "start: %json {",
        "x" * (5 << 20),
    ],
    ids=lambda lark: lark[:30],
)
def test_what_is_no_grammar_is_refused(lark: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        COMPILER.compile(lark)
    assert len(refused.value.message) < 500


def test_a_grammar_without_texts_is_refused() -> None:
    with pytest.raises(InvalidRequest, match=r"No answer|cannot be enforced"):
        COMPILER.compile('start: a\na: a "x"')


def test_a_wrong_token_is_an_error_from_then_on_and_never_an_end() -> None:
    constraint = start('start: "a" "b"')
    with pytest.raises(InvalidOutput):
        constraint.accept(ord("x"))
    assert not constraint.is_complete
    for call in (partial(constraint.allows, toy.END), constraint.allowed, constraint.forced):
        with pytest.raises(InvalidOutput, match="grammar"):
            call()
    with pytest.raises(InvalidOutput, match="grammar"):
        constraint.accept(toy.END)


def test_a_grammar_that_takes_too_long_is_given_up() -> None:
    constraint = start('start: s\ns: s s s s s | s s s s | s s s | s s | "a"')
    before = time.process_time()
    with pytest.raises(InvalidOutput, match="too long"):
        write_for_ever(constraint)
    assert time.process_time() - before < 10


def write_for_ever(constraint: Constraint) -> None:
    while constraint.allows(A):
        constraint.accept(A)
        constraint.allowed()


def test_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InvalidRequest):
        COMPILER.compile('start: %json {"not": {}}')
    with pytest.raises(InvalidOutput):
        start('start: "a"').accept(ord("b"))
    assert capfd.readouterr() == ("", "")


def test_grammars_are_compiled_once_however_many_ask() -> None:
    compiler, barrier = toy.compiler(), Barrier(4)

    def compiled() -> object:
        barrier.wait()
        return compiler.compile('start: "a"')

    with ThreadPoolExecutor(4) as threads:
        results = [future.result() for future in [threads.submit(compiled) for _ in range(4)]]
    assert len(set(map(id, results))) == 1


def test_recent_results_are_bounded_in_number_and_size() -> None:
    computed: list[str] = []
    recent = Recent[str](most=3, most_size=10)

    def get(text: str) -> str:
        def compute() -> str:
            computed.append(text)
            return text.upper()

        return recent.get(text, compute)

    for text in ("a", "b", "c", "a", "d", "b"):
        assert get(text) == text.upper()
    assert computed == ["a", "b", "c", "d", "b"]  # a was asked for again, so that b had to go
    get("x" * 8)
    get("d")
    assert computed == ["a", "b", "c", "d", "b", "x" * 8]
    get("y" * 50)
    get("y" * 50)
    get("d")
    assert computed[-2:] == ["y" * 50, "d"]


def test_a_failure_reaches_all_who_wait_and_is_not_kept() -> None:
    recent = Recent[int](most=3, most_size=10)
    is_running, may_fail = Event(), Event()
    failures: list[str] = []

    def fail() -> int:
        is_running.set()
        may_fail.wait(10)
        raise InvalidRequest("no")

    def ask() -> None:
        try:
            recent.get("a", fail)
        except InvalidRequest as error:
            failures.append(error.message)

    askers = [Thread(target=ask) for _ in range(3)]
    for asker in askers:
        asker.start()
    is_running.wait(10)
    may_fail.set()
    for asker in askers:
        asker.join(10)
    assert failures == ["no"] * 3
    assert recent.get("a", lambda: 1) == 1


GBNF = r"""
# JSON, as in llama.cpp's grammars/json.gbnf
root   ::= object
value  ::= object | array | string | number | ("true" | "false" | "null") ws
object ::= "{" ws ( string ":" ws value ("," ws string ":" ws value)* )? "}" ws
array  ::= "[" ws ( value ("," ws value)* )? "]" ws
string ::= "\"" ( [^"\\\x7F\x00-\x1F] | "\\" (["\\bfnrt] | "u" [0-9a-fA-F]{4}) )* "\"" ws
number ::= ("-"? ([0-9] | [1-9] [0-9]{0,15})) ("." [0-9]+)? ([eE] [-+]? [0-9] [1-9]{0,15})? ws
ws ::= | " " | "\n" [ \t]{0,20}
"""


@pytest.mark.parametrize(
    ("grammar", "taken", "refused"),
    [
        (GBNF, '{"a": [1, "x\\u00e9", {"b": null}]}', '{"a": }'),
        ('root ::= ("- " item)+\nitem ::= [^\\n]+ "\\n"', "- one\n- two\n", "one"),
        ('root ::= "yes" | "no"', "no", "maybe"),
        ('root ::= expr-1\nexpr-1 ::= [0-9]+ ("+" expr-1)?', "1+22+3", "1+"),
        ('root ::= [äöü]+ "ß"', "äöß", "aß"),
        ('root ::= "é\\u00e9\\xe9" "\\""', 'ééé"', "e"),
    ],
)
def test_gbnf(grammar: str, taken: str, refused: str) -> None:
    lark = lark_of_gbnf(grammar)
    parts = [{"lark_grammar": "start: @content"}, {"name": "content", "lark_grammar": lark}]
    side = json.dumps({"grammars": parts})
    for text in (lark, side):
        assert toy.takes(COMPILER.compile(text).start(), taken.encode())
        assert not toy.takes(COMPILER.compile(text).start(), refused.encode())


@pytest.mark.parametrize(
    "grammar",
    [
        "",
        "root",
        "start ::= a",
        'root ::= "a',
        "root ::= other",
        "root ::= [a",
        "root ::= " + "(" * 5_000,
        "x" * 200_000,
    ],
    ids=lambda text: text[:20],
)
def test_what_is_no_gbnf_is_refused(grammar: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        lark_of_gbnf(grammar)
    assert refused.value.param == "grammar"
    assert refused.value.message.startswith("grammar: ")


@pytest.mark.parametrize("pattern", ["(", "(?=a)b", r"(a)\1", "a" * 200_000, "((a{1000}){1000}){1000}"])
def test_a_pattern_that_cannot_be_enforced_is_refused(pattern: str) -> None:
    check_regex("[a-z]+/x", param="guided_regex")
    with pytest.raises(InvalidRequest, match="guided_regex: the pattern"):
        check_regex(pattern, param="guided_regex")


def test_masks_and_checks_agree_for_random_grammars() -> None:
    for lark in (
        "start: %json {}",
        'start: ("ab" | "a" /[bc]/ "d"?)+ /\\n?/',
        f'start: (/[a-c ]*/ <[{toy.CALL}]>)? "{{\\"" /.*/',
    ):
        model = toy.RandomModel(5, stops=0)
        constraint = COMPILER.compile(lark).start()
        for _ in range(25):
            mask = np.array([constraint.allows(token) for token in range(len(toy.TOKENS))])
            masked = constraint.allowed()
            assert not (masked & ~mask).any()
            if not constraint.forced():
                assert (masked == mask).all()
            if constraint.is_complete:
                break
            constraint.accept(int(model.choose(masked)))


def test_a_compiler_prepares_once() -> None:
    compiler = GrammarCompiler(toy.TOKENS, toy.CONTROL, [toy.END], None)
    compiler.prepare()
    compiler.prepare()
    assert compiler.compile('start: "a"').start().allows(A)

"""Templates of Ollama: what they become in Jinja, and when they replace the file's own."""

from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.chat.conversation import Conversation
from server.chat.rendering import Rendering
from server.chat.template import CHATML, ChatTemplate
from server.core.request import Message, Role, ToolCall
from server.store.go_template import Untranslatable, parse_go_template
from server.store.go_template_jinja import jinja_template
from server.store.ollama_manifest import OllamaKind
from server.store.ollama_template import TemplateChoice, TemplateSource, choose_template

SYSTEM = Message(Role.SYSTEM, "Be kind.")
HI = Message(Role.USER, "Hi!")
HELLO = Message(Role.ASSISTANT, "Hello.")
BYE = Message(Role.USER, "Bye.")
TURNS = (
    "{{ if .System }}<|system|>{{ .System }}{{ end }}{{ if .Prompt }}<|user|>{{ .Prompt }}{{ end }}"
    "<|assistant|>{{ .Response }}<|end|>"
)


def rendered(source: str, *messages: Message) -> str:
    text = jinja_template(source)
    template = ChatTemplate(
        text,
        Rendering(text),
        bos_text="<s>",
        eos_text="</s>",
        control_texts=(),
        now=lambda: datetime(2026, 5, 4, tzinfo=UTC),
    )
    return "".join(template.render(Conversation(messages or (HI,))))


def each(action: str) -> str:
    return "{{ range .Messages }}" + action + "{{ end }}"


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{ range .Messages }}<{{ .Role }}>{{ .Content }}{{ end }}<assistant>", "<user>Hi!<assistant>"),
        ("a {{- range .Messages }} {{ .Role -}} \n b\n{{- end }} c ", "a userb c "),
        ('{{/* a }} " ` comment */}}{{- /* and one that trims */ -}}  x' + each(""), "x"),
        (each('\'{{ "}} \\"quoted\\" \\u00e9\\n" }}`{{ `raw \\n }}` }}\''), "'}} \"quoted\" é\n`raw \\n }}'"),
        ("€ 😀 \\ ' {% x %} {# y #} }}" + each(""), "€ 😀 \\ ' {% x %} {# y #} }}"),
        (each('{{ if eq .Role "system" "user" }}yes{{ else }}no{{ end }}'), "yes"),
        (each('{{ if ne .Role "user" }}a{{ else if and .Content (not .ToolCalls) }}b{{ else }}c{{ end }}'), "b"),
        (
            each("{{ with .Content }}[{{ . }}]{{ else }}none{{ end }}{{ with .Thinking }}t{{ else }}n{{ end }}"),
            "[Hi!]n",
        ),
        ("{{ range $i, $m := .Messages }}{{ $i }}{{ $m.Role }}{{ .Content }}{{ end }}", "0userHi!"),
        ("{{ range $m := .Messages }}{{ $m.Role }}{{ else }}none{{ end }}", "user"),
        ("{{ range .Tools }}tool{{ else }}none{{ end }}" + each(""), "none"),
        (each("{{ range .ToolCalls }}x{{ end }}{{ .Role | json }}{{ json .ToolCalls }}"), '"user"null'),
        ("{{ len .Messages }}{{ if gt (len .Messages) 1 }}many{{ end }}{{ if le 1 1 }}le{{ end }}", "1le"),
        ("{{ (index .Messages 0).Role }} {{ eq (index .Messages 0).Role `user` }}", "user true"),
        (each("{{ $x := `a` }}{{ if true }}{{ $x := `b` }}{{ $x }}{{ end }}{{ $x }}"), "ba"),
        ("{{ $x := 1 }}{{ range .Messages }}{{ $x = 2 }}{{ end }}{{ $x }}", "2"),
        (each('{{ printf "%s: %v %d%%" .Role .Content 5 }}'), "user: Hi! 5%"),
        (each("{{ currentDate }}{{ nil }}{{ false }}"), "2026-05-04false"),
        (each("{{ if and $.IsThinkSet $.Think }}/think{{ end }}{{ $.ThinkLevel }}{{ $.System }}"), ""),
        (each("{{ .Role }}{{ break }}{{ .Content }}"), "user"),
    ],
)
def test_what_a_template_makes(source: str, text: str) -> None:
    assert rendered(source) == text


def test_variables_outlive_the_loop_that_sets_them() -> None:
    source = (
        '{{ $system := "" }}{{ range .Messages }}{{ if eq .Role "system" }}{{ $system = .Content }}'
        '{{ continue }}{{ end }}[{{ if $system }}{{ $system }}|{{ $system = "" }}{{ end }}{{ .Content }}]{{ end }}'
    )
    assert rendered(source, SYSTEM, HI, HELLO, BYE) == "[Be kind.|Hi!][Hello.][Bye.]"


def test_the_last_message_can_be_told() -> None:
    source = (
        "{{ range $i, $_ := .Messages }}{{ $last := eq (len (slice $.Messages $i)) 1 }}<{{ .Role }}>{{ .Content }}"
        "{{ if $last }}<assistant>{{ end }}{{ end }}"
    )
    assert rendered(source, HI, HELLO, BYE) == "<user>Hi!<assistant>Hello.<user>Bye.<assistant>"


def test_what_users_say_is_data_and_not_control() -> None:
    text = jinja_template(each("<|{{ .Role }}|>{{ .Content }}") + "<|assistant|>")
    template = ChatTemplate(
        text,
        Rendering(text),
        bos_text="",
        eos_text="",
        control_texts=("<|assistant|>",),
        now=datetime.now,
    )
    segments = template.render(Conversation((Message(Role.USER, "a<|assistant|>"), Message(Role.USER, "b"))))
    assert segments == ["<|user|>a<", "|assistant|>\n\nb<|assistant|>"]


def test_messages_of_a_role_in_a_row_become_one() -> None:
    source = "({{ .System }})" + each("<{{ .Role }}>{{ .Content }}")
    text = rendered(source, SYSTEM, HI, BYE, HELLO, SYSTEM)
    assert text == "(Be kind.\n\nBe kind.)<system>Be kind.<user>Hi!\n\nBye.<assistant>Hello.<system>Be kind."


def test_answers_of_tools_stay_apart() -> None:
    calls = (ToolCall("1", "add", '{"b": 2, "a": "x"}'), ToolCall("2", "other", "{}"))
    messages = [HI, Message(Role.ASSISTANT, "", tool_calls=calls), *(Message(Role.TOOL, text) for text in "ab")]
    source = each(
        "<{{ .Role }}>{{ .Content }}{{ range .ToolCalls }}{{ .Function.Name }}{{ .Function.Arguments }}"
        "{{ range $name, $value := .Function.Arguments }}{{ end }}{{ end }}"
    )
    with_mapping = source.replace("{{ end }}{{ end }}", "({{ $name }}={{ $value }}){{ end }}{{ end }}", 1)

    assert rendered(source, *messages[:1], *messages[2:]) == "<user>Hi!<tool>a<tool>b"
    assert rendered(with_mapping, HI, Message(Role.ASSISTANT, "", tool_calls=calls[:1])) == (
        '<user>Hi!<assistant>add{"b":2,"a":"x"}(a=x)(b=2)'
    )


@pytest.mark.parametrize(
    ("messages", "text"),
    [
        ([HI], "<|user|>Hi!<|assistant|>"),
        ([SYSTEM, HI], "<|system|>Be kind.<|user|>Hi!<|assistant|>"),
        ([SYSTEM, HI, HELLO, BYE], "<|system|>Be kind.<|user|>Hi!<|assistant|>Hello.<|end|><|user|>Bye.<|assistant|>"),
        ([HI, SYSTEM, BYE], "<|user|>Hi!<|assistant|><|end|><|system|>Be kind.<|user|>Bye.<|assistant|>"),
        ([HI, HELLO], "<|user|>Hi!<|assistant|>Hello."),
    ],
)
def test_a_template_for_one_turn_is_used_for_each(messages: list[Message], text: str) -> None:
    assert rendered(TURNS, *messages) == text


def test_the_answer_follows_a_template_that_does_not_mention_it() -> None:
    assert rendered("{{ .Prompt }}", HI, HELLO, BYE) == "Hi!Hello.Bye."
    assert rendered("[INST] {{ .System }} {{ .Prompt }} [/INST]", SYSTEM, HI) == "[INST] Be kind. Hi! [/INST]"


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("{{", "has an action that does not end"),
        ('{{ "a }}', "has an action that does not end"),
        ("{{/* a }}", "has a comment that does not end"),
        ("{{ }}", "has an empty action"),
        ("{{ if .Prompt }}", "has {{ if }} without an end"),
        ("{{ if .Prompt }}{{ else }}", "has {{ if }} without an end"),
        ("{{ if .Prompt }}{{ else }}{{ else }}{{ end }}", "has {{ if }} without an end"),
        ("{{ range .Tools }}{{ else if .Prompt }}{{ end }}", "has an else with something after it"),
        ("{{ end }}", "has {{ end }} without a beginning"),
        ("{{ else }}", "has {{ else }} without a beginning"),
        ("{{ break }}", "uses {{ break }} outside of a range"),
        ("{{ define `x` }}{{ end }}", "uses {{ define }}"),
        ("{{ template `x` }}", "uses {{ template }}"),
        ("{{ .Secret }}", "uses .Secret"),
        ("{{ .Prompt.Secret }}", "uses .Secret"),
        ("{{ . }}", "uses everything that is known at once"),
        ("{{ $x }}", "uses $x, which has no value"),
        ("{{ $x = 1 }}", "uses $x, which has no value"),
        ("{{ yesterdayDate }}", "uses the function 'yesterdayDate' with 0 arguments"),
        ("{{ slice .Prompt }}", "uses the function 'slice' with 1 arguments"),
        ("{{ (.Prompt }}", "has a bracket that does not close"),
        ("{{ .Prompt ) }}", "uses ')' in an unknown way"),
        ("{{ .Prompt | `x` }}", "has a pipe into something that is no function"),
        ("{{ .Prompt | }}", "has an action with something missing"),
        ("{{ not | }}", "has an action with something missing"),
        ("{{ not }}", "uses the function 'not' with 0 arguments"),
        ("{{ 1.5 }}", "uses '1.5'"),
        ("{{ % }}", "uses '%'"),
        ("{{ `a` := 1 }}", "gives a value to '`a`'"),
        ("{{ range $a, $b, $c := .Messages }}{{ end }}", "has a range that cannot be read"),
        ('{{ "\\q" }}', "uses \\q in a text"),
        ('{{ "\\ud800" }}', "uses \\ud800 in a text"),
        ('{{ printf "%q" .Prompt }}', "uses printf with the format '%q'"),
        ("{{ printf .Prompt }}", "uses printf with a format that is no text"),
        ("{{ if true }}" * 50, "is more than 40 blocks deep"),
        ("{{ " + "(" * 50, "has an action that does not end"),
        ("{{ " + "(" * 50 + "}}", "has more than 40 brackets"),
        ("{{ .Prompt }}" * 60_000, "has more than 50000 words"),
        (" " * ((1 << 20) + 1), "is longer than 1048576 characters"),
    ],
)
def test_what_cannot_be_translated_is_said(source: str, reason: str) -> None:
    with pytest.raises(Untranslatable) as error:
        jinja_template(source)
    assert str(error.value) == reason


PIECES = [
    "{{",
    "}}",
    "{{-",
    "-}}",
    "if",
    "end",
    "range",
    ".Messages",
    "else",
    '"',
    "`",
    "(",
    ")",
    "|",
    ":=",
    "$x",
    "=",
    "x",
    "'",
    "/*",
    "*/",
    "{%",
    "%}",
    ".",
    "eq",
    ".Role",
    "break",
    "1",
]


@settings(deadline=None)
@given(st.lists(st.sampled_from([*PIECES, " ", "\n"])))
def test_any_text_is_read_or_refused(pieces: list[str]) -> None:
    source = "".join(pieces)
    try:
        parse_go_template(source)
        text = jinja_template(source)
    except Untranslatable:
        return
    Rendering(text)


@settings(deadline=None)
@given(st.text(alphabet=st.characters(exclude_categories=["Cs", "Co"])).filter(lambda text: "{{" not in text))
def test_text_is_kept_as_it_is(text: str) -> None:
    assert rendered(each("") + "{{ `` }}" + text) == text


PLAIN = OllamaKind()
GO_CHATML = each("<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n") + "<|im_start|>assistant\n"
GO_LLAMA = each("<|start_header_id|>{{ .Role }}<|end_header_id|>\n\n{{ .Content }}<|eot_id|>")


@pytest.mark.parametrize(
    ("go", "kind", "own", "source", "note"),
    [
        (None, PLAIN, CHATML, TemplateSource.FILE, None),
        (None, PLAIN, None, TemplateSource.NONE, None),
        (GO_CHATML, PLAIN, CHATML, TemplateSource.FILE, None),
        (GO_CHATML + "{{ range .Tools }}<tools>[AVAILABLE_TOOLS]{{ end }}", PLAIN, CHATML, TemplateSource.FILE, None),
        ("{{ .Prompt }}", PLAIN, CHATML, TemplateSource.FILE, None),
        (GO_LLAMA, PLAIN, CHATML, TemplateSource.MANIFEST, None),
        (GO_CHATML, PLAIN, None, TemplateSource.MANIFEST, None),
        ("{{ .Prompt }}", PLAIN, None, TemplateSource.MANIFEST, None),
        (
            GO_LLAMA + "{{ .Odd }}",
            PLAIN,
            CHATML,
            TemplateSource.FILE,
            "its manifest's template cannot be used, because it uses .Odd",
        ),
        ("{{ .Odd }}", PLAIN, None, TemplateSource.NONE, "because it uses .Odd; use it @ollama"),
        (GO_LLAMA + "{{", PLAIN, CHATML, TemplateSource.FILE, "an action that does not end"),
        (None, OllamaKind(renderer="odd"), CHATML, TemplateSource.FILE, "with code of its own, 'odd'"),
        (GO_LLAMA, OllamaKind(renderer="odd"), CHATML, TemplateSource.FILE, "with code of its own, 'odd'"),
        (None, OllamaKind(renderer="odd"), None, TemplateSource.NONE, "only Ollama has the code"),
        (GO_LLAMA, OllamaKind(renderer="odd"), None, TemplateSource.MANIFEST, None),
    ],
)
def test_which_template_is_used(
    go: str | None, kind: OllamaKind, own: str | None, source: TemplateSource, note: str | None
) -> None:
    choice = choose_template(go, kind, own)

    assert choice.source is source
    assert (choice.jinja is not None) is (source is TemplateSource.MANIFEST)
    if note is None:
        assert choice.note is None
    else:
        assert note in (choice.note or "")


def test_the_manifests_template_comes_translated() -> None:
    assert choose_template(GO_LLAMA, PLAIN, None) == TemplateChoice(TemplateSource.MANIFEST, jinja_template(GO_LLAMA))

"""Tool calls and thoughts in a model's text: the same however the text was cut, nothing lost, each character once."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mini_infer.text.parsers.dialects import (
    DEEPSEEK_R1,
    HERMES,
    LLAMA3_JSON,
    MISTRAL,
    MISTRAL_NAMED,
    MISTRAL_V11,
    MISTRAL_V13,
    QWEN3,
    ReasoningDialect,
    ToolDialect,
    guess_reasoning,
    guess_tools,
)
from mini_infer.text.parsers.json_reader import JsonScanner
from mini_infer.text.parsers.machine import (
    CallArguments,
    CallBroken,
    CallEnd,
    CallStart,
    Content,
    Event,
    OutputParser,
    Reasoning,
)
from mini_infer.text.parsers.message import Message

F = '{"name": "f", "arguments": {"a": [1, "}"]}}'
G = '{"name": "g"}'
CALL_F = [CallStart(0, "f"), CallArguments(0, '{"a": [1, "}"]}'), CallEnd(0)]
CALL_G = [CallStart(1, "g"), CallArguments(1, "{}"), CallEnd(1)]
NAMED_F = 'f{"a": [1, "}"]}'
BROKEN = '{"name": "f", "arguments": {"a": '
START_F = [CallStart(0, "f"), CallArguments(0, '{"a": ')]


def merged(events: list[Event]) -> list[Event]:
    """Neighbouring pieces of the same text as one."""
    out: list[Event] = []
    for event in events:
        if out and isinstance(event, (Content, Reasoning, CallArguments)) and type(out[-1]) is type(event):
            out[-1] = out[-1]._replace(text=out[-1].text + event.text)  # type: ignore[union-attr]
        else:
            out.append(event)
    return out


def parse(text: str, tools: ToolDialect | None = HERMES, reasoning: ReasoningDialect | None = None,
          names: tuple[str, ...] = (), prompt: str = "", cuts: list[int] | None = None) -> list[Event]:
    parser = OutputParser(tools, reasoning, names, prompt)
    ends = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts or ())})
    pieces = [text[start:end] for start, end in pairwise(ends)]
    return merged([event for piece in pieces for event in parser.feed(piece)] + parser.finish())


def plain(events: list[Event]) -> str:
    """All that is not part of a whole call."""
    return "".join(event.text for event in events if isinstance(event, (Content, Reasoning, CallBroken)))


@pytest.mark.parametrize("text, expected", [
    ("hello", [Content("hello")]),
    ("  hello \n", [Content("  hello \n")]),
    (f"<tool_call>\n{F}\n</tool_call>", CALL_F),
    (f"<tool_call>{F}</tool_call>\n<tool_call>\n{G}\n</tool_call>\n", [*CALL_F, *CALL_G]),
    (f"Let me see.\n<tool_call>{F}</tool_call>\nDone", [Content("Let me see."), *CALL_F, Content("\nDone")]),
    (f"<tool_call>{F}", CALL_F),
    (f"<tool_call>{F}</tool_c", CALL_F),
    (f"<tool_call>{F} and", [*CALL_F, Content("and")]),
    ('<tool_call>{"arguments": {"a": [1, "}"]}, "id": [{}], "name": "f"}</tool_call>', CALL_F),
    (f"<tool_call>no <tool_call>{F}</tool_call>", [Content("<tool_call>no"), *CALL_F]),
    (f"<tool_call>{BROKEN}oops", [*START_F, CallBroken(0, "<tool_call>" + BROKEN), Content("oops")]),
    (f"x <tool_call>{BROKEN}", [Content("x"), *START_F, CallBroken(0, " <tool_call>" + BROKEN)]),
])
def test_hermes(text: str, expected: list[Event]) -> None:
    assert parse(text) == expected


@pytest.mark.parametrize("text", [
    "<tool_call>", " <tool_ca", "a < b", "<tool_call>{", '<tool_call>{"name": "f"', "<tool_call>[]</tool_call>",
    '<tool_call>{"name": 5, "arguments": {}}</tool_call>', '<tool_call>{"arguments": {"a": 1}}</tool_call>',
    '<tool_call>{"name": "f", "arguments": "{}"}</tool_call>', '<tool_call>{"name": "other"}</tool_call>',
    '<tool_call>{"name": "f", "name": "f"}</tool_call>', '\n<tool_call>\n{"name": "f",}</tool_call> ',
])
def test_what_only_looks_like_a_call_is_content(text: str) -> None:
    assert parse(text, names=("f", "g")) == [Content(text)]


@pytest.mark.parametrize("text, expected", [
    (F.replace("arguments", "parameters") + "; " + G, [*CALL_F, *CALL_G]),
    (f"\n{F}\n{G}", [*CALL_F, *CALL_G]),
    (f"<|python_tag|>{F}", CALL_F),
    ('{"a": 1}', [Content('{"a": 1}')]),
    (f"It is {F}", [Content(f"It is {F}")]),
    (f"{F}; oops", [*CALL_F, Content("; oops")]),
])
def test_llama(text: str, expected: list[Event]) -> None:
    assert parse(text, LLAMA3_JSON) == expected


@pytest.mark.parametrize("text, expected", [
    (f"[TOOL_CALLS] [{F}, {G}]", [*CALL_F, *CALL_G]),
    (f"Hm.[TOOL_CALLS][{F}]", [Content("Hm."), *CALL_F]),
    (f"[TOOL_CALLS]{F}", [Content(f"[TOOL_CALLS]{F}")]),
    (f"[TOOL_CALLS][{F}, 5]", [*CALL_F, Content(", 5]")]),
    (f"[TOOL_CALLS][[TOOL_CALLS][{F}]", [Content("[TOOL_CALLS]["), *CALL_F]),
    # a name, and perhaps an id, before the arguments
    ("[TOOL_CALLS]" + NAMED_F, CALL_F),
    (f"Hm.[TOOL_CALLS]{NAMED_F}[TOOL_CALLS]g{{}}", [Content("Hm."), *CALL_F, *CALL_G]),
    (f"[TOOL_CALLS] {NAMED_F}\n[TOOL_CALLS]g[ARGS] {{}}\n", [*CALL_F, *CALL_G]),
    ('[TOOL_CALLS]f[CALL_ID]a1b2c3d4e[ARGS]{"a": [1, "}"]}[TOOL_CALLS]g[CALL_ID]x[ARGS]{}', [*CALL_F, *CALL_G]),
    (f"[TOOL_CALLS]{NAMED_F}]", [*CALL_F, Content("]")]),
    (f"[TOOL_CALLS]{NAMED_F}, g{{}}", [*CALL_F, Content(", g{}")]),
    (f"[TOOL_CALLS][{F}, g{{}}]", [*CALL_F, Content(", g{}]")]),
    (f"[TOOL_CALLS]g[TOOL_CALLS]{NAMED_F}", [Content("[TOOL_CALLS]g"), *CALL_F]),
    (f"[TOOL_CALLS]g[CALL_I[TOOL_CALLS]{NAMED_F}", [Content("[TOOL_CALLS]g[CALL_I"), *CALL_F]),
    ('[TOOL_CALLS]f{"a": oops', [*START_F, CallBroken(0, '[TOOL_CALLS]f{"a": '), Content("oops")]),
])
def test_mistral(text: str, expected: list[Event]) -> None:
    assert parse(text, MISTRAL) == expected


@pytest.mark.parametrize("text", [
    "[TOOL_CALLS]f", "[TOOL_CALLS]f g{}", "[TOOL_CALLS]other{}", "[TOOL_CALLS]f[ARGS]",
    "[TOOL_CALLS]f[CALL_ID][ARGS]{}", "[TOOL_CALLS]f[ARGS][CALL_ID]a[ARGS]{}",
    "[TOOL_CALLS]f[CALL_ID]a{}", "[TOOL_CALLS]f[ARGS]x{}", "[TOOL_CALLS]{}",
    "[TOOL_CALLS]f[ARGS", "[TOOL_CALLS]f[CALL_ID]a", "[TOOL_CALLS] f [ARGS]{}", "[TOOL_CALLS]other[ARGS]{}",
])
def test_what_only_looks_like_a_named_call_is_content(text: str) -> None:
    assert parse(text, MISTRAL, names=("f", "g")) == [Content(text)]


@pytest.mark.parametrize("text, dialect, prompt, expected", [
    ("<think>\nhm <b>\n</think>\n\nhi", QWEN3, "", [Reasoning("hm <b>"), Content("hi")]),
    ("<think></think>\n\nhi", QWEN3, "", [Content("hi")]),
    ("<thin", QWEN3, "", [Content("<thin")]),
    ("hi <think>no</think>", QWEN3, "", [Content("hi <think>no</think>")]),
    ("<think>on and on\n", QWEN3, "", [Reasoning("on and on\n")]),
    ("hm</think>hi", QWEN3, "<assistant><think>\n", [Reasoning("hm"), Content("hi")]),
    ("<think>hi", QWEN3, "<think>\n\n</think>\n\n", [Content("<think>hi")]),
    ("hm </thi</think>hi", DEEPSEEK_R1, "", [Reasoning("hm </thi"), Content("hi")]),
    ("<think>hm</think>hi", DEEPSEEK_R1, "", [Reasoning("hm"), Content("hi")]),
    ("hm <tool_call>", DEEPSEEK_R1, "", [Reasoning("hm <tool_call>")]),
    (f"<think>{F}</think>\n<tool_call>{F}</tool_call>", QWEN3, "", [Reasoning(F), *CALL_F]),
])
def test_thoughts(text: str, dialect: ReasoningDialect, prompt: str, expected: list[Event]) -> None:
    assert parse(text, HERMES, dialect, prompt=prompt) == expected


def test_dialects_are_guessed_from_the_template() -> None:
    assert guess_tools(["{{ '<tool_call>' }}"]) is HERMES
    assert guess_tools(["[TOOL_CALLS]"]) is MISTRAL
    assert guess_tools(["{{- '[TOOL_CALLS] [' }}", "{{ call.function.name }}"]) is MISTRAL
    assert guess_tools(["{{- '[TOOL_CALLS]' + call.function.name + arguments }}"]) is MISTRAL_NAMED
    assert guess_tools(["[TOOL_CALLS]{{ call['function']['name'] }}{{ arguments }}"]) is MISTRAL_NAMED
    assert guess_tools(["{{- '[TOOL_CALLS]' + name + '[ARGS]' + arguments }}"]) is MISTRAL_V13
    assert guess_tools(["{{- '[TOOL_CALLS]' + name + '[CALL_ID]' + id + '[ARGS]' + arguments }}"]) is MISTRAL_V11
    assert guess_tools(["{{ message }}"]) is None and guess_tools([]) is None
    assert guess_reasoning(["content.split('</think>')"]) is QWEN3
    assert guess_reasoning(["{{ message }}"]) is None


# Pieces of which every case above, and worse ones, can be made.
PIECES = ["<tool_call>", "</tool_call>", "<tool_", "[TOOL_CALLS]", "<|python_tag|>", "<think>", "</think>", "[", "]",
          "f", "g{}", "[ARGS]", "[CALL_ID]", "[CALL_", NAMED_F, ";", ",", " ", "\n", F, G,
          BROKEN, '{"name": "f"', "}", "oops", "é🙂", '{"arguments": {}, "name": "g"}']
texts = st.lists(st.sampled_from(PIECES), max_size=12).map("".join)
dialects = st.sampled_from([None, HERMES, LLAMA3_JSON, MISTRAL])
thoughts = st.sampled_from([None, QWEN3, DEEPSEEK_R1])


@given(texts, dialects, thoughts, st.lists(st.integers(0, 10**6), max_size=8), st.sampled_from(["", "<think>\n"]))
@settings(max_examples=400, deadline=None)
def test_any_cut_gives_the_same(text: str, tools: ToolDialect | None, reasoning: ReasoningDialect | None,
                                cuts: list[int], prompt: str) -> None:
    whole = parse(text, tools, reasoning, ("f", "g"), prompt)
    assert parse(text, tools, reasoning, ("f", "g"), prompt, cuts) == whole
    assert parse(text, tools, reasoning, ("f", "g"), prompt, list(range(len(text)))) == whole
    for event in whole:
        if isinstance(event, CallEnd):
            arguments = [e.text for e in whole if isinstance(e, CallArguments) and e.call == event.call]
            assert isinstance(json.loads("".join(arguments)), dict)


@given(texts, dialects)
@settings(max_examples=300, deadline=None)
def test_nothing_is_lost(text: str, tools: ToolDialect | None) -> None:
    events = parse(text, tools, None, ("f", "g"))
    if not any(isinstance(event, CallEnd) for event in events):
        assert plain(events) == text
    else:  # what the calls were written as, and whitespace around them, is all that may be missing
        position = 0
        for char in "".join(plain(events).split()):
            position = text.index(char, position) + 1


class Counting(OutputParser):
    steps = 0

    def _push(self, char: str) -> None:
        self.steps += 1
        super()._push(char)


@pytest.mark.parametrize("text", [
    "<" * 20_000, "<tool_call>" * 2_000, '<tool_call>{"name": "' * 1_000, " " * 20_000, "<tool_call>\n" + " " * 20_000,
    "<tool_call>{" * 2_000, f"<tool_call>{F}</tool_call>" * 400, f"<tool_call>{BROKEN}" * 400, "<think><thin" * 2_000,
    '<tool_call>{"name": "f", "arguments": ' + '{"a":' * 5_000, f"<tool_call>{F}</tool_cal" * 400,
    "[TOOL_CALLS]f[CALL_I" * 2_000, "[TOOL_CALLS]" + "f" * 20_000, f"[TOOL_CALLS]{NAMED_F}" * 400,
    "[TOOL_CALLS][ " * 2_000, "[TOOL_CALLS]f[CALL_ID]" + "a" * 20_000, "[TOOL_CALLS]" + "[" * 20_000,
], ids=lambda text: text[:16])
def test_the_work_is_linear(text: str) -> None:
    for reasoning in (None, QWEN3, DEEPSEEK_R1):
        parser = Counting(MISTRAL if "[" in text[:12] else HERMES, reasoning)
        for char in text:
            parser.feed(char)
        parser.finish()
        assert parser.steps <= 2 * len(text) + 20


json_values = st.recursive(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
                           | st.text(max_size=6), lambda inner: st.lists(inner, max_size=3)
                           | st.dictionaries(st.text(max_size=4), inner, max_size=3), max_leaves=8)


def scan(text: str) -> bool:
    scanner = JsonScanner()
    return all(not scanner.done and scanner.push(char) for char in text) and scanner.done


@given(st.dictionaries(st.text(max_size=4), json_values, max_size=3), st.booleans(), st.sampled_from([None, 1]))
@settings(deadline=None)
def test_json_is_json(value: dict[str, object], ascii_only: bool, indent: int | None) -> None:
    assert scan(json.dumps(value, ensure_ascii=ascii_only, indent=indent))


@given(st.dictionaries(st.text(max_size=4), json_values, max_size=3), st.integers(0, 10**6),
       st.sampled_from(list('{}[]",:0-.eE+ \\utrfn\n')), st.booleans())
@settings(max_examples=500, deadline=None)
def test_what_is_no_json_is_none(value: dict[str, object], where: int, char: str, replace: bool) -> None:
    text = json.dumps(value)
    where %= len(text)
    text = text[:where] + char + text[where + replace :]
    try:
        expected = isinstance(json.loads(text), dict)
    except ValueError:
        expected = False
    assert scan(text.strip(" \n")) == expected


def test_a_message_is_what_the_events_add_up_to() -> None:
    text = f"<think>hm</think>Look.\n<tool_call>{F}</tool_call><tool_call>{BROKEN}oops"
    message = Message.of(text, HERMES, QWEN3)
    assert (message.reasoning, message.content) == ("hm", f"Look.<tool_call>{BROKEN}oops")
    assert [(call.name, call.parsed()) for call in message.calls] == [("f", {"a": [1, "}"]})]
    body = Message.of(f"<tool_call>{G}</tool_call>", HERMES).body()
    assert body["content"] is None and body["tool_calls"][0]["function"] == {"name": "g", "arguments": "{}"}
    assert Message.of("", HERMES).body() == {"role": "assistant", "content": "", "refusal": None}


@given(texts, dialects)
@settings(max_examples=200, deadline=None)
def test_what_a_whole_answer_does_not_call_it_says(text: str, tools: ToolDialect | None) -> None:
    message = Message.of(text, tools, None, ("f", "g"))
    if not message.calls:
        assert message.content == text
    assert all(isinstance(call.parsed(), dict) for call in message.calls)

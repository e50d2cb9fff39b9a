"""Grammars: whatever is drawn from the masks is what was asked for, and what cannot be honoured is refused by name."""

from __future__ import annotations

import json
import random
import re
import sys
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mini_infer.protocol import RequestError, SamplingParams, StructuredOutputs
from mini_infer.text import grammar
from mini_infer.text.detokenizer import IncrementalDetokenizer
from mini_infer.text.door import Door
from mini_infer.text.grammar import GrammarCompiler
from mini_infer.text.parsers.dialects import (
    DEEPSEEK_R1,
    HERMES,
    ID,
    LLAMA3_JSON,
    MISTRAL,
    MISTRAL_NAMED,
    MISTRAL_V11,
    MISTRAL_V13,
    QWEN3,
    ToolDialect,
)
from mini_infer.text.parsers.grammar import Function, thought_grammar, tool_grammar
from mini_infer.text.parsers.machine import CallArguments, CallStart, Content, OutputParser
from mini_infer.text.tokenizer import Tokenizer
from tests.text.trained import tokenizer

pytest.importorskip("llguidance")
validate = pytest.importorskip("jsonschema").validate
EOS = {"byte_level": "<|im_end|>", "llama_style": "</s>", "gemma_style": "</s>", "unigram_with_bytes": "</s>"}


def eos_of(name: str) -> int:
    token = tokenizer(name).piece_to_id(EOS[name])
    assert token is not None
    return token


def compiler(name: str, extra: int = 0) -> GrammarCompiler:
    """For a model whose logits are `extra` wider than the vocabulary."""
    return GrammarCompiler(lambda: tokenizer(name), tokenizer(name).vocab_size + extra, [eos_of(name)])


COMPILERS = {name: compiler(name, extra=45) for name in EOS}


def draw(name: str, asked: StructuredOutputs, rng: random.Random, max_tokens: int = 3000) -> str:
    """A text made of random tokens among those that are allowed."""
    tokens, eos, compiler = tokenizer(name), eos_of(name), COMPILERS[name]
    matcher = compiler.matcher(asked)
    words = np.zeros((tokens.vocab_size + 45 + 31) // 32, dtype=np.int32)
    prompt = tokens.encode("the quick", add_special_tokens=False)
    out: list[int] = []
    while len(out) < max_tokens:
        matcher.unsafe_compute_mask_ptr(words.ctypes.data, words.nbytes)
        assert not matcher.is_error(), matcher.get_error()
        allowed = np.flatnonzero(np.unpackbits(words.view(np.uint8), bitorder="little")).tolist()
        assert allowed and max(allowed) < tokens.vocab_size
        token = eos if eos in allowed and rng.random() < 0.2 else rng.choice(allowed)
        if token == eos:
            detokenizer = IncrementalDetokenizer(tokens, True, prompt)
            return detokenizer.push(out) + detokenizer.flush()
        out.append(token)
        matcher.consume_token(token)
    raise AssertionError("no end in sight")


leaves = st.sampled_from([
    {"type": "integer"}, {"type": "integer", "minimum": -3, "maximum": 12}, {"type": "boolean"}, {"type": "null"},
    {"type": "string", "maxLength": 4}, {"type": "string", "pattern": "^[a-c]{1,3}$"}, {"type": "number"},
    {"enum": ["a", 1, None, "é \"x\"", "日本"]}, {"const": {"k": [True]}}, {"type": ["null", "boolean"]},
])
names = st.sampled_from(["a", "b", "two words", "é", "q\"uote", "x" * 20])


def objects(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    def build(properties: dict[str, Any], required: int) -> dict[str, Any]:
        return {"type": "object", "properties": properties, "required": list(properties)[:required],
                "additionalProperties": False}

    return st.builds(build, st.dictionaries(names, inner, max_size=3), st.integers(0, 3))


schemas = st.recursive(leaves, lambda inner: objects(inner) | st.builds(
    lambda items, most: {"type": "array", "items": items, "maxItems": most}, inner, st.integers(0, 3)) | st.builds(
    lambda *options: {"anyOf": list(options)}, inner, inner), max_leaves=6)


@given(schemas, st.sampled_from(sorted(EOS)), st.integers(0, 10**6))
@settings(max_examples=100, deadline=None)
def test_random_tokens_follow_random_schemas(schema: Any, name: str, seed: int) -> None:
    asked = StructuredOutputs(json=schema, disable_any_whitespace=True)
    validate(json.loads(draw(name, asked, random.Random(seed))), schema)


@pytest.mark.parametrize("name", EOS)
@pytest.mark.parametrize("asked, pattern", [
    (StructuredOutputs(regex=r"[a-f]{3}-\d{2}( é)?"), r"[a-f]{3}-\d{2}( é)?"),
    (StructuredOutputs(choice=["yes", "no", 'say "é🙂"\n']), r'yes|no|say "é🙂"\n'),
    (StructuredOutputs(grammar='start: "a" b+\nb: "b" | "é"'), r"a[bé]+"),
    (StructuredOutputs(grammar='root ::= "x" [0-9]+ tail\ntail ::= "y" | "z"'), r"x[0-9]+[yz]"),
    (StructuredOutputs(grammar=json.dumps({"grammars": [{"lark_grammar": "start: /a+/"}]})), r"a+"),
], ids=str)
def test_the_other_kinds(name: str, asked: StructuredOutputs, pattern: str) -> None:
    for seed in range(5):
        assert re.fullmatch(pattern, draw(name, asked, random.Random(seed)))


def test_whitespace_is_allowed_unless_it_is_not() -> None:
    schema = {"type": "object", "properties": {"a": {"enum": [1]}}, "required": ["a"], "additionalProperties": False}
    texts = {draw("byte_level", StructuredOutputs(json=json.dumps(schema)), random.Random(seed)) for seed in range(20)}
    assert len(texts) > 1 and all(json.loads(text) == {"a": 1} for text in texts)
    tight = StructuredOutputs(json=schema, disable_any_whitespace=True)
    assert draw("byte_level", tight, random.Random(0)) == '{"a":1}'


FUNCTIONS = [
    Function("now"),
    Function("add", {"type": "object", "properties": {"x": {"enum": [1, 2]}, "y": {"type": "boolean"}},
                     "required": ["x", "y"], "additionalProperties": False, "x-unknown": 5}),
    Function('od"d é', {"type": "object", "additionalProperties": False}),
]
NAMED = [MISTRAL_NAMED, MISTRAL_V11, MISTRAL_V13]
DIALECTS = [HERMES, LLAMA3_JSON, MISTRAL, *NAMED]


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: "".join(dialect.written[:3]))
@pytest.mark.parametrize("name", ["byte_level", "llama_style"])
def test_calls_that_must_come_can_be_read(dialect: ToolDialect, name: str) -> None:
    functions = FUNCTIONS[:2] if dialect in NAMED else FUNCTIONS
    for parallel in (True, False):
        text = tool_grammar(dialect, functions, tokenizer(name), required=True, parallel=parallel)
        counts = set()
        for seed in range(12):
            answer = draw(name, StructuredOutputs(grammar=text), random.Random(seed))
            events = OutputParser(dialect).read(answer)
            starts = [event for event in events if isinstance(event, CallStart)]
            assert starts and {event.name for event in starts} <= {function.name for function in FUNCTIONS}
            assert not any(isinstance(event, Content) for event in events), answer
            for event in events:
                if isinstance(event, CallArguments) and starts[event.call].name == "add":
                    validate(json.loads(event.text), FUNCTIONS[1].parameters)
            counts.add(len(starts))
        assert counts == {1} if not parallel else len(counts) > 1


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: "".join(dialect.written[:3]))
def test_calls_that_may_come(dialect: ToolDialect) -> None:
    """What the model would have written by itself is allowed; a call that does not fit its function is not."""
    opening, before, after, closing, between, end = dialect.written
    after = after.replace(ID, "a1B2c3D4e")
    call = before + "add" + after + '{"x": 1, "y": true}' + closing
    wrong = opening + before + "add" + after + '{"x": 5'
    good = ["Just text.", "", opening + call + end]
    if opening:
        good += [f"Well. {opening}{call}{end}"]
    twice = opening + call + between + call + end
    for name, parallel in product(("byte_level", "llama_style"), (True, False)):
        text = tool_grammar(dialect, FUNCTIONS[:2], tokenizer(name), required=False, parallel=parallel)
        spell = COMPILERS[name]._backend("").greedy_tokenize
        # Without marks, text that begins with <think> may be meant as well, and then goes on as it likes.
        for thoughts in ("", *([thought_grammar(QWEN3, tokenizer(name), False)] if opening else [])):
            before_it = "<think>\nhm < ok\n</think>\n\n" if thoughts else ""
            for answer, fits in [*((answer, True) for answer in good), (wrong, False), (twice, parallel)]:
                matcher = COMPILERS[name].matcher(StructuredOutputs(grammar=text, preamble=thoughts))
                ids = spell(before_it + answer)
                assert (matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting()) == fits, answer


def test_marks_within_a_call_are_tokens_too() -> None:
    class Tokens:  # of Mistral's tokenizers, as far as the grammar asks
        special_token_ids = frozenset({5, 7, 9})

        def piece_to_id(self, piece: str) -> int | None:
            return {"[TOOL_CALLS]": 5, "[CALL_ID]": 7, "[ARGS]": 9}.get(piece)

    text = tool_grammar(MISTRAL_V11, FUNCTIONS[:1], Tokens(), required=True, parallel=True)  # type: ignore[arg-type]
    assert text.startswith("start: <[5]> call (<[5]> call)*") and 'call_0: "now" <[7]> ID <[9]> %json' in text


@pytest.mark.parametrize("dialect", NAMED, ids=lambda dialect: dialect.written[2])
def test_a_name_that_cannot_be_written_is_refused(dialect: ToolDialect) -> None:
    with pytest.raises(RequestError, match="not 'od\"d é'") as error:
        tool_grammar(dialect, FUNCTIONS, tokenizer("byte_level"), required=True, parallel=True)
    assert error.value.param == "tools"


def test_thoughts_come_before_the_rest() -> None:
    tokens = tokenizer("byte_level")
    answer = StructuredOutputs(choice=["yes", "no"])
    for reasoning, is_open, good, bad in [
        (QWEN3, False, ["yes", "<think>\na</think>\n\nno"], ["<think>yes", "a</think>yes", "a"]),
        (QWEN3, True, ["a</think>\nyes", "</think>no"], ["yes"]),
        (DEEPSEEK_R1, False, ["a</think>\nyes", "<think>b</think>no"], ["yes"]),
    ]:
        asked = StructuredOutputs(choice=answer.choice, preamble=thought_grammar(reasoning, tokens, is_open))
        for text, fits in [*((text, True) for text in good), *((text, False) for text in bad)]:
            matcher = COMPILERS["byte_level"].matcher(asked)
            ids = tokens.encode(text, add_special_tokens=False)
            assert (matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting()) == fits, text


def test_a_mark_that_is_a_special_token_is_that_token() -> None:
    tokens = tokenizer("byte_level")
    written = ("<|im_start|>", '{"name": "', '", "arguments": ', "}", ";", "")
    dialect = ToolDialect("marked", ("<|im_start|>",), "", written)
    mark = tokens.piece_to_id("<|im_start|>")
    for required in (True, False):
        text = tool_grammar(dialect, FUNCTIONS[:1], tokens, required=required, parallel=False)
        matcher = COMPILERS["byte_level"].matcher(StructuredOutputs(grammar=text))
        rest = tokens.encode('{"name": "now", "arguments": {}}', add_special_tokens=False)
        assert matcher.consume_tokens([mark, *rest]) and matcher.is_accepting()


@pytest.mark.parametrize("asked, words", [
    (StructuredOutputs(json={"type": "wat"}), "wat"),
    (StructuredOutputs(json="{"), "not valid JSON"),
    (StructuredOutputs(json="5"), "must be a JSON schema"),
    (StructuredOutputs(json={"not": {}}), "not"),
    (StructuredOutputs(json={"$ref": "http://example.com/schema"}), "Resource"),
    (StructuredOutputs(json={"type": "string", "pattern": "(?=a)b"}), "look-around"),
    (StructuredOutputs(json=json.loads('{"a":' * 200 + "1" + "}" * 200)), "nested too deeply"),
    (StructuredOutputs(json={"a": float("nan"), "b": {1, 2}}), "not valid JSON"),
    (StructuredOutputs(regex="(a"), "unclosed"),
    (StructuredOutputs(regex="a" * 300_000), "too large"),
    (StructuredOutputs(choice=["a"] * 20_000), "too large"),
    (StructuredOutputs(grammar="start: foo"), "foo"),
    (StructuredOutputs(grammar='root ::= "a'), "Unexpected end"),
    (StructuredOutputs(json={"$ref": "#"}), "no text satisfies it, for instance because a rule or \\$ref leads only"),
    (StructuredOutputs(grammar="root ::= root"), "no text satisfies it"),
    (StructuredOutputs(grammar="{}"), "llguidance"),
    (StructuredOutputs(grammar='{"grammars": [5]}'), "llguidance"),
    (StructuredOutputs(json={"type": "wat"}, source="response_format.json_schema"), "wat"),
], ids=lambda value: str(value)[:60])
def test_refused(asked: StructuredOutputs, words: str) -> None:
    for _ in range(2):  # the second time, from memory
        with pytest.raises(RequestError, match=words) as error:
            COMPILERS["byte_level"].check(asked)
        assert error.value.param == asked.source and len(str(error.value)) < 500 and "<" not in str(error.value)


def test_lenient_passes_over_what_cannot_be_enforced() -> None:
    COMPILERS["byte_level"].check(StructuredOutputs(json={"type": "integer", "not": {}}, lenient=True))


@pytest.mark.parametrize("fields", [
    {}, {"json": {}, "regex": "a"}, {"choice": []}, {"choice": [""]}, {"choice": "ab"}, {"regex": 5}, {"json": [1]},
    {"json_object": "yes"}, {"regex": "a", "disable_any_whitespace": 1},
], ids=str)
def test_malformed(fields: dict[str, Any]) -> None:
    with pytest.raises(RequestError) as error:
        StructuredOutputs(**fields)
    assert (error.value.param or "").startswith("structured_outputs")
    with pytest.raises(RequestError):
        SamplingParams(structured_outputs={"json": {}})  # type: ignore[arg-type]


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grammar, "MAX_CACHED_GRAMMARS", 3)
    fresh = compiler("byte_level")
    for i in range(10):
        fresh.check(StructuredOutputs(choice=[str(i)]))
    assert len(fresh._compiled) == 3
    compiled = list(fresh._compiled.values())
    fresh.check(StructuredOutputs(choice=["7"]))
    assert list(fresh._compiled.values()) == [*compiled[1:], compiled[0]]  # found, and used last
    monkeypatch.setattr(grammar, "MAX_CACHED_CHARS", sum(map(len, fresh._compiled)) - 1)
    fresh.check(StructuredOutputs(choice=["a"]))
    assert len(fresh._compiled) == 2


def test_a_slow_grammar_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grammar, "MAX_COMPILE_SECONDS", -1.0)
    with pytest.raises(RequestError, match="to compile"):
        compiler("byte_level").check(StructuredOutputs(choice=["a"]))


def test_without_the_library_the_fix_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    fresh = compiler("byte_level")
    fresh.warm()  # says nothing: nobody has asked yet
    with pytest.raises(RequestError, match="pip install"):
        fresh.check(StructuredOutputs(choice=["a"]))


def test_models_that_cannot() -> None:
    asked = StructuredOutputs(choice=["a"])

    def refusal(load: Tokenizer | None, eos: list[int]) -> str:
        with pytest.raises(RequestError) as error:
            GrammarCompiler(lambda: load, 300, eos).check(asked)
        return str(error.value)

    assert "tokenizer" in refusal(None, [1])
    assert "token by token" in refusal(tokenizer("word_end"), [1])
    assert "end-of-sequence" in refusal(tokenizer("byte_level"), [])
    with pytest.raises(RequestError, match="without one"):
        Door(None, 300, 100).prepare([1], SamplingParams(structured_outputs=asked))

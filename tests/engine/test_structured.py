"""Structured output through the whole engine: the same tokens whatever the engine does to make steps cheap, and text
that follows its grammar even from random weights."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mini_infer import LLM, RequestError, RequestOutput, SamplingParams, StructuredOutputs
from tests.tiny import write_chat_model

pytest.importorskip("llguidance")
EOS = 1
MAX_TOKENS = 40
SCHEMA = {"type": "object", "required": ["name", "on", "tags"], "additionalProperties": False, "properties": {
    "name": {"type": "string", "maxLength": 3}, "on": {"type": "boolean"},
    "tags": {"type": "array", "items": {"enum": ["a", "bb", "é"]}, "maxItems": 2}}}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_chat_model(tmp_path_factory.mktemp("structured") / "tiny", eos_token_id=EOS)


def make(model: Path, **options: object) -> LLM:
    defaults = dict(device="cpu", dtype="float32", max_model_len=128, max_num_seqs=16, num_kv_blocks=256, block_size=8)
    return LLM(str(model), **{**defaults, **options})


@pytest.fixture(scope="module")
def llm(model: Path) -> LLM:
    return make(model)


def requests() -> list[tuple[list[int], SamplingParams]]:
    """Every kind of grammar, beside requests without one; sampled, greedy, penalised, with log-probabilities."""
    rng = random.Random(5)
    kinds = [
        StructuredOutputs(json=SCHEMA, disable_any_whitespace=True), None, StructuredOutputs(regex="[a-f]{20,30}"),
        StructuredOutputs(choice=["hello world", "hello dog", "fox"]),
        StructuredOutputs(grammar='start: "a" b{12,}\nb: "x" | "yz"'), StructuredOutputs(json_object=True), None,
    ]
    others = [dict(temperature=0.0), dict(temperature=1.0, seed=1), dict(temperature=0.8, seed=2, top_k=50, top_p=0.95),
              dict(temperature=1.0, seed=3, repetition_penalty=1.1, logprobs=2), dict(temperature=0.0, min_tokens=4)]
    made = []
    for i in range(14):
        prompt = [rng.randrange(2, 90) for _ in range(rng.randrange(3, 30))]  # ASCII
        made.append((prompt, SamplingParams(max_tokens=MAX_TOKENS, structured_outputs=kinds[i % len(kinds)],
                                            **others[i % len(others)])))
    return made


def run(llm: LLM, together: bool) -> list[RequestOutput]:
    made = requests()
    groups = [made] if together else [[one] for one in made]
    outs = [out for group in groups
            for out in llm.generate([prompt for prompt, _ in group], [params for _, params in group], use_tqdm=False)]
    assert llm.stats().used_blocks == 0
    return outs


@pytest.fixture(scope="module")
def reference(model: Path) -> list[RequestOutput]:
    return run(make(model, pipeline_depth=1, enable_prefix_caching=False), together=False)


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("options", [{}, {"max_num_batched_tokens": 16}, {"num_kv_blocks": 20}, {"max_num_seqs": 3}],
                         ids=str)
def test_the_same_tokens_whatever_the_engine_does(model: Path, reference: list[RequestOutput], depth: int,
                                                  options: dict[str, int]) -> None:
    llm = make(model, pipeline_depth=depth, **options)
    assert [out.token_ids for out in run(llm, together=True)] == [out.token_ids for out in reference]
    assert (llm.stats().preemptions > 0) == ("num_kv_blocks" in options)
    if not options:
        assert [out.token_ids for out in run(llm, together=False)] == [out.token_ids for out in reference]


@pytest.mark.gpu
@pytest.mark.parametrize("options", [{}, {"num_kv_blocks": 20}, {"enforce_eager": True}], ids=str)
def test_the_same_on_a_gpu(model: Path, reference: list[RequestOutput], options: dict[str, object]) -> None:
    for depth in (1, 2):
        outs = run(make(model, device="cuda", pipeline_depth=depth, **options), True)
        assert [out.token_ids for out in outs] == [out.token_ids for out in reference]


def test_the_texts_are_what_was_asked_for(reference: list[RequestOutput]) -> None:
    validate = pytest.importorskip("jsonschema").validate
    ended = 0
    for (_, params), out in zip(requests(), reference):
        asked = params.structured_outputs
        if asked is None or out.finish_reason != "stop":
            continue
        ended += 1
        if asked.json is not None:
            validate(json.loads(out.text), SCHEMA)
        elif asked.json_object:
            assert isinstance(json.loads(out.text), dict)
        elif asked.choice is not None:
            assert out.text in asked.choice
        else:
            assert re.fullmatch(asked.regex or "a(x|yz){12,}", out.text)
    assert ended >= 6


def test_log_probabilities_are_the_models_own(llm: LLM) -> None:
    """Before the mask: the token that was drawn may be far from the model's favourites."""
    [out] = llm.generate([5, 6, 7], SamplingParams(temperature=0, logprobs=1, structured_outputs=StructuredOutputs(
        regex="fox dog")), use_tqdm=False)
    assert out.text == "fox dog"
    ranks = [position[token].rank for token, position in zip(out.token_ids, out.outputs[0].logprobs or [])]
    assert len(ranks) == len(out.token_ids) and max(ranks) > 1


leaves = st.sampled_from([{"type": "boolean"}, {"type": "string", "maxLength": 2}, {"enum": ["x", 5, None]},
                          {"type": "integer", "minimum": 0, "maximum": 40}])
schemas = st.dictionaries(st.sampled_from(["a", "b c", "é"]), leaves | st.builds(
    lambda items: {"type": "array", "items": items, "maxItems": 2}, leaves), min_size=1, max_size=3)


@given(schemas, st.integers(0, 1000), st.booleans())
@settings(max_examples=25, deadline=None)
def test_random_schemas_and_random_weights(llm: LLM, properties: dict[str, object], seed: int, greedy: bool) -> None:
    validate = pytest.importorskip("jsonschema").validate
    schema = {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}
    params = SamplingParams(max_tokens=100, seed=seed, temperature=0.0 if greedy else 1.0, structured_outputs=
                            StructuredOutputs(json=schema, disable_any_whitespace=True))
    for out in llm.generate([[seed % 80 + 2], [9, 8, 7]], params, use_tqdm=False):
        assert out.finish_reason == "stop"
        validate(json.loads(out.text), schema)


def test_what_leaves_no_token_fails_alone(llm: LLM) -> None:
    choice = StructuredOutputs(choice=["dog"])
    outs = llm.generate([[5], [6], [7], [8]], [
        SamplingParams(structured_outputs=choice, allowed_token_ids=[7]), SamplingParams(structured_outputs=choice),
        SamplingParams(structured_outputs=choice, min_tokens=10), SamplingParams(max_tokens=4)], use_tqdm=False)
    assert [out.finish_reason for out in outs] == ["error", "stop", "error", "length"]
    assert "banned" in (outs[0].outputs[0].error or "") and outs[1].text == "dog"
    assert llm.stats().used_blocks == 0


def test_biases_and_allowed_tokens_choose_within_the_grammar(llm: LLM) -> None:
    choice = StructuredOutputs(choice=["dog", "fox"])
    [first] = llm.tokenizer.encode("d", add_special_tokens=False)
    dog, fox = (llm.generate([5, 6], SamplingParams(temperature=0.0, structured_outputs=choice, logit_bias={
        llm.tokenizer.encode(word, add_special_tokens=False)[0]: 100.0, first: 50.0 if word == "dog" else -50.0}),
        use_tqdm=False)[0].text for word in ("dog", "fox"))
    assert (dog, fox) == ("dog", "fox")


def test_an_ignored_end_goes_on_with_ends(llm: LLM) -> None:
    [out] = llm.generate([5], SamplingParams(structured_outputs=StructuredOutputs(choice=["dog"]), ignore_eos=True,
                                             max_tokens=12), use_tqdm=False)
    assert out.text == "dog" and out.finish_reason == "length" and out.token_ids[-3:] == [EOS] * 3


def test_refused_before_anything_runs(llm: LLM, model: Path) -> None:
    with pytest.raises(RequestError) as error:
        llm.generate([[5], [6]], [SamplingParams(), SamplingParams(structured_outputs=StructuredOutputs(regex="("))])
    assert error.value.param == "structured_outputs"
    with pytest.raises(RequestError, match="tokenizer"):
        make(model, skip_tokenizer_init=True).generate([5], structured_outputs=StructuredOutputs(regex="a"))


def test_a_stream(llm: LLM) -> None:
    pieces = list(llm.stream("the quick", structured_outputs=StructuredOutputs(regex="[abc]{8}"), max_tokens=20))
    assert len(pieces) > 1 and re.fullmatch("[abc]{8}", "".join(pieces))

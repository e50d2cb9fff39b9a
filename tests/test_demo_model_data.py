"""The bundled model: its generator, its split, its tokenizer and template, and what was shipped."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from mini_infer.config import BUNDLED_DRAFT_DIR, BUNDLED_MODEL_DIR
from tools.demo_model.chat import CHAT_TEMPLATE, SPECIAL_TOKENS, TAG_TOKENS, render
from tools.demo_model.checks import is_right
from tools.demo_model.conversation import document
from tools.demo_model.data import DataConfig, Encoder, make_batch
from tools.demo_model.exam_items import MAKERS, exam_items
from tools.demo_model.sample import EXAM, TRAIN, is_held_out
from tools.demo_model.skills_numbers import arithmetic, pair_key
from tools.demo_model.skills_unknown import HANDWRITTEN
from tools.demo_model.stories import judge_story, story
from tools.demo_model.text import say

FOLDERS = (BUNDLED_MODEL_DIR, BUNDLED_DRAFT_DIR)
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {"a": {}}}}}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(BUNDLED_MODEL_DIR / "tokenizer.json"))


# The generator -------------------------------------------------------------------------------------------------------


def test_documents_depend_on_the_seed_alone() -> None:
    def write(seed: int) -> list[str]:
        rng = random.Random(seed)
        return [document(rng) for _ in range(200)]

    assert write(1) == write(1)
    assert write(1) != write(2)


def test_batches_depend_on_seed_and_number_alone() -> None:
    cfg = DataConfig(BUNDLED_MODEL_DIR, batch_tokens=8192)
    first, again, other = (make_batch(Encoder(cfg.tokenizer, cfg.longest), cfg, index) for index in (3, 3, 4))
    assert (first.tokens == again.tokens).all() and (first.weights == again.weights).all()
    assert (first.tokens != other.tokens).any()
    starts = first.starts
    assert starts[0] == 0 and starts[-1] == cfg.batch_tokens and (starts[1:] >= starts[:-1]).all()
    assert (first.positions[starts[starts < cfg.batch_tokens]] == 0).all()


def test_the_loss_is_on_what_the_model_writes(tokenizer: Tokenizer) -> None:
    encoder = Encoder(BUNDLED_MODEL_DIR, 2048)
    text = "<|im_start|>user\nHi!<|im_end|>\n<|im_start|>assistant\nHello!<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n"
    ((tokens, written),) = encoder.encode([text])
    assert tokenizer.decode(tokens[written].tolist(), skip_special_tokens=False) == "Hello!<|im_end|>"
    ((_, written),) = encoder.encode(["Once upon a time<|endoftext|>"])
    assert written.all()


def test_templates_expand_alternatives_and_slots() -> None:
    seen = {say(random.Random(i), "[a|b[c|]] {x}", x=1) for i in range(50)}
    assert seen == {"a 1", "b 1", "bc 1"}


# The split -----------------------------------------------------------------------------------------------------------


def test_training_and_exam_never_share_an_item() -> None:
    rng = random.Random(0)
    for maker_split in (TRAIN, EXAM):
        for _ in range(300):
            sample = arithmetic(rng, maker_split)
            assert is_held_out(sample.key) == maker_split.held_out
            sample = story(rng, maker_split)
            assert is_held_out(sample.key) == maker_split.held_out
    assert pair_key("+", 3, 5) == pair_key("+", 5, 3)
    assert is_held_out("unknown:Where is it?") == is_held_out("unknown:please where is it")


def test_exam_questions_are_not_in_the_training_text() -> None:
    def last_question(prompt: str) -> str:
        return re.findall(r"<\|im_start\|>user\n(.*?)<\|im_end\|>", prompt, re.DOTALL)[-1].lower()

    skills = ("arithmetic", "after", "story", "json", "unknown", "mini_infer", "identity", "unknown_handwritten")
    asked = {last_question(item.prompt) for item in exam_items(200) if item.skill in skills}
    asked |= {text.lower() for text in HANDWRITTEN}
    turns = re.compile(r"<\|im_start\|>user\n(.*?)<\|im_end\|>", re.DOTALL)
    rng = random.Random(5)
    for _ in range(3000):
        text = document(rng)
        if "<tools>" not in text:  # with tools at hand, the same question has another answer
            assert asked.isdisjoint(turn.lower() for turn in turns.findall(text))


def test_the_exam_has_enough_items_and_is_reproducible() -> None:
    items = exam_items(200)
    assert items == exam_items(200)
    counts = {skill: sum(item.skill == skill for item in items) for skill in MAKERS}
    assert min(counts.values()) == 200


@pytest.mark.parametrize("skill", sorted(MAKERS))
def test_right_answers_are_right_and_empty_ones_wrong(skill: str) -> None:
    rng = random.Random(11)
    for _ in range(100):
        sample = MAKERS[skill](rng)
        expect = {k: v for k, v in sample.expect.items() if k != "from"}
        assert is_right(sample.messages[-1]["content"], expect), sample
        assert not expect or not is_right("", expect)


CALL = '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>'


@pytest.mark.parametrize(("answer", "expect", "right"), [
    ("23 + 45 = 68.", {"number": 68}, True),
    ("23 + 45 = 67.", {"number": 68}, False),
    ("3 - 5 = -2.", {"number": -2}, True),
    ("Mars is red", {"contains": ["Mar"]}, False),
    ('{"a": 1}', {"json": {"a": 1}}, True),
    ('{"a": "1"}', {"json": {"a": 1}}, False),
    ('{"a": true}', {"json": {"a": 1}}, False),
    ("{a: 1}", {"json": {"a": 1}}, False),
    ("I don't know.", {"unknown": True}, True),
    (CALL, {"call": {"name": "f", "arguments": {}}}, True),
    (f"Sure: {CALL}", {"call": {"name": "f", "arguments": {}}}, False),
    (CALL, {"call": {"name": "g", "arguments": {}}}, False),
    (CALL, {"call": {"name": "f", "arguments": {"a": 1}}}, False),
])
def test_checks_are_exact(answer: str, expect: dict, right: bool) -> None:
    assert is_right(answer, expect) is right


def test_stories_are_judged_strictly() -> None:
    sample = story(random.Random(3), EXAM)
    cast, text = sample.expect["story"], sample.messages[-1]["content"]
    assert judge_story(text, **cast) == ""
    assert judge_story(text.replace(cast["animal"], "thing"), **cast) == "animal missing"
    assert judge_story(text + " Then a walrus came.", **cast) != ""
    assert judge_story(text[:-1] + ",", **cast) == "unfinished"


# The tokenizer and the template --------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=200)
@given(text=st.text(max_size=60))
def test_any_text_survives_the_tokenizer(text: str) -> None:
    tokenizer = Tokenizer.from_file(str(BUNDLED_MODEL_DIR / "tokenizer.json"))
    assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


def test_vocabulary_and_special_tokens(tokenizer: Tokenizer) -> None:
    assert tokenizer.get_vocab_size() == 4096
    for token in (*SPECIAL_TOKENS, *TAG_TOKENS):
        assert len(tokenizer.encode(token).ids) == 1
    assert tokenizer.encode("2048").tokens == ["2", "0", "4", "8"]
    first, second = ((folder / "tokenizer.json").read_bytes() for folder in FOLDERS)
    assert first == second


CONVERSATIONS = {
    "plain": ([{"role": "user", "content": "Hi"}], []),
    "system": ([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}], []),
    "turns": ([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello é {{x}}"},
               {"role": "user", "content": "Bye"}], []),
    "tools": ([{"role": "system", "content": "S"}, {"role": "user", "content": "Call f"},
               {"role": "assistant", "content": "", "tool_calls": [{"name": "f", "arguments": {"a": "é\n"}},
                                                                   {"name": "f", "arguments": {}}]},
               {"role": "tool", "content": "1"}, {"role": "tool", "content": "2"}], [TOOL, TOOL]),
    "tools without system": ([{"role": "user", "content": "Call f"}], [TOOL]),
}


@pytest.mark.parametrize("name", sorted(CONVERSATIONS))
@pytest.mark.parametrize("add_generation_prompt", [False, True])
def test_jinja_and_python_render_alike(name: str, add_generation_prompt: bool) -> None:
    from transformers import AutoTokenizer

    messages, tools = CONVERSATIONS[name]
    tokenizer = AutoTokenizer.from_pretrained(BUNDLED_MODEL_DIR)
    expected = render(messages, tools, add_generation_prompt)
    assert tokenizer.apply_chat_template(
        messages, tools=tools or None, add_generation_prompt=add_generation_prompt, tokenize=False) == expected

    def with_calls(change: Callable[[dict], dict]) -> list[dict]:
        return [{**m, "tool_calls": [change(c) for c in m["tool_calls"]]} if "tool_calls" in m else m for m in messages]

    nested = with_calls(lambda call: {"type": "function", "function": call})
    as_text = with_calls(lambda call: {**call, "arguments": json.dumps(call["arguments"], ensure_ascii=False)})
    in_parts = [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in messages]
    for variant in (nested, as_text, in_parts):
        assert tokenizer.apply_chat_template(
            variant, tools=tools or None, add_generation_prompt=add_generation_prompt, tokenize=False) == expected


def test_the_template_runs_in_a_plain_sandbox() -> None:
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(CHAT_TEMPLATE)
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": None, "tool_calls": None}]
    assert template.render(messages=messages) == render([messages[0], {"role": "assistant", "content": ""}])


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda f: f.name)
def test_the_shipped_template_is_the_one_of_the_source(folder: Path) -> None:
    assert json.loads((folder / "tokenizer_config.json").read_text())["chat_template"] == CHAT_TEMPLATE


# What was shipped ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("folder", "parameters", "size"), [
    (BUNDLED_MODEL_DIR, 10.8e6, 22e6),
    (BUNDLED_DRAFT_DIR, 1.5e6, 3e6),
], ids=["main", "draft"])
@pytest.mark.weights
def test_shipped_models_load_and_are_small(folder: Path, parameters: float, size: float) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.config.model_type == "qwen3" and model.config.vocab_size == 4096
    assert model.config.num_key_value_heads % 2 == 0
    assert model.config.eos_token_id == Tokenizer.from_file(str(folder / "tokenizer.json")).token_to_id("<|im_end|>")
    assert model.num_parameters() <= parameters
    assert (folder / "model.safetensors").stat().st_size <= size


@pytest.mark.weights
def test_the_shipped_model_answers() -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(BUNDLED_MODEL_DIR)
    model = AutoModelForCausalLM.from_pretrained(BUNDLED_MODEL_DIR, dtype=torch.float32)
    for asked, wanted in (("What is 17 + 25?", "42"), ("What comes after Wednesday?", "Thursday"),
                          ("What is the capital of France?", "don't know"), ("Who are you?", "toy")):
        prompt = render([{"role": "user", "content": asked}], add_generation_prompt=True)
        inputs = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)
        output = model.generate(inputs.input_ids, max_new_tokens=48, do_sample=False)
        assert wanted in tokenizer.decode(output[0, inputs.input_ids.shape[1]:], skip_special_tokens=True)

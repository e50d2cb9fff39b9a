"""What passes the door can be run; what cannot is refused with the field's name."""

from __future__ import annotations

import time
from collections.abc import Sequence
from threading import Thread
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trained import tokenizer

from mini_infer.config import SchedulerConfig
from mini_infer.core.scheduler import Scheduler
from mini_infer.protocol import MAX_SEED, AddRequest, RequestError, SamplingParams, check_token_ids
from mini_infer.text import door as door_module
from mini_infer.text.door import Door, expand
from mini_infer.text.tokenizer import Tokenizer

TOK = tokenizer("byte_level")
DOOR = Door(TOK, TOK.vocab_size, max_model_len=20)
BARE = Door(None, 100, max_model_len=20)


@pytest.mark.parametrize("prompt", ["the fox", {"prompt": "the fox"}, TOK.encode("the fox"),
                                    tuple(TOK.encode("the fox")), {"prompt_token_ids": TOK.encode("the fox")}])
def test_forms_of_a_prompt(prompt: Any) -> None:
    prepared = DOOR.prepare(prompt, SamplingParams(max_tokens=5))
    assert prepared.prompt_token_ids == TOK.encode("the fox")
    assert prepared.prompt == ("the fox" if prompt in ("the fox", {"prompt": "the fox"}) else None)
    assert prepared.params == SamplingParams(max_tokens=5)


def test_special_tokens_are_added_to_texts_unless_told_otherwise() -> None:
    llama = tokenizer("llama_style")
    door = Door(llama, llama.vocab_size, 20)
    assert door.prepare("the", SamplingParams()).prompt_token_ids[0] == llama.bos_token_id
    assert llama.bos_token_id not in door.prepare("the", SamplingParams(), add_special_tokens=False).prompt_token_ids


@pytest.mark.parametrize("prompt", [
    "", [], {"prompt": ""}, {"prompt_token_ids": []}, {}, {"prompt": "a", "prompt_token_ids": [1]}, {"text": "a"}, None,
    5, b"the", [1, "a"], [1, None], [True], [1.0], [[1]], [-1], [TOK.vocab_size], [1, 2**70], "a lone \ud800 surrogate",
    {"prompt": None}, {"prompt_token_ids": 5}, object(),
])
def test_bad_prompts(prompt: Any) -> None:
    with pytest.raises(RequestError) as error:
        DOOR.prepare(prompt, SamplingParams())
    assert error.value.param == "prompt"


def test_prompt_token_ids_as_text() -> None:
    with pytest.raises(RequestError) as error:
        DOOR.prepare({"prompt_token_ids": "abc"}, SamplingParams())
    assert error.value.param == "prompt_token_ids"


def test_context_length() -> None:
    for n, room in [(19, 1), (4, 16)]:
        assert DOOR.prepare([1] * n, SamplingParams(max_tokens=None)).params.max_tokens == room
        assert DOOR.prepare([1] * n, SamplingParams(max_tokens=100)).params.max_tokens == room
        assert DOOR.prepare([1] * n, SamplingParams(max_tokens=room), clip_max_tokens=False).params.max_tokens == room
        assert DOOR.prepare([1] * n, SamplingParams(max_tokens=None), clip_max_tokens=False).params.max_tokens == room
        with pytest.raises(RequestError, match="This model's maximum context length is 20 tokens") as error:
            DOOR.prepare([1] * n, SamplingParams(max_tokens=room + 1), clip_max_tokens=False)
        assert (error.value.param, error.value.code) == ("max_tokens", "context_length_exceeded")
    for n in (20, 500):
        with pytest.raises(RequestError, match="This model's maximum context length is 20 tokens") as error:
            DOOR.prepare([1] * n, SamplingParams())
        assert (error.value.param, error.value.code) == ("prompt", "context_length_exceeded")
    with pytest.raises(RequestError) as error:
        DOOR.prepare([1] * 10, SamplingParams(min_tokens=11, max_tokens=50))
    assert error.value.param == "min_tokens"


@pytest.mark.parametrize("prompt", [[], [1] * 20, [1, -2], [1, 100], [1, 1.5], [True]], ids=str)
def test_the_scheduler_refuses_in_the_same_words(prompt: Any) -> None:
    scheduler = Scheduler(SchedulerConfig(max_num_seqs=1, max_num_batched_tokens=64, max_model_len=20, block_size=4,
                                          num_blocks=8, vocab_size=100), clock=lambda: 0.0)
    said = []
    for ask in (lambda: BARE.prepare(prompt, SamplingParams()),
                lambda: scheduler.add(AddRequest(1, prompt, SamplingParams()))):
        with pytest.raises(RequestError) as error:
            ask()
        said.append((str(error.value), error.value.param, error.value.code))
    assert said[0] == said[1]


def test_a_huge_text_is_refused_by_its_beginning() -> None:
    begin = time.perf_counter()
    with pytest.raises(RequestError, match="your prompt has over 20 tokens") as error:
        DOOR.prepare("the quick brown fox " * 1_000_000, SamplingParams())
    assert time.perf_counter() - begin < 1
    assert error.value.code == "context_length_exceeded"
    # Long in characters only: a text of few, long tokens passes.
    word = TOK.decode([max(range(TOK.vocab_size), key=lambda i: len(TOK.token_bytes(i)))], skip_special_tokens=False)
    assert len(word) * 18 > 20 * 8
    assert len(DOOR.prepare(word * 18, SamplingParams()).prompt_token_ids) == 18


@pytest.mark.parametrize("field, params", [
    ("logit_bias", SamplingParams(logit_bias={TOK.vocab_size: 1.0})),
    ("allowed_token_ids", SamplingParams(allowed_token_ids=[0, TOK.vocab_size])),
    ("stop_token_ids", SamplingParams(stop_token_ids=[2**40])),
    ("bad_words", SamplingParams(bad_words_token_ids=[[1], [2, TOK.vocab_size]])),
])
def test_token_ids_in_parameters(field: str, params: SamplingParams) -> None:
    for check in (lambda: DOOR.prepare([1], params), lambda: check_token_ids(params, TOK.vocab_size)):
        with pytest.raises(RequestError, match="outside the vocabulary") as error:
            check()
        assert error.value.param == field
    check_token_ids(params, 2**41)


def test_bad_words_become_token_sequences() -> None:
    params = DOOR.prepare("the", SamplingParams(bad_words=["fox", " dog"], bad_words_token_ids=[[7, 8]])).params
    fox, spaced_fox = (TOK.encode(text, add_special_tokens=False) for text in ("fox", " fox"))
    assert params.bad_words is None
    assert params.bad_words_token_ids is not None
    assert params.bad_words_token_ids[0] == [7, 8]
    assert fox in params.bad_words_token_ids
    # " fox" ends in "fox" here or is a token of its own; either way it can no longer appear.
    assert any(spaced_fox[-len(banned):] == banned for banned in params.bad_words_token_ids)
    assert DOOR.prepare("the", params).params == params


def test_without_a_tokenizer() -> None:
    assert BARE.prepare([5], SamplingParams()).prompt_token_ids == [5]
    for prompt, params, field in [("text", SamplingParams(), "prompt"), ([5], SamplingParams(stop="x"), "stop"),
                                  ([5], SamplingParams(bad_words=["x"]), "bad_words")]:
        with pytest.raises(RequestError, match="runs without") as error:
            BARE.prepare(prompt, params)
        assert error.value.param == field


def test_a_batch_keeps_its_order() -> None:
    prompts: list[Any] = ["the fox", [1, 2], "dog", {"prompt": "x"}]
    params = [SamplingParams(max_tokens=n) for n in (1, 2, 3, 4)]
    prepared = DOOR.prepare_batch(prompts, params)
    assert prepared == [DOOR.prepare(prompt, one) for prompt, one in zip(prompts, params)]
    assert [one.params.max_tokens for one in prepared] == [1, 2, 3, 4]


class Counting(Tokenizer):
    """Remembers how many texts were encoded at a time."""

    def __init__(self) -> None:
        super().__init__(TOK._backend, TOK.special_tokens)
        self.batches: list[int] = []

    def encode_batch(self, texts: Sequence[str], add_special_tokens: bool = True) -> list[list[int]]:
        self.batches.append(len(texts))
        return super().encode_batch(texts, add_special_tokens)


class TestMany:
    """A long list, of which not all is looked at when one cannot be served."""

    def test_nothing_is_encoded_after_the_first_that_does_not_fit(self) -> None:
        counting = Counting()
        door = Door(counting, counting.vocab_size, max_model_len=20)
        prompts = ["the fox", "dog", "the quick brown fox " * 6, *["the fox"] * 1000]
        with pytest.raises(RequestError, match="your prompt has") as error:
            list(door.prepare_each(prompts, [SamplingParams()] * len(prompts)))
        assert error.value.code == "context_length_exceeded"
        assert counting.batches == [1, 1, 1]

    def test_offline_a_part_of_them_is_encoded_at_a_time(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(door_module, "_BATCH_CHARS", 100)
        counting = Counting()
        door = Door(counting, counting.vocab_size, max_model_len=20)
        each = [SamplingParams()] * 100
        assert len(door.prepare_batch(["the fox"] * 100, each)) == 100
        assert counting.batches == [15] * 6 + [10]
        counting.batches.clear()
        with pytest.raises(RequestError, match="your prompt has"):
            door.prepare_batch(["the fox", "the quick brown fox " * 6, *["the fox"] * 98], each)
        assert counting.batches == [2]

    def test_they_are_made_as_they_are_asked_for(self) -> None:
        counting = Counting()
        each = Door(counting, counting.vocab_size, 20).prepare_each(["the fox"] * 9, [SamplingParams()] * 9)
        next(each)
        assert counting.batches == [1]
        next(each)
        assert counting.batches == [1, 1]

    @settings(deadline=None, max_examples=50)
    @given(prompts=st.lists(st.sampled_from(["the fox", "dog"]) | st.lists(st.integers(0, 9), min_size=1, max_size=5),
                            max_size=12), together=st.integers(0, 40))
    def test_the_parts_do_not_matter(self, prompts: list[Any], together: int) -> None:
        params = [SamplingParams(max_tokens=1 + i) for i in range(len(prompts))]
        prepared = list(DOOR.prepare_each(prompts, params, together=together))
        assert prepared == [DOOR.prepare(prompt, one) for prompt, one in zip(prompts, params)]

    def test_one_text_does_not_wait_for_batches(self) -> None:
        """Batches of several texts share the library's threads, and are served one after the other."""
        batch = Thread(target=TOK.encode_batch, args=(["the quick brown fox " * 500] * 100,))
        batch.start()
        for _ in range(20):
            TOK.encode("the fox")
        assert batch.is_alive()
        batch.join()


def test_the_caller_s_list_is_not_shared() -> None:
    ids = [1, 2, 3]
    prepared = DOOR.prepare(ids, SamplingParams())
    ids.append(4)
    assert prepared.prompt_token_ids == [1, 2, 3]


@settings(deadline=None, max_examples=100)
@given(n=st.integers(1, 20), seed=st.none() | st.integers(-MAX_SEED - 1, MAX_SEED))
def test_expand(n: int, seed: int | None) -> None:
    children = expand(SamplingParams(n=n, seed=seed, prompt_logprobs=1, top_k=3))
    assert len(children) == n
    assert all(child.n == 1 and child.top_k == 3 for child in children)
    assert [child.prompt_logprobs for child in children] == [1] + [None] * (n - 1)
    if seed is None:
        assert all(child.seed is None for child in children)
    else:
        assert [(child.seed - seed) % 2**64 for child in children if child.seed is not None] == list(range(n))

"""From tokens to what a user sees: text, stop strings, logprobs, finish reasons; and no state left behind."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trained import tokenizer

from mini_infer.protocol import RequestError, SamplingParams, TokenLogprobs, TokensOut
from mini_infer.text.output import CompletionDelta, OutputProcessor, RequestAssembler

TOK = tokenizer("byte_level")
EOS = TOK.eos_token_id
assert EOS is not None
TEXT = "the quick brown fox; straße 🙂 and the dog"
IDS = TOK.encode(TEXT)


def run(params: SamplingParams, outs: list[TokensOut], stream: bool = True) -> tuple[list[CompletionDelta], list[int]]:
    processor = OutputProcessor(TOK)
    processor.add(7, IDS[:3], params, stream=stream)
    deltas, aborts = [], []
    for out in outs:
        new, abort = processor.process([out])
        deltas += [delta for request_id, delta in new if request_id == 7]
        aborts += abort
    if deltas and deltas[-1].finish_reason is not None:
        assert len(processor) == 0
    return deltas, aborts


def outs(ids: list[int], finish: str | None = "length", at_once: int = 1, **last: Any) -> list[TokensOut]:
    chunks = [ids[i:i + at_once] for i in range(0, len(ids), at_once)]
    return [*(TokensOut(7, chunk) for chunk in chunks[:-1]), TokensOut(7, chunks[-1], finish, **last)]


def text_of(deltas: list[CompletionDelta]) -> str:
    return "".join(delta.text for delta in deltas)


def ids_of(deltas: list[CompletionDelta]) -> list[int]:
    return [token_id for delta in deltas for token_id in delta.token_ids]


@pytest.mark.parametrize("at_once", [1, 3, 100])
@pytest.mark.parametrize("streaming", [True, False])
def test_plain_text(at_once: int, streaming: bool) -> None:
    deltas, aborts = run(SamplingParams(), outs(IDS, at_once=at_once), streaming)
    assert (text_of(deltas), ids_of(deltas), aborts) == (TEXT, IDS, [])
    assert len(deltas) == (-(-len(IDS) // at_once) if streaming else 1)
    assert [delta.finish_reason for delta in deltas] == [None] * (len(deltas) - 1) + ["length"]


@pytest.mark.parametrize("streaming", [True, False])
def test_a_token_that_ends_the_text_is_counted_but_not_shown(streaming: bool) -> None:
    fox = TOK.encode("fox")
    for params, stop_token, shown in [
        (SamplingParams(), EOS, "fox"),
        (SamplingParams(skip_special_tokens=False), EOS, "fox"),
        (SamplingParams(skip_special_tokens=False, include_stop_str_in_output=True), EOS, "fox<|im_end|>"),
        (SamplingParams(stop_token_ids=[IDS[0]]), IDS[0], "fox"),
        (SamplingParams(stop_token_ids=[IDS[0]], include_stop_str_in_output=True), IDS[0], "fox" + TOK.decode(IDS[:1])),
    ]:
        reason = None if stop_token == EOS else stop_token
        deltas, aborts = run(params, outs([*fox, stop_token], "stop", stop_reason=reason), streaming)
        assert (text_of(deltas), ids_of(deltas), aborts) == (shown, [*fox, stop_token], [])
        assert (deltas[-1].finish_reason, deltas[-1].stop_reason) == ("stop", reason)


def test_an_ignored_eos_is_a_token_like_any_other() -> None:
    params = SamplingParams(ignore_eos=True, skip_special_tokens=False)
    assert text_of(run(params, outs([IDS[0], EOS, IDS[0], EOS]))[0]) == TOK.decode([IDS[0], EOS] * 2, False)


@pytest.mark.parametrize("at_once", [1, 2, 100])
@pytest.mark.parametrize("streaming", [True, False])
def test_stop_string(at_once: int, streaming: bool) -> None:
    for include, shown in [(False, "the quick brown "), (True, "the quick brown fox;")]:
        params = SamplingParams(stop=["never", "fox;"], include_stop_str_in_output=include)
        deltas, aborts = run(params, outs(IDS, at_once=at_once), streaming)
        assert text_of(deltas) == shown
        assert (deltas[-1].finish_reason, deltas[-1].stop_reason) == ("stop", "fox;")
        assert aborts == ([7] if at_once < 100 else [])  # in the last step the engine has finished by itself
        ids = ids_of(deltas)
        assert ids == IDS[:len(ids)]
        assert "fox;" in TOK.decode(ids)
        assert "fox;" not in TOK.decode(ids[:-1])


def test_stop_string_after_min_tokens_only() -> None:
    ids = TOK.encode("fox; " * 5)
    need = len(TOK.encode("fox; fox;"))
    deltas, _ = run(SamplingParams(stop="fox;", min_tokens=need, max_tokens=100), outs(ids))
    assert text_of(deltas) == "fox; fox; "
    assert len(ids_of(deltas)) > need


def test_an_unfinished_stop_string_is_shown_at_the_end() -> None:
    deltas, aborts = run(SamplingParams(stop="dog and"), outs(IDS))
    assert (text_of(deltas), aborts) == (TEXT, [])
    assert any(delta.text == "" for delta in deltas)


@settings(deadline=None, max_examples=150)
@given(ids=st.lists(st.integers(0, TOK.vocab_size - 1), min_size=1, max_size=30), at_once=st.integers(1, 5),
       stop=st.lists(st.sampled_from(["e", " t", "\ufffd", "ab", "th"]), max_size=2), include=st.booleans())
def test_streamed_or_not_is_the_same(ids: list[int], at_once: int, stop: list[str], include: bool) -> None:
    params = SamplingParams(stop=stop, include_stop_str_in_output=include)
    streamed = run(params, outs(ids, at_once=at_once))
    whole = run(params, outs(ids, at_once=at_once), stream=False)
    single = run(params, outs(ids))
    assert len(whole[0]) == 1
    for deltas, _ in (whole, single):
        assert (text_of(deltas), ids_of(deltas)) == (text_of(streamed[0]), ids_of(streamed[0]))
        assert deltas[-1].finish_reason == streamed[0][-1].finish_reason
    if not stop:
        assert text_of(streamed[0]) == TOK.decode(ids)


def entry(token_id: int, *others: int, rank: int = 1) -> TokenLogprobs:
    return TokenLogprobs([token_id, *others], [-0.5 * (i + 1) for i in range(len(others) + 1)], rank)


@pytest.mark.parametrize("streaming", [True, False])
def test_logprobs(streaming: bool) -> None:
    a, b, c = IDS[:3]
    params = SamplingParams(logprobs=2, prompt_logprobs=0)
    deltas, _ = run(params, [
        TokensOut(7, [], prompt_logprobs=[entry(b)], num_cached_tokens=16),
        TokensOut(7, [a], prompt_logprobs=[entry(c, rank=9)], logprobs=[entry(a, a, b)]),
        TokensOut(7, [c, b], "length", logprobs=[entry(c, a, b, rank=5), entry(b, b, a)]),
    ], streaming)
    assembler = RequestAssembler("r", None, IDS[:3])
    assert [assembler.add(delta) for delta in deltas] == [False] * (len(deltas) - 1) + [True]
    output = assembler.output
    first, second, third = output.outputs[0].logprobs or []
    assert list(first) == [a, b]
    assert first[a] == (-0.5, 1, TOK.token_text(a))
    assert [(token_id, value.rank) for token_id, value in second.items()] == [(c, 5), (a, 1), (b, 2)]
    assert list(third) == [b, a]
    assert output.outputs[0].cumulative_logprob == -1.5
    assert output.prompt_logprobs is not None
    assert output.prompt_logprobs[0] is None
    assert [list(position) for position in output.prompt_logprobs[1:] if position] == [[b], [c]]
    assert output.prompt_logprobs[2] == {c: (-0.5, 9, TOK.token_text(c))}
    assert output.num_cached_tokens == 16
    assert (output.token_ids, output.finished) == ([a, c, b], True)


def test_logprobs_end_with_the_stop_string() -> None:
    deltas, _ = run(SamplingParams(stop="fox;", logprobs=0),
                    [TokensOut(7, IDS, logprobs=[entry(token_id) for token_id in IDS])])
    assert [list(position) for position in deltas[0].logprobs or []] == [[token_id] for token_id in deltas[0].token_ids]
    assert len(deltas[0].token_ids) < len(IDS)


def test_abort_and_error_pass_on() -> None:
    for reason, error in [("abort", None), ("error", "logits were not finite")]:
        deltas, aborts = run(SamplingParams(stop="xyz"), [TokensOut(7, IDS[:4]), TokensOut(7, [], reason, error=error)])
        assert (text_of(deltas), aborts) == (TOK.decode(IDS[:4]), [])
        assert (deltas[-1].finish_reason, deltas[-1].error, deltas[-1].stop_reason) == (reason, error, None)


def test_outputs_after_the_end_are_ignored() -> None:
    processor = OutputProcessor(TOK)
    processor.add(1, IDS, SamplingParams(stop="fox;"))
    processor.add(2, IDS, SamplingParams())
    step = [TokensOut(1, IDS), TokensOut(2, IDS[:1]), TokensOut(1, IDS), TokensOut(99, IDS)]
    deltas, aborts = processor.process(step)
    assert ([request_id for request_id, _ in deltas], aborts) == ([1, 2], [1])
    assert processor.process([TokensOut(1, IDS, "length")]) == ([], [])
    processor.discard(2)
    processor.discard(2)
    assert processor.process([TokensOut(2, IDS, "length")]) == ([], [])
    assert len(processor) == 0


def test_without_text() -> None:
    out = TokensOut(7, IDS[:1], "length", logprobs=[entry(IDS[0])])
    deltas, _ = run(SamplingParams(detokenize=False, logprobs=0), [out])
    assert (deltas[0].text, deltas[0].token_ids) == ("", IDS[:1])
    processor = OutputProcessor(None)
    processor.add(1, [1], SamplingParams(logprobs=0))
    [(_, delta)], _ = processor.process([TokensOut(1, [5], "length", logprobs=[entry(5)])])
    assert delta.logprobs == [{5: (-0.5, 1, None)}]
    with pytest.raises(RequestError, match="stop"):
        processor.add(2, [1], SamplingParams(stop="x"))


def test_text_continues_the_prompt() -> None:
    llama = tokenizer("llama_style")
    processor = OutputProcessor(llama)
    the = llama.encode("the", add_special_tokens=False)
    processor.add(1, llama.encode("see"), SamplingParams())
    [(_, delta)], _ = processor.process([TokensOut(1, the, "length")])
    assert delta.text == " the"


def test_n_completions_of_one_request() -> None:
    processor = OutputProcessor(TOK)
    assembler = RequestAssembler("r", TEXT, IDS, n=3)
    for index in range(3):
        processor.add(10 + index, IDS, SamplingParams(), index, stream=False)
    done = []
    for step in ([TokensOut(12, IDS[:2], "length", num_cached_tokens=32)], [TokensOut(10, IDS[:1])],
                 [TokensOut(10, [EOS], "stop"), TokensOut(11, IDS[:3], "abort")]):
        done += [assembler.add(delta) for _, delta in processor.process(step)[0]]
    assert done == [False, False, True]
    output = assembler.output
    assert [completion.finish_reason for completion in output.outputs] == ["stop", "abort", "length"]
    assert [completion.text for completion in output.outputs] == [TOK.decode(IDS[:n]) for n in (1, 3, 2)]
    assert (output.text, output.token_ids, output.finish_reason) == (TOK.decode(IDS[:1]), [IDS[0], EOS], "stop")
    assert output.num_cached_tokens == 0
    assert (output.prompt, output.prompt_token_ids) == (TEXT, IDS)

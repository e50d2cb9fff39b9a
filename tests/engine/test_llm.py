"""The Python API: every form of input, what comes back, what is refused, and that nothing is lost on the way."""

from __future__ import annotations

from pathlib import Path

import pytest

from mini_infer import LLM, ConfigError, EngineConfig, LLMEngine, RequestError, SamplingParams
from mini_infer.terminal.models import LocalModel
from mini_infer.text.output import CompletionDelta, RequestAssembler
from tests.tiny import VOCAB_SIZE, write_chat_model, write_checkpoint

GREEDY = SamplingParams(temperature=0.0, max_tokens=8, detokenize=False)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def llm(checkpoint: Path) -> LLM:
    return make(checkpoint)


def make(checkpoint: Path, **options: object) -> LLM:
    defaults = dict(device="cpu", skip_tokenizer_init=True, num_kv_blocks=64, max_model_len=128)
    return LLM(str(checkpoint), **{**defaults, **options})


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_chat_model(tmp_path_factory.mktemp("chat") / "tiny")


@pytest.fixture(scope="module")
def chat_llm(chat_model: Path) -> LLM:
    return make(chat_model, skip_tokenizer_init=False, block_size=8)


@pytest.fixture
def finished(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Ids of requests in the order of their ends."""
    ids: list[str] = []
    add = RequestAssembler.add

    def spy(self: RequestAssembler, delta: CompletionDelta) -> bool:
        if done := add(self, delta):
            ids.append(self.output.request_id)
        return done

    monkeypatch.setattr(RequestAssembler, "add", spy)
    return ids


def idle(llm: LLM) -> bool:
    stats = llm.stats()
    return (stats.running, stats.waiting, stats.used_blocks) == (0, 0, 0) and \
        stats.free_blocks + stats.cached_blocks == stats.total_blocks


@pytest.mark.parametrize(("prompts", "count"), [
    ([1, 2, 3], 1), ([[1, 2, 3]], 1), ([[1], [2, 3]], 2), ({"prompt_token_ids": [4]}, 1),
    ([{"prompt_token_ids": [4]}, [5]], 2),
])
def test_forms_of_prompts(llm: LLM, prompts: object, count: int) -> None:
    outs = llm.generate(prompts, GREEDY, use_tqdm=False)  # type: ignore[arg-type]
    assert [len(out.token_ids) for out in outs] == [8] * count
    assert all(out.finish_reason == "length" and out.finished for out in outs)
    assert idle(llm)


def test_params_as_keywords_one_or_one_each(llm: LLM) -> None:
    prompts = [[1, 2], [3, 4]]
    keywords = llm.generate(prompts, temperature=0.0, max_tokens=8, detokenize=False, use_tqdm=False)
    one = llm.generate(prompts, GREEDY, use_tqdm=False)
    short = SamplingParams(temperature=0.0, max_tokens=3, detokenize=False)
    each = llm.generate(prompts, [GREEDY, short], use_tqdm=False)
    assert [out.token_ids for out in keywords] == [out.token_ids for out in one]
    assert [len(out.token_ids) for out in each] == [8, 3]


def test_n_completions_are_n_seeds(llm: LLM) -> None:
    params = dict(max_tokens=8, detokenize=False, temperature=1.0)
    together = llm.generate([1, 2, 3], SamplingParams(n=3, seed=5, **params), use_tqdm=False)[0]
    alone = [llm.generate([1, 2, 3], SamplingParams(seed=5 + i, **params), use_tqdm=False)[0] for i in range(3)]
    assert [c.token_ids for c in together.outputs] == [out.token_ids for out in alone]
    assert [c.index for c in together.outputs] == [0, 1, 2]
    assert len({tuple(c.token_ids) for c in together.outputs}) > 1


def test_unseeded_requests_differ_and_engines_repeat(checkpoint: Path) -> None:
    params = SamplingParams(max_tokens=12, detokenize=False)
    runs = [[out.token_ids for out in make(checkpoint, seed=seed).generate([[1, 2]] * 3, params, use_tqdm=False)]
            for seed in (0, 0, 1)]
    assert runs[0] == runs[1] != runs[2]
    assert runs[0][0] != runs[0][1]


def test_stop_tokens_eos_and_min_tokens(llm: LLM) -> None:
    free = llm.generate([9, 9], GREEDY, use_tqdm=False)[0].token_ids
    stop = free[3]
    out = llm.generate([9, 9], temperature=0.0, max_tokens=8, stop_token_ids=[stop], detokenize=False,
                       use_tqdm=False)[0]
    assert out.token_ids == free[: free.index(stop) + 1]
    assert (out.finish_reason, out.outputs[0].stop_reason) == ("stop", stop)
    late = llm.generate([9, 9], temperature=0.0, max_tokens=8, min_tokens=6, stop_token_ids=[stop], detokenize=False,
                        use_tqdm=False)[0]
    assert len(late.token_ids) >= 6
    assert stop not in late.token_ids[:6]


def test_logprobs(llm: LLM) -> None:
    out = llm.generate([1, 2, 3], temperature=0.0, max_tokens=4, logprobs=3, prompt_logprobs=2, detokenize=False,
                       use_tqdm=False)[0]
    entries = out.outputs[0].logprobs
    assert entries is not None and len(entries) == 4
    for token, position in zip(out.token_ids, entries):
        assert position[token].rank == 1
        assert len(position) == 3
        assert position[token].logprob == max(entry.logprob for entry in position.values())
    assert out.prompt_logprobs is not None and out.prompt_logprobs[0] is None
    assert [token in position for token, position in zip([2, 3], out.prompt_logprobs[1:])] == [True, True]  # type: ignore[operator]


def test_a_second_run_hits_the_prefix_cache(checkpoint: Path) -> None:
    llm = make(checkpoint, block_size=8)
    prompt = list(range(40))
    first, second = (llm.generate(prompt, GREEDY, use_tqdm=False)[0] for _ in range(2))
    salted = llm.generate(prompt, GREEDY, use_tqdm=False, cache_salt="mine")[0]
    assert (first.num_cached_tokens, second.num_cached_tokens, salted.num_cached_tokens) == (0, 32, 0)
    assert first.token_ids == second.token_ids == salted.token_ids


def test_streams_interleave_and_closing_one_frees_it(checkpoint: Path) -> None:
    llm = make(checkpoint)
    params = SamplingParams(temperature=0.0, max_tokens=30, detokenize=False)
    one = llm._stream(llm._door.prepare([1, 2], params))
    two = llm._stream(llm._door.prepare([3, 4], params))
    first, other = [next(one)], [next(two)]
    first.append(next(one))
    during = llm.generate([5, 6], GREEDY, use_tqdm=False)[0]
    one.close()
    other += list(two)
    want = llm.generate([3, 4], params, use_tqdm=False)[0].token_ids
    assert [token for delta in other for token in delta.token_ids] == want
    assert during.token_ids == llm.generate([5, 6], GREEDY, use_tqdm=False)[0].token_ids
    assert idle(llm)


def test_those_that_may_take_long_go_first(checkpoint: Path, finished: list[str]) -> None:
    prompts, lengths = [[1, 2, 3], [4, 5], [6], [7, 8, 9]], [3, 9, 9, 5]
    outs = make(checkpoint, max_num_seqs=1).generate(
        prompts, [SamplingParams(max_tokens=length, ignore_eos=True) for length in lengths], use_tqdm=False)
    assert finished == [outs[i].request_id for i in (1, 2, 3, 0)]
    assert [len(out.token_ids) for out in outs] == lengths
    assert [out.prompt_token_ids for out in outs] == prompts


class TestChat:
    MESSAGES = ({"role": "user", "content": "hello world, what comes after monday?"},)
    GREEDY = SamplingParams(temperature=0.0, max_tokens=12)

    def test_a_stream_is_the_answer_in_pieces(self, chat_llm: LLM, chat_model: Path) -> None:
        for options in ({}, {"tools": [{"name": "clock"}]}, {"add_generation_prompt": False},
                        {"add_generation_prompt": False, "continue_final_message": True}):
            (whole,) = chat_llm.chat(self.MESSAGES, self.GREEDY, use_tqdm=False, **options)
            assert "".join(chat_llm.stream_chat(self.MESSAGES, self.GREEDY, **options)) == whole.text != ""
        (whole,) = chat_llm.chat(self.MESSAGES, temperature=0, max_tokens=12, use_tqdm=False)
        terminal = LocalModel(EngineConfig(model=str(chat_model), device="cpu", num_kv_blocks=64))
        pieces = terminal.answer(self.MESSAGES, {"temperature": 0, "max_tokens": 12})
        assert "".join(piece.text for piece in pieces) == whole.text

    def test_closing_the_stream_ends_the_request(self, chat_llm: LLM) -> None:
        stream = chat_llm.stream_chat(self.MESSAGES, max_tokens=None)
        next(stream)
        assert chat_llm.stats().running == 1
        stream.close()  # type: ignore[attr-defined]
        assert idle(chat_llm)

    def test_cache_salt(self, chat_llm: LLM) -> None:
        def cached(salt: str) -> int:
            return chat_llm.chat(self.MESSAGES, self.GREEDY, use_tqdm=False, cache_salt=salt)[0].num_cached_tokens

        assert [cached("a"), cached("b")] == [0, 0] and cached("a") > 0

    def test_priority(self, chat_model: Path, finished: list[str]) -> None:
        llm = make(chat_model, skip_tokenizer_init=False, scheduling_policy="priority", max_num_seqs=1)
        outs = llm.chat([self.MESSAGES] * 3, self.GREEDY, use_tqdm=False, priority=[2, 1, 0])
        assert finished == [out.request_id for out in reversed(outs)]
        with pytest.raises(RequestError, match="priority"):
            llm.chat(self.MESSAGES, self.GREEDY, use_tqdm=False, priority=[1, 2])

    def test_without_a_template(self, llm: LLM) -> None:
        for ask in (llm.chat, llm.stream_chat):
            with pytest.raises(RequestError, match="no chat template") as error:
                ask(self.MESSAGES)
            assert error.value.param == "messages"


@pytest.mark.parametrize(("prompt", "params", "field"), [
    ([], {}, "prompt"),
    ([VOCAB_SIZE], {}, "prompt"),
    ([-1], {}, "prompt"),
    (["text"], {}, "prompt"),
    ([1] * 128, {}, "prompt"),
    ([1], {"max_tokens": 0}, "max_tokens"),
    ([1], {"max_tokens": -3}, "max_tokens"),
    ([1], {"n": 0}, "n"),
    ([1], {"n": 10**6}, "n"),
    ([1], {"temperature": float("nan")}, "temperature"),
    ([1], {"top_p": float("inf")}, "top_p"),
    ([1], {"min_tokens": 9, "max_tokens": 8}, "min_tokens"),
    ([1], {"logit_bias": {VOCAB_SIZE: 1.0}}, "logit_bias"),
    ([1], {"allowed_token_ids": [VOCAB_SIZE]}, "allowed_token_ids"),
    ([1], {"stop_token_ids": [VOCAB_SIZE]}, "stop_token_ids"),
    ([1], {"stop": ["x"]}, "stop"),
    ([1], {"logprobs": 999}, "logprobs"),
    ([1], {"beam_width": 4}, "beam_width"),
])
def test_bad_requests_name_the_field_and_cost_nothing(llm: LLM, prompt: list, params: dict, field: str) -> None:
    before = llm.stats()
    with pytest.raises(RequestError) as caught:
        llm.generate([[1, 2], prompt], use_tqdm=False, **params)
    assert caught.value.param == field
    assert field.split("_")[0] in str(caught.value)
    assert idle(llm)
    assert llm.stats().requests_added == before.requests_added
    assert len(llm.generate([1], GREEDY, use_tqdm=False)[0].token_ids) == 8


@pytest.mark.parametrize(("options", "message"), [
    ({"tensor_parallel_size": 2}, "tensor_parallel_size"),
    ({"max_model_len": 10**6}, "max_model_len"),
    ({"num_kv_blocks": 2}, "num_kv_blocks"),
    ({"block_size": 12}, "block_size"),
    ({"dtype": "int3"}, "dtype"),
    ({"device": "cuda:99"}, "device"),
    ({"scheduling_policy": "lottery"}, "lottery"),
    ({"load_format": "pickle"}, "load_format"),
    ({"pipeline_depth": 3}, "pipeline_depth"),
    ({"kv_cache_memory": 10}, "kv_cache_memory"),
    ({"gpu_memory_utilization": 0.0}, "gpu_memory_utilization"),
    ({"num_kv_blocks": 64, "kv_cache_memory": 10**8}, "give one of them"),
    ({"no_such_option": 1}, "no_such_option"),
])
def test_bad_configurations_name_the_field(checkpoint: Path, options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make(checkpoint, **{"num_kv_blocks": None if "kv_cache_memory" in options else 64, **options})


def test_the_other_names(checkpoint: Path) -> None:
    config = EngineConfig(model=str(checkpoint), max_num_seqs=4, block_size=16, num_kv_blocks=64,
                          skip_tokenizer_init=True, device="cpu")
    one = LLMEngine(config).generate([1, 2], max_tokens=5, temperature=0.0, detokenize=False, use_tqdm=False)[0]
    two = LLMEngine(model=str(checkpoint), device="cpu", num_kv_blocks=64, skip_tokenizer_init=True).generate(
        [1, 2], max_tokens=5, temperature=0.0, detokenize=False, use_tqdm=False)[0]
    assert one.token_ids == two.token_ids


def test_max_model_len_follows_the_pool_when_it_is_not_asked_for(checkpoint: Path) -> None:
    llm = make(checkpoint, max_model_len=None, num_kv_blocks=5, block_size=16)
    assert llm.info.max_model_len == 80
    out = llm.generate([[1] * 70] * 3, temperature=0.0, max_tokens=100, detokenize=False, use_tqdm=False)
    assert [len(o.token_ids) for o in out] == [10, 10, 10]


def test_a_fault_in_one_step_fails_its_requests_and_the_engine_goes_on(checkpoint: Path, monkeypatch, capsys) -> None:
    llm = make(checkpoint, pipeline_depth=2)
    model = llm._loop._executor._runner._model  # type: ignore[attr-defined]
    forward = type(model).forward
    calls = iter(range(1000))

    def faulty(*args: object) -> object:
        if next(calls) == 3:
            raise RuntimeError("a cosmic ray")
        return forward(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(type(model), "forward", faulty)
    out = llm.generate([1, 2], GREEDY, use_tqdm=False)[0]
    assert out.finish_reason == "error"
    assert "failed in a step" in (out.outputs[0].error or "")
    assert "a cosmic ray" in capsys.readouterr().err
    assert idle(llm)
    assert llm.generate([1, 2], GREEDY, use_tqdm=False)[0].finish_reason == "length"


def test_nan_logits_fail_one_request_and_are_not_cached(checkpoint: Path) -> None:
    llm = make(checkpoint, block_size=8)
    with_nan = llm._loop._executor._runner._model  # type: ignore[attr-defined]
    embedding = next(p for name, p in with_nan.named_parameters() if "embed" in name)
    kept = embedding.data[200].clone()
    embedding.data[200] = float("nan")
    bad, good = llm.generate([[200] * 20, [1] * 20], GREEDY, use_tqdm=False)
    assert bad.finish_reason == "error"
    assert good.finish_reason == "length"
    assert idle(llm)
    embedding.data[200] = kept
    again = llm.generate([200] * 20, GREEDY, use_tqdm=False)[0]
    assert (again.finish_reason, again.num_cached_tokens) == ("length", 0)

"""Steps in the shapes that graphs have: the smallest that holds a step, and the same tokens with padding as without."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mini_infer import LLM, SamplingParams
from mini_infer.ops.attention_split import ONE_TILE, SMALL_TILE, choose_split, distinct_bounds
from mini_infer.runtime.graphs import MAX_BATCH, Outputs, ShapeLadder, StepShape, decode_shapes, mixed_shapes
from mini_infer.runtime.runner import Runner
from tests.tiny import VOCAB_SIZE, write_checkpoint


@given(num_slots=st.integers(1, 700), max_len=st.integers(1, 20_000), most=st.integers(0, 3000),
       heads=st.integers(1, 40), data=st.data())
def test_the_smallest_shape_that_holds_a_step(num_slots: int, max_len: int, most: int, heads: int,
                                              data: st.DataObject) -> None:
    shapes = decode_shapes(num_slots, max_len, heads) + mixed_shapes(num_slots, most, min(max_len, 4096))
    assert len(set(shapes)) == len(shapes)
    num_tokens = data.draw(st.integers(1, 1200))
    num_seqs = data.draw(st.one_of(st.just(num_tokens), st.integers(1, num_tokens)))
    if num_seqs > num_slots:
        return
    length = data.draw(st.integers(1, max_len))
    found = ShapeLadder(shapes).find(num_tokens, num_seqs, length)
    kind = [shape for shape in shapes if (shape.max_query_len == 1) == (num_tokens == num_seqs)]
    fitting = [shape for shape in kind if shape.holds(num_tokens, num_seqs, length)]
    assert found == (min(fitting) if fitting else None)
    if found is not None:
        assert found.num_tokens - num_tokens >= found.num_seqs - num_seqs or found.max_query_len > 1
    if num_tokens == num_seqs <= MAX_BATCH:
        assert found is not None


def test_a_step_is_padded_by_little() -> None:
    sizes = sorted({shape.num_tokens for shape in decode_shapes(512, 16384, 8)})
    assert sizes[:4] == [1, 2, 4, 8] and sizes[-1] == 512
    assert all(after - before <= max(8, before / 4) for before, after in pairwise(sizes[2:]))


class NoBuffer:
    """A CPU's packed weights put their products where they like."""

    def __getitem__(self, rows: slice) -> None:
        return None


class EagerGraphs:
    """What `StepGraphs` does, without a GPU: the step in the shape of the graph."""

    def __init__(self, runner: Runner, shapes: Sequence[StepShape]):
        self._runner, self._ladder = runner, ShapeLadder(shapes)
        self.find = self._ladder.find
        self.replayed: list[StepShape] = []

    def replay(self, shape: StepShape) -> Outputs:
        self.replayed.append(shape)
        return self._runner._whole_step(shape)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("tiny"))


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("chunk", [24, 256])
def test_padding_changes_no_token(checkpoint: Path, chunk: int, depth: int) -> None:
    def make() -> LLM:
        return LLM(str(checkpoint), device="cpu", dtype="float32", skip_tokenizer_init=True, num_kv_blocks=200,
                   block_size=8, max_model_len=256, max_num_seqs=12, max_num_batched_tokens=chunk, pipeline_depth=depth)

    rng = random.Random(3)
    prompts = [[rng.randrange(VOCAB_SIZE) for _ in range(rng.choice((1, 5, 30, 100)))] for _ in range(40)]
    kinds = [dict(temperature=0.0), dict(temperature=0.9, seed=1), dict(temperature=0.9, seed=2, top_k=20, logprobs=2),
             dict(temperature=0.0, repetition_penalty=1.3), dict(temperature=0.0, prompt_logprobs=1)]
    params = [SamplingParams(max_tokens=12, detokenize=False, **kinds[i % len(kinds)]) for i in range(len(prompts))]
    expected = make().generate(prompts, params, use_tqdm=False)
    llm = make()
    runner: Runner = llm._loop._executor._runner  # type: ignore[attr-defined]
    graphs = EagerGraphs(runner, decode_shapes(12, 256, 2) + mixed_shapes(12, 256, 256))
    runner._graphs = graphs  # type: ignore[assignment]
    runner._logits_buffer = NoBuffer()  # type: ignore[assignment]
    got = llm.generate(prompts, params, use_tqdm=False)
    assert [out.token_ids for out in got] == [out.token_ids for out in expected]
    assert {shape.max_query_len > 1 for shape in graphs.replayed} == {True, False}
    for mine, other in zip(got, expected):
        for position, same in zip(mine.outputs[0].logprobs or [], other.outputs[0].logprobs or []):
            assert position.keys() == same.keys()
            assert all(abs(position[token].logprob - same[token].logprob) < 1e-4 for token in position)


@given(num_seqs=st.integers(1, 600), heads=st.integers(1, 40),
       bounds=st.lists(st.integers(1, 100_000), min_size=1, max_size=6, unique=True).map(sorted))
def test_a_bound_that_is_left_out_launches_what_the_next_one_does(num_seqs: int, heads: int, bounds: list[int]) -> None:
    kept = distinct_bounds(num_seqs, heads, bounds)
    assert kept[-1] == bounds[-1] and set(kept) <= set(bounds)

    def launched(bound: int, early: bool) -> tuple[object, int]:
        split = choose_split(num_seqs * heads, bound, ONE_TILE, SMALL_TILE, early)
        return split, -(-bound // split.keys)

    for bound in bounds:
        instead = next(other for other in kept if other >= bound)
        assert all(launched(bound, early) == launched(instead, early) for early in (False, True))

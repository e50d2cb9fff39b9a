"""Sampling: the right distribution, the same token in any company, and torch and Triton alike."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sampling_tables import DEVICE, Row, int32, kept_weights, may_draw, params_table

from mini_infer.ops import filters, sampling
from mini_infer.ops.dispatch import HAS_TRITON
from mini_infer.ops.random import mix64, two_uniforms
from mini_infer.ops.sampling import INVALID_TOKEN, SamplingNeeds
from mini_infer.ops.sampling_params import row_params

GREEDY, RANDOM, FILTERED = SamplingNeeds(), SamplingNeeds(random=True), SamplingNeeds(random=True, filtered=True)
SMALL = {"STRETCH": 4, "SPAN": 32, "FIRST": 6, "SECOND": 20, "BLOCK": 64}  # many stretches in a small vocabulary


def sample_in_small_stretches(*args: Any) -> torch.Tensor:
    with mock.patch.multiple(filters, **SMALL):
        return sampling._sample_triton(*args)


IMPLEMENTATIONS = [sampling._sample_torch,
                   *([sampling._sample_triton, sample_in_small_stretches] if HAS_TRITON else [])]
Implementation = Callable[..., torch.Tensor]
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")  # the interpreter's numpy, on NaN and inf


def short(row: Row) -> str:
    changed = {name: value for name, value in row.__dict__.items() if value != Row().__dict__[name]}
    return "-".join(f"{name}{value}" for name, value in changed.items()) or "plain"


def random_logits(rows: int, vocab_size: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(rows, vocab_size, generator=generator) * 3).to(DEVICE, dtype)


def chi_square_p(counts: torch.Tensor, probabilities: torch.Tensor) -> float:
    """The p-value of counts under probabilities; tokens expected fewer than 5 times are taken together."""
    expected = probabilities.double() * counts.sum()
    rare = expected < 5
    observed = torch.cat([counts[~rare].double(), counts[rare].sum()[None].double()])
    expected = torch.cat([expected[~rare], expected[rare].sum()[None]])
    observed, expected = observed[expected > 0], expected[expected > 0]
    statistic = ((observed - expected) ** 2 / expected).sum()
    degrees = torch.tensor(len(expected) - 1).double()
    return float(torch.special.gammaincc(degrees / 2, statistic / 2)) if degrees > 0 else 1.0


@pytest.mark.parametrize("row", [
    Row(), Row(temperature=0.5), Row(temperature=3.0), Row(top_k=10), Row(top_k=700, temperature=3.0), Row(top_p=0.7),
    Row(top_p=0.97, temperature=3.0), Row(min_p=0.05), Row(top_k=20, top_p=0.9), Row(min_p=0.02, top_p=0.8),
    Row(temperature=1.5, min_p=0.01, top_k=30, top_p=0.95),
], ids=short)
def test_distribution(row: Row) -> None:
    vocab_size, batch, batches = 2500, 2000, 8
    logits = random_logits(1, vocab_size)
    table = params_table([replace(row, key=mix64(42))])
    counts = torch.zeros(vocab_size, dtype=torch.int64)
    slots = int32([0] * batch)
    for start in range(0, batch * batches, batch):
        positions = torch.arange(start, start + batch, dtype=torch.int32, device=DEVICE)
        tokens = sampling.sample(logits.expand(batch, -1), slots, positions, table, FILTERED)
        counts += torch.bincount(tokens.cpu(), minlength=vocab_size)
    weights = kept_weights(logits[0], row)
    assert int(counts[weights == 0].sum()) == 0
    assert chi_square_p(counts, weights / weights.sum()) > 0.001


@pytest.mark.parametrize("row", [
    Row(temperature=0.7), Row(top_k=7), Row(top_k=300), Row(top_p=0.5), Row(top_p=0.999, temperature=4.0),
    Row(min_p=0.1), Row(temperature=2.0, min_p=0.003, top_k=60, top_p=0.9),
    Row(temperature=5.0, min_p=0.05, top_p=0.1),  # min_p keeps more than the reference's candidates, top_p cuts inside
], ids=short)
def test_filters_keep_what_transformers_keeps(row: Row) -> None:
    """Ours in the order temperature, min_p, top_k, top_p, against transformers' own warpers in that order."""
    warpers = pytest.importorskip("transformers.generation.logits_process")
    logits = random_logits(8, 1500)
    scores = warpers.TemperatureLogitsWarper(row.temperature)(None, logits)
    if row.min_p > 0:
        scores = warpers.MinPLogitsWarper(row.min_p)(None, scores)
    if row.top_k > 0:
        scores = warpers.TopKLogitsWarper(row.top_k)(None, scores)
    if row.top_p < 1:
        scores = warpers.TopPLogitsWarper(row.top_p)(None, scores)
    table, slots = params_table([row]), int32([0] * 8)
    params = row_params(table, slots)
    weights = (logits / params.temperature[:, None]).softmax(-1)
    thresholds = [filters.thresholds_torch(logits, weights, params)]
    if HAS_TRITON:
        thresholds.append(filters.thresholds_triton(logits, slots, table))
        with mock.patch.multiple(filters, **SMALL):
            thresholds.append(filters.thresholds_triton(logits, slots, table))
    for threshold in thresholds:
        assert torch.equal(logits >= threshold[:, None], scores > -torch.inf)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("needs", [GREEDY, RANDOM, FILTERED], ids=str)
def test_greedy_and_unusable_rows(implementation: Implementation, dtype: torch.dtype, needs: SamplingNeeds) -> None:
    logits = random_logits(8, 2100, dtype=dtype)
    logits[0, [7, 1500, 2099]] = 50.0  # a tie: the lowest id
    logits[1] = 0.0
    logits[2, 2099] = 60.0
    logits[3, 1800] = torch.nan
    logits[4, 3] = torch.inf
    logits[5] = -torch.inf
    logits[6] = -torch.inf
    logits[6, 1030] = -3.0
    expected = [7, 0, 2099, INVALID_TOKEN, INVALID_TOKEN, INVALID_TOKEN, 1030]
    # Rows with a temperature beside them see the same rows as unusable, and draw only what can be drawn.
    rows = [Row(temperature=0.0, top_k=3, top_p=0.5, min_p=0.2)]
    rows += [Row(key=mix64(1), top_k=5, top_p=0.9)] if needs.filtered else [Row(key=mix64(1))] * needs.random
    table = params_table(rows)
    positions = torch.arange(8, dtype=torch.int32, device=DEVICE)
    tokens = implementation(logits, int32([0] * 8), positions, table, needs)
    assert tokens.dtype == torch.int32
    assert tokens.tolist()[:7] == expected
    if needs.random:
        drawn = implementation(logits, int32([1] * 8), positions, table, needs).tolist()
        assert drawn[2:7] == expected[2:] and min(drawn[0], drawn[1], drawn[7]) >= 0


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_ties_with_the_last_kept_are_kept(implementation: Implementation) -> None:
    logits = torch.full((20, 1100), -5.0, device=DEVICE)
    logits[:, [3, 500, 1050]] = 2.0
    logits[:, 9] = 2.5
    positions = torch.arange(20, dtype=torch.int32, device=DEVICE)
    for row in (Row(top_k=2, key=5), Row(top_p=0.6, key=6), Row(min_p=0.5, key=7)):
        tokens = implementation(logits, int32([0] * 20), positions, params_table([row]), FILTERED)
        assert set(tokens.tolist()) == {3, 9, 500, 1050}


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_alone_or_in_a_crowd(implementation: Implementation) -> None:
    """A row's token depends on its logits, parameters, seed and position; on nothing else in the step."""
    rows = [Row(), Row(temperature=0.0), Row(top_k=5), Row(top_p=0.8), Row(min_p=0.1, temperature=2.0), Row(top_k=900)]
    table = params_table([replace(row, key=mix64(i)) for i, row in enumerate(rows)])
    logits = random_logits(len(rows), 1300)
    slots, positions = int32([3, 0, 5, 1, 4, 2]), int32([11, 12, 13, 14, 15, 16])
    crowd = implementation(logits, slots, positions, table, FILTERED).tolist()
    for i, slot in enumerate(slots.tolist()):
        row = rows[slot]
        needs = SamplingNeeds(row.temperature > 0, row.top_k > 0 or row.top_p < 1 or row.min_p > 0)
        alone = implementation(logits[i : i + 1], slots[i : i + 1], positions[i : i + 1], table, needs)
        assert alone.tolist() == [crowd[i]]
    shuffled = [4, 2, 0, 5, 3, 1]
    assert implementation(logits[shuffled], slots[shuffled], positions[shuffled], table, FILTERED).tolist() == [
        crowd[i] for i in shuffled]


probability = st.floats(2**-10, 1.0, width=32)
row_strategy = st.builds(
    Row,
    temperature=st.one_of(st.just(0.0), st.just(1.0), st.floats(0.125, 5.0, width=32)),
    top_k=st.one_of(st.just(0), st.integers(1, 40), st.integers(200, 600)),
    top_p=st.one_of(st.just(1.0), probability),
    min_p=st.one_of(st.just(0.0), probability),
    key=st.integers(0, 2**64 - 1),
)


@given(
    rows=st.lists(row_strategy, min_size=1, max_size=4), vocab_size=st.sampled_from([601, 1024, 2050]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]), seed=st.integers(0, 1000),
    position=st.integers(0, 100_000), banned=st.sampled_from([0.0, 0.5, 0.99]), step=st.sampled_from([0.0, 0.5]),
)
@settings(deadline=None, max_examples=30)
def test_every_draw_is_the_oracles(
    rows: list[Row], vocab_size: int, dtype: torch.dtype, seed: int, position: int, banned: float, step: float
) -> None:
    """Any parameters, sizes, dtypes, bans and (with a `step`) ties: torch and Triton draw what float64 would."""
    logits = random_logits(len(rows), vocab_size, seed)
    if step:
        logits = (logits / step).round() * step
    keep = torch.rand(logits.shape, generator=torch.Generator().manual_seed(seed)) >= banned
    keep[:, seed % vocab_size] = True
    logits = logits.masked_fill(~keep.to(DEVICE), -torch.inf).to(dtype)
    table = params_table(rows)
    slots = torch.arange(len(rows), dtype=torch.int32, device=DEVICE)
    positions = slots + position
    u1, u2 = two_uniforms(row_params(table, slots).key, positions)
    for implementation in IMPLEMENTATIONS:
        tokens = implementation(logits, slots, positions, table, FILTERED).tolist()
        for i, (row, token) in enumerate(zip(rows, tokens)):
            if row.temperature == 0:
                assert token == int((logits[i] == logits[i].max()).nonzero()[0])
            else:
                assert may_draw(token, logits[i], row, float(u1[i]), float(u2[i])), (implementation, row, token)


@pytest.mark.skipif(not HAS_TRITON, reason="needs Triton")
@pytest.mark.slow
def test_kernels_compile_for_a_gpu() -> None:
    """The interpreter accepts more than the compiler: compile every kernel for Hopper, which needs no GPU."""
    script = """
        from triton import compile
        from triton.backends.compiler import GPUTarget
        from triton.compiler import ASTSource
        from mini_infer.ops import filters, logit_bias, logprobs, penalties, sampling

        FLOATS = ("thresholds_ptr", "peaks_ptr", "span_peaks_ptr", "masses_ptr", "facts_ptr", "chunk_max_ptr",
                  "chunk_sum_ptr", "chunk_log_sum_ptr", "values_ptr")

        def check(kernel, dtype, warps=4, **constants):
            signature = {}
            for name in kernel.arg_names:
                if name in constants:
                    signature[name] = "constexpr"
                elif name == "logits_ptr":
                    signature[name] = dtype
                elif name.endswith("_ptr"):
                    signature[name] = "*fp32" if name in FLOATS else "*i32"
                else:
                    signature[name] = "i32"
            places = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
            compile(ASTSource(kernel, signature, places), target=GPUTarget("cuda", 90, 32),
                    options={"num_warps": warps})

        for dtype, spare_bits in (("*bf16", 16), ("*fp16", 13), ("*fp32", 0)):
            for random, filtered in ((False, False), (True, False), (True, True)):
                flags = {"RANDOM": random, "FILTERED": filtered, "CHUNK": 1024}
                flags.update({} if filtered else {"thresholds_ptr": None})
                flags.update({} if random else {"chunk_sum_ptr": None})
                check(sampling._chunk_kernel, dtype, **flags, CHUNKS=4)
                check(sampling._choose_kernel, dtype, **flags, CHUNKS=256)
            bits = {"SPARE_BITS": spare_bits, "FACTS": filters.FACTS}
            check(filters._stretches_kernel, dtype, STRETCH=32, SPAN=128)
            check(filters._order_kernel, dtype, 16, **bits, STRETCHES=8192, SPANS=64, FIRST=256, SECOND=1024)
            check(filters._threshold_kernel, dtype, 16, **bits, STRETCH=32, BLOCK=256)
            check(logprobs._normalize_and_rank_kernel, dtype, CHUNK=4096)
        check(penalties._count_kernel, "*fp32", BLOCK=1024)
        check(penalties._penalise_kernel, "*fp32", BLOCK=1024)
        check(logit_bias._add_bias_kernel, "*fp32", BLOCK=256)
        check(logit_bias._ban_words_kernel, "*fp32", BLOCK=4)
        check(logit_bias._keep_allowed_kernel, "*fp32", BLOCK=1024)
        print("compiled")
    """
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-"], input=textwrap.dedent(script), env=environment, capture_output=True,
                          text=True)
    assert done.stdout.strip() == "compiled", done.stderr


# Of randn * 3, the logits that reach the 256th peak of 4,748 have half of the mass, those that reach the 1,024th 70 %.
LARGE_ROWS = [
    Row(top_k=1), Row(top_k=50), Row(top_k=4000), Row(top_k=10_000, top_p=0.9), Row(top_k=20, top_p=0.9),
    Row(top_p=0.3), Row(top_p=0.6), Row(top_p=0.95), Row(top_p=0.9, temperature=0.3), Row(top_p=2**-20),
    Row(min_p=0.05), Row(min_p=0.05, top_p=0.9), Row(min_p=0.002, top_p=0.9), Row(min_p=1e-6, top_p=0.9),
    Row(min_p=0.01, top_k=100, top_p=0.8), Row(), Row(temperature=0.0),
]


@pytest.mark.skipif(not HAS_TRITON, reason="needs Triton")
@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, *([torch.float16, torch.float32] if DEVICE == "cuda" else [])],
                         ids=str)
def test_thresholds_of_a_large_vocabulary(dtype: torch.dtype) -> None:
    """Qwen's vocabulary, whatever the scratch held before; rows with few tokens allowed and a flat one as well."""
    rows = [*LARGE_ROWS, Row(top_k=20, top_p=0.9), Row(top_p=0.9), Row(top_p=0.5), Row(top_k=3)]
    logits = random_logits(len(rows), 151_936, dtype=dtype)
    allowed = torch.zeros(151_936, dtype=torch.bool, device=DEVICE)
    allowed[::15_000] = True
    logits[-4:-2].masked_fill_(~allowed, -torch.inf)
    logits[-2:] = 1.5
    empty = torch.empty

    def poisoned(*shape: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        return empty(*shape, dtype=dtype, device=device).fill_(torch.nan if dtype.is_floating_point else 2**30)

    with mock.patch.object(filters.torch, "empty", poisoned):
        thresholds = filters.thresholds_triton(logits, int32(range(len(rows))), params_table(rows))
    for row, threshold, of_row in zip(rows, thresholds, logits):
        kept = int((of_row.float() >= threshold).sum())
        if row in (Row(), Row(temperature=0.0)):
            assert threshold == -torch.inf
            continue
        expected = [int((kept_weights(of_row, row, slack) > 0).sum()) for slack in (0.0, 1e-4, -1e-4)]
        kept -= int((of_row == -torch.inf).sum()) if threshold == -torch.inf else 0
        assert min(expected) <= kept <= max(expected), (row, float(threshold))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("num_rows", [1, 33, 512])
def test_large_vocabulary_on_a_gpu(dtype: torch.dtype, num_rows: int) -> None:
    """Qwen's vocabulary; torch and Triton differ only where rounding decides (bf16 masses of 150k terms)."""
    kinds = [Row(), Row(temperature=0.0), Row(top_k=50), Row(top_p=0.95), Row(top_k=20, top_p=0.9), Row(min_p=0.05)]
    kinds = kinds if num_rows > 1 else [Row(top_k=20, top_p=0.9)] * 6
    table = params_table([replace(kinds[i % 6], key=mix64(i)) for i in range(num_rows)])
    logits = random_logits(num_rows, 151_936, dtype=dtype)
    slots = torch.arange(num_rows, dtype=torch.int32, device=DEVICE)
    ours = sampling._sample_triton(logits, slots, slots + 7, table, FILTERED)
    reference = sampling._sample_torch(logits, slots, slots + 7, table, FILTERED)
    assert float((ours == reference).float().mean()) >= 0.99
    assert torch.equal(ours[1::6], reference[1::6])


@pytest.mark.gpu
@pytest.mark.parametrize("needs", [GREEDY, RANDOM, FILTERED], ids=str)
def test_capturable_in_a_cuda_graph(needs: SamplingNeeds) -> None:
    rows = [Row(temperature=0.0 if needs == GREEDY else 1.0)] * 4
    if needs.filtered:
        rows = [Row(top_k=9), Row(top_p=0.8), Row(min_p=0.1, top_p=0.9), Row(top_k=30, top_p=0.5)]
    table = params_table([replace(row, key=mix64(3)) for row in rows])
    logits, slots, positions = random_logits(4, 50_000), int32([0, 1, 2, 3]), int32([1, 2, 3, 4])
    sampling.sample(logits, slots, positions, table, needs)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = sampling.sample(logits, slots, positions, table, needs)
    logits.copy_(random_logits(4, 50_000, seed=1))
    positions += 10
    graph.replay()
    assert torch.equal(captured, sampling.sample(logits, slots, positions, table, needs))

"""The simulated executor: the engine without a model. Steps take as long as a named GPU would need, tokens are made up.

It stands where the real executor stands (`submit(plan) -> pending`), so everything above it is the real thing: the
scheduler, the KV blocks, the loop, the process boundary, HTTP. `--dry-run` serves from it, the scheduler is fuzzed on
it, and capacity questions are answered with it.

Time is a roofline (Williams, Waterman and Patterson, 2009): work takes the longer of moving its bytes and doing its
operations. Tokens are a hash of (engine seed, request, position) over the ordinary vocabulary, so a request's tokens do
not depend on its batch or on preemption. There is no distribution behind them: temperature, top_k, top_p, min_p and
the penalties have nothing to act on; `allowed_token_ids` is honoured; what would be visibly wrong (logprobs,
logit_bias, bad_words) is refused: see `refuse_unsimulated`.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Protocol

from mini_infer.config import DTYPE_BYTES, ConfigError, ModelConfig
from mini_infer.core.plan import AdmittedSlot, SeqStep, StepPlan, StepResult
from mini_infer.protocol import RequestError, SamplingParams

# What well-made kernels reach of the published peaks, measured on one H200: a copy moves 4.25 of 4.8 TB/s, a large
# bf16 matmul on random data does 693 of 989 TFLOP/s.
BANDWIDTH_SHARE = 0.885
FLOPS_SHARE = 0.70


@dataclass(frozen=True)
class GpuSpec:
    """A GPU's published figures: memory bandwidth, dense bf16 throughput, memory size; and seconds lost per layer.

    `layer_overhead_s` is the part of a step that neither bytes nor operations explain: launches, ramp-up and tail of
    the kernels of one layer when the step is replayed as a graph.
    """

    name: str
    bytes_per_s: float
    flops_per_s: float
    memory_bytes: float
    layer_overhead_s: float = 12e-6


GPUS: dict[str, GpuSpec] = {
    spec.name: spec
    for spec in (
        GpuSpec("B200", 8.0e12, 2250e12, 180e9),
        GpuSpec("H200", 4.8e12, 989e12, 141e9),
        GpuSpec("H100", 3.35e12, 989e12, 80e9),
        GpuSpec("A100", 2.039e12, 312e12, 80e9),
        GpuSpec("L40S", 0.864e12, 362e12, 48e9),
        GpuSpec("L4", 0.3e12, 121e12, 24e9),
        GpuSpec("RTX-4090", 1.008e12, 165e12, 24e9),
        # Costs nothing: what is left is the cost of everything around the model.
        GpuSpec("free", float("inf"), float("inf"), 80e9, layer_overhead_s=0.0),
    )
}


def gpu_spec(name: str) -> GpuSpec:
    """The table's entry, whatever the case of `name`. Raises ConfigError listing the known names."""
    for known, spec in GPUS.items():
        if known.lower() == name.lower():
            return spec
    raise ConfigError(f"dry_gpu: {name!r} is not known; choose from {', '.join(GPUS)}")


@dataclass(frozen=True)
class SimConfig:
    """How a dry run behaves. `output_len`: None, and requests run to their max_tokens or a stop; or the mean number of
    tokens after which a request says end-of-sequence by itself."""

    gpu: str = "H200"
    output_len: int | None = None

    def __post_init__(self) -> None:
        gpu_spec(self.gpu)
        if self.output_len is not None and self.output_len < 1:
            raise ConfigError(f"dry_output_len must be at least 1, got {self.output_len}")


class CostModel:
    """Seconds a step takes on a GPU: the linear layers and the attention each on its own roofline, plus overhead."""

    def __init__(self, gpu: GpuSpec, model: ModelConfig, dtype: str):
        self.gpu = gpu
        self.model = model
        self._seconds_per_byte = 1.0 / (gpu.bytes_per_s * BANDWIDTH_SHARE)
        self._seconds_per_flop = 1.0 / (gpu.flops_per_s * FLOPS_SHARE)
        self._overhead = gpu.layer_overhead_s * model.num_layers
        per_layer = model.hidden_size * (2 * model.q_size + 2 * model.kv_size + 3 * model.intermediate_size)
        self._layer_params = model.num_layers * per_layer
        self._head_params = model.hidden_size * model.vocab_size
        self._dtype_bytes = DTYPE_BYTES[dtype]
        self._windows = model.sliding_windows or (None,) * model.num_layers
        self._kv_bytes_per_layer = model.kv_bytes_per_token(dtype) / model.num_layers

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights: the layers, the embedding, and the output head where it is not the embedding itself."""
        heads = 1 if self.model.tie_word_embeddings else 2
        return (self._layer_params + heads * self._head_params) * self._dtype_bytes

    def seconds(self, plan: StepPlan) -> float:
        tokens = plan.num_tokens
        rows = sum(seq.sample for seq in plan.seqs)
        linear_bytes = self._layer_params * self._dtype_bytes
        linear_flops = 2.0 * self._layer_params * tokens
        if rows:
            linear_bytes += self._head_params * self._dtype_bytes
            linear_flops += 2.0 * self._head_params * rows
        kv_bytes = attention_flops = 0.0
        for window in dict.fromkeys(self._windows):
            layers = self._windows.count(window)
            kv_tokens, scores = _attention_extent(plan.seqs, window)
            kv_bytes += layers * self._kv_bytes_per_layer * kv_tokens
            attention_flops += layers * 4.0 * self.model.q_size * scores  # one multiply-add for QK, one for PV
        return self._roofline(linear_bytes, linear_flops) + self._roofline(kv_bytes, attention_flops) + self._overhead

    def _roofline(self, num_bytes: float, flops: float) -> float:
        return max(num_bytes * self._seconds_per_byte, flops * self._seconds_per_flop)


def _attention_extent(seqs: list[SeqStep], window: int | None) -> tuple[int, int]:
    """Tokens whose keys and values are read, and (query, key) pairs scored, under causal attention with a window."""
    kv_tokens = scores = 0
    for seq in seqs:
        end = seq.start + seq.n
        reach = end if window is None else window
        kv_tokens += min(end, reach + seq.n - 1)
        growing = max(0, min(end, reach) - seq.start)  # queries that see one key more than the query before them
        scores += growing * (2 * seq.start + growing + 1) // 2 + (seq.n - growing) * reach
    return kv_tokens, scores


class Clock(Protocol):
    """Seconds, and a way to let them pass."""

    def now(self) -> float: ...

    def sleep_until(self, when: float) -> None: ...


class WallClock:
    """Real time."""

    def now(self) -> float:
        return time.monotonic()

    def sleep_until(self, when: float) -> None:
        remaining = when - time.monotonic()
        if remaining > 0:
            time.sleep(remaining)


class VirtualClock:
    """Time that passes only when somebody waits for it: an hour's load is simulated in seconds."""

    def __init__(self, start: float = 0.0):
        self._now = start

    def now(self) -> float:
        return self._now

    def sleep_until(self, when: float) -> None:
        self._now = max(self._now, when)


class SimPending:
    """A submitted step that ends at `ends_at` on the executor's clock."""

    def __init__(self, result: StepResult, ends_at: float, clock: Clock):
        self._result = result
        self._clock = clock
        self.ends_at = ends_at

    def result(self) -> StepResult:
        self._clock.sleep_until(self.ends_at)
        return self._result

    def done(self) -> bool:
        return self._clock.now() >= self.ends_at


class SimExecutor:
    """Runs plans in imagination, one after the other, as one GPU would: a step starts when the one before has ended.

    `vocabulary`: the token ids to draw from. `cost=None` makes every step free. `eos_token_id` with `output_len` lets
    requests end by themselves (never before min_tokens, not at all under ignore_eos).
    """

    def __init__(
        self,
        vocabulary: Sequence[int],
        cost: CostModel | None = None,
        clock: Clock | None = None,
        seed: int = 0,
        eos_token_id: int | None = None,
        output_len: int | None = None,
    ):
        if not vocabulary:
            raise ConfigError("a simulated executor needs at least one token to draw from")
        self._vocabulary = list(vocabulary)
        self._cost = cost
        self._clock: Clock = clock or WallClock()
        self._seed = seed
        self._eos_token_id = eos_token_id
        self._output_len = output_len
        self._slots: dict[int, _SimSequence] = {}
        self._busy_until = 0.0
        self.busy_seconds = 0.0

    def submit(self, plan: StepPlan) -> SimPending:
        """Start `plan` as soon as the device is free. Sampled tokens never depend on when that is."""
        for slot in plan.released_slots:
            self._slots.pop(slot, None)  # its admission may have been in a plan that failed to start
        for admitted in plan.admitted:
            self._slots[admitted.slot] = self._sequence(admitted)
        result = StepResult(plan.step_id)
        for index, seq in enumerate(plan.seqs):
            sequence = self._slots[seq.slot]
            if sequence.refusal is not None:
                result.failed[index] = sequence.refusal
                result.sampled.append([])
            else:
                result.sampled.append([sequence.token_at(seq.start + seq.n)] if seq.sample else [])
        seconds = 0.0 if self._cost is None else self._cost.seconds(plan)
        self._busy_until = max(self._busy_until, self._clock.now()) + seconds
        self.busy_seconds += seconds
        return SimPending(result, self._busy_until, self._clock)

    def _sequence(self, admitted: AdmittedSlot) -> _SimSequence:
        params = admitted.params
        key = _request_key(self._seed, admitted)
        end_position, eos = None, None
        if self._output_len is not None and self._eos_token_id is not None and not params.ignore_eos:
            length = 1 + _mix(key) % (2 * self._output_len - 1)  # uniform, with the asked mean
            end_position, eos = admitted.prompt_len + max(length, params.min_tokens), self._eos_token_id
        try:
            refuse_unsimulated(params)
            refusal = None
        except RequestError as error:
            refusal = str(error)
        return _SimSequence(key, params.allowed_token_ids or self._vocabulary, end_position, eos, refusal)


@dataclass(slots=True)
class _SimSequence:
    """One request on the simulated device: enough to name the token at any position."""

    key: int
    choices: list[int]
    end_position: int | None
    eos: int | None
    refusal: str | None

    def token_at(self, position: int) -> int:
        if self.eos is not None and position == self.end_position:
            return self.eos
        return self.choices[_mix(self.key + position) % len(self.choices)]


def refuse_unsimulated(params: SamplingParams) -> None:
    """Raise RequestError for what made-up tokens cannot give and a client would notice."""
    if params.structured_outputs is not None:
        field = params.structured_outputs.source
        raise RequestError(f"{field} is not available in a dry run: its tokens are drawn without regard to their text",
                           field)
    for name in ("logprobs", "prompt_logprobs", "logit_bias", "bad_words"):
        if params.__dict__[name] not in (None, {}, []):
            raise RequestError(f"{name} is not available in a dry run: there are no logits behind its tokens", name)


def _request_key(seed: int, admitted: AdmittedSlot) -> int:
    """64 bits that stand for a request: its prompt, and its seed; without a seed a sampled request is one of a kind."""
    params = admitted.params
    if params.seed is not None:
        own = f"seed {params.seed}"
    else:
        own = "greedy" if params.temperature == 0 else f"request {admitted.request_id}"
    prompt = array("I", admitted.tokens[: admitted.prompt_len]).tobytes()
    digest = blake2b(prompt, digest_size=8, key=f"{seed}, {own}".encode()[:64])
    return int.from_bytes(digest.digest(), "little")


def _mix(x: int) -> int:
    """SplitMix64's finaliser (Steele, Lea and Flood, 2014): neighbouring integers become unrelated ones."""
    x = (x * 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
    return x ^ (x >> 31)

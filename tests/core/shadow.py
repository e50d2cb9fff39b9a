"""A device without a model: it does what a plan says to a shadow of the KV cache, and checks every read and write.

The shadow holds, for each (block, offset), a digest of the whole prefix up to the token written there. A step reads
the prefix of each of its rows through the row's block table and compares: whatever paging does wrong (a block handed
out twice, a stale table, a wrong hit, a hit across salts, content overwritten too early) shows as a wrong digest.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from random import Random

from mini_infer.config import SchedulerConfig
from mini_infer.core.plan import AdmittedSlot, SeqStep, StepPlan, StepResult
from mini_infer.core.scheduler import Scheduler
from mini_infer.protocol import AddRequest, TokenLogprobs, TokensOut

VOCAB = 12
EOS = 0


@cache
def story(key: int, position: int) -> int:
    """The token at a position of story `key`. Requests telling the same story share prefixes, outputs included."""
    return Random(1000 * key + position).randrange(VOCAB)


@dataclass
class Slot:
    request_id: int
    prompt_len: int
    tokens: list[int]
    blocks: list[int]
    wants_logprobs: bool


@dataclass
class ShadowDevice:
    """Runs plans in the order of submission, at once. `next_token(request_id, position)` plays the model."""

    config: SchedulerConfig
    next_token: Callable[[int, int], int]
    salts: dict[int, str] = field(default_factory=dict)  # by request id, for the digests
    slots: dict[int, Slot] = field(default_factory=dict)
    cache: dict[tuple[int, int], int] = field(default_factory=dict)  # (block, offset) -> digest of the prefix
    last_step: int = 0

    def execute(self, plan: StepPlan) -> StepResult:
        assert plan.step_id == self.last_step + 1
        self.last_step = plan.step_id
        assert plan.seqs, "an empty plan"
        assert plan.num_tokens <= self.config.max_num_batched_tokens
        decodes = [row.start for row in plan.seqs[: plan.num_decodes]]
        assert decodes == sorted(decodes), "attention begins at the end, with the longest"
        mixed, num_chunked = self.config.max_num_mixed_tokens, plan.num_tokens - plan.num_decodes
        if mixed is not None and plan.num_decodes and num_chunked and not self.config.one_batch:
            assert plan.num_tokens <= mixed or num_chunked <= -(-mixed // 4)
        assert len({row.slot for row in plan.seqs}) == len({row.request_id for row in plan.seqs}) == len(plan.seqs)
        for slot in plan.released_slots:
            del self.slots[slot]  # a KeyError here is a slot given back twice
        for admitted in plan.admitted:
            self._admit(admitted)
            assert any(row.slot == admitted.slot for row in plan.seqs), "admitted without anything to do"
        result = StepResult(plan.step_id)
        for index, row in enumerate(plan.seqs):
            self._run(index, row, result)
        return result

    def _admit(self, admitted: AdmittedSlot) -> None:
        assert admitted.slot not in self.slots and 0 <= admitted.slot < self.config.max_num_seqs
        assert 0 <= admitted.num_computed < len(admitted.tokens)
        self.slots[admitted.slot] = Slot(admitted.request_id, admitted.prompt_len, list(admitted.tokens),
                                         list(admitted.blocks), admitted.params.logprobs is not None)

    def _run(self, index: int, row: SeqStep, result: StepResult) -> None:
        slot, size = self.slots[row.slot], self.config.block_size
        assert slot.request_id == row.request_id
        slot.blocks += row.new_blocks
        end = row.start + row.n
        assert row.n >= 1 and row.n_draft == 0
        assert end <= len(slot.tokens), "a token is to be computed that the device does not know yet"
        assert row.sample == (end == len(slot.tokens))
        assert end <= len(slot.blocks) * size, "no block for a token"
        digest = hash(self.salts.get(row.request_id, ""))
        for position in range(end):
            block, offset = slot.blocks[position // size], position % size
            digest = hash((digest, slot.tokens[position]))
            if position < row.start:
                assert self.cache.get((block, offset)) == digest, f"position {position} of {slot} is not in the cache"
            else:
                owners = [s for s in self.slots.values() if block in s.blocks]
                assert owners == [slot], f"block {block} is written while others hold it"
                self.cache[block, offset] = digest
        result.sampled.append([])
        if row.sample:
            token = self.next_token(row.request_id, end)
            slot.tokens.append(token)
            result.sampled[-1].append(token)
            if slot.wants_logprobs:
                result.logprobs[index] = [TokenLogprobs([token], [-1.0], 1)]
        if row.prompt_logprobs:
            last = min(end, slot.prompt_len - 1)
            result.prompt_logprobs[index] = [TokenLogprobs([slot.tokens[p]], [-float(p)], 1)
                                             for p in range(row.start + 1, last + 1)]


def expected_output(item: AddRequest, config: SchedulerConfig, next_token: Callable[[int, int], int]
                    ) -> tuple[list[int], str, int | None]:
    """What a request must bring, from the rules alone: its tokens, finish reason and stop reason."""
    params, outputs = item.params, []
    while True:
        token = next_token(item.request_id, len(item.prompt_token_ids) + len(outputs))
        outputs.append(token)
        if len(outputs) >= params.min_tokens:
            if token in config.eos_token_ids and not params.ignore_eos:
                return outputs, "stop", None
            if token in (params.stop_token_ids or []):
                return outputs, "stop", token
        if len(outputs) == params.max_tokens or len(item.prompt_token_ids) + len(outputs) == config.max_model_len:
            return outputs, "length", None


class Engine:
    """Scheduler and shadow device with `depth` plans in flight, collecting what comes out of them."""

    def __init__(self, config: SchedulerConfig, depth: int = 1,
                 next_token: Callable[[int, int], int] = lambda request_id, position: 1 + position % 7):
        self.config = config
        self.depth = depth
        self.scheduler = Scheduler(config, clock=lambda: 0.0)
        self.device = ShadowDevice(config, next_token)
        self.in_flight: deque[tuple[StepPlan, StepResult]] = deque()
        self.plans: list[StepPlan] = []
        self.outputs: dict[int, list[TokensOut]] = {}

    def add(self, item: AddRequest) -> None:
        self.scheduler.add(item)
        self.device.salts[item.request_id] = item.cache_salt
        self.outputs[item.request_id] = []

    def submit(self) -> StepPlan | None:
        plan = self.scheduler.schedule()
        if plan is not None:
            self.plans.append(plan)
            self.in_flight.append((plan, self.device.execute(plan)))
        return plan

    def update(self, change: Callable[[StepPlan, StepResult], None] | None = None) -> list[TokensOut]:
        """Take in the oldest result, after `change` has tampered with it."""
        plan, result = self.in_flight.popleft()
        if change is not None:
            change(plan, result)
        return self.collect(self.scheduler.update(plan, result))

    def collect(self, outputs: list[TokensOut]) -> list[TokensOut]:
        for output in outputs:
            assert not self.finished(output.request_id), "output after the end"
            self.outputs[output.request_id].append(output)
        return outputs

    def step(self) -> list[TokensOut]:
        while len(self.in_flight) < self.depth and self.submit() is not None:
            pass
        assert self.in_flight, "unfinished requests, but nothing to do: the engine would hang"
        return self.update()

    def run(self, max_steps: int = 10_000) -> None:
        """Step until every request is finished and every plan is in."""
        while self.scheduler.has_work() or self.in_flight:
            assert max_steps > 0, "no progress"
            max_steps -= 1
            self.step()
        self.scheduler.check()

    def finished(self, request_id: int) -> bool:
        return any(output.finish_reason is not None for output in self.outputs[request_id])

    def tokens(self, request_id: int) -> list[int]:
        return [token for output in self.outputs[request_id] for token in output.token_ids]

    def last(self, request_id: int) -> TokensOut:
        return self.outputs[request_id][-1]

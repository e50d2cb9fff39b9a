"""Every order of events a server can produce, against a model of what must hold (Hypothesis finds the orders)."""

from __future__ import annotations

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from mini_infer.config import SchedulerConfig
from mini_infer.core.plan import StepPlan, StepResult
from mini_infer.protocol import AddRequest, SamplingParams
from tests.core.shadow import EOS, VOCAB, Engine, expected_output, story

MAX_MODEL_LEN = 24


class SchedulerMachine(RuleBasedStateMachine):
    """Adds, plans, updates, aborts, preempts and fails requests in any order, with up to three plans in flight."""

    @initialize(
        block_size=st.sampled_from([1, 2, 4, 8]),
        spare_blocks=st.integers(0, 8),
        max_num_seqs=st.integers(1, 5),
        budget=st.integers(1, 16),
        mixed=st.none() | st.integers(1, 16),
        one_batch=st.booleans(),
        prefix_caching=st.booleans(),
        policy=st.sampled_from(["fcfs", "priority"]),
        watermark=st.sampled_from([0.0, 0.1, 0.5]),
        depth=st.integers(1, 3),
    )
    def start(self, block_size: int, spare_blocks: int, max_num_seqs: int, budget: int, mixed: int | None,
              one_batch: bool, prefix_caching: bool, policy: str, watermark: float, depth: int) -> None:
        config = SchedulerConfig(
            max_num_seqs=max_num_seqs, max_num_batched_tokens=budget, max_num_mixed_tokens=mixed,
            one_batch=one_batch, max_model_len=MAX_MODEL_LEN,
            block_size=block_size, num_blocks=MAX_MODEL_LEN // block_size + spare_blocks,
            enable_prefix_caching=prefix_caching, policy=policy, eos_token_ids=(EOS,), watermark=watermark)
        self.items: dict[int, AddRequest] = {}
        self.stories: dict[int, int] = {}
        self.engine = Engine(config, depth, lambda request_id, position: story(self.stories[request_id], position))
        self.config, self.scheduler = config, self.engine.scheduler

    @rule(
        key=st.integers(0, 2),
        prompt_len=st.integers(1, MAX_MODEL_LEN - 1),
        own_tail=st.booleans(),
        max_tokens=st.none() | st.integers(1, 12),
        min_tokens=st.integers(0, 4),
        ignore_eos=st.booleans(),
        stop_token_ids=st.none() | st.lists(st.integers(0, VOCAB - 1), max_size=2),
        logprobs=st.sampled_from([None, 0]),
        prompt_logprobs=st.sampled_from([None, None, 0]),
        priority=st.integers(0, 2),
        salt=st.sampled_from(["", "", "other"]),
    )
    def add(self, key: int, prompt_len: int, own_tail: bool, max_tokens: int | None, min_tokens: int, ignore_eos: bool,
            stop_token_ids: list[int] | None, logprobs: int | None, prompt_logprobs: int | None, priority: int,
            salt: str) -> None:
        request_id = len(self.items)
        prompt = [story(key, position) for position in range(prompt_len)]
        if own_tail:
            prompt[-1] = VOCAB + request_id
        params = SamplingParams(
            max_tokens=max_tokens, min_tokens=min_tokens if max_tokens is None else min(min_tokens, max_tokens),
            ignore_eos=ignore_eos, stop_token_ids=stop_token_ids, logprobs=logprobs, prompt_logprobs=prompt_logprobs)
        item = AddRequest(request_id, prompt, params, priority, salt)
        self.items[request_id], self.stories[request_id] = item, key
        self.engine.add(item)

    @precondition(lambda self: len(self.engine.in_flight) < self.engine.depth)
    @rule()
    def plan(self) -> None:
        plan = self.engine.submit()
        if plan is None:
            assert self.engine.in_flight or not self.scheduler.has_work(), "work, but nothing is planned"
            return
        self.check_writes(plan)

    @precondition(lambda self: self.engine.in_flight)
    @rule()
    def update(self) -> None:
        self.engine.update()

    @precondition(lambda self: self.scheduler.has_work())
    @rule(steps=st.integers(1, 12))
    def run_for_a_while(self, steps: int) -> None:
        """As the engine's loop does it, far enough that requests fill the pool."""
        for _ in range(steps):
            while len(self.engine.in_flight) < self.engine.depth and (plan := self.engine.submit()) is not None:
                self.check_writes(plan)
            if not self.engine.in_flight:
                assert not self.scheduler.has_work()
                return
            self.engine.update()

    @precondition(lambda self: self.engine.in_flight)
    @rule(row=st.integers(0, 4))
    def update_with_failed_row(self, row: int) -> None:
        def fail(plan: StepPlan, result: StepResult) -> None:
            index = row % len(plan.seqs)
            result.failed[index] = "logits are not finite"
            self.failing = plan.seqs[index].request_id

        held_before = {i: self.held(i) for i in self.items}
        outputs = self.engine.update(fail)
        assert all(o.request_id == self.failing for o in outputs if o.finish_reason == "error")
        if any(o.finish_reason == "error" for o in outputs):
            named = {b.id for b in self.scheduler._kv.pool._blocks if b.block_hash is not None}
            assert not named & held_before[self.failing], "content of a failed request is still in the cache"

    @precondition(lambda self: self.engine.in_flight)
    @rule()
    def update_with_failed_step(self) -> None:
        def fail(plan: StepPlan, result: StepResult) -> None:
            result.error = "out of memory"
            result.sampled.clear()

        outputs = self.engine.update(fail)
        assert all(o.finish_reason == "error" and o.error == "out of memory" for o in outputs)

    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        ids = data.draw(st.lists(st.integers(0, len(self.items)), max_size=2))  # may be unknown, finished or repeated
        live = {i for i in ids if i in self.items and not self.engine.finished(i)}
        outputs = self.engine.collect(self.scheduler.abort(ids))
        assert {o.request_id for o in outputs} == live and len(outputs) == len(live)
        assert all(o.finish_reason == "abort" and not o.token_ids for o in outputs)

    @precondition(lambda self: self.scheduler._running)
    @rule(index=st.integers(0, 4))
    def preempt(self, index: int) -> None:
        running = list(self.scheduler._running.values())
        self.scheduler._preempt(running[index % len(running)])

    @precondition(lambda self: not self.engine.in_flight)
    @rule()
    def run_dry(self) -> None:
        """Let everything finish, so that later requests meet a cache full of finished ones' blocks."""
        self.finish()

    # ---- what must hold ------------------------------------------------------------------------------------------

    @invariant()
    def accounts_add_up(self) -> None:
        self.scheduler.check()
        stats = self.scheduler.stats()
        assert stats.free_blocks + stats.cached_blocks + stats.used_blocks == stats.total_blocks
        ended = stats.requests_finished + stats.requests_aborted + stats.requests_failed
        assert stats.requests_added == len(self.items) == ended + stats.running + stats.waiting
        assert stats.running <= self.config.max_num_seqs
        assert stats.generated_tokens == sum(len(self.engine.tokens(i)) for i in self.items)
        if not self.config.enable_prefix_caching:
            assert stats.cached_blocks == stats.cached_tokens == 0

    @invariant()
    def only_committed_blocks_are_shared(self) -> None:
        holders: dict[int, int] = {}
        private: set[int] = set()
        for request in self.scheduler._running.values():
            for index, block in enumerate(request.blocks):
                holders[block] = holders.get(block, 0) + 1
                if index >= request.num_committed:
                    private.add(block)
        blocks = self.scheduler._kv.pool._blocks
        assert all(blocks[block].ref_count == n for block, n in holders.items())
        assert all(holders[block] == 1 and blocks[block].block_hash is None for block in private)

    @invariant()
    def outputs_follow_the_rules(self) -> None:
        for request_id, item in self.items.items():
            outputs = self.engine.outputs[request_id]
            tokens, reason, stop_reason = expected_output(item, self.config, self.engine.device.next_token)
            got = self.engine.tokens(request_id)
            assert got == tokens[:len(got)]
            logprobs = [entry.token_ids[0] for output in outputs for entry in output.logprobs or []]
            assert logprobs == (got if item.params.logprobs is not None else [])
            seen = [int(-entry.logprobs[0]) for output in outputs for entry in output.prompt_logprobs or []]
            assert seen == list(range(1, len(seen) + 1)), "prompt positions missing, repeated or out of order"
            if item.params.prompt_logprobs is None:
                assert not seen
            elif got:
                assert len(seen) == len(item.prompt_token_ids) - 1
            cached = {output.num_cached_tokens for output in outputs if output.token_ids}
            assert len(cached) <= 1
            assert all(n % self.config.block_size == 0 and n < len(item.prompt_token_ids) for n in cached)
            if outputs and outputs[-1].finish_reason in ("stop", "length"):
                assert (got, outputs[-1].finish_reason, outputs[-1].stop_reason) == (tokens, reason, stop_reason)
            elif len(got) == len(tokens):
                raise AssertionError("all tokens are there, but the request has not finished")

    def check_writes(self, plan: StepPlan) -> None:
        """No row writes to a block that anybody else holds or that a later request could hit."""
        for row in plan.seqs:
            request = self.scheduler._requests[row.request_id]
            size = self.config.block_size
            for block_id in request.blocks[row.start // size:(row.start + row.n - 1) // size + 1]:
                block = self.scheduler._kv.pool._blocks[block_id]
                assert block.ref_count == 1 and block.block_hash is None

    def held(self, request_id: int) -> set[int]:
        request = self.scheduler._requests.get(request_id)
        return set(request.blocks) if request is not None else set()

    def finish(self) -> None:
        # Each step brings at least one token of the first request in order nearer to its end.
        self.engine.run(max_steps=(len(self.items) + 1) ** 2 * MAX_MODEL_LEN + 10)
        assert self.scheduler.stats().used_blocks == 0
        for request_id in self.items:
            assert self.engine.finished(request_id), "admitted, but never finished"

    def teardown(self) -> None:
        if hasattr(self, "engine"):
            self.finish()
            self.outputs_follow_the_rules()
            self.accounts_add_up()


SchedulerMachine.TestCase.settings = settings(
    max_examples=250, stateful_step_count=50, deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
TestSchedulerMachine = SchedulerMachine.TestCase

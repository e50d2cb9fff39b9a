"""The scheduler's rules, one by one. Every test runs on the shadow device, which checks all reads and writes."""

from __future__ import annotations

from typing import Any

import pytest

from mini_infer.config import ConfigError, SchedulerConfig
from mini_infer.core.plan import StepPlan, StepResult
from mini_infer.core.scheduler import Scheduler
from mini_infer.protocol import AddRequest, RequestError, SamplingParams, TokenLogprobs
from tests.core.shadow import Engine

EOS = 100


def config(**changes: Any) -> SchedulerConfig:
    fields = {"max_num_seqs": 4, "max_num_batched_tokens": 16, "max_model_len": 32, "block_size": 4, "num_blocks": 32,
              "eos_token_ids": (EOS,), "watermark": 0.0, **changes}
    return SchedulerConfig(**fields)


def item(request_id: int, prompt: list[int] | int, priority: int = 0, salt: str = "", arrival_time: float = 0.0,
         **params: Any) -> AddRequest:
    """A request; `prompt` may be a length, and then differs from every other request's."""
    tokens = [1000 + 100 * request_id + i for i in range(prompt)] if isinstance(prompt, int) else prompt
    return AddRequest(request_id, tokens, SamplingParams(**{"max_tokens": 4, **params}), priority, salt, arrival_time)


def says(*tokens: int) -> Any:
    """A model that outputs `tokens`, after a prompt of two, to every request."""
    return lambda request_id, position: tokens[position - 2]


def rows(plan: StepPlan | None) -> list[tuple[int, int, int, bool]]:
    assert plan is not None
    return [(row.request_id, row.start, row.n, row.sample) for row in plan.seqs]


class TestDoor:
    @pytest.mark.parametrize("prompt, param, code, message", [
        ([], "prompt", None, "prompt must not be empty"),
        ([1] * 32, "prompt", "context_length_exceeded", "This model's maximum context length is 32 tokens"),
        ([1, -2], "prompt", None, "token id -2, outside the vocabulary of 5000"),
        ([1, 5000], "prompt", None, "token id 5000, outside the vocabulary of 5000"),
        ([1, 1.5], "prompt", None, r"got an element 1\.5"),
        ([1, True], "prompt", None, "got an element True"),
    ])
    def test_refused(self, prompt: list[int], param: str, code: str | None, message: str) -> None:
        engine = Engine(config(vocab_size=5000))
        with pytest.raises(RequestError, match=message) as caught:
            engine.add(item(0, prompt))
        assert (caught.value.param, caught.value.code) == (param, code)
        assert not engine.scheduler.has_work() and engine.scheduler.stats().requests_added == 0

    def test_ids_of_an_unknown_vocabulary_have_31_bits(self) -> None:
        engine = Engine(config())
        with pytest.raises(RequestError, match="outside the vocabulary"):
            engine.add(item(0, [1, 2**31]))
        engine.add(item(0, [1, 2**31 - 1]))

    def test_duplicate_id_while_live(self) -> None:
        engine = Engine(config())
        engine.add(item(0, 2))
        with pytest.raises(RequestError, match="request_id 0 is in use") as caught:
            engine.add(item(0, 2))
        assert caught.value.param == "request_id"
        engine.run()
        engine.add(item(0, 2))
        engine.run()
        assert engine.scheduler.stats().requests_finished == 2

    def test_longest_prompt_gets_one_token(self) -> None:
        engine = Engine(config())
        engine.add(item(0, 31, max_tokens=None))
        engine.run()
        assert len(engine.tokens(0)) == 1 and engine.last(0).finish_reason == "length"

    def test_unknown_policy(self) -> None:
        with pytest.raises(ConfigError, match="known: fcfs"):
            Scheduler(config(policy="lottery"), clock=lambda: 0.0)


class TestBudget:
    def test_decode_first_then_running_chunks_then_admissions(self) -> None:
        engine = Engine(config(max_num_batched_tokens=8))
        engine.add(item(0, 2, max_tokens=8))
        engine.step()
        engine.add(item(1, 10))
        engine.step()
        engine.add(item(2, 6))
        engine.step()
        engine.step()
        assert [rows(plan) for plan in engine.plans] == [
            [(0, 0, 2, True)],
            [(0, 2, 1, True), (1, 0, 7, False)],
            [(0, 3, 1, True), (1, 7, 3, True), (2, 0, 4, False)],
            [(0, 4, 1, True), (1, 10, 1, True), (2, 4, 2, True)],  # decode rows by length
        ]

    def test_prompts_beside_decodes_have_a_budget_of_their_own(self) -> None:
        engine = Engine(config(max_num_mixed_tokens=5, max_num_seqs=8))
        engine.add(item(0, 14, max_tokens=None))
        engine.step()
        for i in range(1, 7):
            engine.add(item(i, 5, max_tokens=None))
        for _ in range(9):
            engine.step()
        chunks = [(plan.num_decodes, plan.num_tokens - plan.num_decodes) for plan in engine.plans]
        # Alone a prompt may fill the step; then five tokens with the decode rows, or a quarter of that. The last token
        # of a prompt makes a decode row.
        assert chunks == [(0, 14), (1, 4), (2, 3), (2, 3), (3, 2), (3, 2), (4, 2), (4, 2), (5, 2), (5, 2)]

    def test_in_one_batch_a_prompt_hurries_if_it_may_end_last(self) -> None:
        def chunks(lengths: list[int], **options: Any) -> list[tuple[int, int]]:
            engine = Engine(config(max_num_mixed_tokens=4, max_num_seqs=8, **options))
            for i, max_tokens in enumerate(lengths):
                engine.add(item(i, 12, max_tokens=max_tokens))
            for _ in range(3):
                engine.step()
            return [(plan.num_decodes, plan.num_tokens - plan.num_decodes) for plan in engine.plans]

        assert chunks([9, 9, 9], one_batch=True) == [(0, 16), (1, 15), (2, 5)]
        assert chunks([9, 8, 8], one_batch=True) == [(0, 16), (1, 15), (2, 5)]  # one of nine is there
        assert chunks([9, 5, 4], one_batch=True) == chunks([9, 5, 4]) == [(0, 16), (1, 3), (1, 3)]

    def test_decodes_alone_may_fill_the_budget(self) -> None:
        engine = Engine(config(max_num_batched_tokens=2))
        for i in range(4):
            engine.add(item(i, 1))
        engine.run()
        assert max(plan.num_tokens for plan in engine.plans) == 2
        assert all(len(engine.tokens(i)) == 4 for i in range(4))

    def test_slots_limit_admission_and_are_given_back(self) -> None:
        engine = Engine(config(max_num_seqs=2))
        for i in range(3):
            engine.add(item(i, 2, max_tokens=1 + i))
        engine.step()
        assert (engine.scheduler.stats().running, engine.scheduler.stats().waiting) == (1, 1)
        plan = engine.submit()
        assert plan is not None and plan.released_slots == [0]
        assert [(a.slot, a.request_id) for a in plan.admitted] == [(0, 2)]

    def test_nothing_to_do(self) -> None:
        engine = Engine(config(), depth=2)
        assert engine.submit() is None
        engine.add(item(0, 2, max_tokens=1))
        assert engine.submit() is not None
        assert engine.submit() is None, "the token in flight ends it"

    def test_a_long_prompt_is_not_overtaken(self) -> None:
        engine = Engine(config(num_blocks=8))
        engine.add(item(0, 16, max_tokens=8))
        engine.step()
        engine.add(item(1, 20))  # five blocks of the four left
        engine.add(item(2, 2))
        engine.run()
        assert [a.request_id for plan in engine.plans for a in plan.admitted] == [0, 1, 2]


class TestAdmission:
    def test_admitted_slot_tells_all(self) -> None:
        engine = Engine(config())
        params = item(0, [1, 2, 3, 4, 5], max_tokens=8)
        engine.add(params)
        plan = engine.submit()
        assert plan is not None
        (slot,) = plan.admitted
        assert (slot.tokens, slot.prompt_len, slot.num_computed) == ([1, 2, 3, 4, 5], 5, 0)
        assert len(slot.blocks) == 2 and slot.params is params.params
        assert plan.seqs[0].new_blocks == []
        engine.update()
        engine.run()
        assert slot.tokens == [1, 2, 3, 4, 5] and len(slot.blocks) == 2, "a plan does not change afterwards"

    def test_watermark_holds_unless_nothing_runs(self) -> None:
        engine = Engine(config(num_blocks=8, watermark=0.25, max_num_batched_tokens=64))
        engine.add(item(0, 28, max_tokens=2))  # seven of eight blocks
        engine.step()
        assert engine.scheduler.stats().running == 1
        engine.run()
        engine.add(item(1, 16, max_tokens=3))  # four
        engine.add(item(2, 12, max_tokens=3))  # three more would leave one
        engine.step()
        assert engine.scheduler.stats().running == 1
        engine.run()
        assert engine.scheduler.stats().requests_finished == 3

    def test_refused_head_is_tried_again_once_blocks_return(self) -> None:
        engine = Engine(config(num_blocks=8))
        engine.add(item(0, 24, max_tokens=3))
        engine.add(item(1, 24, max_tokens=3))
        engine.run()
        first_rows = [plan.seqs[0].request_id for plan in engine.plans]
        assert first_rows == sorted(first_rows), "one after the other"
        stats = engine.scheduler.stats()
        assert (stats.requests_finished, stats.preemptions) == (2, 0)

    def test_refused_head_costs_nothing_until_then(self, monkeypatch: pytest.MonkeyPatch) -> None:
        engine = Engine(config(num_blocks=8, max_num_batched_tokens=64))
        engine.add(item(0, 20, max_tokens=4))
        engine.add(item(1, 20, max_tokens=4))
        tried: list[int] = []
        admit = engine.scheduler._kv.admit
        monkeypatch.setattr(engine.scheduler._kv, "admit", lambda r, reserve: tried.append(r.id) or admit(r, reserve))
        engine.run()
        assert tried == [0, 1, 1]

    def test_aborting_a_refused_head_lets_the_next_in(self) -> None:
        engine = Engine(config(num_blocks=8))
        engine.add(item(0, 16, max_tokens=8))
        engine.step()
        engine.add(item(1, 24))
        engine.add(item(2, 2))
        engine.step()
        assert engine.scheduler.stats().waiting == 2
        engine.collect(engine.scheduler.abort([1]))
        engine.step()
        assert engine.scheduler.stats().running == 2

    def test_a_refused_head_may_be_overtaken_by_who_comes_before_it(self) -> None:
        engine = Engine(config(num_blocks=8, policy="priority"))
        engine.add(item(0, 16, max_tokens=8))
        engine.step()
        engine.add(item(1, 24, priority=1))
        engine.step()
        engine.add(item(2, 2, priority=0))
        plan = engine.submit()
        assert plan is not None and [a.request_id for a in plan.admitted] == [2]
        engine.update()
        engine.run()

    def test_priority_goes_first(self) -> None:
        engine = Engine(config(max_num_seqs=1, policy="priority"))
        for i, priority in enumerate([2, 0, 1]):
            engine.add(item(i, 2, priority=priority))
        engine.run()
        assert [a.request_id for plan in engine.plans for a in plan.admitted] == [1, 2, 0]

    def test_arrival_time_decides_fcfs(self) -> None:
        engine = Engine(config(max_num_seqs=1))
        engine.add(item(0, 2, arrival_time=7.0))
        engine.add(item(1, 2, arrival_time=5.0))
        engine.run()
        assert [a.request_id for plan in engine.plans for a in plan.admitted] == [1, 0]


class TestPrefixCache:
    def test_hit_is_reported_and_skipped(self) -> None:
        engine = Engine(config())
        prompt = list(range(11))
        engine.add(item(0, prompt))
        engine.run()
        engine.add(item(1, prompt))
        engine.run()
        assert rows(engine.plans[-4]) == [(1, 8, 3, True)]
        assert {o.num_cached_tokens for o in engine.outputs[0]} == {0}
        assert {o.num_cached_tokens for o in engine.outputs[1]} == {8}
        stats = engine.scheduler.stats()
        assert (stats.prompt_tokens, stats.cached_tokens) == (22, 8)

    def test_shared_while_both_run(self) -> None:
        engine = Engine(config())
        prompt = list(range(9))
        engine.add(item(0, prompt, max_tokens=8))
        engine.step()
        engine.add(item(1, prompt, max_tokens=8))
        engine.step()
        assert engine.scheduler.stats().used_blocks == 2 + 1 + 1
        engine.run()

    def test_preempted_requests_report_their_first_hit(self) -> None:
        engine = Engine(config())
        engine.add(item(0, 9))
        engine.step()
        engine.scheduler._preempt(engine.scheduler._requests[0])
        engine.run()
        assert {o.num_cached_tokens for o in engine.outputs[0]} == {0}
        assert engine.plans[1].admitted[0].num_computed == 8, "but its own blocks made the way back short"
        assert engine.scheduler.stats().cached_tokens == 0


class TestPreemption:
    def test_last_come_gives_way_and_comes_back(self) -> None:
        engine = Engine(config(num_blocks=9), depth=2)
        engine.add(item(0, 16, max_tokens=16))
        engine.add(item(1, 12, max_tokens=16))
        engine.run()
        stats = engine.scheduler.stats()
        assert stats.preemptions >= 1 and stats.requests_finished == 2
        assert {a.request_id for plan in engine.plans[1:] for a in plan.admitted} == {1}
        assert len(engine.tokens(0)) == len(engine.tokens(1)) == 16
        again = [a for plan in engine.plans for a in plan.admitted][-1]
        assert again.prompt_len == 12 and len(again.tokens) > 12, "outputs so far are kept"

    def test_the_growing_row_may_be_the_victim(self) -> None:
        engine = Engine(config(num_blocks=8, policy="priority"))
        engine.add(item(0, 16, priority=1, max_tokens=16))
        engine.add(item(1, 13, priority=0, max_tokens=16))
        engine.run()
        assert {a.request_id for plan in engine.plans[1:] for a in plan.admitted} == {0}

    def test_a_victim_loses_the_row_it_has_in_this_plan(self) -> None:
        # Request 0 is first among the rows and last by priority; request 1 cannot grow.
        engine = Engine(config(num_blocks=8, policy="priority", max_num_batched_tokens=64))
        engine.add(item(0, 14, priority=1, max_tokens=16))
        engine.step()
        engine.add(item(1, 16, priority=0, max_tokens=16))
        engine.step()
        plan = engine.submit()
        assert [r[0] for r in rows(plan)] == [1]
        assert plan is not None and plan.released_slots == [0] and not plan.admitted
        engine.update()
        engine.run()
        assert engine.scheduler.stats().requests_finished == 2

    def test_nobody_is_admitted_while_blocks_are_short(self) -> None:
        engine = Engine(config(num_blocks=8, policy="priority", max_num_batched_tokens=64, max_num_seqs=2))
        engine.add(item(0, 14, priority=2, max_tokens=16))
        engine.add(item(1, 16, priority=0, max_tokens=16))
        engine.step()
        engine.add(item(2, 2, priority=1))  # waits for a slot, and would fit once request 0 has given way
        plan = engine.submit()
        assert plan is not None and engine.scheduler.stats().preemptions == 1
        assert plan.released_slots and not plan.admitted
        engine.update()
        plan = engine.submit()
        assert plan is not None and [a.request_id for a in plan.admitted] == [2]
        engine.update()
        engine.run()

    def test_a_preempted_request_has_no_row_in_that_plan(self) -> None:
        """Even with a single known token, which looks like a decode row."""
        engine = Engine(config(num_blocks=8, max_num_batched_tokens=64), depth=2)
        engine.add(item(0, 28, max_tokens=4))  # seven blocks
        engine.add(item(1, [7]))  # the eighth
        engine.submit()
        plan = engine.submit()
        assert [r[0] for r in rows(plan)] == [0] and engine.scheduler.stats().preemptions == 1
        engine.scheduler.check()
        engine.run()
        assert engine.scheduler.stats().requests_finished == 2

    def test_result_of_before_the_preemption_is_stale(self) -> None:
        engine = Engine(config(), depth=2)
        engine.add(item(0, 6))
        engine.submit()
        engine.scheduler._preempt(engine.scheduler._requests[0])
        engine.submit()
        assert engine.update() == [], "the token was dropped"
        assert len(engine.update()) == 1, "and sampled again"
        engine.run()
        assert len(engine.tokens(0)) == 4


class TestPipeline:
    def test_next_token_is_planned_while_the_last_is_in_flight(self) -> None:
        engine = Engine(config(), depth=2)
        engine.add(item(0, 3, max_tokens=3))
        engine.submit()
        engine.submit()
        assert [rows(plan) for plan in engine.plans] == [[(0, 0, 3, True)], [(0, 3, 1, True)]]
        assert engine.submit() is not None and engine.submit() is None, "three tokens are all it may have"

    def test_surplus_step_after_a_stop_is_dropped(self) -> None:
        engine = Engine(config(), depth=2, next_token=says(1, EOS, 2, 3))
        engine.add(item(0, 2, max_tokens=10))
        engine.run()
        assert engine.tokens(0) == [1, EOS]
        assert len(engine.plans) == 3, "one step too many, as it was planned before the stop was known"
        assert engine.scheduler.stats().generated_tokens == 2

    def test_reused_id_does_not_take_the_old_one_for_its_own(self) -> None:
        engine = Engine(config(), depth=2)
        engine.add(item(0, 3))
        engine.submit()
        engine.collect(engine.scheduler.abort([0]))
        engine.add(item(0, 5))
        engine.submit()
        assert engine.update() == []
        assert len(engine.update()) == 1
        engine.run()
        assert len(engine.tokens(0)) == 4


class TestFinish:
    def run_one(self, *tokens: int, **params: Any) -> Engine:
        engine = Engine(config(), next_token=says(*tokens))
        engine.add(item(0, [1, 2], **params))
        engine.run()
        return engine

    def check(self, engine: Engine, tokens: list[int], reason: str, stop_reason: int | None = None) -> None:
        last = engine.last(0)
        assert (engine.tokens(0), last.finish_reason, last.stop_reason) == (tokens, reason, stop_reason)

    def test_eos(self) -> None:
        self.check(self.run_one(5, EOS), [5, EOS], "stop")

    def test_ignore_eos(self) -> None:
        self.check(self.run_one(5, EOS, 6, 7, ignore_eos=True), [5, EOS, 6, 7], "length")

    def test_stop_token(self) -> None:
        self.check(self.run_one(5, 6, stop_token_ids=[6, 7]), [5, 6], "stop", 6)

    def test_eos_named_as_stop_token(self) -> None:
        self.check(self.run_one(EOS, stop_token_ids=[EOS]), [EOS], "stop", None)
        self.check(self.run_one(EOS, stop_token_ids=[EOS], ignore_eos=True), [EOS], "stop", EOS)

    def test_min_tokens(self) -> None:
        self.check(self.run_one(EOS, 6, EOS, min_tokens=3, stop_token_ids=[6]), [EOS, 6, EOS], "stop")

    def test_max_tokens(self) -> None:
        self.check(self.run_one(5, 6, max_tokens=2), [5, 6], "length")

    def test_stop_comes_before_length(self) -> None:
        self.check(self.run_one(5, EOS, max_tokens=2), [5, EOS], "stop")

    def test_context_is_full(self) -> None:
        for max_tokens in (None, 1000):
            engine = self.run_one(*range(1, 31), max_tokens=max_tokens)
            self.check(engine, list(range(1, 31)), "length")

    def test_all_is_given_back(self) -> None:
        stats = self.run_one(5, EOS).scheduler.stats()
        assert (stats.used_blocks, stats.running, stats.waiting, stats.requests_finished) == (0, 0, 0, 1)


class TestAbort:
    def test_waiting_running_in_flight(self) -> None:
        engine = Engine(config(max_num_seqs=2), depth=2)
        for i in range(3):
            engine.add(item(i, 5))
        engine.submit()  # 0 and 1 are in flight, 2 waits
        outputs = engine.collect(engine.scheduler.abort([0, 2, 0, 77]))
        assert [(o.request_id, o.finish_reason) for o in outputs] == [(0, "abort"), (2, "abort")]
        assert engine.scheduler.abort([0, 2]) == []
        assert [o.request_id for o in engine.update()] == [1]
        engine.run()
        stats = engine.scheduler.stats()
        assert (stats.requests_finished, stats.requests_aborted, stats.used_blocks) == (1, 2, 0)
        assert engine.tokens(0) == engine.tokens(2) == []

    def test_blocks_are_free_at_once(self) -> None:
        engine = Engine(config(), depth=2)
        engine.add(item(0, 16))
        engine.submit()
        engine.scheduler.abort([0])
        assert engine.scheduler.stats().used_blocks == 0 and not engine.scheduler.has_work()

    def test_freed_slot_is_reported_with_the_next_plan(self) -> None:
        engine = Engine(config())
        engine.add(item(0, 2))
        engine.step()
        engine.collect(engine.scheduler.abort([0]))
        assert engine.submit() is None, "nothing to compute: no plan only to release"
        engine.add(item(1, 2))
        plan = engine.submit()
        assert plan is not None and plan.released_slots == [0] and plan.admitted[0].slot == 0


class TestFailures:
    def test_failed_row_costs_only_itself_and_leaves_no_content(self) -> None:
        engine = Engine(config())
        prompt = list(range(8))
        engine.add(item(0, prompt))
        engine.add(item(1, 3))

        def fail(plan: StepPlan, result: StepResult) -> None:
            result.failed[0] = "logits are not finite"

        engine.submit()
        outputs = engine.update(fail)
        assert [(o.request_id, o.finish_reason, o.error) for o in outputs] == [
            (0, "error", "logits are not finite"), (1, None, None)]
        engine.run()
        engine.add(item(2, prompt))
        engine.run()
        assert engine.last(2).num_cached_tokens == 0
        stats = engine.scheduler.stats()
        assert (stats.requests_failed, stats.requests_finished) == (1, 2)

    def test_content_committed_before_the_failure_is_withdrawn(self) -> None:
        """A chunk that is not sampled cannot show that its keys and values were bad; a later row's logits do."""
        engine = Engine(config())
        prompt = list(range(8))
        engine.add(item(0, prompt))
        engine.step()
        engine.submit()
        engine.update(lambda plan, result: result.failed.update({0: "logits are not finite"}))
        assert engine.scheduler.stats().cached_blocks == 0

    def test_failed_step_fails_its_rows_only(self) -> None:
        engine = Engine(config(max_num_batched_tokens=4), depth=2)
        engine.add(item(0, 4))
        engine.add(item(1, 4))
        engine.submit()  # request 0
        engine.submit()  # 0 decodes, 1 begins

        def fail(plan: StepPlan, result: StepResult) -> None:
            result.error, result.sampled = "out of memory", []

        outputs = engine.update(fail)
        assert [(o.request_id, o.finish_reason, o.error) for o in outputs] == [(0, "error", "out of memory")]
        engine.run()
        assert len(engine.tokens(1)) == 4
        assert engine.scheduler.stats().requests_failed == 1

    def test_ended_requests_do_not_fail_again(self) -> None:
        engine = Engine(config(), depth=2)
        engine.add(item(0, 4))
        engine.submit()
        engine.collect(engine.scheduler.abort([0]))
        assert engine.update(lambda plan, result: setattr(result, "error", "out of memory")) == []
        assert engine.scheduler.stats().requests_failed == 0


class TestLogprobs:
    def prompt_positions(self, engine: Engine) -> list[int]:
        return [int(-e.logprobs[0]) for o in engine.outputs[0] for e in o.prompt_logprobs or []]

    def test_prompt_logprobs_come_chunk_by_chunk(self) -> None:
        engine = Engine(config(max_num_batched_tokens=4))
        engine.add(item(0, 10, prompt_logprobs=0))
        engine.run()
        assert [row.prompt_logprobs for plan in engine.plans for row in plan.seqs][:4] == [True, True, True, False]
        assert [len(o.prompt_logprobs or []) for o in engine.outputs[0]][:3] == [4, 4, 1]
        assert self.prompt_positions(engine) == list(range(1, 10))

    def test_not_asked_for_when_no_prompt_token_follows(self) -> None:
        engine = Engine(config(max_num_batched_tokens=4))
        engine.add(item(0, 5, prompt_logprobs=0))
        engine.add(item(1, 1, prompt_logprobs=0))
        engine.run()
        first_rows = {(row.request_id, row.start): row.prompt_logprobs for plan in engine.plans for row in plan.seqs}
        assert first_rows[0, 0] and not first_rows[0, 4] and not first_rows[1, 0]
        assert self.prompt_positions(engine) == [1, 2, 3, 4]

    @pytest.mark.parametrize("prefix_caching", [True, False])
    def test_preemption_delivers_nothing_twice(self, prefix_caching: bool) -> None:
        for steps in range(1, 6):
            engine = Engine(config(max_num_batched_tokens=3, enable_prefix_caching=prefix_caching), depth=2)
            engine.add(item(0, 11, prompt_logprobs=0))
            for _ in range(steps):
                engine.step()
            engine.scheduler._preempt(engine.scheduler._requests[0])
            engine.run()
            assert self.prompt_positions(engine) == list(range(1, 11))

    def test_a_chunk_that_was_delivered_is_not_asked_for_again(self) -> None:
        engine = Engine(config(max_num_batched_tokens=3, enable_prefix_caching=False))
        engine.add(item(0, 11, prompt_logprobs=0))
        engine.step()
        engine.step()
        engine.scheduler._preempt(engine.scheduler._requests[0])
        engine.run()
        assert [row.prompt_logprobs for plan in engine.plans[:6] for row in plan.seqs] == [True] * 2 + [False] * 2 + [
            True] * 2
        assert self.prompt_positions(engine) == list(range(1, 11))

    def test_a_hit_would_leave_holes_so_there_is_none(self) -> None:
        engine = Engine(config())
        engine.add(item(0, list(range(12))))
        engine.run()
        engine.outputs[0] = []
        engine.add(item(0, list(range(12)), prompt_logprobs=0))
        engine.run()
        assert self.prompt_positions(engine) == list(range(1, 12))
        assert engine.last(0).num_cached_tokens == 0

    def test_output_logprobs_align(self) -> None:
        engine = Engine(config())
        engine.add(item(0, 2, logprobs=0))
        engine.add(item(1, 2))
        engine.run()
        assert all([e.token_ids[0] for e in o.logprobs or []] == o.token_ids for o in engine.outputs[0])
        assert all(o.logprobs is None for o in engine.outputs[1])


class TestSeveralTokensAStep:
    """`update` takes rows with drafts, of which any number was accepted: start + n - n_draft + accepted is computed."""

    def drafted(self, sampled: list[int], n_draft: int = 3, **params: Any) -> tuple[Scheduler, list[Any]]:
        scheduler = Scheduler(config(), clock=lambda: 0.0)
        scheduler.add(item(0, [1, 2, 3], logprobs=0, **{"max_tokens": 10, **params}))
        plan = scheduler.schedule()
        assert plan is not None
        scheduler.update(plan, StepResult(plan.step_id, [[5]]))
        plan = scheduler.schedule()
        assert plan is not None
        (row,) = plan.seqs
        request = scheduler._requests[0]
        request.num_inflight += n_draft
        scheduler._kv.grow(request, row.start + 1 + n_draft)
        plan.seqs[0] = row._replace(n=1 + n_draft, n_draft=n_draft)
        logprobs = {0: [TokenLogprobs([token], [0.0], 1) for token in sampled]}
        return scheduler, scheduler.update(plan, StepResult(plan.step_id, [sampled], logprobs))

    @pytest.mark.parametrize("num_sampled", [1, 2, 3, 4])
    def test_accepted(self, num_sampled: int) -> None:
        sampled = [6, 7, 8, 9][:num_sampled]
        scheduler, (output,) = self.drafted(sampled)
        request = scheduler._requests[0]
        assert output.token_ids == sampled and output.finish_reason is None
        assert request.tokens == [1, 2, 3, 5, *sampled]
        assert (request.num_computed, request.num_inflight, request.num_pending) == (3 + num_sampled, 0, 0)
        assert request.num_committed == request.num_computed // 4
        (row,) = scheduler.schedule().seqs
        assert (row.start, row.n) == (3 + num_sampled, 1)

    def test_nothing_counts_after_the_end(self) -> None:
        for sampled, params, reason, taken in (
            ([6, EOS, 8, 9], {}, "stop", 2),
            ([6, 7, 8, 9], {"max_tokens": 3}, "length", 2),
            ([6, 7, 8, 9], {"stop_token_ids": [8]}, "stop", 3),
        ):
            scheduler, (output,) = self.drafted(sampled, **params)
            assert (output.token_ids, output.finish_reason) == (sampled[:taken], reason)
            assert len(output.logprobs) == taken
            assert scheduler.stats().generated_tokens == 1 + taken
            assert scheduler.stats().used_blocks == 0
            scheduler.check()


def test_check_sees_a_leak() -> None:
    engine = Engine(config())
    engine.add(item(0, 4))
    engine.step()
    engine.scheduler.check()
    engine.scheduler._kv.pool.allocate(1)
    with pytest.raises(AssertionError, match="requests hold"):
        engine.scheduler.check()

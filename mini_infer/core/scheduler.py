"""The scheduler: which tokens of which requests each step computes, and what its results mean.

A step gives each chosen request some of its missing tokens, under one token budget. A prompt chunk, the rest of a
prompt after a prefix hit, the way back after preemption and one decode token are the same formula with other numbers.

Plans are optimistic: `schedule` may be called again before the last plan's result is in, and then assumes that every
request goes on. `update` confirms or corrects. Results of requests that were finished, aborted or preempted meanwhile
carry a stale epoch and are dropped, so all of that is safe while steps are in flight: blocks given back may be written
once more by such a step, but the device runs steps in order, so a new owner's writes come later; and a block that can
still be written is never in the prefix cache, because only confirmed content is committed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from itertools import count
from operator import attrgetter

from mini_infer.config import SchedulerConfig
from mini_infer.core.kv_manager import KVManager
from mini_infer.core.plan import AdmittedSlot, SeqStep, StepPlan, StepResult
from mini_infer.core.policy import make_policy
from mini_infer.core.request import Request, RequestStatus
from mini_infer.core.waiting import WaitingQueue
from mini_infer.protocol import AddRequest, EngineStats, RequestError, Timeline, TokenLogprobs, TokensOut

RUNNING = RequestStatus.RUNNING
BY_START = attrgetter("start")
MAX_TIMELINES = 1024  # that wait to be taken


class Scheduler:
    """Sole owner and writer of requests, queues, slots and block tables. Holds no tensor and reads no clock of its own.

    `clock` returns seconds; it stamps requests that came without an arrival time, so it should be the front's clock.
    """

    def __init__(self, config: SchedulerConfig, clock: Callable[[], float]):
        self.config = config
        self._clock = clock
        self._policy = make_policy(config.policy)
        self._kv = KVManager(config.num_blocks, config.block_size, config.enable_prefix_caching, config.hash_key)
        self._watermark = int(config.watermark * config.num_blocks)

        self._requests: dict[int, Request] = {}  # every unfinished one
        self._waiting = WaitingQueue(self._policy)
        self._running: dict[int, Request] = {}  # by slot, in the order of admission
        self._free_slots = list(range(config.max_num_seqs - 1, -1, -1))  # a stack: low slots first
        self._released_slots: list[int] = []  # since the last plan
        self._head_refused = False  # the first waiting request did not fit, and nothing was given back since

        self._orders = count()
        self._epochs = count()
        self._num_steps = 0
        self._num_preemptions = 0
        self._num_prompt_tokens = 0
        self._num_cached_tokens = 0
        self._num_generated_tokens = 0
        self._num_computed_tokens = 0
        self._num_computed_rows = 0
        self._num_added = 0
        self._num_ended = {"stop": 0, "length": 0, "abort": 0, "error": 0}
        self._timelines: deque[Timeline] = deque(maxlen=MAX_TIMELINES)  # of requests that ended since last taken

    # ---- requests in and out -------------------------------------------------------------------------------------

    def add(self, item: AddRequest) -> None:
        """Queue a request. Raises RequestError, naming the field, for one that could never be served."""
        if item.request_id in self._requests:
            raise RequestError(f"request_id {item.request_id} is in use by an unfinished request", "request_id")
        arrival = item.arrival_time or self._clock()
        request = Request.create(item, next(self._orders), next(self._epochs), arrival, self.config.max_model_len,
                                 self.config.eos_token_ids, self.config.vocab_size)
        self._requests[request.id] = request
        self._waiting.push(request)
        self._head_refused = False
        self._num_added += 1

    def abort(self, request_ids: Iterable[int], reason: str = "abort") -> list[TokensOut]:
        """End requests at once, wherever they are. Ids that are unknown or finished already are passed over."""
        requests = [self._requests[i] for i in dict.fromkeys(request_ids) if i in self._requests]
        return [self._end(request, reason) for request in requests]

    def has_work(self) -> bool:
        """Whether any request is unfinished."""
        return bool(self._requests)

    def stats(self) -> EngineStats:
        pool = self._kv.pool
        return EngineStats(
            total_blocks=pool.num_blocks,
            free_blocks=pool.num_free,
            cached_blocks=pool.num_cached,
            used_blocks=pool.num_used,
            block_size=self.config.block_size,
            running=len(self._running),
            waiting=len(self._waiting),
            preemptions=self._num_preemptions,
            steps=self._num_steps,
            prompt_tokens=self._num_prompt_tokens,
            cached_tokens=self._num_cached_tokens,
            generated_tokens=self._num_generated_tokens,
            computed_tokens=self._num_computed_tokens,
            computed_rows=self._num_computed_rows,
            requests_added=self._num_added,
            requests_finished=self._num_ended["stop"] + self._num_ended["length"],
            requests_aborted=self._num_ended["abort"],
            requests_failed=self._num_ended["error"],
        )

    def close(self) -> None:
        """Nothing more will be asked of it."""

    # ---- to look at ----------------------------------------------------------------------------------------------

    def now(self) -> float:
        """Seconds of the scheduler's clock."""
        return self._clock()

    def running_requests(self) -> list[Request]:
        """In the order of admission. To be read only."""
        return list(self._running.values())

    def waiting_requests(self, n: int) -> list[Request]:
        """Up to `n` of those that wait, the next one first. To be read only."""
        return self._waiting.head(n)

    def block_states(self, every: int) -> bytes:
        """Of every `every`-th block; see BlockPool.states."""
        return self._kv.pool.states(every)

    def take_timelines(self) -> list[Timeline]:
        """Of the requests that ended since the last call; of very many the newest."""
        taken = list(self._timelines)
        self._timelines.clear()
        return taken

    def check(self) -> None:
        """Verify the block pool and every request's hold on it; linear in the blocks. Raises AssertionError."""
        self._kv.pool.check()
        running = self._running.values()
        held = {block for request in running for block in request.blocks}
        if len(held) != self._kv.pool.num_used:
            raise AssertionError(f"{self._kv.pool.num_used} blocks are used, but requests hold {len(held)}")
        if sorted([*self._running, *self._free_slots]) != list(range(self.config.max_num_seqs)):
            raise AssertionError("a slot is lost or owned twice")
        if len(self._running) + len(self._waiting) != len(self._requests):
            raise AssertionError("a request is neither running nor waiting")

    # ---- planning ------------------------------------------------------------------------------------------------

    def schedule(self) -> StepPlan | None:
        """Plan the next step; None when there is nothing to compute before a result comes in, or at all.

        Decode rows come first, so that a long prompt cannot stall running requests; then prompts that are under way,
        then admissions, until tokens, slots or blocks run out.
        """
        num_preemptions = self._num_preemptions
        seqs, chunks = self._plan_decodes()
        num_decodes = len(seqs)
        chunks = [request for request in chunks if request.status is RUNNING]  # a decode row may have preempted one
        budget = self._prompt_budget(num_decodes, chunks[0] if chunks else self._waiting.peek())
        for request in chunks:
            if budget == 0:
                break
            budget -= self._plan_chunk(seqs, request, budget)
        admitted: list[AdmittedSlot] = []
        if self._num_preemptions == num_preemptions:  # else blocks are short: who came in now would be next to go
            while budget > 0 and (new := self._admit()) is not None:
                admitted.append(AdmittedSlot(new.slot, new.id, list(new.tokens), new.prompt_len, new.num_computed,
                                             list(new.blocks), new.params))
                budget -= self._plan_chunk(seqs, new, budget)
        if not seqs:
            return None
        released, self._released_slots = self._released_slots, []
        self._num_steps += 1
        return StepPlan(self._num_steps, admitted, seqs, released, num_decodes)

    def _prompt_budget(self, num_decodes: int, first: Request | None) -> int:
        """Tokens of prompts, `first` before all others, in a step with so many decode rows, which wait for their next
        tokens as long as it takes. However many they are, a quarter of a mixed step is left, so that prompts go on."""
        budget, mixed = self.config.max_num_batched_tokens - num_decodes, self.config.max_num_mixed_tokens
        if mixed is None or num_decodes == 0 or (self.config.one_batch and first and self._ends_last(first)):
            return budget
        return min(budget, max(mixed - num_decodes, -(-mixed // 4)))

    def _ends_last(self, request: Request) -> bool:
        """Whether no decode row can go on for longer than `request`, so that all is delayed by each step it waits."""
        tokens_left = request.max_len - len(request.tokens)
        return all(other.max_len - len(other.tokens) - other.num_pending <= tokens_left
                   for other in self._running.values() if other.num_computed + other.num_inflight >= other.prompt_len)

    def _plan_decodes(self) -> tuple[list[SeqStep], list[Request]]:
        """Rows for the running requests with one missing token, long contexts last, and the requests that miss more.

        Goes over every running request in every step: this is the scheduler's hot loop.
        """
        seqs: list[SeqStep] = []
        chunks: list[Request] = []
        max_rows = self.config.max_num_batched_tokens
        for request in list(self._running.values()):
            if request.status is not RUNNING:  # preempted by a row before it
                continue
            known = len(request.tokens) + request.num_pending
            start = request.num_computed + request.num_inflight
            if start + 1 < known:
                chunks.append(request)
                continue
            # Nothing to do if all is computed, or if what is in flight brings the sequence to its end anyway.
            if start == known or known >= request.max_len or len(seqs) == max_rows:
                continue
            new_blocks: list[int] = []
            if start == request.capacity:
                grown = self._grow(request, start + 1, seqs)
                if grown is None:
                    continue
                new_blocks = grown
            request.num_inflight += 1
            request.num_pending += 1
            # The one missing token is the last of the prompt or an output: no prompt token follows it.
            seqs.append(SeqStep(request.id, request.epoch, request.slot, start, 1, 0, new_blocks, True, False))
        seqs.sort(key=BY_START)  # a GPU's attention begins at the end, with chunks and what else takes longest
        return seqs, chunks

    def _plan_chunk(self, seqs: list[SeqStep], request: Request, budget: int) -> int:
        """Append a row for as many of a running request's missing tokens as the budget allows; returns how many."""
        start = request.num_computed + request.num_inflight
        known = len(request.tokens) + request.num_pending
        n = min(known - start, budget)
        sample = start + n == known
        prompt_logprobs = (request.wants_prompt_logprobs and start + 1 < request.prompt_len
                           and start + n > request.num_prompt_logprobs)
        request.num_inflight += n
        request.num_pending += sample
        seqs.append(SeqStep(request.id, request.epoch, request.slot, start, n, 0, [], sample, prompt_logprobs))
        return n

    def _admit(self) -> Request | None:
        """Give the first waiting request a slot and blocks for all its known tokens; None if it has to wait.

        Some blocks are left for running requests to grow into. Nobody overtakes the first: a long prompt gets its turn.
        """
        if self._head_refused or not self._free_slots:
            return None
        request = self._waiting.peek()
        if request is None:
            return None
        if not self._kv.admit(request, reserve=self._watermark if self._running else 0):
            self._head_refused = True
            return None
        self._waiting.pop()
        request.status = RUNNING
        request.slot = self._free_slots.pop()
        self._running[request.slot] = request
        request.enter("prefill", self._clock())
        if request.num_cached_tokens < 0:
            request.num_cached_tokens = request.num_computed
            self._num_prompt_tokens += request.prompt_len
            self._num_cached_tokens += request.num_cached_tokens
        return request

    def _grow(self, request: Request, num_tokens: int, seqs: list[SeqStep]) -> list[int] | None:
        """New blocks, so that `request` can hold `num_tokens`; preempts by the policy until there are enough.

        None if the request itself had to give way. A victim that has a row in `seqs` already loses it.
        The one with the smallest key is never preempted for another's sake, so it gets to its end, then the next.
        """
        while (new_blocks := self._kv.grow(request, num_tokens)) is None:
            victim = max(self._running.values(), key=lambda r: (self._policy.key(r), r.order))
            self._preempt(victim)
            if victim is request:
                return None
            seqs[:] = [row for row in seqs if row.request_id != victim.id]
        return new_blocks

    def _preempt(self, request: Request) -> None:
        """Take everything from a running request; its tokens are computed again later, or found in the cache."""
        self._vacate(request)
        request.status = RequestStatus.WAITING
        request.enter("preempted", self._clock())
        request.epoch = next(self._epochs)
        request.num_computed = request.num_inflight = request.num_pending = 0
        request.num_preemptions += 1
        self._num_preemptions += 1
        self._waiting.push(request)

    # ---- results -------------------------------------------------------------------------------------------------

    def update(self, plan: StepPlan, result: StepResult) -> list[TokensOut]:
        """Take in a step's result, plans in the order they were made. Returns what is new for each request."""
        if result.error is not None:
            return [self._end(request, "error", result.error) for row in plan.seqs
                    if (request := self._live(row)) is not None]
        self._num_computed_tokens += plan.num_decodes
        self._num_computed_rows += len(plan.seqs)
        if len(plan.seqs) > plan.num_decodes:
            self._enter_phases(plan.seqs[plan.num_decodes:])
        outputs: list[TokensOut] = []
        block_size = self.config.block_size
        requests, sampled, failed = self._requests, result.sampled, result.failed
        for i, (request_id, epoch, _, start, n, n_draft, _, sample, _) in enumerate(plan.seqs):
            request = requests.get(request_id)
            if request is None or request.epoch != epoch:
                continue
            if i in failed:
                self._kv.forget(request)  # what it holds may be what made it fail
                outputs.append(self._end(request, "error", failed[i], result.at_fault.get(i)))
                continue
            new = sampled[i]
            logprobs = result.logprobs.get(i)
            finish_reason = stop_reason = None
            request.num_inflight -= n
            if sample:
                request.num_pending -= 1
                ended = self._append(request, new)
                if ended is not None:
                    num_taken, finish_reason, stop_reason = ended
                    new, logprobs = new[:num_taken], logprobs and logprobs[:num_taken]
                self._num_generated_tokens += len(new)
                request.num_computed = start + n - n_draft + len(new) - 1
            else:
                request.num_computed = start + n
            if request.num_computed - request.num_committed * block_size >= block_size:
                self._kv.commit(request)
            prompt_logprobs = None
            if i in result.prompt_logprobs:
                prompt_logprobs = self._take_prompt_logprobs(request, start, result.prompt_logprobs[i])
            if finish_reason is not None:
                self._end(request, finish_reason)
            if new or prompt_logprobs:
                outputs.append(TokensOut(request_id, new, finish_reason, stop_reason, logprobs, prompt_logprobs,
                                         request.num_cached_tokens))
        return outputs

    def _enter_phases(self, chunks: list[SeqStep]) -> None:
        """Chunks of prompts are done: more of them follow, or, where at most one token is missing, decode rows."""
        now = self._clock()
        for row in chunks:
            self._num_computed_tokens += row.n
            if (request := self._live(row)) is not None:
                last = row.start + row.n + 1 >= len(request.tokens)
                request.enter("decode" if last else "prefill", now, row.n)

    def _live(self, row: SeqStep) -> Request | None:
        """The request a row was planned for, unless it has ended or been preempted since."""
        request = self._requests.get(row.request_id)
        return request if request is not None and request.epoch == row.epoch else None

    def _append(self, request: Request, sampled: list[int]) -> tuple[int, str, int | None] | None:
        """Append sampled tokens up to the one that ends the request, if any does.

        Returns then how many were taken (the last is the stop token itself, or the last there is room for), the finish
        reason and the stop reason.
        """
        tokens, stop_ids, max_len = request.tokens, request.stop_ids, request.max_len
        for num_taken, token in enumerate(sampled, 1):
            tokens.append(token)
            if token in stop_ids and len(tokens) - request.prompt_len >= request.params.min_tokens:
                is_eos = token in self.config.eos_token_ids and not request.params.ignore_eos
                return num_taken, "stop", None if is_eos else token
            if len(tokens) >= max_len:
                return num_taken, "length", None
        return None

    def _take_prompt_logprobs(self, request: Request, start: int,
                              entries: list[TokenLogprobs]) -> list[TokenLogprobs]:
        """Of the entries, for prompt positions start + 1 .., those not delivered before a preemption already."""
        taken = entries[max(0, request.num_prompt_logprobs - start):]
        request.num_prompt_logprobs += len(taken)
        return taken

    def _end(self, request: Request, reason: str, error: str | None = None,
             error_param: str | None = None) -> TokensOut:
        """Finish a request wherever it is; a plan that still names it becomes stale."""
        was_running = request.status is RUNNING
        request.status = RequestStatus.FINISHED
        if was_running:
            self._vacate(request)
        else:
            self._waiting.discard()
            self._head_refused = False
        del self._requests[request.id]
        self._num_ended[reason] += 1
        request.enter("ended", self._clock())
        self._timelines.append(request.timeline(reason))
        return TokensOut(request.id, [], reason, num_cached_tokens=max(0, request.num_cached_tokens), error=error,
                         error_param=error_param)

    def _vacate(self, request: Request) -> None:
        """Take slot and blocks back. Plans in flight may still write there; whoever comes next writes after them."""
        self._kv.release(request)
        del self._running[request.slot]
        self._free_slots.append(request.slot)
        self._released_slots.append(request.slot)
        self._head_refused = False
        request.slot = -1

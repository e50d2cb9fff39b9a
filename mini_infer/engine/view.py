"""A look at a running engine: the rows of its last steps, its requests, and who holds which block.

Nothing is kept while nobody watches. What is made for a watcher is bounded: by the number of steps shown, of requests,
and of cells that stand for the KV pool.
"""

from __future__ import annotations

import sys
from array import array
from collections import deque
from collections.abc import Callable, Sequence
from operator import itemgetter

from mini_infer.core.blocks import CACHED, FREE, SHARED, USED
from mini_infer.core.plan import SeqStep, StepPlan
from mini_infer.core.request import Request
from mini_infer.core.scheduler import Scheduler
from mini_infer.protocol import EngineView, RequestView, StepView

MAX_STEPS = 16  # in a view; of more than these the newest are shown
MAX_RUNNING = 32  # shown with their figures
MAX_WAITING = 16
MAX_CELLS = 2048
CELLS = {FREE: 0, CACHED: 1, SHARED: 2, USED: 2}  # by block state; one user alone is painted over that
FIRST_OWNER = 3  # the cell of owners[0]'s blocks
_REQUEST_ID = itemgetter(SeqStep._fields.index("request_id"))  # quicker than by name, of thousands of rows
_CELL_OF_STATE = bytes(CELLS.get(state, 0) for state in range(256))


class StepTrace:
    """The newest steps since the last `take`. `clock` returns seconds."""

    def __init__(self, clock: Callable[[], float]):
        self._clock = clock
        self._submitted: dict[int, float] = {}  # steps under way
        self._done: deque[tuple[float, float, StepPlan]] = deque(maxlen=MAX_STEPS)
        self._last_end = 0.0

    def submit(self, plan: StepPlan) -> None:
        self._submitted[plan.step_id] = self._clock()

    def finish(self, plan: StepPlan) -> None:
        """The step's result is there. One that was under way before the trace began is passed over."""
        now = self._clock()
        begin = self._submitted.pop(plan.step_id, None)
        if begin is not None:
            self._done.append((now, now - max(begin, self._last_end), plan))
        self._last_end = now

    def take(self) -> list[StepView]:
        steps = [StepView(plan.step_id, end, seconds, plan.num_decodes, list(map(_REQUEST_ID, plan.seqs)),
                          [row.n for row in plan.seqs[plan.num_decodes:]]) for end, seconds, plan in self._done]
        self._done.clear()
        return steps


def look(scheduler: Scheduler, trace: StepTrace) -> EngineView:
    """What `scheduler` and the steps in `trace`, which are taken out of it, show at this moment."""
    begin = scheduler.now()
    stats = scheduler.stats()
    running = scheduler.running_requests()
    every = max(1, -(-stats.total_blocks // MAX_CELLS))
    cells = paint(scheduler.block_states(every), every, running)
    shown = [*running[:MAX_RUNNING], *scheduler.waiting_requests(MAX_WAITING)]
    requests = [view_of(request) for request in shown]
    owners = [(request.id, len(request.blocks)) for request in running]
    steps = trace.take()
    now = scheduler.now()
    return EngineView(now, now - begin, stats, steps, requests, owners, every, cells)


def paint(states: bytes, every: int, running: Sequence[Request]) -> bytes:
    """The cells of an EngineView, from the state of every `every`-th block and the requests that hold blocks."""
    cells = array("H", list(states.translate(_CELL_OF_STATE)))
    for code, request in enumerate(running, FIRST_OWNER):
        for block in request.blocks:
            if block % every == 0 and states[block // every] == USED:
                cells[block // every] = code
    if sys.byteorder == "big":
        cells.byteswap()
    return cells.tobytes()


def view_of(request: Request) -> RequestView:
    return RequestView(request.id, request.phase, request.arrival, request.prompt_len, request.num_computed,
                       len(request.tokens) - request.prompt_len, request.max_len - request.prompt_len,
                       max(0, request.num_cached_tokens), len(request.blocks), request.num_preemptions)

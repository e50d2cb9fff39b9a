"""A look at a running engine: the rows of its last steps, its requests, and who holds which block.

Nothing is kept while nobody watches. What is made for a watcher is bounded: by the number of steps shown, of requests,
and of cells that stand for the KV pool.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Callable, Sequence
from operator import itemgetter

from mini_infer.core.blocks import CACHED, FREE, SHARED, USED
from mini_infer.core.plan import SeqStep, StepPlan
from mini_infer.core.request import Request
from mini_infer.core.scheduler import Scheduler
from mini_infer.protocol import EngineView, RequestView, StepView

MAX_STEPS = 16  # in a view; of more than these since the last one, the first are shown
MAX_RUNNING = 32  # shown with their figures
MAX_WAITING = 16
MAX_CELLS = 2048
CELLS = {FREE: 0, CACHED: 1, SHARED: 2, USED: 2}  # by block state; one user alone is painted over that
FIRST_OWNER = 3  # the cell of owners[0]'s blocks
_REQUEST_ID = itemgetter(SeqStep._fields.index("request_id"))  # quicker than by name, of thousands of rows
_CELL_OF_STATE = bytes(CELLS.get(state, 0) for state in range(256))


class StepTrace:
    """The first steps since the last `take`, MAX_STEPS at most. `clock` returns seconds.

    What a look tells of a step is written down as it starts, while its rows are in the processor's caches.
    """

    def __init__(self, clock: Callable[[], float]):
        self._clock = clock
        self._submitted: dict[int, tuple[float, list[int], list[int]]] = {}  # steps under way: begin, ids, chunks
        self._done: list[tuple[int, float, float, int, list[int], list[int]]] = []  # the fields of a StepView
        self._last_end = 0.0
        self._cost = 0.0

    def submit(self, plan: StepPlan) -> None:
        if len(self._done) == MAX_STEPS:
            return
        now = self._clock()
        chunks = [row.n for row in plan.seqs[plan.num_decodes:]]
        self._submitted[plan.step_id] = (now, list(map(_REQUEST_ID, plan.seqs)), chunks)
        self._cost += self._clock() - now

    def finish(self, plan: StepPlan) -> None:
        """The step's result is there. One that was under way when there was no trace, or no room, is passed over."""
        if len(self._done) == MAX_STEPS:
            self._submitted.clear()  # when a step after them began to run is not known
            return
        now = self._clock()
        known = self._submitted.pop(plan.step_id, None)
        if known is not None:
            begin, ids, chunks = known
            self._done.append((plan.step_id, now, now - max(begin, self._last_end), plan.num_decodes, ids, chunks))
        self._last_end = now
        self._cost += self._clock() - now

    def take(self) -> tuple[list[StepView], float]:
        """The steps, and the seconds that it took to keep them."""
        steps, cost = [StepView(*each) for each in self._done], self._cost
        self._done.clear()
        self._cost = 0.0
        return steps, cost


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
    steps, cost = trace.take()
    now = scheduler.now()
    return EngineView(now, now - begin + cost, stats, steps, requests, owners, every, cells)


def paint(states: bytes, every: int, running: Sequence[Request]) -> bytes:
    """The cells of an EngineView, from the state of every `every`-th block and the requests that hold blocks."""
    raw = bytearray(2 * len(states))
    raw[sys.byteorder == "big"::2] = states.translate(_CELL_OF_STATE)
    cells = array("H", raw)
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

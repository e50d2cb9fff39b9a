"""Where a request waits for its grammar to be compiled, so that nobody else's steps do."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

from mini_infer.engine.loop import EngineLoop
from mini_infer.protocol import AddRequest, RequestError, RequestRefused, StructuredOutputs, TokensOut

AT_ONCE_SECONDS = 0.002  # an ordinary grammar is compiled, or found, in less
POLL_SECONDS = 0.01


class Arrivals:
    """Adds requests to the engine's loop, those with a grammar once it is compiled.

    `compile_grammar` raises RequestError for one that cannot be used; `refuse` tells the front of a refusal.
    """

    def __init__(self, loop: EngineLoop, compile_grammar: Callable[[StructuredOutputs], object],
                 refuse: Callable[[RequestRefused], None]):
        self._loop = loop
        self._compile = compile_grammar
        self._refuse = refuse
        self._pool = ThreadPoolExecutor(1, "arrivals")
        self._waiting: dict[int, tuple[AddRequest, Future[object]]] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, request: AddRequest) -> None:
        asked = request.params.structured_outputs
        if asked is None:
            self._admit(request, None)
            return
        future = self._pool.submit(self._compile, asked)
        if not self._waiting:  # else it is not its turn yet, and the steps of others go first
            wait([future], timeout=AT_ONCE_SECONDS)
        self._waiting[request.request_id] = (request, future)
        self.poll()

    def abort(self, request_ids: list[int], reason: str) -> list[TokensOut]:
        """End requests wherever they are."""
        outputs = []
        for request_id in request_ids:
            if request_id in self._waiting:
                self._waiting.pop(request_id)[1].cancel()
                outputs.append(TokensOut(request_id, [], reason))
        return outputs + self._loop.abort(request_ids, reason)

    def poll(self, seconds: float = 0.0) -> None:
        """Add those whose grammar is there; waits so long for one of them at most."""
        if seconds and self._waiting:
            wait([future for _, future in self._waiting.values()], timeout=seconds, return_when=FIRST_COMPLETED)
        for request, future in [entry for entry in self._waiting.values() if entry[1].done()]:
            del self._waiting[request.request_id]
            self._admit(request, future)

    def _admit(self, request: AddRequest, compiled: Future[object] | None) -> None:
        try:
            if compiled is not None:
                compiled.result()
            self._loop.add(request)
        except RequestError as error:
            self._refuse(RequestRefused(request.request_id, str(error), error.param, error.code))


__all__ = ["POLL_SECONDS", "Arrivals"]

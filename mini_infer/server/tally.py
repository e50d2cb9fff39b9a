"""What became of the requests for text: each is received once, and ends in one of four ways."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager

from starlette.types import Message, Scope, Send

from mini_infer.server.errors import CLIENT_GONE, CUT_SHORT

DEADLINE = 504
OUTCOMES = ("finished", "aborted", "failed", "refused")


class Visit:
    """A request on its way: what is sent to its client says how it ends. `let_in`: it has passed the door."""

    def __init__(self, scope: Scope, send: Send):
        self.let_in = False
        self._scope = scope
        self._send = send
        self._status = 0
        self._complete = False

    def send(self, message: Message) -> Awaitable[None]:  # no coroutine of its own: it is called for every token
        if message["type"] == "http.response.start":
            self._status = message["status"]
        elif not message.get("more_body", False):
            self._complete = True
        return self._send(message)

    @property
    def status(self) -> int:
        """Of the answer, or of the error that cut it short."""
        return self._scope.get(CUT_SHORT, self._status if self._complete else CLIENT_GONE)

    @property
    def outcome(self) -> str:
        if self.status < 400:
            return "finished"
        if self.status in (CLIENT_GONE, DEADLINE):
            return "aborted"
        return "refused" if self.status < 500 or not self.let_in else "failed"


class Tally:
    """`received`: requests. `ended`: by outcome, those that are over; the sum is `received` when none is on its way.
    `turned_away`: by status, those refused because the server was busy or out of service."""

    def __init__(self) -> None:
        self.received = 0
        self.ended = Counter(dict.fromkeys(OUTCOMES, 0))
        self.turned_away = Counter({429: 0, 503: 0})

    @contextmanager
    def visit(self, scope: Scope, send: Send) -> Iterator[Visit]:
        """Count a request, which is to be answered by the visit's `send`."""
        self.received += 1
        visit = Visit(scope, send)
        try:
            yield visit
        except Exception:  # answered with a 500 by whoever catches it
            scope[CUT_SHORT] = 500
            raise
        finally:
            self.ended[visit.outcome] += 1
            if visit.outcome == "refused" and visit.status in self.turned_away:
                self.turned_away[visit.status] += 1

"""The sequences that ended last: the engine's timeline of each, and when its reader had it."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

from mini_infer.protocol import Timeline

CAPACITY = 256


@dataclass(slots=True)
class Delivery:
    """How a sequence reached its reader. Times are seconds of `time.monotonic`, which is the engine's clock as well.

    reason: the front's own finish reason. `stalls`: when the reader of its request let others of its outputs wait, as
    (begin, end).
    """

    reason: str
    end: float
    stalls: list[tuple[float, float]] = field(default_factory=list)


@dataclass(slots=True)
class Ended:
    """`change` grows with every change in the history: who remembers the last one seen finds what is new."""

    timeline: Timeline
    change: int
    delivery: Delivery | None = None  # None until the reader has all of it


class History:
    """A ring of the last CAPACITY sequences. Its two sources may tell of a sequence in either order."""

    def __init__(self) -> None:
        self.last_change = 0
        self._ended: OrderedDict[int, Ended] = OrderedDict()  # by request id
        self._deliveries: OrderedDict[int, Delivery] = OrderedDict()  # of sequences whose timeline is still to come

    def __len__(self) -> int:
        return len(self._ended)

    def add(self, timeline: Timeline) -> None:
        """The engine's side of a sequence."""
        self.last_change += 1
        delivery = self._deliveries.pop(timeline.request_id, None)
        self._ended[timeline.request_id] = Ended(timeline, self.last_change, delivery)
        if len(self._ended) > CAPACITY:
            self._ended.popitem(last=False)

    def deliver(self, request_id: int, delivery: Delivery) -> None:
        """The front's side of a sequence."""
        ended = self._ended.get(request_id)
        if ended is not None:
            self.last_change += 1
            ended.change, ended.delivery = self.last_change, delivery
            return
        self._deliveries[request_id] = delivery
        if len(self._deliveries) > CAPACITY:  # the engine may never tell: it has died, or refused the request
            self._deliveries.popitem(last=False)

    def since(self, change: int) -> list[Ended]:
        """What is new or different since `last_change` had this value, in the order of ending."""
        if change == self.last_change:
            return []
        return [ended for ended in self._ended.values() if ended.change > change]

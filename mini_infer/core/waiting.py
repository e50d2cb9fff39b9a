"""The waiting queue: a heap by the policy's key, from which requests may vanish at any time."""

from __future__ import annotations

import heapq
from typing import Any

from mini_infer.core.policy import SchedulingPolicy
from mini_infer.core.request import Request, RequestStatus


class WaitingQueue:
    """Push and pop are O(log n). An aborted request is only counted, and dropped when it reaches the top or when the
    dead outnumber the living, so that aborting costs O(1) on average and memory follows the living."""

    def __init__(self, policy: SchedulingPolicy):
        self._policy = policy
        self._heap: list[tuple[tuple[Any, ...], int, Request]] = []
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def push(self, request: Request) -> None:
        heapq.heappush(self._heap, (self._policy.key(request), request.order, request))
        self._length += 1

    def peek(self) -> Request | None:
        """The request to run next, or None."""
        heap = self._heap
        while heap and heap[0][2].status is not RequestStatus.WAITING:
            heapq.heappop(heap)
        return heap[0][2] if heap else None

    def head(self, n: int) -> list[Request]:
        """Up to `n` of those that wait, for looking at: the first one first, the others in no strict order."""
        return [entry[2] for entry in self._heap[:2 * n] if entry[2].status is RequestStatus.WAITING][:n]

    def pop(self) -> Request:
        """Remove and return what `peek` returns. Raises IndexError when the queue is empty."""
        request = self.peek()
        if request is None:
            raise IndexError("pop from an empty waiting queue")
        heapq.heappop(self._heap)
        self._length -= 1
        return request

    def discard(self) -> None:
        """Account for one waiting request whose status has just left WAITING."""
        self._length -= 1
        if len(self._heap) > 2 * self._length + 64:
            self._heap = [entry for entry in self._heap if entry[2].status is RequestStatus.WAITING]
            heapq.heapify(self._heap)

"""What all connections together hold: bytes of requests that are not answered yet, and of answers not read yet."""

from __future__ import annotations

import asyncio


class Buffers:
    """Bytes held for clients, at most about `max_size` of them.

    Requests are counted as they arrive until they are answered, each as `max_request` bytes at most: what is sent
    beyond that is thrown away. Answers are counted where a client does not keep up. To be used on the event loop only.
    """

    def __init__(self, max_size: int, max_request: int):
        self._max_size = max_size
        self.max_request = max_request
        self._requests = 0
        self._slow: set[asyncio.Transport] = set()  # with more unsent than the transport likes

    @property
    def size(self) -> int:
        return self._requests + sum(transport.get_write_buffer_size() for transport in self._slow)

    def has_room(self, num_bytes: int = 0) -> bool:
        """Whether that many more may come."""
        return self.size + num_bytes <= self._max_size

    def add(self, num_bytes: int) -> None:
        """Count bytes of requests; a negative number when they have been answered."""
        self._requests += num_bytes

    def keeps_waiting(self, transport: asyncio.Transport) -> None:
        """Its client does not read as fast as it is answered. Where there is no room, whoever has most unsent goes."""
        self._slow.add(transport)
        while self._slow and not self.has_room():
            slowest = max(self._slow, key=lambda one: one.get_write_buffer_size())
            self._slow.remove(slowest)
            slowest.abort()

    def caught_up(self, transport: asyncio.Transport) -> None:
        """Its client has read nearly all, or is gone."""
        self._slow.discard(transport)

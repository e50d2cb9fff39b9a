"""The garbage collector of a process that serves: out of the way of every token."""

from __future__ import annotations

import gc

YOUNG = 10_000  # objects that a step or a request leaves, before anybody looks at them; Python's own number is 700


def settle_memory() -> None:
    """Call once when everything is loaded. What is there now stays, and is never looked at again; so a collection costs
    what the requests of the moment hold, and not what a hundred modules do."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG, 10, 10)

"""The garbage collector, out of the way of every token."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

FEW = 1_000  # frozen objects mean nothing: Python 3.12 starts with 375
YOUNG = 10_000  # objects that a step or a request leaves, before anybody looks at them; Python's own number is 700


def settle_memory() -> None:
    """Call once when everything is loaded. What is there now stays, and is never looked at again; so a collection costs
    what the requests of the moment hold, and not what a hundred modules do."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG, 10, 10)


@contextmanager
def undisturbed() -> Iterator[None]:
    """For a long run in somebody else's process: until its end collections pass over all that was there before it."""
    if gc.get_freeze_count() > FEW:  # somebody has seen to it: another such run, or whoever owns this process
        yield
        return
    threshold = gc.get_threshold()
    gc.freeze()
    gc.set_threshold(YOUNG, 10, 10)
    try:
        yield
    finally:
        gc.set_threshold(*threshold)
        gc.unfreeze()

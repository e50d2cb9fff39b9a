"""Who runs first, and who gives way: the scheduler's extension point."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from mini_infer.config import ConfigError
from mini_infer.core.request import Request


class SchedulingPolicy(ABC):
    """Orders requests. The waiting request with the smallest key is admitted next, and nobody overtakes it; the running
    one with the largest key is preempted when blocks run out.

    Subclass it and `register_policy("name", TheClass)` to add one (see examples/custom_policy.py).
    """

    @abstractmethod
    def key(self, request: Request) -> tuple[Any, ...]:
        """A sort key. It must not change while the request waits. Ties are broken by the order of arrival here."""


class FCFS(SchedulingPolicy):
    """First come, first served."""

    def key(self, request: Request) -> tuple[float]:
        return (request.arrival,)


class Priority(SchedulingPolicy):
    """The lower `priority` number first; first come, first served among equals."""

    def key(self, request: Request) -> tuple[int, float]:
        return (request.priority, request.arrival)


PolicyFactory = Callable[[], SchedulingPolicy]
_FACTORIES: dict[str, PolicyFactory] = {"fcfs": FCFS, "priority": Priority}


def register_policy(name: str, factory: PolicyFactory) -> None:
    """Make a policy known under a name, for `scheduling_policy`. Raises ConfigError if the name is taken."""
    if _FACTORIES.get(name, factory) is not factory:
        raise ConfigError(f"scheduling_policy {name!r} is registered already; choose another name")
    _FACTORIES[name] = factory


def make_policy(name: str) -> SchedulingPolicy:
    """A new policy by name. Raises ConfigError listing the known names."""
    if name not in _FACTORIES:
        raise ConfigError(f"scheduling_policy {name!r} is not known; known: {', '.join(sorted(_FACTORIES))}")
    return _FACTORIES[name]()

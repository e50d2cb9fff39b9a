"""One training or exam item, and the split that keeps the two apart."""

import hashlib
import random
import re
from collections.abc import Callable
from dataclasses import dataclass, field

HELD_OUT_SHARE = 0.1  # of all item keys
_DECORATION = re.compile(r"[.,?!]| please|please ")


@dataclass(frozen=True)
class Sample:
    """A conversation that ends with the right assistant message.

    ``key`` names the item (a pair of summands, a question's text, a tool's name ...): a key belongs to training or to
    the exam, never to both. ``expect`` says what the exam looks for in the answer. ``short`` is the bare answer, for
    conversations whose system prompt asks for brevity; empty where there is none.
    """

    skill: str
    key: str
    messages: tuple[dict, ...]
    tools: tuple[dict, ...] = ()
    expect: dict = field(default_factory=dict)
    short: str = ""
    text: str = ""  # a raw document without chat template; messages are empty then


Maker = Callable[[random.Random, "Split"], Sample]


def is_held_out(key: str) -> bool:
    """Whether an item belongs to the exam; depends on the key alone, and not on capitals, punctuation or politeness."""
    plain = _DECORATION.sub("", key.lower())
    digest = hashlib.blake2b(plain.encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") < HELD_OUT_SHARE * 2**32


@dataclass(frozen=True)
class Split:
    """Which half of the items a generator may use."""

    held_out: bool

    def allows(self, key: str) -> bool:
        """Whether an item with this key is on this side of the split."""
        return is_held_out(key) == self.held_out


TRAIN = Split(held_out=False)
EXAM = Split(held_out=True)


def user(content: str) -> dict:
    """A user message."""
    return {"role": "user", "content": content}


def assistant(content: str) -> dict:
    """An assistant message."""
    return {"role": "assistant", "content": content}


def system(content: str) -> dict:
    """A system message."""
    return {"role": "system", "content": content}


def question(skill: str, key: str, asked: str, answer: str, expect: dict | None = None, short: str = "") -> Sample:
    """The most common sample: one question, one answer."""
    return Sample(skill, key, (user(asked), assistant(answer)), expect=expect or {}, short=short)

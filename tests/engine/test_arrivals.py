"""Requests whose grammar takes long wait by themselves; the others do not."""

from __future__ import annotations

import threading
import time

from mini_infer.engine.arrivals import Arrivals
from mini_infer.protocol import AddRequest, RequestError, RequestRefused, SamplingParams, StructuredOutputs, TokensOut


class Loop:
    def __init__(self) -> None:
        self.added: list[int] = []

    def add(self, request: AddRequest) -> None:
        if not request.prompt_token_ids:
            raise RequestError("prompt must not be empty", "prompt")
        self.added.append(request.request_id)

    def abort(self, request_ids: list[int], reason: str) -> list[TokensOut]:
        return [TokensOut(one, [], "abort") for one in request_ids if one in self.added]


def request(number: int, regex: str | None = None, prompt: tuple[int, ...] = (1,)) -> AddRequest:
    asked = None if regex is None else StructuredOutputs(regex=regex)
    return AddRequest(number, list(prompt), SamplingParams(structured_outputs=asked))


def test_who_waits_and_who_does_not() -> None:
    gate = threading.Event()

    def compile_grammar(asked: StructuredOutputs) -> None:
        if asked.regex == "slow":
            gate.wait(10)
        if asked.regex == "bad":
            raise RequestError("no such grammar", "structured_outputs")

    loop, refused = Loop(), list[RequestRefused]()
    arrivals = Arrivals(loop, compile_grammar, refused.append)  # type: ignore[arg-type]
    arrivals.add(request(1))
    arrivals.add(request(2, prompt=()))
    arrivals.add(request(3, "quick"))
    end = time.monotonic() + 10
    while arrivals and time.monotonic() < end:
        arrivals.poll(0.01)
    assert loop.added == [1, 3] and [(one.request_id, one.param) for one in refused] == [(2, "prompt")]
    for number, regex in ((4, "slow"), (5, "bad"), (6, "quick"), (7, "quick")):
        arrivals.add(request(number, regex))
    arrivals.add(request(8))
    arrivals.poll()
    assert loop.added == [1, 3, 8] and len(arrivals) == 4
    ended = arrivals.abort([6, 8, 99], "abort")
    assert [(out.request_id, out.finish_reason) for out in ended] == [(6, "abort"), (8, "abort")]
    gate.set()
    while arrivals and time.monotonic() < end:
        arrivals.poll(0.01)
    assert loop.added == [1, 3, 8, 4, 7]
    assert [(one.request_id, one.message) for one in refused[1:]] == [(5, "no such grammar")]

"""What metrics and traces hear of, on the event loop; of tokens once a step and not once each."""

from __future__ import annotations

from dataclasses import dataclass, field

from mini_infer.engine.streams import SequenceRecord
from mini_infer.protocol import StepOutputs


@dataclass(slots=True)
class StepSeen:
    """One step's message, and what its tokens mean. Times are seconds of `time.monotonic`.

    first_tokens: the sequences that it brought the first token of. gaps: seconds between two tokens of a sequence, with
    the number of tokens that took so long. Sequences that run side by side share a gap, so it has few entries.
    """

    outputs: StepOutputs
    now: float
    first_tokens: list[SequenceRecord] = field(default_factory=list)
    gaps: dict[float, int] = field(default_factory=dict)

    def add(self, record: SequenceRecord, num_tokens: int) -> None:
        """Take in what the step brought for one sequence; `record` moves on."""
        if record.num_tokens:
            gap = (self.now - record.last_token) / num_tokens
            self.gaps[gap] = self.gaps.get(gap, 0) + num_tokens
        else:
            self.first_tokens.append(record)
            record.first_token = self.now
            if num_tokens > 1:  # the rest came with no time in between
                self.gaps[0.0] = self.gaps.get(0.0, 0) + num_tokens - 1
        record.num_tokens += num_tokens
        record.last_token = self.now


class Observer:
    """Override what is of interest, and be quick. `now` and all times: seconds of `time.monotonic`."""

    def on_submit(self, record: SequenceRecord) -> None:
        """A sequence goes to the engine; called in the context of whoever asked for it."""

    def on_step(self, seen: StepSeen) -> None:
        """A step came in. The sequences that it ended have been through `on_finish` before."""

    def on_finish(self, record: SequenceRecord, reason: str, now: float) -> None:
        """A sequence is over for the front. The engine's Timeline of it comes in this step's message, or in a later one
        where the front ended it: in the one that has the sequence's end. One that was aborted before the engine began
        with it has an end without a Timeline."""

    def on_refused(self, request_id: int) -> None:
        """The engine refuses a sequence that is over for the front, or never had it: no Timeline will come."""

    def on_lost(self) -> None:
        """The engine is gone, and all sequences are over: no Timelines will come of those that it had."""

"""From a model's text to what it means: content, reasoning, tool calls. One machine for all dialects.

It reads each character once, or twice where something that began like a mark or a call turns out to be none, so its
work is linear in the text; and as nothing looks ahead, the events are the same however the text was cut. Characters
are held back only while they may still belong to a mark, to a call's name, or to whitespace around these.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import NamedTuple, TypeAlias

from mini_infer.text.parsers.dialects import ReasoningDialect, ToolDialect
from mini_infer.text.parsers.json_reader import CallReader, NamedCallReader
from mini_infer.text.stop import StopAutomaton


class Content(NamedTuple):
    text: str


class Reasoning(NamedTuple):
    text: str


class CallStart(NamedTuple):
    call: int  # numbered from 0
    name: str


class CallArguments(NamedTuple):
    """A further piece of a call's arguments: together they are a JSON object."""

    call: int
    text: str


class CallEnd(NamedTuple):
    call: int


class CallBroken(NamedTuple):
    """What began as a call is none, or was cut off: `text` is all that was written of it, in the model's own form.
    Whatever follows comes as content."""

    call: int
    text: str


Event: TypeAlias = Content | Reasoning | CallStart | CallArguments | CallEnd | CallBroken

TextKind: TypeAlias = type[Content] | type[Reasoning]


class OutputParser:
    """Reads one answer. `prompt` is the text before it, which may have opened the model's thoughts, or closed them.

    names: the functions that may be called (anything may, if empty); a call of another one is content.
    A call that is malformed before its arguments begin comes out as content, to the letter. One that breaks within them
    has been announced by then, and ends with CallBroken. Whitespace around calls and thoughts is dropped.
    """

    def __init__(self, tools: ToolDialect | None, reasoning: ReasoningDialect | None = None,
                 names: Collection[str] = (), prompt: str = ""):
        self._tools = tools
        self._reasoning = reasoning
        self._names = frozenset(names)
        self._marks = StopAutomaton(tools.marks if tools is not None else ())
        self._thought_end = StopAutomaton([reasoning.end] if reasoning is not None else ())
        self._events: list[Event] = []
        self._kind: TextKind | None = None  # of the text in `_run`, not yet an event; None: a call's arguments
        self._run: list[str] = []
        self._space: list[str] = []  # whitespace that is text only if text follows
        self._held: list[str] = []  # what may be a mark, or what is left of one
        self._node = 0  # of the automaton: how much of a mark `_held` ends with
        self._after_mark = False  # no text since the last mark
        self._has_content = False
        self._raw: list[str] = []  # of the call under way
        self._again = 0  # where in `_raw` what may be the beginning of another mark stands; 0: nowhere
        self._list_open = ""  # what must come before the first call of a list
        self._in_list = True  # the call under way is one of a list, or has an end mark
        self._reader: CallReader | NamedCallReader = CallReader()
        self._started = False  # the call under way has been announced
        self._num_calls = 0
        self._state: Callable[[str], None] = self._first_state(prompt.rstrip())

    def feed(self, text: str) -> list[Event]:
        """The events that this text completes or continues."""
        for char in text:
            self._push(char)
        return self._take()

    def read(self, text: str) -> list[Event]:
        """The events of a whole answer; the parser is used up then."""
        for char in text:
            self._push(char)
        return self.finish()

    def finish(self) -> list[Event]:
        """The answer has ended: what was held back. A call that is cut off counts as broken."""
        if self._state in (self._call, self._before_call):
            self._break_off()
        thinking = self._state == self._thought or (self._state == self._before_thought and self._is_implicit)
        kind = Reasoning if thinking else Content
        if self._state == self._after_call:
            self._held = []  # the beginning of its end mark
        self._text(kind, self._held)
        if not self._after_mark:
            self._write(kind, self._space)
        self._held, self._space = [], []
        return self._take()

    def _push(self, char: str) -> None:
        self._state(char)

    # ---- writing -------------------------------------------------------------------------------------------------

    def _take(self) -> list[Event]:
        self._end_run()
        events, self._events = self._events, []
        return events

    def _emit(self, event: Event) -> None:
        self._end_run()
        self._events.append(event)

    def _end_run(self) -> None:
        if self._run:
            text, self._run = "".join(self._run), []
            self._events.append(CallArguments(self._num_calls, text) if self._kind is None else self._kind(text))

    def _write(self, kind: TextKind, chars: list[str]) -> None:
        if kind is not self._kind:
            self._end_run()
            self._kind = kind
        self._run += chars

    def _text(self, kind: TextKind, chars: list[str]) -> None:
        """Characters that are text for sure, though whitespace waits for what comes after it."""
        for char in chars:
            if char.isspace():
                self._space.append(char)
                continue
            if self._has_content or not self._after_mark:
                self._write(kind, self._space)
            self._space, self._after_mark = [], False
            self._has_content |= kind is Content
            self._write(kind, [char])

    # ---- thoughts ------------------------------------------------------------------------------------------------

    def _first_state(self, prompt: str) -> Callable[[str], None]:
        if self._reasoning is None or prompt.endswith(self._reasoning.end):
            return self._content
        if prompt.endswith(self._reasoning.start):
            self._after_mark = True
            return self._thought
        return self._before_thought

    @property
    def _is_implicit(self) -> bool:
        return self._reasoning is not None and self._reasoning.implicit

    def _before_thought(self, char: str) -> None:
        """At the very beginning: whitespace, then perhaps the mark that opens the thoughts."""
        assert self._reasoning is not None
        start = self._reasoning.start
        if char == start[len(self._held)]:
            self._held.append(char)
            if len(self._held) == len(start):
                self._held, self._space, self._after_mark = [], [], True
                self._state = self._thought
        elif char.isspace() and not self._held:
            self._space.append(char)
        else:
            self._state = self._thought if self._is_implicit else self._content
            self._after_mark = self._is_implicit
            begun, self._held = self._held, []
            for one in (*begun, char):
                self._push(one)

    def _thought(self, char: str) -> None:
        assert self._reasoning is not None
        if self._mark_ends(self._thought_end, char, Reasoning):
            self._held, self._space, self._after_mark = [], [], True
            self._state = self._content

    def _mark_ends(self, marks: StopAutomaton, char: str, kind: TextKind) -> bool:
        """Whether a mark is complete with this character; it is then all of `_held`. What cannot be part of one is
        written."""
        self._held.append(char)
        self._node = marks.step(self._node, char)
        mark = marks.match[self._node]
        free = len(self._held) - (marks.depth[self._node] if mark is None else len(mark))
        if free:
            self._text(kind, self._held[:free])
            del self._held[:free]
        if mark is not None:
            self._node = 0
        return mark is not None

    # ---- content and calls ---------------------------------------------------------------------------------------

    def _content(self, char: str) -> None:
        tools = self._tools
        at_start = not self._held and (self._after_mark or not self._has_content)
        if at_start and char == "{" and tools is not None and tools.bare:
            self._expect_call("")
            self._before_call(char)
        elif self._mark_ends(self._marks, char, Content):
            self._expect_call(tools.list_open if tools is not None else "")

    def _expect_call(self, list_open: str) -> None:
        self._raw = [*self._space, *self._held]
        self._space, self._held = [], []
        self._again = 0
        self._list_open = list_open
        self._in_list = True
        self._state = self._before_call

    def _before_call(self, char: str) -> None:
        """Between a mark, or a separator, and the call: whitespace, and what opens a list; or a call's name."""
        assert self._tools is not None
        if char.isspace():
            self._raw.append(char)
        elif self._list_open and char == self._list_open:
            self._list_open = ""
            self._again = len(self._raw)
            self._raw.append(char)
        elif char == "{" and not self._list_open:
            self._begin_call(CallReader(), char)
        elif self._list_open and self._tools.named and NamedCallReader.begins(char):
            self._in_list = False
            self._begin_call(NamedCallReader(), char)
        else:
            self._break_off()
            self._push(char)

    def _begin_call(self, reader: CallReader | NamedCallReader, char: str) -> None:
        self._reader, self._started, self._again = reader, False, 0
        self._state = self._call
        self._call(char)

    def _call(self, char: str) -> None:
        reader = self._reader
        if not reader.push(char) or (reader.name is not None and self._names and reader.name not in self._names):
            self._again = len(self._raw) - len(reader.mark)
            self._break_off()
            self._push(char)
            return
        self._raw.append(char)
        if reader.name is not None and (reader.arguments or reader.done):
            if not self._started:
                self._started = True
                self._emit(CallStart(self._num_calls, reader.name))
            self._kind = None  # what is written next are arguments
            self._run += reader.arguments
            reader.arguments = []
        if reader.done:
            self._end_call()

    def _end_call(self) -> None:
        self._end_run()
        self._events.append(CallEnd(self._num_calls))
        self._num_calls += 1
        self._started = False
        self._raw = []
        self._after_mark = True
        self._state = self._after_call

    def _after_call(self, char: str) -> None:
        """Whitespace, the separator and another call of the same list, or the mark at the end."""
        assert self._tools is not None
        separator, end = (self._tools.separator, self._tools.end) if self._in_list else ("", "")
        if char.isspace() and not self._held:
            self._space.append(char)
        elif separator and char == separator and not self._held:
            self._held = [char]
            self._expect_call("")
        elif end and char == end[len(self._held)]:
            self._held.append(char)
            if len(self._held) == len(end):
                self._held, self._space = [], []
                self._state = self._content
        else:
            self._state = self._content
            begun, self._held = self._held, []
            for one in (*begun, char):
                self._push(one)

    def _break_off(self) -> None:
        """What was taken for a call is none; the machine is back in the content."""
        raw, self._raw = self._raw, []
        self._state = self._content
        if self._started:
            self._started = False
            self._emit(CallBroken(self._num_calls, "".join(raw)))
            self._num_calls += 1
            self._has_content, self._after_mark = True, False
        else:
            again = raw[self._again :] if self._again else []
            self._text(Content, raw[: len(raw) - len(again)])
            for char in again:
                self._push(char)


__all__ = ["CallArguments", "CallBroken", "CallEnd", "CallStart", "Content", "Event", "OutputParser", "Reasoning"]

"""Calls read one character at a time: is it still JSON, and which part of a tool call is this character?"""

from __future__ import annotations

import json
import re
from enum import Enum

from mini_infer.text.parsers.dialects import ARGS, ARGUMENT_KEYS, CALL_ID, NAME_KEYS

MAX_DEPTH = 256
_SPACE = frozenset(" \t\n\r")
_SCALAR = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?|true|false|null")
_SCALAR_CHARS = frozenset("+-.0123456789abcdefghijklmnopqrstuvwxyzE")
_HEX = frozenset("0123456789abcdefABCDEF")


class At(Enum):
    """What may come next."""

    VALUE = 0
    FIRST_VALUE = 1  # or the end of the array
    KEY = 2
    FIRST_KEY = 3  # or the end of the object
    COLON = 4
    AFTER = 5  # a value: a comma, or the end of what it is in
    STRING = 6
    ESCAPE = 7
    HEX = 8
    SCALAR = 9  # a number, true, false, null


class JsonScanner:
    """Accepts exactly the prefixes of JSON objects, as RFC 8259 has them (and json.loads reads them).

    `stack` has a "}" or "]" for each object or array that is open; once the first is closed, `done` is True.
    """

    __slots__ = ("_key", "_num_hex", "_scalar", "at", "done", "stack")

    def __init__(self) -> None:
        self.at = At.VALUE
        self.stack: list[str] = []
        self.done = False
        self._key = False  # the string under way is a key
        self._num_hex = 0
        self._scalar: list[str] = []

    def push(self, char: str) -> bool:
        """Whether the text is still JSON with this character; after a False nothing more may be pushed."""
        at = self.at
        if at is At.STRING:
            if char == '"':
                self.at = At.COLON if self._key else At.AFTER
            elif char == "\\":
                self.at = At.ESCAPE
            return char >= " "
        if at is At.ESCAPE:
            self.at, self._num_hex = (At.HEX, 0) if char == "u" else (At.STRING, 0)
            return char in '"\\/bfnrtu'
        if at is At.HEX:
            self._num_hex += 1
            if self._num_hex == 4:
                self.at = At.STRING
            return char in _HEX
        if at is At.SCALAR:
            if char in _SCALAR_CHARS:
                self._scalar.append(char)
                return True
            if not _SCALAR.fullmatch("".join(self._scalar)):
                return False
            self.at = at = At.AFTER
        if char in _SPACE:
            return True
        if at is At.COLON:
            self.at = At.VALUE
            return char == ":"
        if at is At.AFTER:
            if char == ",":
                self.at = At.KEY if self.stack[-1] == "}" else At.VALUE
                return True
            return self._close(char)
        if at is At.KEY or at is At.FIRST_KEY:
            if char == "}" and at is At.FIRST_KEY:
                return self._close(char)
            self.at, self._key = At.STRING, True
            return char == '"'
        if char == "]" and at is At.FIRST_VALUE:
            return self._close(char)
        return self._open(char)

    def _open(self, char: str) -> bool:
        """The first character of a value."""
        if char == "{":
            self.at = At.FIRST_KEY
            self.stack.append("}")
            return len(self.stack) <= MAX_DEPTH
        if not self.stack:
            return False
        if char == "[":
            self.at = At.FIRST_VALUE
            self.stack.append("]")
            return len(self.stack) <= MAX_DEPTH
        if char == '"':
            self.at, self._key = At.STRING, False
            return True
        self.at, self._scalar = At.SCALAR, [char]
        return char in "-0123456789tfn"

    def _close(self, char: str) -> bool:
        if char != self.stack[-1]:
            return False
        self.stack.pop()
        self.at = At.AFTER
        self.done = not self.stack
        return True


class CallReader:
    """Reads one call, a JSON object; other keys than the name's and the arguments' are passed over.

    `name` is set once it is known; `arguments` collects the characters of the arguments, for whoever takes them away.
    """

    __slots__ = ("_part", "_scanner", "_seen", "_text", "arguments", "name")
    mark = ""  # there is none within such a call

    def __init__(self) -> None:
        self.name: str | None = None
        self.arguments: list[str] = []
        self._scanner = JsonScanner()
        self._part: str | None = None  # what the text under way is: "key", "name", "arguments"
        self._text: list[str] = []
        self._seen: set[str] = set()  # of the parts

    @property
    def done(self) -> bool:
        return self._scanner.done

    def push(self, char: str) -> bool:
        """Whether this can still become a call."""
        scanner = self._scanner
        if self._part is None and len(scanner.stack) == 1 and char not in _SPACE and not self._begin(char):
            return False
        if not scanner.push(char):
            return False
        if self._part is not None:
            (self.arguments if self._part == "arguments" else self._text).append(char)
            if len(scanner.stack) == 1 and scanner.at in (At.COLON, At.AFTER):
                self._end()
        if scanner.done and "arguments" not in self._seen:
            self.arguments = ["{}"]
        return not (scanner.done and self.name is None)

    def _begin(self, char: str) -> bool:
        """A character at the top of the object that may begin a part. The value of a name is text, that of arguments
        an object."""
        at = self._scanner.at
        if at in (At.KEY, At.FIRST_KEY) and char == '"':
            self._part, self._text = "key", []
        elif at is At.VALUE and self._text:
            key = json.loads("".join(self._text))
            part = "name" if key in NAME_KEYS else "arguments" if key in ARGUMENT_KEYS else None
            self._text = []
            if part is not None:
                if part in self._seen or char != ('"' if part == "name" else "{"):
                    return False
                self._seen.add(part)
                self._part = part
        return True

    def _end(self) -> None:
        if self._part == "name":
            self.name = json.loads("".join(self._text))
            self._text = []
        self._part = None  # a key's text stays until its value begins


class NamedCallReader:
    """Reads `name{…}`, `name[ARGS]{…}` or `name[CALL_ID]id[ARGS]{…}`, as CallReader does; the id is passed over.

    `mark`: what is there so far of a mark; it may turn out to be another one, which is none of this call's.
    """

    __slots__ = ("_marks", "_scanner", "_text", "arguments", "mark", "name")

    def __init__(self) -> None:
        self.name: str | None = None
        self.arguments: list[str] = []
        self.mark = ""
        self._marks: tuple[str, ...] = (CALL_ID, ARGS)  # that may come yet
        self._text: list[str] = []  # the name, or the id
        self._scanner: JsonScanner | None = None  # of the arguments, once they may begin

    @staticmethod
    def begins(char: str) -> bool:
        """Whether a name may have this character."""
        return char.isalnum() or char in "_-."

    @property
    def done(self) -> bool:
        return self._scanner is not None and self._scanner.done

    def push(self, char: str) -> bool:
        """Whether this can still become a call."""
        if self.mark:
            return self._push_mark(char)
        if self._scanner is None and self.begins(char):
            self._text.append(char)
            return True
        if char == "[" and self._scanner is None and self._text:
            self.mark = char
            self._end_name()
            return True
        if self._scanner is None:
            if char != "{" or not self._text or CALL_ID not in self._marks:
                return False
            self._end_name()
            self._scanner = JsonScanner()
        if char in _SPACE and self._scanner.at is At.VALUE and not self._scanner.stack:
            return True  # before the arguments
        self.arguments.append(char)
        return self._scanner.push(char)

    def _push_mark(self, char: str) -> bool:
        mark = self.mark + char
        if not any(known.startswith(mark) for known in self._marks):
            return False
        self.mark = mark
        if mark in self._marks:
            self.mark, self._text = "", []
            self._marks = self._marks[self._marks.index(mark) + 1 :]
            if mark == ARGS:
                self._scanner = JsonScanner()
        return True

    def _end_name(self) -> None:
        if self.name is None:
            self.name = "".join(self._text)


__all__ = ["CallReader", "JsonScanner", "NamedCallReader"]

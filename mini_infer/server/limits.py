"""What a request may weigh, held before anything is made of it: bytes of headers and body, depth and values of JSON,
entries of lists. The limits of single values (max_tokens, n, logprobs, …) are with SamplingParams."""

from __future__ import annotations

import gc
import json
import re
from collections.abc import Mapping
from typing import Any

from mini_infer.protocol import RequestError, SamplingParams

MAX_HEADERS = 128
MAX_HEADER_BYTES = 64 * 1024  # of the request line and all headers together
MAX_PIPELINED = 16  # requests of a connection that wait for the answer to the one before
MAX_PIPELINED_BYTES = 2**20  # of their bodies
HEADER_SECONDS = 30.0  # for a connection to bring all headers of a request
BODY_SECONDS = 60.0  # and then its body
LINGER_SECONDS = 2.0  # for a client that is refused in the middle of its request to read why
MAX_BODY_SIZE = 8 * 2**20  # bytes, unless --max-body-size says otherwise
MAX_BUFFERED_SIZE = 2**30  # bytes of all connections together, unless --max-buffered-size says otherwise
SMALL_REQUEST = 8192  # bytes; it is let in all the same: a probe, a look at the metrics
MAX_DEPTH = 64  # of nested arrays and objects
MAX_VALUES = 1_000_000  # of a body: numbers, strings, …
MAX_OBJECTS = 20_000  # of a body; reading one (a message, a part of it) takes ten microseconds, for which others wait
MAX_FIELDS = 256  # of one object that has a schema
MAX_CHOICES = 1024  # prompts times n
MAX_PROMPT_IDS = 1_000_000  # of one prompt; the context length is what counts, this is only checked earlier
MAX_COPIED = 400_000  # entries of lists of sampling parameters, all completions together: each has its own
MAX_STRING_CHARS = 4096  # of one stop string or bad word
MAX_STRINGS_CHARS = 16384  # of all of either kind
MAX_TIMEOUT = 86_400.0  # seconds that a request may take
MAX_ID_CHARS = 256  # of a client's own name for a request

# The most entries that a list or map of a request may have, by field. None is near to what a real client sends.
MAX_ENTRIES: dict[str, int] = {
    "messages": 4096,
    "content": 4096,
    "system": 4096,
    "documents": 1024,
    "chat_template_kwargs": 128,
    "tools": 128,
    "tool_calls": 128,
    "modalities": 4,
    "metadata": 16,
    "stop": 64,
    "stop_sequences": 64,
    "stop_token_ids": 1024,
    "logit_bias": 1024,
    "bad_words": 1024,
    "allowed_token_ids": 65536,
    "prompt": MAX_PROMPT_IDS,
    "tokens": MAX_PROMPT_IDS,
}
_NOT_STRUCTURE = bytes(byte for byte in range(256) if byte not in b'[]{}",')
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def check_entries(fields: Mapping[str, Any]) -> None:
    """Raises RequestError naming the list or map that is too long, or when there are too many fields."""
    if len(fields) > MAX_FIELDS:
        raise RequestError(f"an object of the request has {len(fields)} fields; at most {MAX_FIELDS} are accepted")
    for name, value in fields.items():
        if isinstance(value, (list, dict)) and len(value) > MAX_ENTRIES.get(name, MAX_VALUES):
            raise RequestError(f"{name} has {len(value)} entries; at most {MAX_ENTRIES[name]} are accepted", name)


def check_strings(name: str, value: str | list[str] | None) -> None:
    """Raises RequestError when stop strings or bad words are longer than is accepted."""
    lengths = [len(text) for text in ([value] if isinstance(value, str) else value or ())]
    for what, found, limit in (("an entry of", max(lengths, default=0), MAX_STRING_CHARS),
                               ("entries of together", sum(lengths), MAX_STRINGS_CHARS)):
        if found > limit:
            raise RequestError(f"{name} has {what} {found} characters; at most {limit} are accepted", name)


def check_copies(params: SamplingParams, num_choices: int) -> None:
    """Raises RequestError naming the longest list when there are too many completions for it."""
    lengths = {name: len(value) for name in ("allowed_token_ids", "stop_token_ids", "logit_bias", "bad_words", "stop")
               if (value := vars(params)[name])}
    if sum(lengths.values()) * num_choices > MAX_COPIED:
        longest = max(lengths, key=lambda name: lengths[name])
        raise RequestError(f"{longest} with {lengths[longest]} entries is too much for {num_choices} completions at "
                           "once; ask for fewer", longest)


class JsonMeter:
    """Depth, number of values and number of objects of a JSON text, as its bytes arrive; a few passes in C over each
    piece.

    It trusts the text to be JSON; what it says of another text does not matter, as that will not be parsed into
    anything larger than the text.
    """

    def __init__(self) -> None:
        self._backslash = b""  # held back: its pair, or what it escapes, is in the next piece
        self._in_string = False
        self._depth = 0
        self._values = 1
        self._objects = 0

    def feed(self, data: bytes) -> None:
        """Raises RequestError as soon as there is too much."""
        data = (self._backslash + data).replace(b"\\\\", b"")
        self._backslash = b"\\" if data.endswith(b"\\") else b""
        marks = data.replace(b'\\"', b"").translate(None, _NOT_STRUCTURE)
        pieces = marks.split(b'"')
        outside = b"".join(pieces[self._in_string :: 2])
        self._in_string ^= len(pieces) % 2 == 0
        self._values += outside.count(b",")
        if self._values > MAX_VALUES:
            raise RequestError(f"the request body has more than {MAX_VALUES} values")
        self._objects += outside.count(b"{")
        if self._objects > MAX_OBJECTS:
            raise RequestError(f"the request body has more than {MAX_OBJECTS} objects")
        brackets = outside.replace(b",", b"")
        self._values += len(brackets) // 2
        if self._depth + len(brackets) <= MAX_DEPTH:  # not even if all of them open
            self._depth += len(brackets) - 2 * (brackets.count(b"]") + brackets.count(b"}"))
            return
        for byte in brackets:
            self._depth += 1 if byte in b"[{" else -1
            if self._depth > MAX_DEPTH:
                raise RequestError(f"the request body is nested deeper than {MAX_DEPTH} levels")


def parse_json(body: bytes) -> Any:
    """The value of a JSON text in UTF-8. Raises RequestError naming the field, where there is one, for text that is not
    Unicode (a lone surrogate has no bytes, so nothing could be done with it); ValueError for what is not JSON."""
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError:
        raise RequestError("the request body is not UTF-8") from None
    collecting = gc.isenabled()
    gc.disable()  # there is no garbage in a JSON value, and looking for some takes longer than making it
    try:
        value = json.loads(text)
    finally:
        if collecting:
            gc.enable()
    if _SURROGATE.search(body):
        for name, part in value.items() if isinstance(value, dict) else [("", value)]:
            try:
                json.dumps([name, part], ensure_ascii=False).encode()
            except UnicodeEncodeError:
                field = name if name.isidentifier() and name.isascii() else None
                raise RequestError(f"{field or 'the request body'} must be valid Unicode; it holds a lone surrogate",
                                   field) from None
    return value

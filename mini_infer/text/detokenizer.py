"""Incremental detokenization: token ids in, text out as soon as it is final.

What holds for every split of the ids into pushes: the concatenated pieces equal `Tokenizer.decode` of all the ids, no
piece ends inside a character, and U+FFFD appears only for bytes that can no longer become a character.
"""

from __future__ import annotations

from codecs import utf_8_decode
from collections.abc import Sequence

from mini_infer.text.pieces import PieceTable
from mini_infer.text.tokenizer import Tokenizer

_MAX_CHAR_BYTES = 4  # of UTF-8
_WINDOW = 8  # tokens; longer than a character of single-byte tokens, and than most words


class IncrementalDetokenizer:
    """Turns one sequence's output tokens into text.

    prompt_token_ids: the text continues this prompt, so the first output token keeps its leading space, and a
    character begun by the prompt's last bytes is completed. Without a prompt the text stands alone.
    """

    __slots__ = ("_stream",)

    def __init__(self, tokenizer: Tokenizer, skip_special_tokens: bool = True, prompt_token_ids: Sequence[int] = ()):
        table = tokenizer.pieces(skip_special_tokens)
        self._stream: _ByteStream | _WindowStream
        if table is None:
            self._stream = _WindowStream(tokenizer, skip_special_tokens, prompt_token_ids)
        else:
            self._stream = _ByteStream(table, prompt_token_ids)

    def push(self, token_ids: Sequence[int]) -> str:
        """The text that these tokens make final; "" while a character is incomplete."""
        return self._stream.push(token_ids)

    def flush(self) -> str:
        """The rest, at the end of the sequence: bytes that stayed incomplete become U+FFFD."""
        return self._stream.flush()


class _ByteStream:
    """For local decoders (see pieces.py): the tokens' bytes through a streaming UTF-8 decoder. O(bytes)."""

    __slots__ = ("_at_start", "_pending", "_strip_char", "_strip_left", "_table")

    def __init__(self, table: PieceTable, prompt_token_ids: Sequence[int]):
        self._table = table
        self._pending = b""  # the beginning of a character, at most 3 bytes
        self._at_start = table.first_differs
        self._strip_char, self._strip_left = table.strip
        tail = b""
        for token_id in reversed(prompt_token_ids):
            if self._at_start and table.counts(token_id):
                self._at_start = False
            tail = table[token_id] + tail
            if len(tail) >= _MAX_CHAR_BYTES and not self._at_start:
                break
        if tail:
            self._strip_left = 0
            self._pending = tail[utf_8_decode(tail, "replace", False)[1]:]

    def push(self, token_ids: Sequence[int]) -> str:
        if self._at_start:
            return self._push_first(token_ids)
        table = self._table
        data = self._pending + (table[token_ids[0]] if len(token_ids) == 1 else b"".join([table[t] for t in token_ids]))
        text, used = utf_8_decode(data, "replace", False)
        self._pending = data[used:]
        return self._stripped(text) if self._strip_left else text

    def _push_first(self, token_ids: Sequence[int]) -> str:
        for i, token_id in enumerate(token_ids):
            if self._table.counts(token_id):
                self._at_start = False
                self._pending = self._table.first(token_id)
                return self.push(token_ids[i + 1:])
        return ""

    def _stripped(self, text: str) -> str:
        while text and self._strip_left:
            if text[0] == self._strip_char:
                text = text[1:]
                self._strip_left -= 1
            else:
                self._strip_left = 0
        return text

    def flush(self) -> str:
        text = self._pending.decode("utf-8", "replace")
        self._pending = b""
        return self._stripped(text) if self._strip_left else text


class _WindowStream:
    """For any other decoder: decode a short window before and after the new tokens, and emit the difference.

    The window gives the new tokens their left context. Equality with the full decode holds when the decoder looks no
    further left than the window, which is all that can be had from a decoder that is a black box.
    """

    __slots__ = ("_ids", "_read", "_skip", "_tokenizer")

    def __init__(self, tokenizer: Tokenizer, skip_special_tokens: bool, prompt_token_ids: Sequence[int]):
        self._tokenizer = tokenizer
        self._skip = skip_special_tokens
        self._ids = self._visible(prompt_token_ids[-4 * _WINDOW:])[-_WINDOW:]
        self._read = len(self._ids)  # how many of _ids have had their text emitted

    def _visible(self, token_ids: Sequence[int]) -> list[int]:
        hidden = self._tokenizer.special_token_ids if self._skip else frozenset()
        return [token_id for token_id in token_ids if token_id not in hidden]

    def push(self, token_ids: Sequence[int]) -> str:
        pieces = []
        for token_id in self._visible(token_ids):
            self._ids.append(token_id)
            pieces.append(self._emit(final=False))
        return "".join(pieces)

    def flush(self) -> str:
        return self._emit(final=True) if self._read < len(self._ids) else ""

    def _emit(self, final: bool) -> str:
        before = self._tokenizer.decode(self._ids[:self._read], self._skip)
        after = self._tokenizer.decode(self._ids, self._skip)
        waiting = len(self._ids) - self._read
        if after.endswith("\ufffd") and waiting < _MAX_CHAR_BYTES and not final:
            return ""  # perhaps the beginning of a character
        drop = max(0, len(self._ids) - _WINDOW)
        self._ids = self._ids[drop:]
        self._read = len(self._ids)
        return after[len(before):]


__all__ = ["IncrementalDetokenizer"]

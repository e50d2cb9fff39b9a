"""What bytes a token stands for, so that text can be decoded exactly, token by token.

Decoding one token at a time through a tokenizer's own decoder loses what lies between tokens: half a UTF-8 character,
the space that a first token would drop. Most decoders, though, are local: the text of a sequence is the concatenated
bytes of its tokens, with at most a special rule for the first one. For those this file gives each token's bytes;
concatenation and a streaming UTF-8 decoder do the rest, and cost the same for the millionth token as for the first.

Two kinds are local:
- byte-level BPE (Radford et al. 2019, "Language Models are Unsupervised Multitask Learners"): each character of a
  token names one byte;
- SentencePiece-like chains (Kudo and Richardson 2018, "SentencePiece"): replacements on each token, `<0xNN>` tokens
  for single bytes, and a first token that loses its leading space. WordPiece and Metaspace are of this kind as well.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection
from typing import Any

from tokenizers import Tokenizer as Backend

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_ANCHOR = "a"  # a token that every local decoder leaves as it is; what follows it is not first
_LOCAL_STAGES = {"Replace", "ByteFallback", "Metaspace", "WordPiece"}


def byte_of_char() -> dict[str, int]:
    """GPT-2's alphabet: a printable character for each byte. Bytes that print stand for themselves, the others follow
    from U+0100 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    table = {chr(byte): byte for byte in printable}
    table.update({chr(256 + i): byte for i, byte in enumerate(others)})
    return table


class PieceTable(dict[int, bytes]):
    """Token id -> its bytes inside a text; filled as tokens are met. Ids that decode to nothing give b"".

    `first` gives a token's bytes at the start of a text. `strip` is (character, how many): what the decoder takes
    off the front of the whole text. Threads may share a table: filling an entry twice gives the same entry.
    """

    def __init__(self, token_of: Callable[[int], str | None], bytes_of: Callable[[str], bytes],
                 first_of: Callable[[str], bytes], strip: tuple[str, int], hidden: Collection[int]):
        super().__init__()
        self.strip = strip
        self.first_differs = first_of is not bytes_of
        self._token_of = token_of
        self._bytes_of = bytes_of
        self._first_of = first_of
        self._hidden = hidden

    def __missing__(self, token_id: int) -> bytes:
        token = self._token_of(token_id)
        if token is None:
            return b""  # not kept, so that strange ids cannot fill the memory
        piece = self[token_id] = b"" if token_id in self._hidden else self._bytes_of(token)
        return piece

    def first(self, token_id: int) -> bytes:
        token = self._token_of(token_id)
        return b"" if token is None else self._first_of(token)

    def counts(self, token_id: int) -> bool:
        """Whether the decoder sees this token at all: it is in the vocabulary and not hidden."""
        return token_id not in self._hidden and self._token_of(token_id) is not None


def piece_table(backend: Backend, token_of: Callable[[int], str | None], hidden: Collection[int]) -> PieceTable | None:
    """The table for a tokenizer's decoder, or None when that decoder is not local.

    hidden: ids that decode to nothing (the special tokens, when they are to be skipped).
    """
    stages = decoder_stages(backend)
    kinds = [stage["type"] for stage in stages]
    if kinds in (["ByteLevel"], ["ByteLevel", "Fuse"]):
        chars = byte_of_char()

        def byte_level(token: str) -> bytes:
            try:
                return bytes([chars[char] for char in token])
            except KeyError:  # an added token with characters outside the alphabet stands for itself
                return token.encode()

        return PieceTable(token_of, byte_level, byte_level, ("", 0), hidden)

    strip = ("", 0)
    if kinds[-2:] == ["Fuse", "Strip"] and stages[-1]["stop"] == 0:
        strip = (stages[-1]["content"], stages[-1]["start"])
        kinds = kinds[:-1]
    if kinds[-1:] == ["Fuse"]:
        kinds = kinds[:-1]
    first_rules = kinds.count("WordPiece") + kinds.count("Metaspace")
    local = set(kinds) <= _LOCAL_STAGES and first_rules <= (0 if strip[1] else 1)
    decoder = backend.decoder

    def decode(tokens: list[str]) -> str:
        return " ".join(tokens) if decoder is None else decoder.decode(tokens)

    if not local or decode([_ANCHOR]) != _ANCHOR:
        return None
    byte_fallback = "ByteFallback" in kinds

    def byte_token(token: str) -> bytes | None:
        match = _BYTE_TOKEN.fullmatch(token) if byte_fallback else None
        return bytes([int(match[1], 16)]) if match else None

    def inside(token: str) -> bytes:
        raw = byte_token(token)
        return decode([_ANCHOR, token])[len(_ANCHOR):].encode() if raw is None else raw

    def first(token: str) -> bytes:
        raw = byte_token(token)
        return decode([token]).encode() if raw is None else raw

    # With a strip over the whole text the first token has no rule of its own.
    return PieceTable(token_of, inside, inside if strip[1] else first, strip, hidden)


def decoder_stages(backend: Backend) -> list[dict[str, Any]]:
    """The decoder's stages in order, nested sequences flattened; [] when the tokenizer has no decoder."""
    if backend.decoder is None:
        return []

    def flatten(stage: dict[str, Any]) -> list[dict[str, Any]]:
        if stage["type"] != "Sequence":
            return [stage]
        return [leaf for inner in stage["decoders"] for leaf in flatten(inner)]

    return flatten(json.loads(backend.decoder.__getstate__()))

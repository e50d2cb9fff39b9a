"""Names for block contents: a chain of keyed hashes, so that equal hashes mean equal prefixes."""

from __future__ import annotations

import struct
from hashlib import blake2b

DIGEST_BYTES = 16


class BlockHasher:
    """Hashes one block after another: each hash covers its parent's, hence every token before it.

    128-bit BLAKE2b with a secret key: whoever sends prompts can neither make two of them collide nor predict a hash.
    The salt enters in the first link, so requests with different salts share nothing.
    """

    def __init__(self, key: bytes, block_size: int):
        self._link = blake2b(key=key, digest_size=DIGEST_BYTES, person=b"block")
        self._root = blake2b(key=key, digest_size=DIGEST_BYTES, person=b"salt")
        self._pack = struct.Struct(f"<{block_size}i").pack

    def root(self, salt: str) -> bytes:
        """The parent of a sequence's first block."""
        state = self._root.copy()
        state.update(salt.encode("utf-8", "surrogatepass"))
        return state.digest()

    def link(self, parent: bytes, tokens: list[int]) -> bytes:
        """The hash of a full block: exactly `block_size` token ids following the block (or root) named `parent`."""
        state = self._link.copy()
        state.update(parent + self._pack(*tokens))
        return state.digest()

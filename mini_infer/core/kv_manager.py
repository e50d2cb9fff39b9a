"""What a request holds of the KV cache: match its prefix, grow, commit what is confirmed, give back."""

from __future__ import annotations

from mini_infer.core.blocks import BlockPool
from mini_infer.core.hashing import BlockHasher
from mini_infer.core.request import Request


class KVManager:
    """Maps requests to blocks. A block is written by one request and shared only after `commit` made it read-only."""

    def __init__(self, num_blocks: int, block_size: int, enable_prefix_caching: bool, hash_key: bytes):
        self.pool = BlockPool(num_blocks)
        self.block_size = block_size
        self._hasher = BlockHasher(hash_key, block_size) if enable_prefix_caching else None

    def admit(self, request: Request, reserve: int) -> bool:
        """Give a request blocks for all its known tokens, sharing those of a cached prefix; sets `num_computed`.

        False, with nothing changed, if that would leave fewer than `reserve` blocks available.
        """
        pool = self.pool
        hits = self._match(request)
        num_new = -(-len(request.tokens) // self.block_size) - len(hits)
        num_revived = sum(not pool.is_referenced(block) for block in hits)  # these leave the free list as well
        if num_new + num_revived + reserve > pool.num_available:
            return False
        pool.touch(hits)  # before allocating, which could evict them
        request.blocks = hits + pool.allocate(num_new)
        request.capacity = len(request.blocks) * self.block_size
        request.num_committed = len(hits)
        request.num_computed = len(hits) * self.block_size
        return True

    def grow(self, request: Request, num_tokens: int) -> list[int] | None:
        """Extend a request's blocks to hold `num_tokens`; returns the new ones, or None if there are too few left."""
        num_new = -(-num_tokens // self.block_size) - len(request.blocks)
        if num_new > self.pool.num_available:
            return None
        new = self.pool.allocate(num_new)
        request.blocks += new
        request.capacity += num_new * self.block_size
        return new

    def commit(self, request: Request) -> None:
        """Publish the blocks that `num_computed`, which only confirmed results move, has filled."""
        num_full = request.num_computed // self.block_size
        if self._hasher is not None:
            for index in range(request.num_committed, num_full):
                self.pool.commit(request.blocks[index], self._hash(self._hasher, request, index))
        request.num_committed = num_full

    def release(self, request: Request) -> None:
        """Give back everything. Committed blocks stay in the cache until evicted."""
        self.pool.free(request.blocks)
        request.blocks = []
        request.capacity = request.num_committed = 0

    def forget(self, request: Request) -> None:
        """Withdraw all content the request holds from the cache, as it may be the cause of its failure."""
        self.pool.forget(request.blocks)

    def _match(self, request: Request) -> list[int]:
        """The longest cached prefix in whole blocks, leaving at least one token to compute (its logits are needed).

        A prompt whose log-probabilities were asked for needs its own logits: it is matched no further than delivered.
        """
        hits: list[int] = []
        if self._hasher is None:
            return hits
        limit = request.num_prompt_logprobs if request.wants_prompt_logprobs else len(request.tokens) - 1
        for index in range(limit // self.block_size):
            block = self.pool.lookup(self._hash(self._hasher, request, index))
            if block is None:
                break
            hits.append(block)
        return hits

    def _hash(self, hasher: BlockHasher, request: Request, index: int) -> bytes:
        """The hash of a request's `index`-th block, computed once; the chain is extended one block at a time."""
        hashes = request.block_hashes
        if index == len(hashes):
            parent = hashes[-1] if hashes else hasher.root(request.cache_salt)
            start = index * self.block_size
            hashes.append(hasher.link(parent, request.tokens[start:start + self.block_size]))
        return hashes[index]

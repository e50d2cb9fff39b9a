"""The KV cache's blocks, as numbers: who references them, which are free, and which hold a known prefix.

    used      ref_count > 0     held by one writer, or by any number of readers once its content has a hash
    cached    ref_count == 0    in the free list, content kept: a prefix hit takes it back, an allocation evicts it
    free      ref_count == 0    in the free list, no hash

Every block is in exactly one of the three states: free + cached + used == total, always.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence


class Block:
    """`block_size` tokens' worth of cache. `prev` and `next` are its links in the free list, None outside it."""

    __slots__ = ("block_hash", "id", "next", "prev", "ref_count")

    def __init__(self, block_id: int):
        self.id = block_id
        self.ref_count = 0
        self.block_hash: bytes | None = None
        self.prev: Block | None = None
        self.next: Block | None = None


class FreeList:
    """Doubly linked through the blocks themselves: push, pop and removal from the middle are O(1), nothing allocated.

    The front is taken first. Blocks with nothing to keep are put in front, cached ones at the back, so that an
    allocation evicts only when it must, and then the least recently used block.
    """

    def __init__(self) -> None:
        self._ends = Block(-1)  # a sentinel closes the list to a ring: no end is a special case
        self._ends.prev = self._ends.next = self._ends
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Block]:
        block = self._ends.next
        while block is not None and block is not self._ends:
            yield block
            block = block.next

    def push_front(self, block: Block) -> None:
        self._insert(block, self._ends, self._ends.next)

    def push_back(self, block: Block) -> None:
        self._insert(block, self._ends.prev, self._ends)

    def pop_front(self) -> Block:
        """Raises IndexError when the list is empty."""
        block = self._ends.next
        if block is None or block is self._ends:
            raise IndexError("pop from an empty free list")
        self.remove(block)
        return block

    def remove(self, block: Block) -> None:
        prev, after = block.prev, block.next
        if prev is None or after is None:
            raise ValueError(f"block {block.id} is not in the free list")
        prev.next, after.prev = after, prev
        block.prev = block.next = None
        self._length -= 1

    def _insert(self, block: Block, prev: Block | None, after: Block | None) -> None:
        if block.prev is not None or prev is None or after is None:
            raise ValueError(f"block {block.id} is in the free list already")
        block.prev, block.next = prev, after
        prev.next = after.prev = block
        self._length += 1


FREE, CACHED, USED, SHARED = range(4)  # a block's state to look at; shared is used by more than one request


class BlockPool:
    """Reference counts and the prefix cache over blocks 0 .. num_blocks - 1. Knows nothing of requests or tensors."""

    def __init__(self, num_blocks: int):
        self._blocks = [Block(i) for i in range(num_blocks)]
        self._free = FreeList()
        for block in self._blocks:
            self._free.push_back(block)
        self._by_hash: dict[bytes, Block] = {}
        self._num_cached = 0  # blocks in the free list that have a hash

    @property
    def num_blocks(self) -> int:
        return len(self._blocks)

    @property
    def num_available(self) -> int:
        """Blocks that an allocation can take: free and cached."""
        return len(self._free)

    @property
    def num_cached(self) -> int:
        return self._num_cached

    @property
    def num_free(self) -> int:
        return len(self._free) - self._num_cached

    @property
    def num_used(self) -> int:
        return len(self._blocks) - len(self._free)

    def lookup(self, block_hash: bytes) -> int | None:
        """The block holding this content, or None. It may be evicted unless `touch`ed before the next `allocate`."""
        block = self._by_hash.get(block_hash)
        return None if block is None else block.id

    def is_referenced(self, block_id: int) -> bool:
        return self._blocks[block_id].ref_count > 0

    def touch(self, block_ids: Sequence[int]) -> None:
        """Take one more reference on each block (a prefix hit)."""
        for block_id in block_ids:
            block = self._blocks[block_id]
            if block.ref_count == 0:
                self._free.remove(block)
                self._num_cached -= block.block_hash is not None
            block.ref_count += 1

    def allocate(self, n: int) -> list[int]:
        """Take `n` blocks to write to, evicting cached content if need be. Raises IndexError if there are too few."""
        if n > len(self._free):
            raise IndexError(f"{n} blocks asked for, {len(self._free)} available")
        ids = []
        for _ in range(n):
            block = self._free.pop_front()
            if block.block_hash is not None:
                self._num_cached -= 1
                self._unname(block)
            block.ref_count = 1
            ids.append(block.id)
        return ids

    def free(self, block_ids: Sequence[int]) -> None:
        """Give back one reference on each block of a sequence, the last block first: a prefix is evicted tail first."""
        for block_id in reversed(block_ids):
            block = self._blocks[block_id]
            if block.ref_count <= 0:
                raise ValueError(f"block {block_id} freed more often than taken")
            block.ref_count -= 1
            if block.ref_count == 0:
                if block.block_hash is None:
                    self._free.push_front(block)
                else:
                    self._free.push_back(block)
                    self._num_cached += 1

    def commit(self, block_id: int, block_hash: bytes) -> None:
        """Publish a held block's content, read-only from now on. If another holds the same, that one stays known."""
        block = self._blocks[block_id]
        if block.ref_count <= 0:
            raise ValueError(f"block {block_id} is committed but nobody holds it")
        if block_hash not in self._by_hash and block.block_hash is None:
            block.block_hash = block_hash
            self._by_hash[block_hash] = block

    def forget(self, block_ids: Sequence[int]) -> None:
        """Withdraw held blocks' content from the cache: no later request may hit it."""
        for block_id in block_ids:
            block = self._blocks[block_id]
            if block.ref_count <= 0:
                raise ValueError(f"block {block_id} is withdrawn but nobody holds it")
            if block.block_hash is not None:
                self._unname(block)

    def states(self, every: int = 1) -> bytes:
        """A byte for every `every`-th block: FREE, CACHED, USED or SHARED."""
        return bytes([(USED if block.ref_count == 1 else SHARED) if block.ref_count else block.block_hash is not None
                      for block in self._blocks[::every]])

    def check(self) -> None:
        """Verify every invariant, in time linear in the blocks. Raises AssertionError saying which one broke."""
        listed = list(self._free)
        named = [b for b in self._blocks if b.block_hash is not None]
        held = sum(b.ref_count > 0 for b in self._blocks)
        _verify(len(listed) == len(self._free) == len({b.id for b in listed}), "the free list is not consistent")
        _verify(all(b.ref_count == 0 for b in listed), "a referenced block is in the free list")
        _verify(all(b.ref_count >= 0 for b in self._blocks), "a reference count is negative")
        _verify(held == self.num_used, "a block is neither referenced nor in the free list")
        _verify(sum(b.block_hash is not None for b in listed) == self._num_cached, "the count of cached blocks is off")
        _verify(self.num_free + self.num_cached + self.num_used == self.num_blocks, "free + cached + used != total")
        _verify(len(named) == len(self._by_hash), "the hash map and the blocks disagree")
        _verify(all(b.block_hash is not None and self._by_hash[b.block_hash] is b for b in named),
                "a hash names another block")

    def _unname(self, block: Block) -> None:
        if block.block_hash is not None:
            del self._by_hash[block.block_hash]
            block.block_hash = None


def _verify(ok: bool, message: str) -> None:
    if not ok:
        raise AssertionError(f"block pool: {message}")

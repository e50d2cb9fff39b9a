"""Block pool, free list and block hashes."""

from __future__ import annotations

import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mini_infer.core.blocks import Block, BlockPool, FreeList
from mini_infer.core.hashing import BlockHasher


def name(i: int) -> bytes:
    return i.to_bytes(16, "little")


class TestFreeList:
    def test_order(self) -> None:
        blocks = [Block(i) for i in range(4)]
        free = FreeList()
        free.push_back(blocks[0])
        free.push_back(blocks[1])
        free.push_front(blocks[2])
        free.push_back(blocks[3])
        free.remove(blocks[1])
        assert [b.id for b in free] == [2, 0, 3] and len(free) == 3
        assert [free.pop_front().id for _ in range(3)] == [2, 0, 3]
        assert len(free) == 0 and list(free) == []

    def test_misuse_is_an_error(self) -> None:
        free, block = FreeList(), Block(0)
        with pytest.raises(IndexError):
            free.pop_front()
        with pytest.raises(ValueError, match="not in the free list"):
            free.remove(block)
        free.push_back(block)
        with pytest.raises(ValueError, match="in the free list already"):
            free.push_front(block)


class TestBlockPool:
    def test_counts_and_ids(self) -> None:
        pool = BlockPool(4)
        assert (pool.num_free, pool.num_cached, pool.num_used) == (4, 0, 0)
        ids = pool.allocate(3)
        assert len(set(ids)) == 3 and set(ids) <= {0, 1, 2, 3}
        pool.commit(ids[0], name(0))
        assert (pool.num_free, pool.num_cached, pool.num_used) == (1, 0, 3)
        pool.free(ids)
        assert (pool.num_free, pool.num_cached, pool.num_used) == (3, 1, 0)
        pool.check()

    def test_allocating_too_much_changes_nothing(self) -> None:
        pool = BlockPool(2)
        pool.allocate(1)
        with pytest.raises(IndexError, match="2 blocks asked for, 1 available"):
            pool.allocate(2)
        assert pool.num_used == 1
        pool.check()

    def test_free_blocks_go_before_cached_ones(self) -> None:
        pool = BlockPool(4)
        cached, plain = pool.allocate(1), pool.allocate(3)
        pool.commit(cached[0], name(0))
        pool.free(plain[:1])
        pool.free(cached)
        pool.free(plain[1:])
        assert set(pool.allocate(3)) == set(plain)
        assert pool.lookup(name(0)) == cached[0]
        assert pool.allocate(1) == cached
        assert pool.lookup(name(0)) is None, "evicted on reuse"

    def test_least_recently_used_prefix_goes_first_and_its_tail_before_its_head(self) -> None:
        pool = BlockPool(6)
        old, new = pool.allocate(3), pool.allocate(3)
        for i, block in enumerate(old + new):
            pool.commit(block, name(i))
        pool.free(old)
        pool.free(new)
        assert pool.allocate(4) == [old[2], old[1], old[0], new[2]]

    def test_a_hit_refreshes(self) -> None:
        pool = BlockPool(2)
        a, b = pool.allocate(2)
        pool.commit(a, name(0))
        pool.commit(b, name(1))
        pool.free([a])
        pool.free([b])
        pool.touch([a])
        pool.free([a])
        assert pool.allocate(1) == [b]

    def test_shared_block_is_free_after_its_last_holder(self) -> None:
        pool = BlockPool(1)
        (block,) = pool.allocate(1)
        pool.commit(block, name(0))
        pool.touch([block])
        pool.free([block])
        assert pool.num_used == 1
        pool.free([block])
        assert pool.num_cached == 1
        with pytest.raises(ValueError, match="more often than taken"):
            pool.free([block])

    def test_same_content_twice_keeps_the_first(self) -> None:
        pool = BlockPool(2)
        a, b = pool.allocate(2)
        pool.commit(a, name(0))
        pool.commit(b, name(0))
        assert pool.lookup(name(0)) == a
        pool.free([b])
        assert (pool.num_free, pool.num_cached) == (1, 0)
        pool.check()

    def test_forget(self) -> None:
        pool = BlockPool(2)
        a, b = pool.allocate(2)
        pool.commit(a, name(0))
        pool.forget([a, b])
        assert pool.lookup(name(0)) is None
        pool.free([a, b])
        assert pool.num_free == 2
        pool.check()

    def test_content_of_unheld_blocks_cannot_be_published_or_withdrawn(self) -> None:
        pool = BlockPool(1)
        with pytest.raises(ValueError, match="nobody holds it"):
            pool.commit(0, name(0))
        with pytest.raises(ValueError, match="nobody holds it"):
            pool.forget([0])

    @pytest.mark.parametrize("damage", [
        lambda pool: setattr(pool._blocks[0], "ref_count", 1),
        lambda pool: setattr(pool._blocks[0], "ref_count", -1),
        lambda pool: setattr(pool, "_num_cached", 1),
        lambda pool: pool._free.pop_front(),
        lambda pool: pool._by_hash.update({name(0): pool._blocks[0]}),
        lambda pool: setattr(pool._blocks[0], "block_hash", name(1)),
    ])
    def test_check_sees_damage(self, damage) -> None:
        pool = BlockPool(3)
        pool.check()
        damage(pool)
        with pytest.raises(AssertionError, match="block pool"):
            pool.check()

    @given(st.lists(st.tuples(st.sampled_from(["allocate", "commit", "free", "hit", "forget"]),
                              st.integers(0, 7), st.integers(0, 5)), max_size=60))
    @settings(deadline=None, max_examples=200)
    def test_against_a_naive_pool(self, operations: list[tuple[str, int, int]]) -> None:
        """Reference counts in a dict, the eviction order in a list."""
        pool, refs, names, order = BlockPool(6), dict.fromkeys(range(6), 0), {}, list(range(6))
        for operation, a, b in operations:
            block = a % 6
            if operation == "allocate" and b <= len(order):
                expected, order = order[:b], order[b:]
                assert pool.allocate(b) == expected
                names = {key: value for key, value in names.items() if value not in expected}
                refs.update(dict.fromkeys(expected, 1))
            elif operation == "commit" and refs[block]:
                pool.commit(block, name(b))
                if block not in names.values():
                    names.setdefault(name(b), block)
            elif operation == "free" and refs[block]:
                pool.free([block])
                refs[block] -= 1
                if refs[block] == 0:
                    order = order + [block] if block in names.values() else [block] + order
            elif operation == "hit":
                hit = pool.lookup(name(b))
                assert hit == names.get(name(b))
                if hit is not None:
                    pool.touch([hit])
                    refs[hit] += 1
                    order = [i for i in order if i != hit]
            elif operation == "forget" and refs[block]:
                pool.forget([block])
                names = {key: value for key, value in names.items() if value != block}
            pool.check()
            assert [b.id for b in pool._free] == order
            assert pool.num_cached == len(set(order) & set(names.values()))

    def test_cost_does_not_depend_on_size(self) -> None:
        """Touching blocks in the middle of a large pool is as cheap as in a small one."""
        def cost(num_blocks: int) -> float:
            pool = BlockPool(num_blocks)
            for i, block in enumerate(pool.allocate(num_blocks)):
                pool.commit(block, name(i))
                pool.free([block])
            picks = random.Random(0).sample(range(num_blocks), 100)
            best = float("inf")
            for _ in range(20):
                begin = time.perf_counter()
                for block in picks:
                    pool.touch([block])
                    pool.free([block])
                best = min(best, time.perf_counter() - begin)
            return best

        assert cost(100_000) < 20 * cost(200), "linear work would be 500 times as much"


class TestBlockHasher:
    def chain(self, hasher: BlockHasher, salt: str, *blocks: list[int]) -> list[bytes]:
        hashes = [hasher.root(salt)]
        for tokens in blocks:
            hashes.append(hasher.link(hashes[-1], tokens))
        return hashes[1:]

    def test_same_prefix_same_hash(self) -> None:
        a = self.chain(BlockHasher(b"key", 2), "", [1, 2], [3, 4])
        b = self.chain(BlockHasher(b"key", 2), "", [1, 2], [3, 5])
        assert a[0] == b[0] and a[1] != b[1]
        assert all(len(h) == 16 for h in a)

    def test_everything_before_counts(self) -> None:
        hasher = BlockHasher(b"key", 2)
        assert self.chain(hasher, "", [1, 2], [3, 4])[1] != self.chain(hasher, "", [2, 1], [3, 4])[1]
        assert self.chain(hasher, "", [1, 2])[0] != self.chain(hasher, "", [1, 2], [1, 2])[1]
        assert self.chain(hasher, "a", [1, 2]) != self.chain(hasher, "b", [1, 2])
        assert self.chain(hasher, "", [1, 2]) != self.chain(BlockHasher(b"other", 2), "", [1, 2])

    def test_a_salt_cannot_imitate_a_link(self) -> None:
        hasher = BlockHasher(b"key", 2)
        parent = hasher.root("")
        imitation = (parent + (1).to_bytes(4, "little") + (2).to_bytes(4, "little")).decode("latin-1")
        assert hasher.root(imitation) != hasher.link(parent, [1, 2])
        assert len({hasher.root(""), hasher.root("\ud800"), hasher.root("a")}) == 3, "any string can be a salt"

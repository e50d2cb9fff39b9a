"""What a request holds: prefix matching, growth, commitment, release."""

from __future__ import annotations

import pytest

from mini_infer.core.kv_manager import KVManager
from mini_infer.core.request import Request
from mini_infer.protocol import AddRequest, SamplingParams


def make(tokens: list[int], salt: str = "", prompt_logprobs: int | None = None) -> Request:
    params = SamplingParams(max_tokens=None, prompt_logprobs=prompt_logprobs)
    item = AddRequest(0, tokens, params, cache_salt=salt)
    return Request.create(item, 0, 0, 0.0, max_model_len=1024, eos_token_ids=())


def manager(num_blocks: int = 8, prefix_caching: bool = True) -> KVManager:
    return KVManager(num_blocks, 4, prefix_caching, b"key")


def compute(kv: KVManager, request: Request, num_tokens: int) -> None:
    request.num_computed = num_tokens
    kv.commit(request)


def seed(kv: KVManager, tokens: list[int], salt: str = "") -> Request:
    """Leave the full blocks of `tokens` in the cache."""
    request = make(tokens, salt)
    assert kv.admit(request, 0)
    compute(kv, request, len(tokens))
    kv.release(request)
    return request


@pytest.mark.parametrize("length, hit", [(3, 0), (4, 0), (5, 4), (8, 4), (9, 8), (12, 8), (13, 12), (20, 12)])
def test_hits_are_whole_blocks_and_leave_a_token_to_compute(length: int, hit: int) -> None:
    kv = manager()
    seed(kv, list(range(12)))
    request = make(list(range(length)))
    assert kv.admit(request, 0)
    assert request.num_computed == hit
    assert len(request.blocks) == -(-length // 4) and request.capacity == 4 * len(request.blocks)


def test_a_hit_ends_at_the_first_difference() -> None:
    kv = manager()
    seed(kv, list(range(12)))
    request = make([0, 1, 2, 3, 4, 99, 6, 7, 8, 9, 10, 11, 12])
    assert kv.admit(request, 0)
    assert request.num_computed == 4


def test_salts_do_not_share() -> None:
    kv = manager()
    seed(kv, list(range(12)), salt="a")
    for salt, hit in (("b", 0), ("", 0), ("a", 8)):
        request = make(list(range(12)), salt)
        assert kv.admit(request, 0)
        assert request.num_computed == hit
        kv.release(request)


def test_off_means_off() -> None:
    kv = manager(prefix_caching=False)
    seed(kv, list(range(12)))
    request = make(list(range(12)))
    assert kv.admit(request, 0) and request.num_computed == 0
    assert kv.pool.num_cached == 0


def test_only_confirmed_full_blocks_are_published() -> None:
    kv = manager()
    first = make(list(range(10)))
    kv.admit(first, 0)
    compute(kv, first, 7)
    second = make(list(range(10)))
    kv.admit(second, 0)
    assert second.num_computed == 4 and second.blocks[0] == first.blocks[0]
    assert not set(second.blocks[1:]) & set(first.blocks)
    kv.release(first)
    kv.release(second)
    assert kv.pool.num_cached == 1
    kv.pool.check()


def test_prompt_logprobs_need_their_logits_but_publish() -> None:
    kv = manager()
    seed(kv, list(range(12)))
    request = make(list(range(12)), prompt_logprobs=0)
    kv.admit(request, 0)
    assert request.num_computed == 0
    kv.release(request)
    request.num_prompt_logprobs = 6  # positions 1 .. 6 were delivered before a preemption
    kv.admit(request, 0)
    assert request.num_computed == 4
    kv.release(request)
    request.num_prompt_logprobs = 11
    kv.admit(request, 0)
    assert request.num_computed == 8
    kv.release(request)
    fresh = make(list(range(50, 62)), prompt_logprobs=0)
    seed_blocks = kv.pool.num_cached
    kv.admit(fresh, 0)
    compute(kv, fresh, 12)
    kv.release(fresh)
    assert kv.pool.num_cached == seed_blocks + 3


def test_admission_counts_hits_that_it_takes_from_the_free_list() -> None:
    kv = manager(num_blocks=4)
    seed(kv, list(range(8)))  # two cached, two free
    request = make(list(range(20)))  # five blocks, two of them hits: three more are needed, two are free
    assert not kv.admit(request, 0)
    assert (kv.pool.num_free, kv.pool.num_cached, request.blocks) == (2, 2, [])
    fits = make(list(range(16)))
    assert not kv.admit(fits, reserve=1)
    assert kv.admit(fits, reserve=0)
    assert fits.num_computed == 8 and kv.pool.num_used == 4


def test_admission_shares_what_others_hold() -> None:
    kv = manager(num_blocks=4)
    first = make(list(range(12)))
    kv.admit(first, 0)
    compute(kv, first, 12)
    second = make(list(range(12)))
    assert kv.admit(second, 0), "two blocks are shared, one is left"
    assert second.blocks[:2] == first.blocks[:2] and second.blocks[2] != first.blocks[2]


def test_grow() -> None:
    kv = manager(num_blocks=4)
    request = make(list(range(4)))
    kv.admit(request, 0)
    assert kv.grow(request, 5) == [request.blocks[1]] and request.capacity == 8
    assert kv.grow(request, 8) == []
    assert kv.grow(request, 17) is None and len(request.blocks) == 2
    assert len(kv.grow(request, 16) or []) == 2


def test_outputs_are_found_again() -> None:
    """A follow-up that repeats prompt and output hits the output's blocks as well."""
    kv = manager()
    request = make(list(range(6)))
    kv.admit(request, 0)
    compute(kv, request, 6)
    request.tokens += list(range(6, 13))
    kv.grow(request, 12)
    compute(kv, request, 12)
    kv.release(request)
    follow_up = make(list(range(14)))
    kv.admit(follow_up, 0)
    assert follow_up.num_computed == 12


def test_forget() -> None:
    kv = manager()
    request = make(list(range(12)))
    kv.admit(request, 0)
    compute(kv, request, 12)
    kv.forget(request)
    kv.release(request)
    again = make(list(range(12)))
    kv.admit(again, 0)
    assert again.num_computed == 0
    kv.pool.check()

"""A request as the scheduler sees it: its tokens, how many of them are computed, and what it holds."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from mini_infer.protocol import MAX_VOCAB_SIZE, AddRequest, SamplingParams, Span, Timeline, check_prompt

MAX_SPANS = 256  # of a request's life; beyond that the last one goes on


class RequestStatus(Enum):
    WAITING = "waiting"  # new, or preempted: holds nothing
    RUNNING = "running"  # holds a slot and blocks
    FINISHED = "finished"  # ended, for whatever reason: holds nothing and never comes back


@dataclass(slots=True, eq=False)
class Request:
    """One sequence. There is no prefill or decode phase: `tokens` are known, `num_computed` of them are in the cache.

    What the device will have done once every plan in flight is through is `num_computed + num_inflight` tokens
    computed and `len(tokens) + num_pending` tokens known; the next plan starts from there.
    """

    id: int
    tokens: list[int]  # prompt and confirmed outputs
    prompt_len: int
    params: SamplingParams
    priority: int  # lower runs first
    arrival: float  # seconds, of the front's clock or else of the scheduler's
    order: int  # position among all requests ever added; breaks ties
    cache_salt: str
    max_len: int  # the sequence ends at this many tokens, output included
    stop_ids: frozenset[int]  # tokens that end it: the model's EOS ids and its own stop_token_ids

    # Unique over all requests, drawn anew at each preemption: a result carrying an older epoch is stale.
    epoch: int
    status: RequestStatus = RequestStatus.WAITING
    slot: int = -1

    num_computed: int = 0  # tokens whose keys and values are confirmed to be in the cache
    num_inflight: int = 0  # tokens beyond those in plans whose results are not in yet
    num_pending: int = 0  # sampled tokens those plans will bring

    # Owned by the KV manager.
    blocks: list[int] = field(default_factory=list)
    capacity: int = 0  # tokens that `blocks` can hold
    num_committed: int = 0  # leading blocks whose content is confirmed and published for prefix hits
    block_hashes: list[bytes] = field(default_factory=list)  # of its leading full blocks; survives preemption

    num_cached_tokens: int = -1  # prefix hit at the first admission; -1 before it
    num_prompt_logprobs: int = 0  # prompt positions 1.. whose log-probabilities were delivered
    num_preemptions: int = 0

    phase: str = "queued"  # what the span under way will be called
    spans: list[Span] = field(default_factory=list)  # those that are over
    num_told: int = 0  # tokens known when the span under way began

    @classmethod
    def create(cls, item: AddRequest, order: int, epoch: int, arrival: float, max_model_len: int,
               eos_token_ids: tuple[int, ...], vocab_size: int = MAX_VOCAB_SIZE) -> Request:
        """Build a waiting request. Raises RequestError, naming the field, when it could never be served."""
        check_prompt(item.prompt_token_ids, vocab_size, max_model_len)
        params = item.params
        prompt_len = len(item.prompt_token_ids)
        max_len = max_model_len if params.max_tokens is None else min(max_model_len, prompt_len + params.max_tokens)
        eos = () if params.ignore_eos else eos_token_ids
        return cls(
            id=item.request_id,
            tokens=list(item.prompt_token_ids),
            prompt_len=prompt_len,
            params=params,
            priority=item.priority,
            arrival=arrival,
            order=order,
            cache_salt=item.cache_salt,
            max_len=max_len,
            stop_ids=frozenset(eos).union(params.stop_token_ids or ()),
            epoch=epoch,
        )

    def enter(self, phase: str, now: float, num_computed: int = 0) -> None:
        """A span ends, in which `num_computed` tokens of a chunk were computed, and one of another phase begins."""
        tokens = len(self.tokens) - self.num_told if self.phase == "decode" else num_computed
        span = Span(self.phase, now, tokens)
        if len(self.spans) == MAX_SPANS:
            last = self.spans.pop()
            span = Span(last.phase, now, last.tokens + tokens)
        self.spans.append(span)
        self.phase, self.num_told = phase, len(self.tokens)

    def timeline(self, reason: str) -> Timeline:
        """Of a request that has ended."""
        return Timeline(self.id, self.arrival, self.spans, self.prompt_len, max(0, self.num_cached_tokens),
                        len(self.tokens) - self.prompt_len, self.num_preemptions, reason)

    @property
    def wants_prompt_logprobs(self) -> bool:
        """Whether log-probabilities of its prompt are still to be delivered. Position 0 has none."""
        return self.params.prompt_logprobs is not None and self.num_prompt_logprobs < self.prompt_len - 1

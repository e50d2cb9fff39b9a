"""The door: a user's prompt and sampling parameters become checked token ids and parameters, or a RequestError.

Whatever passes here can be run. Everything that depends on the model (its vocabulary, its context length, its
tokenizer) is checked here; what can be seen from the parameters alone was checked when they were made.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mini_infer.protocol import (
    MAX_SEED,
    RequestError,
    SamplingParams,
    check_prompt,
    check_token_ids,
    prompt_too_long,
)
from mini_infer.text.grammar import GrammarCompiler
from mini_infer.text.tokenizer import Tokenizer

_CHARS_PER_TOKEN = 8  # more than ordinary text has
_BATCH_CHARS = 2**20  # enough for all cores to be busy nearly all the time

Prompt = str | Sequence[int] | Mapping[str, Any]  # the mapping has "prompt" (text) or "prompt_token_ids"


@dataclass(frozen=True)
class PreparedRequest:
    """A request that can be run. `prompt` is None when it came as token ids. `params.max_tokens` is set."""

    prompt: str | None
    prompt_token_ids: list[int]
    params: SamplingParams


@dataclass(frozen=True)
class Door:
    """What a request is checked against. Without a tokenizer, prompts must be token ids."""

    tokenizer: Tokenizer | None
    vocab_size: int  # the width of the model's logits
    max_model_len: int  # tokens of prompt and output together
    grammars: GrammarCompiler | None = None  # None: structured output is refused

    def prepare(self, prompt: Prompt, params: SamplingParams, *, clip_max_tokens: bool = True,
                add_special_tokens: bool = True) -> PreparedRequest:
        """Check one request and encode its prompt.

        clip_max_tokens: whether a max_tokens beyond the context length is lowered to what fits (offline) or refused
        (as OpenAI's API does). Raises RequestError naming the field.
        """
        return self.prepare_batch([prompt], [params], clip_max_tokens=clip_max_tokens,
                                  add_special_tokens=add_special_tokens)[0]

    def prepare_batch(self, prompts: Sequence[Prompt], params: Sequence[SamplingParams], *,
                      clip_max_tokens: bool = True, add_special_tokens: bool = True) -> list[PreparedRequest]:
        """Like `prepare` for many requests, on all cores."""
        return list(self.prepare_each(prompts, params, clip_max_tokens=clip_max_tokens,
                                      add_special_tokens=add_special_tokens, together=_BATCH_CHARS))

    def prepare_each(self, prompts: Sequence[Prompt], params: Sequence[SamplingParams], *, clip_max_tokens: bool = True,
                     add_special_tokens: bool = True, together: int = 0) -> Iterator[PreparedRequest]:
        """Like `prepare` for many requests, one after the other as they are asked for, so the first that cannot be
        served is the last that is looked at.

        together: characters of text that are encoded at a time, on all cores; 0: each text by itself, on one.
        """
        group: list[tuple[str | list[int], SamplingParams]] = []
        chars = 0
        for number, (prompt, one) in enumerate(zip(prompts, params, strict=True), 1):
            part = self._text_or_ids(prompt)
            group.append((part, one))
            chars += len(part)
            if chars > together or number == len(prompts):
                for (asked, its), ids in zip(group, self._encode([part for part, _ in group], add_special_tokens)):
                    check_prompt(ids, self.vocab_size, self.max_model_len)
                    text = asked if isinstance(asked, str) else None
                    yield PreparedRequest(text, ids, self.check_params(its, len(ids), clip_max_tokens))
                group, chars = [], 0

    def check_params(self, params: SamplingParams, prompt_len: int, clip_max_tokens: bool) -> SamplingParams:
        """The parameters with max_tokens set and bad_words as token ids, for a prompt that fits."""
        if params.stop and self.tokenizer is None:
            raise RequestError("stop needs a tokenizer, and this engine runs without one; use stop_token_ids", "stop")
        if params.structured_outputs is not None:
            if self.grammars is None or self.tokenizer is None:
                field = params.structured_outputs.source
                raise RequestError(f"{field} needs a tokenizer, and this engine runs without one", field)
            self.grammars.check(params.structured_outputs)
        room = self.max_model_len - prompt_len
        changes: dict[str, Any] = {}
        if params.max_tokens is None or params.max_tokens > room:
            if params.max_tokens is not None and not clip_max_tokens:
                raise RequestError(
                    f"This model's maximum context length is {self.max_model_len} tokens. However, you requested "
                    f"{prompt_len + params.max_tokens} tokens ({prompt_len} in the prompt, {params.max_tokens} for the "
                    "output). Please lower max_tokens or shorten the prompt.", "max_tokens", "context_length_exceeded")
            if params.min_tokens > room:
                raise RequestError(f"min_tokens must be at most {room}: the maximum context length is "
                                   f"{self.max_model_len} tokens and the prompt has {prompt_len}, got "
                                   f"{params.min_tokens}", "min_tokens")
            changes["max_tokens"] = room
        if params.bad_words:
            changes["bad_words_token_ids"] = [*(params.bad_words_token_ids or []), *self._bad_words(params.bad_words)]
            changes["bad_words"] = None
        if changes:
            params = replace(params, **changes)
        check_token_ids(params, self.vocab_size)
        return params

    def _text_or_ids(self, prompt: Prompt) -> str | list[int]:
        if isinstance(prompt, Mapping):
            fields = set(prompt)
            if len(fields) != 1 or not fields <= {"prompt", "prompt_token_ids"}:
                raise RequestError('prompt as a mapping must have exactly one of "prompt" and "prompt_token_ids", got '
                                   f"{sorted(map(str, fields))}", "prompt")
            if "prompt_token_ids" in fields and isinstance(prompt["prompt_token_ids"], str):
                raise RequestError("prompt_token_ids must be a list of token ids", "prompt_token_ids")
            prompt = next(iter(prompt.values()))
        if isinstance(prompt, str):
            if not prompt:
                raise RequestError("prompt must not be empty", "prompt")
            if self.tokenizer is None:
                raise RequestError("prompt must be token ids: this engine runs without a tokenizer", "prompt")
            return prompt
        if not isinstance(prompt, (list, tuple)):
            raise RequestError(f"prompt must be text or a list of token ids, got {type(prompt).__name__}", "prompt")
        return list(prompt)

    def _encode(self, parts: list[str | list[int]], add_special_tokens: bool) -> list[list[int]]:
        """Texts as ids; ids as they are."""
        texts = [part for part in parts if isinstance(part, str)]
        if not texts or self.tokenizer is None:  # without a tokenizer, _text_or_ids has refused texts
            return [part for part in parts if not isinstance(part, str)]
        for text in texts:
            # A text far too long is refused by its beginning, so that a huge one costs no more than one that fits.
            chars = _CHARS_PER_TOKEN * self.max_model_len
            while chars < len(text):
                count = len(self.tokenizer.encode(text[:chars], add_special_tokens=False))
                if count > self.max_model_len + self.max_model_len // 8 + 64:  # the cut itself changes a token or two
                    raise prompt_too_long(f"over {self.max_model_len}", self.max_model_len)
                chars *= 2
        encoded = iter(self.tokenizer.encode_batch(texts, add_special_tokens))
        return [next(encoded) if isinstance(part, str) else part for part in parts]

    def _bad_words(self, words: list[str]) -> list[list[int]]:
        """Each word as it is spelled at the start of a text and after a space, as token sequences."""
        if self.tokenizer is None:
            raise RequestError("bad_words needs a tokenizer, and this engine runs without one; use bad_words_token_ids",
                               "bad_words")
        sequences: list[list[int]] = []
        for word in words:
            for text in (word, " " + word.lstrip()):
                ids = self.tokenizer.encode(text, add_special_tokens=False)
                # A longer sequence that ends in one already there can never appear anyway.
                if ids and not any(ids[-len(known):] == known for known in sequences):
                    sequences.append(ids)
        return sequences


def expand(params: SamplingParams) -> list[SamplingParams]:
    """The n completions of a request as n sequences of their own: n=1 each, seeds seed, seed+1, ... (wrapping in 64
    bits), prompt_logprobs only from the first, which is enough."""
    if params.n == 1:
        return [params]
    span = 2 * (MAX_SEED + 1)

    def child(i: int) -> SamplingParams:
        seed = None if params.seed is None else (params.seed + i + MAX_SEED + 1) % span - MAX_SEED - 1
        return replace(params, n=1, seed=seed, prompt_logprobs=params.prompt_logprobs if i == 0 else None)

    return [child(i) for i in range(params.n)]


__all__ = ["Door", "PreparedRequest", "Prompt", "expand"]

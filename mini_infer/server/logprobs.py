"""Log-probabilities in the two forms that OpenAI's API has for them, and in vLLM's for prompts."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from mini_infer.text.output import Logprob, PositionLogprobs
from mini_infer.text.tokenizer import Tokenizer

LOWEST = -9999.0  # JSON has no infinity


def chat_logprobs(token_ids: list[int], positions: list[PositionLogprobs], top: int,
                  tokenizer: Tokenizer) -> dict[str, Any]:
    """Of chat completions: an entry a token, each with its `top` most likely ones in falling order."""
    content = []
    for token_id, position in zip(token_ids, positions):
        best = sorted((item for item in position.items() if item[1].rank <= top), key=lambda item: item[1].rank)
        content.append({**_entry(token_id, position[token_id], tokenizer),
                        "top_logprobs": [_entry(other, logprob, tokenizer) for other, logprob in best]})
    return {"content": content, "refusal": None}


def _entry(token_id: int, logprob: Logprob, tokenizer: Tokenizer) -> dict[str, Any]:
    return {"token": logprob.decoded_token or "", "logprob": max(logprob.logprob, LOWEST),
            "bytes": list(tokenizer.token_bytes(token_id))}


class CompletionLogprobs:
    """Of plain completions: parallel lists that go on from chunk to chunk, with each token's place in the text."""

    def __init__(self) -> None:
        self._offset = 0

    def of(self, token_ids: Iterable[int], positions: Iterable[PositionLogprobs | None],
           tokenizer: Tokenizer) -> dict[str, Any]:
        """`positions` is None where nothing precedes the token: at a prompt's first."""
        tokens: list[str] = []
        token_logprobs: list[float | None] = []
        top_logprobs: list[dict[str, float] | None] = []
        offsets: list[int] = []
        for token_id, position in zip(token_ids, positions):
            text = tokenizer.token_text(token_id)
            tokens.append(text)
            offsets.append(self._offset)
            self._offset += len(text)
            token_logprobs.append(None if position is None else max(position[token_id].logprob, LOWEST))
            top_logprobs.append(None if position is None else _best(position))
        return {"tokens": tokens, "token_logprobs": token_logprobs, "top_logprobs": top_logprobs,
                "text_offset": offsets}


def _best(position: PositionLogprobs) -> dict[str, float]:
    """By text, best first; of two tokens that look alike the likelier one counts."""
    found: dict[str, float] = {}
    for logprob in sorted(position.values(), key=lambda value: value.rank):
        found.setdefault(logprob.decoded_token or "", max(logprob.logprob, LOWEST))
    return found


def prompt_logprobs_body(positions: list[PositionLogprobs | None]) -> list[dict[str, Any] | None]:
    """vLLM's `prompt_logprobs`: for each prompt token the candidates by token id; null for the first."""
    return [None if position is None else
            {str(token_id): {"logprob": max(entry.logprob, LOWEST), "rank": entry.rank,
                             "decoded_token": entry.decoded_token} for token_id, entry in position.items()}
            for position in positions]

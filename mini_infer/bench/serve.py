"""`mini-infer bench serve`: load on any server with OpenAI's API, and what its clients would see of it."""

from __future__ import annotations

import asyncio
import json
import math
import os
import random
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from mini_infer.bench.arrivals import arrival_times
from mini_infer.bench.client import Answer, Client, sse_events
from mini_infer.bench.dataset import Dataset, Sample, as_text, ordinary_tokens
from mini_infer.bench.metrics import RequestRecord, parse_goodput, summarize
from mini_infer.bench.options import ServeBench
from mini_infer.config import ConfigError
from mini_infer.text.tokenizer import Tokenizer

DONE = b"[DONE]"


@dataclass(frozen=True)
class Query:
    """One request, ready to be sent."""

    body: bytes
    prompt_len: int


def run(bench: ServeBench) -> tuple[dict[str, Any], list[RequestRecord]]:
    """The figures under vLLM's names, and each request's record.

    Raises ConfigError when the server does not answer, or refuses the first request.
    """
    loop = _new_event_loop()
    try:
        return loop.run_until_complete(_run(bench))
    finally:
        loop.close()


async def _run(bench: ServeBench) -> tuple[dict[str, Any], list[RequestRecord]]:
    key = os.environ.get("OPENAI_API_KEY")
    client = Client(bench.base_url, {"Authorization": f"Bearer {key}"} if key else None)
    try:
        model = bench.model or await first_model(client)
        rng = random.Random(bench.seed)
        queries = make_queries(bench, model, bench.dataset, bench.num_prompts + bench.num_warmups, rng)
        warmups, queries = queries[: bench.num_warmups], queries[bench.num_warmups :]
        if warmups:
            await _send_all(bench, client, warmups, [0.0] * len(warmups), "warm-up")
        times = arrival_times(len(queries), bench.request_rate, bench.burstiness, rng)
        begin = asyncio.get_running_loop().time()
        records = await _send_all(bench, client, queries, times, "requests")
        duration = asyncio.get_running_loop().time() - begin
    finally:
        client.close()
    if all(record.error for record in records):
        raise ConfigError(f"no request to {bench.base_url}{bench.path} succeeded; the first one: {records[0].error}")
    figures = summarize(records, duration, bench.metric_percentiles, parse_goodput(bench.goodput))
    return {
        "backend": bench.backend, "endpoint": bench.path, "base_url": bench.base_url, "model_id": model,
        "num_prompts": bench.num_prompts, "request_rate": _number_or_inf(bench.request_rate),
        "burstiness": bench.burstiness, "max_concurrency": bench.max_concurrency, "seed": bench.seed, **figures,
    }, records


async def first_model(client: Client) -> str:
    """The server's first model. Raises ConfigError when there is no such server."""
    try:
        answer = await client.ask("GET", "/v1/models")
        return str(json.loads(answer.body)["data"][0]["id"])
    except OSError as error:
        raise ConfigError(f"base_url: no answer from {client.base_url} ({error})") from None
    except (ValueError, LookupError, TypeError):
        raise ConfigError(f"{client.base_url}/v1/models names no model; give --model") from None


def make_queries(bench: ServeBench, model: str, dataset: Dataset, count: int, rng: random.Random) -> list[Query]:
    """Raises ConfigError when there is no tokenizer to make texts with."""
    source = bench.tokenizer or model
    if not Path(source).is_dir():
        raise ConfigError(f"tokenizer: prompts are texts of a given number of tokens, and {source!r} is no directory "
                          "with a tokenizer; give --tokenizer")
    tokenizer = Tokenizer.load(source)
    vocabulary = ordinary_tokens(tokenizer)
    samples = tqdm(dataset.samples(count, vocabulary, rng), desc="prompts", disable=not bench.use_tqdm, leave=False)
    return [_query(bench, model, sample, tokenizer, vocabulary, rng) for sample in samples]


def _query(bench: ServeBench, model: str, sample: Sample, tokenizer: Tokenizer, vocabulary: Sequence[int],
           rng: random.Random) -> Query:
    text = as_text(sample.prompt_token_ids, tokenizer, vocabulary, rng)
    body: dict[str, Any] = {"model": model, "max_tokens": sample.output_len, "temperature": bench.temperature,
                            "stream": True, "stream_options": {"include_usage": True}}
    if bench.is_chat:
        body["messages"] = [{"role": "user", "content": text}]
    else:
        body["prompt"] = text
    if bench.ignore_eos:
        body["ignore_eos"] = True
    return Query(json.dumps(body).encode(), len(sample.prompt_token_ids))


async def _send_all(bench: ServeBench, client: Client, queries: Sequence[Query], times: Sequence[float],
                    desc: str) -> list[RequestRecord]:
    """Send each query at its time (seconds from now), as soon as the concurrency allows."""
    loop = asyncio.get_running_loop()
    begin = loop.time()
    gate = asyncio.Semaphore(bench.max_concurrency) if bench.max_concurrency is not None else nullcontext()

    async def send(query: Query) -> tuple[Answer | None, str | None]:
        async with gate:
            try:
                return await client.ask("POST", bench.path, query.body), None
            except OSError as error:
                return None, f"{type(error).__name__}: {error}"
            finally:
                bar.update()

    with tqdm(total=len(queries), desc=desc, disable=not bench.use_tqdm, dynamic_ncols=True) as bar:
        tasks = []
        for query, when in zip(queries, times):
            if (delay := begin + when - loop.time()) > 0:
                await asyncio.sleep(delay)
            tasks.append(asyncio.create_task(send(query)))
        answers = await asyncio.gather(*tasks)
    return [read_answer(query, answer, error) for query, (answer, error) in zip(queries, answers)]


def read_answer(query: Query, answer: Answer | None, error: str | None) -> RequestRecord:
    """What the stream said, decoded after the run. A token counts from the piece of the stream that brought it."""
    if answer is None:
        return RequestRecord(query.prompt_len, error=error)
    record = RequestRecord(query.prompt_len, answer.sent)
    if answer.status != 200:
        record.error = f"HTTP {answer.status}: {answer.body.decode(errors='replace')[:500]}"
        return record
    texts = []
    try:
        for when, data in sse_events(answer.pieces):
            if data == DONE:
                break
            chunk = json.loads(data)
            if "error" in chunk:
                record.error = str(chunk["error"])
                return record
            for choice in chunk["choices"]:
                text = _output_of(choice)
                if text is not None or (choice.get("finish_reason") and not record.arrivals):
                    texts.append(text or "")
                    record.arrivals.append(when)
            if usage := chunk.get("usage"):
                record.prompt_len, record.output_len = usage["prompt_tokens"], usage["completion_tokens"]
    except (ValueError, LookupError, TypeError, AttributeError) as problem:
        record.error = f"the stream is not OpenAI's: {type(problem).__name__}: {problem}"
        return record
    record.text = "".join(texts)
    record.output_len = record.output_len or len(record.arrivals)
    if not record.arrivals:
        record.error = "the stream ended without any output"
    return record


def _output_of(choice: dict[str, Any]) -> str | None:
    """The text that a choice of a chunk brought (empty: half a character, part of a call); None: only a role, or an
    end."""
    if "delta" not in choice:
        return str(choice["text"]) if choice["text"] or choice.get("finish_reason") is None else None
    delta = choice["delta"]
    for name in ("content", "reasoning_content", "reasoning"):
        if delta.get(name):
            return str(delta[name])
    return "" if delta.get("tool_calls") else None


def _number_or_inf(rate: float) -> float | str:
    return "inf" if rate == math.inf else rate


def _new_event_loop() -> asyncio.AbstractEventLoop:
    """uvloop's where it is installed, which costs less; else asyncio's own."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()

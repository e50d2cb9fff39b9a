"""The feed of the page, without a browser: off unless watched, ten a second at most, bounded; and the page's files."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.exceptions import HTTPException

from mini_infer.config import EngineConfig
from mini_infer.engine.async_llm import AsyncLLM
from mini_infer.engine.client import EngineDeadError
from mini_infer.engine.sim import SimConfig
from mini_infer.protocol import SamplingParams
from mini_infer.server.feed import EVENTS_PATH, INTERVAL, MAX_WATCHERS, Feed
from mini_infer.server.metrics import ServerMetrics
from mini_infer.server.page import load_assets
from tests.server.running import Running


def parse(data: bytes) -> list[tuple[str, Any]]:
    """Whole events, as a browser reads them."""
    found = []
    for block in data.decode().split("\n\n")[:-1]:
        name, value = block.split("\n")
        found.append((name.removeprefix("event: "), json.loads(value.removeprefix("data: "))))
    return found


@pytest.fixture
async def llm(small_model: Path) -> AsyncIterator[AsyncLLM]:
    async with AsyncLLM(EngineConfig(model=str(small_model)), SimConfig(gpu="free")) as llm:
        yield llm


@pytest.fixture
def feed(llm: AsyncLLM) -> Feed:
    metrics = ServerMetrics()
    llm.observe(metrics)
    return Feed(llm, metrics)


async def read(events: AsyncIterator[bytes], number: int) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    while len(found) < number:
        found += parse(await asyncio.wait_for(anext(events), 5))
    return found


class TestFeed:
    async def test_looks_only_while_somebody_watches(self, llm: AsyncLLM, feed: Feed) -> None:
        assert feed.num_looks == 0
        one, two = feed.events(), feed.events()
        [(name, engine)] = await read(one, 1)
        assert name == "engine" and engine["num_blocks"] == llm.info.num_blocks and engine["simulated"] is True
        await read(two, 3)
        await read(one, 2)
        assert feed.num_watchers == 2
        await one.aclose()  # type: ignore[attr-defined]
        await read(two, 1)  # for the other it goes on
        await two.aclose()  # type: ignore[attr-defined]
        looks = feed.num_looks
        await asyncio.sleep(2.5 * INTERVAL)
        assert (feed.num_watchers, feed.num_looks) == (0, looks)
        three = feed.events()  # and it can be watched again
        assert len(await read(three, 3)) == 3
        await three.aclose()  # type: ignore[attr-defined]

    async def test_a_request_is_seen_running_and_ended_at_ten_looks_a_second_at_most(
            self, llm: AsyncLLM, feed: Feed) -> None:
        events = feed.events()
        await read(events, 2)

        async def generate() -> None:
            async for _ in llm.generate([5] * 40, SamplingParams(max_tokens=450, ignore_eos=True)):
                pass

        task = asyncio.create_task(generate())
        views, ended = [], []
        while not any(each["delivery"] for each in ended):
            for name, value in await read(events, 1):
                (views if name == "view" else ended).extend([value] if name == "view" else value)
        await task
        looks = [value["view"] for value in views]
        gaps = [b["time"] - a["time"] for a, b in pairwise(looks)]
        assert all(gap >= INTERVAL for gap in gaps)
        for look in looks:
            stats = look["stats"]
            assert stats["free_blocks"] + stats["cached_blocks"] + stats["used_blocks"] == stats["total_blocks"]
        assert any(look["steps"] for look in looks)
        assert any(value["inter_token"] is not None for value in views) or len(views) < 2
        last = ended[-1]
        assert last["timeline"]["prompt_tokens"] == 40 and last["timeline"]["output_tokens"] == 450
        assert [span[0] for span in last["timeline"]["spans"]] == ["queued", "prefill", "decode"]
        assert last["delivery"]["reason"] == "length" and last["delivery"]["end"] >= last["timeline"]["spans"][-1][1]
        await events.aclose()  # type: ignore[attr-defined]

    async def test_what_a_look_cost_decides_when_the_next_one_comes(self, llm: AsyncLLM) -> None:
        often, rare = Feed(llm, ServerMetrics(), 0.001, 1), Feed(llm, ServerMetrics(), 0.001, 1000)
        for feed, least in ((often, 1), (rare, 1000)):
            events = feed.events()
            looks = [value["view"] for _, value in (await read(events, 5))[1:]]
            await events.aclose()  # type: ignore[attr-defined]
            assert all(b["time"] - a["time"] >= max(0.001, least * a["cost"]) for a, b in pairwise(looks))
            assert feed is rare or looks[-1]["time"] - looks[0]["time"] < 3 * INTERVAL

    async def test_a_watcher_who_comes_later_gets_what_ended_before(self, llm: AsyncLLM, feed: Feed) -> None:
        async for _ in llm.generate([5] * 3, SamplingParams(max_tokens=2)):
            pass
        events = feed.events()
        found = dict(await read(events, 3))
        assert [each["timeline"]["output_tokens"] for each in found["ended"]] == [2]
        await events.aclose()  # type: ignore[attr-defined]

    async def test_watchers_are_bounded(self, feed: Feed) -> None:
        watchers = [feed.events() for _ in range(MAX_WATCHERS)]
        for events in watchers:
            await read(events, 1)
        with pytest.raises(HTTPException) as caught:
            await anext(feed.events())
        assert caught.value.status_code == 429 and feed.num_watchers == MAX_WATCHERS
        for events in watchers:
            await events.aclose()  # type: ignore[attr-defined]
        assert feed.num_watchers == 0

    async def test_watchers_hear_that_the_engine_is_gone(self, llm: AsyncLLM, feed: Feed) -> None:
        events = feed.events()
        await read(events, 2)
        assert llm.engine_pid is not None
        os.kill(llm.engine_pid, signal.SIGKILL)
        with pytest.raises(EngineDeadError):
            await read(events, 100)
        assert feed.num_watchers == 0
        with pytest.raises(EngineDeadError):
            await read(feed.events(), 100)


@pytest.fixture(scope="module")
def guarded(small_model: Path) -> Iterator[Running]:
    with Running(small_model, "--dry-run", "--dry-gpu", "free", "--api-key", "secret") as running:
        yield running


class TestServed:
    def test_the_page_needs_no_key_and_the_feed_does(self, guarded: Running) -> None:
        assert httpx.get(guarded.url + "/").status_code == 200
        assert httpx.get(guarded.url + "/web/app.js").status_code == 200
        assert httpx.get(guarded.url + EVENTS_PATH).status_code == 401
        with httpx.stream("GET", guarded.url + EVENTS_PATH, headers={"Authorization": "Bearer secret"}) as answer:
            assert answer.headers["content-type"].startswith("text/event-stream")
            assert next(answer.iter_lines()) == "event: engine"

    def test_files_come_with_their_guards_and_once(self, guarded: Running) -> None:
        types = {"css": "text/css", "html": "text/html", "js": "text/javascript", "svg": "image/svg+xml"}
        for name, asset in load_assets().items():
            answer = httpx.get(f"{guarded.url}/web/{name}")
            assert answer.status_code == 200 and answer.content == asset.content
            assert answer.headers["content-type"].startswith(types[name.rpartition(".")[2]])
            assert answer.headers["x-content-type-options"] == "nosniff"
            policy = answer.headers["content-security-policy"]
            assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
            known = f'"x", W/{answer.headers["etag"]}'
            again = httpx.get(f"{guarded.url}/web/{name}", headers={"If-None-Match": known})
            assert again.status_code == 304 and again.content == b""
        head = httpx.head(guarded.url + "/")
        assert head.status_code == 200 and head.content == b"" and int(head.headers["content-length"]) > 1000

    @pytest.mark.parametrize("path", ["/web/", "/web/nothing.js", "/web/../page.py", "/web/%2e%2e/page.py",
                                      "/web/..%2fpage.py", "/web//etc/passwd", "/web/%2fetc%2fpasswd"])
    def test_nothing_else_is_there(self, guarded: Running, path: str) -> None:
        request = urllib.request.Request(guarded.url + path, headers={"Authorization": "Bearer secret"})
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(request, timeout=5)
        assert caught.value.code == 404

    def test_files_ask_nobody_else(self) -> None:
        for name, asset in load_assets().items():
            text = asset.content.decode().replace("http://www.w3.org/2000/svg", "")
            if name.endswith((".html", ".css", ".svg")):
                assert "//" not in text.replace("/*", "").replace("*/", ""), name
            assert "innerHTML" not in text and "insertAdjacentHTML" not in text and "document.write" not in text, name

    def test_a_watcher_does_not_hold_up_the_end(self, small_model: Path) -> None:
        with Running(small_model, "--dry-run", "--dry-gpu", "free") as running:
            with urllib.request.urlopen(running.url + EVENTS_PATH, timeout=10) as answer:
                answer.readline()
                begin = time.monotonic()
                assert running.stop() == 0
            assert time.monotonic() - begin < 10  # of the thirty seconds that requests would get

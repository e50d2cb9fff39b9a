"""A chat template that came with a request, rendered in a process of its own.

The sandbox of text/chat_template.py counts a template's loop steps and output, but a single expression of a stranger's
program can still take memory or time without end ("%1000000000d" is one). Here the operating system holds the limits.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from mini_infer.config import ConfigError
from mini_infer.protocol import RequestError
from mini_infer.text.chat_template import ChatTemplate

SECONDS = 5.0  # the start of the process included
MEMORY = 512 * 2**20  # bytes of address space
MAX_SOURCE_CHARS = 100_000
AT_A_TIME = 2


class RequestTemplates:
    """Renders templates of requests, a few at a time."""

    def __init__(self, special_tokens: Mapping[str, str]):
        self._special_tokens = dict(special_tokens)
        self._places = asyncio.Semaphore(AT_A_TIME)

    async def render(self, source: str, messages: Sequence[Mapping[str, Any]], options: Mapping[str, Any]) -> str:
        """The prompt; `options` are ChatTemplate.render's. Raises RequestError for whatever goes wrong."""
        if len(source) > MAX_SOURCE_CHARS:
            raise RequestError(f"chat_template has {len(source)} characters; at most {MAX_SOURCE_CHARS} are accepted",
                               "chat_template")
        job = json.dumps({"source": source, "special_tokens": self._special_tokens, "messages": messages,
                          "options": options}).encode()
        async with self._places:
            output = await _run(job)
        try:
            answer = json.loads(output)
        except ValueError:
            raise RequestError("chat_template: the template takes too much memory or time", "chat_template") from None
        if "error" in answer:
            raise RequestError(answer["error"], answer["param"])
        return answer["text"]


async def _run(job: bytes) -> bytes:
    """What the process writes; b"" when it has to be killed."""
    # It gets the paths to find this package by, and nothing else of this process's environment.
    env = {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "mini_infer.text.template_process", env=env, stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL)
    try:
        output, _ = await asyncio.wait_for(process.communicate(job), SECONDS)
        return output
    except (asyncio.TimeoutError, BrokenPipeError, ConnectionResetError):
        return b""
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()


def main() -> None:
    """The process: a job on standard input, its answer on standard output."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (int(SECONDS), int(SECONDS)))
    job = json.load(sys.stdin.buffer)
    try:
        template = ChatTemplate(job["source"], job["special_tokens"])
        answer: dict[str, str | None] = {"text": template.render(job["messages"], **job["options"])}
    except ConfigError as error:
        answer = {"error": str(error), "param": "chat_template"}
    except RequestError as error:
        answer = {"error": str(error), "param": error.param}
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()

"""The offline engine: the same loop as the server's, driven in this process."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any

from tqdm import tqdm

from mini_infer.config import ConfigError, EngineConfig
from mini_infer.engine.build import build_engine
from mini_infer.engine.garbage import undisturbed
from mini_infer.protocol import AddRequest, EngineInfo, EngineStats, RequestError, SamplingParams, check_priority
from mini_infer.text.chat_template import ChatTemplate, require_chat_template
from mini_infer.text.door import Door, PreparedRequest, Prompt, expand
from mini_infer.text.output import CompletionDelta, OutputProcessor, RequestAssembler, RequestOutput
from mini_infer.text.tokenizer import Tokenizer

Message = Mapping[str, Any]


class LLM:
    """A model and its engine, for use from Python.

        llm = LLM()                                   # the bundled model
        llm.generate("Hello!", max_tokens=40)[0].text
        for piece in llm.stream("Once upon a time"): print(piece, end="")

    The keyword arguments are the fields of `EngineConfig`. Raises ConfigError when they or the checkpoint cannot work.
    """

    def __init__(self, model: str | EngineConfig | None = None, **options: Any):
        self.config = make_config(model, options)
        engine = build_engine(self.config, progress=sys.stderr.isatty(), one_batch=True)
        self.info: EngineInfo = engine.info
        self._loop = engine.loop
        source = self.config.tokenizer or self.info.model_path
        self._tokenizer = engine.load_tokenizer()
        self.chat_template = None if self._tokenizer is None else ChatTemplate.load(source, self._tokenizer)
        self._door = Door(self._tokenizer, self.info.vocab_size, self.info.max_model_len, engine.grammars)
        self._processor = OutputProcessor(self._tokenizer)
        self._inboxes: dict[int, list[CompletionDelta]] = {}  # by sequence: what its reader has not taken yet
        self._next_id = 0
        self._next_request = 0

    @property
    def model_path(self) -> str:
        """The directory that was loaded."""
        return self.info.model_path

    @property
    def tokenizer(self) -> Tokenizer:
        """Raises RequestError when the engine was made without one."""
        if self._tokenizer is None:
            raise RequestError("this engine has no tokenizer: leave skip_tokenizer_init unset", "prompt")
        return self._tokenizer

    def memory_ledger(self) -> dict[str, int]:
        """Bytes after the start: of the weights, the KV pool, …; on a GPU down to what is free, so that they add up to
        what it has."""
        return dict(self.info.memory_bytes)

    def stats(self) -> EngineStats:
        """KV blocks, queues, and counters since the start."""
        return self._loop.stats()

    @undisturbed()
    def generate(self, prompts: Prompt | Sequence[Prompt],
                 sampling_params: SamplingParams | Sequence[SamplingParams] | None = None, *, use_tqdm: bool = True,
                 priority: int | Sequence[int] = 0, cache_salt: str = "", **params: Any) -> list[RequestOutput]:
        """Complete one prompt or many, in their order.

        prompts: text, token ids, {"prompt": …} or {"prompt_token_ids": …}, or a list of these. sampling_params: one for
        all, or one each; or its fields as keywords. Raises RequestError, before anything runs, when any of them cannot
        be served; a request that fails while it runs ends with finish_reason "error" and the others go on.
        """
        items = _as_prompts(prompts)
        each = _as_params(sampling_params, params, len(items))
        return self._run(self._door.prepare_batch(items, each), priority, cache_salt, use_tqdm)

    @undisturbed()
    def chat(self, messages: Sequence[Message] | Sequence[Sequence[Message]],
             sampling_params: SamplingParams | Sequence[SamplingParams] | None = None, *, use_tqdm: bool = True,
             tools: Sequence[Mapping[str, Any]] | None = None, add_generation_prompt: bool = True,
             continue_final_message: bool = False, chat_template_kwargs: Mapping[str, Any] | None = None,
             priority: int | Sequence[int] = 0, cache_salt: str = "", **params: Any) -> list[RequestOutput]:
        """Answer one conversation or many; messages are OpenAI's. Raises RequestError like `generate`."""
        template = require_chat_template(self.chat_template)
        conversations = [messages] if messages and isinstance(messages[0], Mapping) else messages
        prompts = [template.render(conversation, tools=tools, add_generation_prompt=add_generation_prompt,  # type: ignore[arg-type]
                                   continue_final_message=continue_final_message,
                                   chat_template_kwargs=chat_template_kwargs) for conversation in conversations]
        each = _as_params(sampling_params, params, len(prompts))
        # Templates write the special tokens themselves.
        return self._run(self._door.prepare_batch(prompts, each, add_special_tokens=False), priority, cache_salt,
                         use_tqdm)

    def stream(self, prompt: Prompt, sampling_params: SamplingParams | None = None, **params: Any) -> Iterator[str]:
        """Complete one prompt, yielding text as it is made. Closing the iterator ends the request."""
        return self._stream_text(prompt, sampling_params, params, add_special_tokens=True)

    def stream_chat(self, messages: Sequence[Message], sampling_params: SamplingParams | None = None, *,
                    tools: Sequence[Mapping[str, Any]] | None = None, add_generation_prompt: bool = True,
                    continue_final_message: bool = False, chat_template_kwargs: Mapping[str, Any] | None = None,
                    **params: Any) -> Iterator[str]:
        """Answer one conversation, yielding text as it is made. Closing the iterator ends the request."""
        prompt = require_chat_template(self.chat_template).render(
            messages, tools=tools, add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message, chat_template_kwargs=chat_template_kwargs)
        return self._stream_text(prompt, sampling_params, params, add_special_tokens=False)

    def _stream_text(self, prompt: Prompt, sampling_params: SamplingParams | None, params: Mapping[str, Any],
                     add_special_tokens: bool) -> Iterator[str]:
        (one,) = _as_params(sampling_params, params, 1)
        if one.n != 1:
            raise RequestError("n must be 1 in a stream", "n")
        prepared = self._door.prepare(prompt, one, add_special_tokens=add_special_tokens)
        return (delta.text for delta in self._stream(prepared) if delta.text)

    def _stream(self, prepared: PreparedRequest) -> Iterator[CompletionDelta]:
        (sequence,) = self._add(prepared, 0, "", stream=True)
        try:
            while True:
                for delta in self._take(sequence):
                    yield delta
                    if delta.finish_reason is not None:
                        _raise_if_failed(delta)
                        return
                self._step()
        finally:
            self._drop([sequence])

    def _run(self, requests: Sequence[PreparedRequest], priority: int | Sequence[int], cache_salt: str,
             use_tqdm: bool) -> list[RequestOutput]:
        priorities = [priority] * len(requests) if isinstance(priority, int) else list(priority)
        if len(priorities) != len(requests):
            raise RequestError(f"priority must be one or one each: {len(requests)} prompts, {len(priorities)} given",
                               "priority")
        for each in priorities:
            check_priority(each, self.config.scheduling_policy)
        assemblers = [RequestAssembler(str(number), prepared.prompt, prepared.prompt_token_ids, prepared.params.n)
                      for number, prepared in enumerate(requests, self._next_request)]
        self._next_request += len(requests)
        owner: dict[int, RequestAssembler] = {}
        try:
            for index in _longest_first(requests):
                added = self._add(requests[index], priorities[index], cache_salt, stream=False)
                owner.update(dict.fromkeys(added, assemblers[index]))
            with tqdm(total=len(requests), desc="requests", disable=not use_tqdm, dynamic_ncols=True) as bar:
                self._finish(owner, bar)
        finally:
            self._drop(list(owner))  # whatever is left after an exception or Ctrl-C
        return [assembler.output for assembler in assemblers]

    def _finish(self, owner: dict[int, RequestAssembler], bar: tqdm) -> None:
        start = self.stats().generated_tokens
        while owner:
            for sequence in self._step():
                assembler = owner.get(sequence)
                if assembler is None:
                    continue
                for delta in self._take(sequence):
                    if delta.finish_reason is not None:
                        del owner[sequence]
                        self._inboxes.pop(sequence, None)
                    if assembler.add(delta):
                        elapsed = bar.format_dict["elapsed"] or 1e-9
                        tokens = self.stats().generated_tokens - start
                        bar.set_postfix_str(f"{tokens / elapsed:.0f} tok/s", refresh=False)
                        bar.update()

    def _add(self, prepared: PreparedRequest, priority: int, cache_salt: str, stream: bool) -> list[int]:
        """Queue the n sequences of a request; returns their ids."""
        added: list[int] = []
        try:
            for index, params in enumerate(expand(prepared.params)):
                sequence = self._next_id
                self._next_id += 1
                self._processor.add(sequence, prepared.prompt_token_ids, params, index, stream=stream)
                self._inboxes[sequence] = []
                added.append(sequence)
                self._loop.add(AddRequest(sequence, prepared.prompt_token_ids, params, priority, cache_salt))
        except BaseException:
            self._drop(added)
            raise
        return added

    def _step(self) -> list[int]:
        """One step of the engine; returns the sequences that have something new in their inbox."""
        deltas, aborts = self._processor.process(self._loop.step())
        if aborts:
            self._loop.abort(aborts, "stop")
        for sequence, delta in deltas:
            self._inboxes[sequence].append(delta)
        return [sequence for sequence, _ in deltas]

    def _take(self, sequence: int) -> list[CompletionDelta]:
        deltas, self._inboxes[sequence] = self._inboxes[sequence], []
        return deltas

    def _drop(self, sequences: list[int]) -> None:
        for sequence in sequences:
            self._processor.discard(sequence)
            self._inboxes.pop(sequence, None)
        self._loop.abort(sequences)


class LLMEngine(LLM):
    """`LLM` by its other name: `LLMEngine(EngineConfig(model=…))` or `LLMEngine(model="…")`."""


def make_config(model: str | EngineConfig | None, options: Mapping[str, Any]) -> EngineConfig:
    """An EngineConfig from `LLM`'s arguments. Raises ConfigError for an unknown option."""
    if isinstance(model, EngineConfig):
        if options:
            raise ConfigError(f"give an EngineConfig or single options, not both: {', '.join(sorted(options))}")
        return model
    known = {field.name for field in fields(EngineConfig)}
    if unknown := sorted(set(options) - known):
        raise ConfigError(f"unknown option: {', '.join(unknown)}; the options are {', '.join(sorted(known))}")
    return EngineConfig(**options) if model is None else EngineConfig(model=model, **options)


def _as_prompts(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """One prompt (text, a mapping, or a flat list of ids) or a list of them -> a list of them."""
    if isinstance(prompts, (str, Mapping)) or (prompts and isinstance(prompts[0], int)):
        return [prompts]  # type: ignore[list-item]
    return list(prompts)  # type: ignore[arg-type]


def _as_params(given: SamplingParams | Sequence[SamplingParams] | None, keywords: Mapping[str, Any],
               count: int) -> list[SamplingParams]:
    if given is not None and keywords:
        raise RequestError(f"give sampling_params or its fields as keywords, not both: {', '.join(sorted(keywords))}",
                           "sampling_params")
    if given is None:
        if unknown := sorted(set(keywords) - {field.name for field in fields(SamplingParams)}):
            raise RequestError(f"unknown sampling parameter: {', '.join(unknown)}", unknown[0])
        given = SamplingParams(**keywords)
    if isinstance(given, SamplingParams):
        return [given] * count
    if len(given) != count:
        raise RequestError(f"sampling_params must be one or one each: {count} prompts, {len(given)} given",
                           "sampling_params")
    return list(given)


def _longest_first(requests: Sequence[PreparedRequest]) -> list[int]:
    """Places of requests in the order to run them: those that may take the most steps are not left for the end, where
    a batch of few rows would cost nearly as much as a full one (longest processing time first, Graham 1969)."""
    return sorted(range(len(requests)), key=lambda index: requests[index].params.max_tokens or 0, reverse=True)


def _raise_if_failed(delta: CompletionDelta) -> None:
    if delta.finish_reason == "error":
        raise RuntimeError(delta.error or "the request failed")

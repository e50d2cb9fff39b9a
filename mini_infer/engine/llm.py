"""The offline engine: the same loop as the server's, driven in this process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from typing import Any

from tqdm import tqdm

from mini_infer.config import ConfigError, EngineConfig
from mini_infer.engine.build import build_engine
from mini_infer.protocol import AddRequest, EngineInfo, EngineStats, RequestError, SamplingParams, TokensOut
from mini_infer.text.chat_template import ChatTemplate
from mini_infer.text.door import Prompt, expand, prepare
from mini_infer.text.output import CompletionDelta, OutputProcessor, RequestOutput
from mini_infer.text.tokenizer import Tokenizer


class LLM:
    """A model and its engine, for use from Python.

        llm = LLM()                                   # the bundled model
        llm.generate("Hello!", max_tokens=40)[0].text
        for piece in llm.stream("Once upon a time"): print(piece, end="")

    The keyword arguments are the fields of `EngineConfig`. Raises ConfigError when they, or the checkpoint, cannot work.
    """

    def __init__(self, model: str | None = None, *, config: EngineConfig | None = None, **options: Any):
        if config is not None and (model is not None or options):
            raise ConfigError("give either config or single options, not both")
        if config is None:
            config = make_config(model, options)
        engine = build_engine(config, progress=True)
        self.config = config
        self.info: EngineInfo = engine.info
        self._loop = engine.loop
        self._tokenizer = None if config.skip_tokenizer_init else Tokenizer.from_pretrained(
            config.tokenizer or engine.info.model_path)
        self._chat_template: ChatTemplate | None = None
        self._processor = OutputProcessor(self._tokenizer)
        self._inboxes: dict[int, list[CompletionDelta]] = {}  # by request, for whoever is iterating over it
        self._next_id = 0

    @property
    def model_path(self) -> str:
        """The directory that was loaded."""
        return self.info.model_path

    @property
    def tokenizer(self) -> Tokenizer:
        if self._tokenizer is None:
            raise RequestError("text needs a tokenizer: give token ids, or leave skip_tokenizer_init unset", "prompt")
        return self._tokenizer

    def stats(self) -> EngineStats:
        return self._loop.stats()

"""How the answer to a chat request is made and read: which calls it may or must have, and what its text means."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from mini_infer.protocol import RequestError, SamplingParams, StructuredOutputs
from mini_infer.server.schemas import ChatCompletionRequest, NamedToolChoice
from mini_infer.text.chat_template import ChatTemplate
from mini_infer.text.parsers.dialects import (
    REASONING_PARSERS,
    TOOL_PARSERS,
    ReasoningDialect,
    ToolDialect,
    guess_reasoning,
    guess_tools,
)
from mini_infer.text.parsers.grammar import Function, thought_grammar, tool_grammar
from mini_infer.text.parsers.machine import CallArguments, CallStart, Content, Event, OutputParser, Reasoning
from mini_infer.text.parsers.message import ToolCall
from mini_infer.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Dialects:
    """How the served model writes; None where it is not known, or is not to be looked for."""

    tools: ToolDialect | None
    reasoning: ReasoningDialect | None
    tokenizer: Tokenizer

    @classmethod
    def of(cls, tools: str | None, reasoning: str | None, template: ChatTemplate | None,
           tokenizer: Tokenizer) -> Dialects:
        """By the names of parsers; where none is given, by what the chat template writes itself."""
        sources = [] if template is None else template.sources.values()
        calls = guess_tools(sources)
        if tools is not None and (calls is None or calls.name != tools):  # else it knows the form as well
            calls = TOOL_PARSERS.get(tools)
        return cls(calls, guess_reasoning(sources) if reasoning is None else REASONING_PARSERS.get(reasoning),
                   tokenizer)


@dataclass(frozen=True)
class Reading:
    """One request's answer. `names`: the functions that it may call. `calls`: what it must look like for their sake."""

    dialects: Dialects
    tools: ToolDialect | None
    names: frozenset[str]
    calls: StructuredOutputs | None

    @classmethod
    def of(cls, body: ChatCompletionRequest, dialects: Dialects) -> Reading:
        """Raises RequestError naming the field that this model cannot honour."""
        choice = body.tool_choice or "auto"
        if not body.tools or choice == "none":
            return cls(dialects, None, frozenset(), None)
        asked = body.structured()
        strict = any(tool.function.strict for tool in body.tools)
        must = "tool_choice" if choice != "auto" else "tools" if strict else \
            "parallel_tool_calls" if not body.parallel_tool_calls else asked.source if asked is not None else None
        if must is None:
            return cls(dialects, dialects.tools, frozenset(tool.function.name for tool in body.tools), None)
        if dialects.tools is None:
            raise RequestError(f"{must} cannot be honoured: how this model writes tool calls is not known; the server "
                               "would have to be started with --tool-call-parser", must)
        if asked is not None and choice != "auto":
            raise RequestError(f"{asked.source} cannot go with a tool_choice that asks for calls and nothing else",
                               asked.source)
        named = choice.function.name if isinstance(choice, NamedToolChoice) else None
        functions = [Function(tool.function.name, tool.function.parameters, bool(tool.function.strict))
                     for tool in body.tools if named in (None, tool.function.name)]
        grammar = tool_grammar(dialects.tools, functions, dialects.tokenizer, parallel=body.parallel_tool_calls and
                               named is None, required=choice != "auto" or asked is not None)
        calls = StructuredOutputs(grammar=grammar, source=must) if asked is None else replace(asked, instead=grammar)
        return cls(dialects, dialects.tools, frozenset(function.name for function in functions), calls)

    @property
    def plain(self) -> bool:
        """Whether the text is the content, and nothing has to be looked for in it."""
        return self.tools is None and self.dialects.reasoning is None

    def shape(self, params: SamplingParams, prompt: str) -> SamplingParams:
        """The parameters under which the model writes an answer of this kind after this prompt."""
        structured = self.calls or params.structured_outputs
        reasoning, tokenizer = self.dialects.reasoning, self.dialects.tokenizer
        if structured is not None and reasoning is not None and not prompt.rstrip().endswith(reasoning.end):
            is_open = prompt.rstrip().endswith(reasoning.start)
            structured = replace(structured, preamble=thought_grammar(reasoning, tokenizer, is_open))
        marks = [*(self.tools.marks if self.tools is not None else ()),
                 *((reasoning.start, reasoning.end) if reasoning is not None else ())]
        hidden = any(tokenizer.piece_to_id(mark) in tokenizer.special_token_ids for mark in marks)
        return replace(params, structured_outputs=structured,
                       skip_special_tokens=params.skip_special_tokens and not hidden)

    def parser(self, prompt: str) -> OutputParser:
        return OutputParser(self.tools, self.dialects.reasoning, self.names, prompt)


class DeltaWriter:
    """The deltas of a streamed answer: what its events add to the message so far."""

    def __init__(self, parser: OutputParser):
        self._parser = parser
        self.has_calls = False

    def write(self, text: str, finished: bool) -> list[dict[str, Any]]:
        events = self._parser.feed(text) + (self._parser.finish() if finished else [])
        return [delta for event in events if (delta := self._delta(event)) is not None]

    def _delta(self, event: Event) -> dict[str, Any] | None:
        match event:
            case Content(text):
                return {"content": text}
            case Reasoning(text):
                return {"reasoning": text, "reasoning_content": text}
            case CallStart(call, name):
                self.has_calls = True
                return {"tool_calls": [{"index": call, **ToolCall(name).body()}]}
            case CallArguments(call, text):
                return {"tool_calls": [{"index": call, "function": {"arguments": text}}]}
        return None


def finish_reason(reason: str | None, has_calls: bool) -> str | None:
    """OpenAI's: an answer that ended by itself with calls in it ended for their sake."""
    return "tool_calls" if reason == "stop" and has_calls else reason

"""How models write tool calls and thoughts: each dialect a declaration, read by one machine (machine.py).

Sources: the chat templates of the models (Hermes 2 Pro and Qwen2.5/3; Llama 3.1 to 3.3; Mistral v3 to v13;
DeepSeek-R1).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class ToolDialect:
    """A call is a JSON object with the function's name and its arguments, between marks.

    marks: each begins a call (or a list of them); bare: so does a "{" where no other text stands before it.
    list_open follows a mark; separator stands between two calls; end closes the call, or the list.
    named: a mark may also be followed by one call's name and then its arguments (json_reader.py::NamedCallReader).
    `written` is how the model writes calls itself, for the grammars that make it do so: what comes first, before a
    name, between name and arguments (with ID, one is made up there), after them, between two calls, at the end.
    """

    name: str
    marks: tuple[str, ...]
    end: str
    written: tuple[str, str, str, str, str, str]
    list_open: str = ""
    separator: str = ""
    bare: bool = False
    named: bool = False


@dataclass(frozen=True)
class ReasoningDialect:
    """Thoughts come first, between `start` and `end`. implicit: they come even where nothing says that they begin."""

    name: str
    start: str = "<think>"
    end: str = "</think>"
    implicit: bool = False


ID = "\0"  # in `written`
CALL_ID, ARGS = "[CALL_ID]", "[ARGS]"  # between a name and its arguments

HERMES = ToolDialect(
    "hermes", ("<tool_call>",), "</tool_call>",
    ("<tool_call>\n", '{"name": "', '", "arguments": ', "}", "\n</tool_call>\n<tool_call>\n", "\n</tool_call>"))
LLAMA3_JSON = ToolDialect(
    "llama3_json", ("<|python_tag|>",), "", ("", '{"name": "', '", "parameters": ', "}", "; ", ""),
    separator=";", bare=True)
MISTRAL = ToolDialect(
    "mistral", ("[TOOL_CALLS]",), "]", ("[TOOL_CALLS][", '{"name": "', '", "arguments": ', "}", ", ", "]"),
    list_open="[", separator=",", named=True)
MISTRAL_NAMED = replace(MISTRAL, written=("[TOOL_CALLS]", "", "", "", "[TOOL_CALLS]", ""))
MISTRAL_V11 = replace(MISTRAL, written=("[TOOL_CALLS]", "", f"{CALL_ID}{ID}{ARGS}", "", "[TOOL_CALLS]", ""))
MISTRAL_V13 = replace(MISTRAL, written=("[TOOL_CALLS]", "", ARGS, "", "[TOOL_CALLS]", ""))
TOOL_PARSERS = {dialect.name: dialect for dialect in (HERMES, LLAMA3_JSON, MISTRAL)}

QWEN3 = ReasoningDialect("qwen3")
DEEPSEEK_R1 = ReasoningDialect("deepseek_r1", implicit=True)
REASONING_PARSERS = {dialect.name: dialect for dialect in (QWEN3, DEEPSEEK_R1)}

# `"[TOOL_CALLS]" + call.function.name`, and the like
_NAME_AFTER_MARK = re.compile(r"""\[TOOL_CALLS\]["']?\s*([+~]|(-?\}\}\s*)?\{\{-?)\s*[\w.'"\[\]]*\bname\b""")

NAME_KEYS = ("name",)
ARGUMENT_KEYS = ("arguments", "parameters")


def guess_tools(templates: Iterable[str]) -> ToolDialect | None:
    """The dialect whose marks the model's chat templates write, if there is one; in the form in which they write it."""
    text = "".join(templates)
    found = next((dialect for dialect in TOOL_PARSERS.values() if any(mark in text for mark in dialect.marks)), None)
    if found is not MISTRAL:
        return found
    return MISTRAL_V11 if CALL_ID in text else MISTRAL_V13 if ARGS in text else \
        MISTRAL_NAMED if _NAME_AFTER_MARK.search(text) else MISTRAL


def guess_reasoning(templates: Iterable[str]) -> ReasoningDialect | None:
    """Thoughts between <think> and </think>, where the chat templates know of them. Where a template opens them itself
    the prompt says so, so nothing is implied."""
    return QWEN3 if "</think>" in "".join(templates) else None

"""Grammars that make a model write tool calls, in its own dialect and with the arguments that the functions take."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mini_infer.protocol import RequestError
from mini_infer.text.grammar import quoted
from mini_infer.text.parsers.dialects import ARGS, CALL_ID, ID, ReasoningDialect, ToolDialect
from mini_infer.text.parsers.json_reader import NamedCallReader
from mini_infer.text.tokenizer import Tokenizer

NO_PARAMETERS: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}
_TEXT = "TEXT: /(.|\\n)*/\n"
_ID = "ID: /[a-zA-Z0-9]{9}/\n"  # Mistral's templates want nine of these


@dataclass(frozen=True)
class Function:
    """A function that may be called. `parameters` is a JSON schema; only if strict must all of it be enforceable."""

    name: str
    parameters: dict[str, Any] | None = None
    strict: bool = False


def tool_grammar(dialect: ToolDialect, functions: Sequence[Function], tokenizer: Tokenizer, *, required: bool,
                 parallel: bool) -> str:
    """Lark for an answer with calls of these functions: nothing but calls if `required`, else any text with calls in
    it. Without `parallel`, one call at most, which ends the answer. Raises RequestError for a name that cannot be
    written so."""
    spell = _Speller(tokenizer, (*dialect.marks, dialect.end, CALL_ID, ARGS))
    opening, _, after_name, _, separator, end = dialect.written
    more = f" ({spell(separator)} call)*" if parallel else ""
    rules = [f"call: {' | '.join(f'call_{i}' for i in range(len(functions)))}\n"]
    rules += [f"call_{i}: {_call(dialect, function, spell)}\n" for i, function in enumerate(functions)]
    if ID in after_name:
        rules.append(_ID)
    calls = f"call{more} {spell(end)}"
    if required:
        return f"start: {spell(opening)} {calls}\n" + "".join(rules)
    if not opening:  # nothing but its first character tells a call from text
        return f"start: {calls} | TEXT\n" + "".join(rules) + "TEXT: /([^{\\s](.|\\n)*)?/\n"
    mark = dialect.marks[0]
    rules.append(spell.up_to("opening", mark))
    block = f"opening {spell(opening.removeprefix(mark))} {calls}"
    start = f"({block})* TEXT" if parallel else f"{block} | TEXT"
    return f"start: {start}\n" + "".join(rules) + _TEXT


def thought_grammar(reasoning: ReasoningDialect, tokenizer: Tokenizer, is_open: bool) -> str:
    """Lark for the thoughts before an answer (StructuredOutputs.preamble). `is_open`: they have begun already."""
    spell = _Speller(tokenizer, (reasoning.start, reasoning.end))
    thought = f"thought_end {quoted(chr(10))}? {quoted(chr(10))}?"
    start = f"preamble: thought\nthought: {spell(reasoning.start)}? {thought}\n" if is_open or reasoning.implicit else \
        f"preamble: thought?\nthought: {spell(reasoning.start)} {thought}\n"
    return start + spell.up_to("thought_end", reasoning.end) + _TEXT


def _call(dialect: ToolDialect, function: Function, spell: _Speller) -> str:
    _, before_name, after_name, after_arguments, _, _ = dialect.written
    schema = {**(NO_PARAMETERS if function.parameters is None else function.parameters),
              "x-guidance": {"lenient": not function.strict}}
    if before_name:
        name = json.dumps(function.name, ensure_ascii=False)[1:-1]
    elif not all(map(NamedCallReader.begins, name := function.name)):
        raise RequestError(f"tools: this model writes names of letters, digits and _-. only, not {name!r}", "tools")
    before_id, wants_id, after_id = after_name.partition(ID)
    head = spell(before_name + name + before_id) + (f" ID {spell(after_id)}" if wants_id else "")
    return f"{head} %json {json.dumps(schema)} {spell(after_arguments)}"


class _Speller:
    """Writes texts as Lark. Marks that are special tokens of the model are these tokens, other marks are just text."""

    def __init__(self, tokenizer: Tokenizer, marks: Sequence[str]):
        ids = {mark: tokenizer.piece_to_id(mark) for mark in marks if mark}
        self._special = {mark: token for mark, token in ids.items() if token in tokenizer.special_token_ids}
        self._split = re.compile("|".join(map(re.escape, self._special)) or "(?!)")

    def __call__(self, text: str) -> str:
        if not text:
            return ""
        parts, position = [], 0
        for match in self._split.finditer(text):
            parts += [quoted(text[position : match.start()]), f"<[{self._special[match[0]]}]>"]
            position = match.end()
        parts.append(quoted(text[position:]))
        return " ".join(part for part in parts if part != '""')

    def up_to(self, rule: str, mark: str) -> str:
        """A rule for any text that ends with its first `mark`."""
        if mark in self._special:
            return f"{rule}: TEXT {self(mark)}\n"
        return f"{rule}[lazy]: TEXT {quoted(mark)}\n"


__all__ = ["Function", "thought_grammar", "tool_grammar"]

"""Grammars: what a request's text must look like becomes a matcher, which says after each token which may follow.

The work is done by llguidance, which walks the bytes of all tokens through an Earley parser and a lexer of derivatives
of regular expressions (Moskal et al., "llguidance", github.com/guidance-ai/llguidance). It is imported when the first
request needs it. A grammar is a stranger's program, so its size, the states it may unfold into and the time of its
compilation are bounded, and so is what is kept of it.
"""

from __future__ import annotations

import json
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from mini_infer.protocol import RequestError, StructuredOutputs
from mini_infer.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

MAX_GRAMMAR_CHARS = 128_000
MAX_SCHEMA_DEPTH = 64
MAX_CHOICES = 10_000
MAX_COMPILE_SECONDS = 5.0  # the limits below stop the worst grammars well before
MAX_CACHED_GRAMMARS = 128
MAX_CACHED_CHARS = 2_000_000  # of these together; compiled, a large schema takes some 60 bytes for each
MAX_STEP_ITEMS = 5_000  # of the parser, for one token; more would only stall other requests
MAX_LEXER_STATES = 50_000  # of one grammar; a kilobyte or two each
NO_TEXT = "no text satisfies it, for instance because a rule or $ref leads only back to itself"
INSTALL_HINT = "structured output needs llguidance, which is not installed: pip install 'mini-infer[serve]'"


def grammar_text(asked: StructuredOutputs) -> str:
    """The grammar in llguidance's form (its Lark dialect, or JSON).

    Raises RequestError, naming the field, for one that is too large or malformed; whether its rules make sense shows
    when it is compiled.
    """
    body = _body(asked)
    if not asked.preamble and not asked.instead:
        return body
    grammars = json.loads(body)["grammars"] if body.lstrip().startswith("{") else [{"lark_grammar": body}]
    grammars[0]["name"] = "body"
    parts = "@body"
    if asked.instead:
        parts = "(@body | @instead)"
        grammars.append({"name": "instead", "lark_grammar": asked.instead})
    if asked.preamble:
        parts = "preamble " + parts
    return json.dumps({"grammars": [{"name": "main", "lark_grammar": f"start: {parts}\n{asked.preamble}"}, *grammars]})


def _body(asked: StructuredOutputs) -> str:
    field = asked.source
    schema, schema_text = _json_schema({"type": "object"} if asked.json is None else asked.json, field)
    choices = asked.choice or []
    parts = [schema_text, asked.regex or "", asked.grammar or "", *choices, asked.preamble, asked.instead]
    if sum(map(len, parts)) > MAX_GRAMMAR_CHARS or len(choices) > MAX_CHOICES:
        raise RequestError(f"{field} is too large: it may have {MAX_GRAMMAR_CHARS} characters and {MAX_CHOICES} "
                           "choices", field)
    from llguidance import LLMatcher

    if asked.json is not None or asked.json_object:
        options = {"whitespace_flexible": not asked.disable_any_whitespace, "lenient": asked.lenient}
        try:
            return LLMatcher.grammar_from_json_schema(schema, overrides=options)  # type: ignore[arg-type]
        except ValueError as error:
            raise _refusal(asked, error) from None
    if asked.regex is not None:
        return LLMatcher.grammar_from_regex(asked.regex)
    if asked.choice is not None:
        # A terminal: the lexer has no limit on how many texts may begin alike.
        texts = " | ".join(map(quoted, dict.fromkeys(asked.choice)))
        return LLMatcher.grammar_from_lark(f"start: CHOICE\nCHOICE: {texts}")
    assert asked.grammar is not None
    if "::=" in asked.grammar:
        return LLMatcher.grammar_from_lark(_from_gbnf(asked, asked.grammar))
    if not asked.grammar.lstrip().startswith("{"):
        return LLMatcher.grammar_from_lark(asked.grammar)
    try:
        if not all(isinstance(grammar, dict) for grammar in json.loads(asked.grammar)["grammars"]):
            raise ValueError("grammars must be objects")
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise _refusal(asked, f"it begins like llguidance's JSON form and is not: {error}") from None
    return asked.grammar


def quoted(text: str) -> str:
    """A text as a literal of a Lark grammar."""
    return json.dumps(text, ensure_ascii=False)


def _json_schema(schema: dict[str, Any] | str, field: str) -> tuple[dict[str, Any] | bool, str]:
    """The schema as an object, and as text. Raises RequestError."""
    try:
        value = json.loads(schema) if isinstance(schema, str) else schema
        text = json.dumps(value)
    except (ValueError, TypeError, RecursionError) as error:
        raise RequestError(f"{field} is not valid JSON: {error}", field) from None
    if not isinstance(value, (dict, bool)):
        raise RequestError(f"{field} must be a JSON schema: an object", field)
    depth = deepest = 0
    for char in text:  # brackets inside of strings count as well: a bound, not a measure
        depth += (char in "{[") - (char in "}]")
        deepest = max(deepest, depth)
    if deepest > 2 * MAX_SCHEMA_DEPTH:
        raise RequestError(f"{field} is nested too deeply", field)
    return value, text


def _from_gbnf(asked: StructuredOutputs, grammar: str) -> str:
    from llguidance.gbnf_to_lark import any_to_lark

    try:
        return any_to_lark(grammar)
    except (Exception, RecursionError) as error:  # its parser raises whatever it comes across
        raise _refusal(asked, error) from None


def _refusal(asked: StructuredOutputs, why: object) -> RequestError:
    text = " ".join(str(why).split())
    return RequestError(f"{asked.source} cannot be used: {text[:300] or 'it is malformed'}", asked.source)


class GrammarCompiler:
    """Compiles grammars for one model, and remembers the last ones, the refused included. Any thread may use it.

    `load_tokenizer` is called once, with the first grammar. `vocab_size` is the width of the model's logits; tokens
    beyond the tokenizer's, which have no text, are never allowed. `eos_token_ids` are allowed where the text may end.
    """

    def __init__(self, load_tokenizer: Callable[[], Tokenizer | None], vocab_size: int, eos_token_ids: Sequence[int]):
        self._load_tokenizer = load_tokenizer
        self._vocab_size = vocab_size
        self._eos_token_ids = [token for token in eos_token_ids if token < vocab_size]
        self._tokenizer: LLTokenizer | None = None
        self._compiled: OrderedDict[str, LLMatcher | RequestError] = OrderedDict()
        self._lock = threading.Lock()  # of what is remembered
        self._compiling = threading.Lock()  # one at a time; what is compiled already need not wait

    def warm(self) -> None:
        """Load what the first grammar would have to wait for; does nothing where no grammar can be used."""
        try:
            with self._compiling:
                self._backend("")
        except RequestError:
            return

    def check(self, asked: StructuredOutputs) -> None:
        """Raises RequestError, naming the field, when this cannot be used."""
        self.matcher(asked)

    def matcher(self, asked: StructuredOutputs) -> LLMatcher:
        """A fresh matcher, at the start of the grammar. Raises RequestError. The first time, takes a while."""
        if self._tokenizer is None:
            with self._compiling:
                self._backend(asked.source)
        text = grammar_text(asked)
        found = self._recall(text)
        if found is None:
            with self._compiling:
                found = self._recall(text) or self._compile(asked, text, self._backend(asked.source))
            self._remember(text, found)
        if isinstance(found, RequestError):
            raise RequestError(str(found), asked.source)
        return found.deep_copy()

    def _recall(self, text: str) -> LLMatcher | RequestError | None:
        with self._lock:
            if text in self._compiled:
                self._compiled.move_to_end(text)
            return self._compiled.get(text)

    def _remember(self, text: str, found: LLMatcher | RequestError) -> None:
        with self._lock:
            self._compiled[text] = found
            self._compiled.move_to_end(text)
            while len(self._compiled) > MAX_CACHED_GRAMMARS or sum(map(len, self._compiled)) > MAX_CACHED_CHARS:
                self._compiled.popitem(last=False)

    def _compile(self, asked: StructuredOutputs, text: str, backend: LLTokenizer) -> LLMatcher | RequestError:
        from llguidance import LLMatcher, LLParserLimits

        start = time.perf_counter()
        limits = LLParserLimits(max_lexer_states=MAX_LEXER_STATES, step_max_items=MAX_STEP_ITEMS, verbose_errors=False)
        matcher = LLMatcher(backend, text, log_level=0, limits=limits)
        if not matcher.is_error():
            matcher.compute_bitmask()  # some faults show only with the first token
        if matcher.is_error():
            reason = matcher.get_error().partition("\n<non-verbose/>")[0]
            return _refusal(asked, NO_TEXT if reason == "NoExtensionBias" else reason)
        if time.perf_counter() - start > MAX_COMPILE_SECONDS:
            return _refusal(asked, f"it takes over {MAX_COMPILE_SECONDS:.0f} s to compile")
        return matcher

    def _backend(self, field: str) -> LLTokenizer:
        if self._tokenizer is None:
            try:
                from llguidance import LLTokenizer
            except ImportError:
                raise RequestError(INSTALL_HINT, field) from None
            tokenizer = self._load_tokenizer()
            if tokenizer is None or tokenizer.pieces(skip_special_tokens=False) is None:
                raise RequestError(f"{field} needs a tokenizer that decodes token by token, and this engine's does "
                                   "not, or there is none", field)
            if not self._eos_token_ids:
                raise RequestError(f"{field} needs a model with an end-of-sequence token, and this one has none", field)
            vocabulary = _Vocabulary(tokenizer, self._vocab_size, self._eos_token_ids[0])
            self._tokenizer = LLTokenizer(vocabulary, eos_token=self._eos_token_ids)  # type: ignore[arg-type]
        return self._tokenizer


class _Vocabulary:
    """A tokenizer as llguidance asks for one: the bytes of every token, and a way to spell a text in tokens."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, eos_token_id: int):
        self.eos_token_id = eos_token_id
        self.special_token_ids = sorted(token for token in tokenizer.special_token_ids if token < vocab_size)
        self.tokens = [tokenizer.token_bytes(token) for token in range(vocab_size)]
        self._tokenizer = tokenizer
        hidden = {*self.special_token_ids, eos_token_id}
        self._by_bytes = {piece: token for token, piece in enumerate(self.tokens) if piece and token not in hidden}
        self._longest = max(map(len, self._by_bytes), default=1)
        self._hidden = hidden

    def __call__(self, text: str | bytes) -> list[int]:
        """How the model would spell a text that the grammar forces; llguidance allows that spelling alone."""
        raw = text if isinstance(text, bytes) else text.encode("utf-8", "replace")
        try:
            ids = self._tokenizer.encode(raw.decode(), add_special_tokens=False)
        except ValueError:  # half a character
            return self._greedy(raw)
        if b"".join(self.tokens[token] if token < len(self.tokens) else b"" for token in ids) != raw \
                or not self._hidden.isdisjoint(ids):
            return self._greedy(raw)  # the tokenizer puts a space in front, or takes it for a special token
        return ids

    def _greedy(self, raw: bytes) -> list[int]:
        ids, position = [], 0
        while position < len(raw):
            for length in range(min(self._longest, len(raw) - position), 0, -1):
                token = self._by_bytes.get(raw[position : position + length])
                if token is not None:
                    ids.append(token)
                    break
            else:
                return ids
            position += length
        return ids


__all__ = ["GrammarCompiler", "grammar_text", "quoted"]

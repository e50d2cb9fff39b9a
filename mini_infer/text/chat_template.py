"""Chat templates: a list of messages becomes the text a model was trained on.

A template is a Jinja program that came with a model, so it is treated as a stranger's code: it runs in Jinja's
immutable sandbox, sees only plain JSON values, and has a budget of loop steps, output and time. The environment
(trimmed blocks, loop controls, `raise_exception`, `strftime_now`, an unescaped `tojson`, the `generation` tag) is the
one that templates on the Hugging Face hub are written for.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, cast

from jinja2 import TemplateError, meta, nodes, pass_context
from jinja2.exceptions import SecurityError, TemplateSyntaxError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from mini_infer.config import ConfigError
from mini_infer.protocol import RequestError
from mini_infer.text.tokenizer import Tokenizer, read_tokenizer_config

MAX_OUTPUT_CHARS = 16_000_000
MAX_LOOP_STEPS = 1_000_000
MAX_REPEAT = 1_000_000  # of anything a template multiplies
MAX_SECONDS = 5.0
_BUDGET = "budget of this rendering"  # no identifier, so no template can name it
_REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")


class ChatTemplate:
    """One or more named templates of a model. Immutable; threads may share it.

    Raises ConfigError for a template that does not compile.
    """

    def __init__(self, source: str | Mapping[str, str], special_tokens: Mapping[str, str] | None = None,
                 origin: str = "chat_template"):
        sources = {"default": source} if isinstance(source, str) else dict(source)
        self.sources = sources
        self._special_tokens = dict(special_tokens or {})
        environment = _Environment()
        self._templates = {}
        self._variables: dict[str, set[str]] = {}
        for name, text in sources.items():
            try:
                self._templates[name] = environment.from_string(text)
                self._variables[name] = meta.find_undeclared_variables(environment.parse(text))
            except (TemplateSyntaxError, RecursionError) as error:
                raise ConfigError(f"{origin}: the template {name!r} does not compile: {error}") from None
        self._wants_parts = {name: self._probe_parts(name) for name in sources}
        self._shows_calls = {name: "tool_calls" in text or self._probe_calls(name) for name, text in sources.items()}

    @classmethod
    def load(cls, model_dir: str | Path, tokenizer: Tokenizer) -> ChatTemplate | None:
        """The templates of a model directory, or None when it has none. chat_template.jinja and
        additional_chat_templates/*.jinja come before tokenizer_config.json's chat_template. Raises ConfigError."""
        path = Path(model_dir)
        files = {file.stem: file for file in sorted((path / "additional_chat_templates").glob("*.jinja"))}
        if (path / "chat_template.jinja").is_file():
            files["default"] = path / "chat_template.jinja"
        if files:
            try:
                sources = {name: file.read_text(encoding="utf-8") for name, file in files.items()}
            except (OSError, UnicodeDecodeError) as error:
                raise ConfigError(f"chat_template: cannot read the template files of {path}: {error}") from None
            return cls(sources, tokenizer.special_tokens, str(path))
        config = read_tokenizer_config(path).get("chat_template")
        if config is None:
            return None
        where = f"{path / 'tokenizer_config.json'}: chat_template"
        if isinstance(config, list):
            try:
                config = {entry["name"]: entry["template"] for entry in config}
            except (TypeError, KeyError):
                raise ConfigError(f"{where} must be text, or a list of objects with a name and a template") from None
        texts = list(config.values()) if isinstance(config, dict) else [config]
        if not texts or not all(isinstance(text, str) for text in texts):
            raise ConfigError(f"{where} must be text, or a list of objects with a name and a template")
        return cls(config, tokenizer.special_tokens, where)

    def render(self, messages: Sequence[Mapping[str, Any]], *, tools: Sequence[Mapping[str, Any]] | None = None,
               documents: Sequence[Mapping[str, Any]] | None = None, add_generation_prompt: bool = True,
               continue_final_message: bool = False, template: str | None = None,
               chat_template_kwargs: Mapping[str, Any] | None = None) -> str:
        """The prompt for a conversation. Encode it with add_special_tokens=False: templates write their own.

        messages: as OpenAI's API has them. A list of text parts as content is joined for templates that expect plain
        text, and a tool call's arguments given as JSON text become the object that templates expect.
        continue_final_message: leave the last message open, for the model to go on with it.
        template: the name of one of several; by default "tool_use" when there are tools and such a template, else
        "default". chat_template_kwargs: further variables. Raises RequestError naming the field.
        """
        if continue_final_message and add_generation_prompt:
            raise RequestError("continue_final_message cannot go with add_generation_prompt: either the last message "
                               "goes on or a new one begins", "continue_final_message")
        name = self._choose(template, tools)
        chat = _checked_messages(messages, self._wants_parts[name])
        mark = _mark_final_message(chat) if continue_final_message else None
        variables = {
            **self._special_tokens,
            **_checked_kwargs(chat_template_kwargs),
            "messages": chat,
            "tools": None if tools is None else _checked_objects(tools, "tools"),
            "documents": None if documents is None else _checked_objects(documents, "documents"),
            "add_generation_prompt": add_generation_prompt,
        }
        text = self._run(name, variables)
        return text if mark is None else _cut_at_mark(text, mark)

    def reads(self, variable: str, tools: Sequence[Mapping[str, Any]] | None = None) -> bool:
        """Whether the template that `render` would use with these tools looks at a variable of the caller's."""
        return variable in self._variables[self._choose(None, tools)]

    def shows_calls(self, tools: Sequence[Mapping[str, Any]] | None = None) -> bool:
        """The same of the calls of tools in an assistant's message."""
        return self._shows_calls[self._choose(None, tools)]

    def _choose(self, template: str | None, tools: Sequence[Mapping[str, Any]] | None) -> str:
        if template is None:
            template = "tool_use" if tools and "tool_use" in self._templates else "default"
        if template not in self._templates:
            raise RequestError(f"chat_template: there is no template named {template!r}; this model has "
                               f"{', '.join(sorted(self._templates))}", "chat_template")
        return template

    def _run(self, name: str, variables: dict[str, Any]) -> str:
        budget = _Budget()
        pieces = []
        try:
            for piece in self._templates[name].generate({**variables, _BUDGET: budget}):
                budget.spend_output(len(piece))
                pieces.append(piece)
        except RequestError:
            raise
        except TemplateError as error:  # raise_exception, an undefined variable, the sandbox
            raise RequestError(f"messages: the chat template refuses them: {error.message}", "messages") from None
        except Exception as error:  # a template is a program, so it may fail in any way a program can
            raise RequestError(f"messages: the chat template fails on them: {type(error).__name__}: {error}",
                               "messages") from None
        return "".join(pieces)

    def _probe_parts(self, name: str) -> bool:
        """Whether a template takes a message's content as a list of parts, seen by trying."""
        parts = [{"type": "text", "text": "probe of content parts"}]
        text = self._try(name, {"role": "user", "content": parts})
        return "probe of content parts" in text and "'type'" not in text and '"type"' not in text

    def _probe_calls(self, name: str) -> bool:
        """Whether a template that does not name tool_calls shows them all the same, as a part of the message."""
        call = {"id": "a", "type": "function", "function": {"name": "probe of calls", "arguments": {}}}
        return "probe of calls" in self._try(name, {"role": "assistant", "content": "", "tool_calls": [call]})

    def _try(self, name: str, message: Mapping[str, Any]) -> str:
        """What a template writes of a message; nothing where it fails on it."""
        try:
            return self._run(name, {**self._special_tokens, "messages": [message], "tools": None, "documents": None,
                                    "add_generation_prompt": False})
        except RequestError:
            return ""


def require_chat_template(template: ChatTemplate | None) -> ChatTemplate:
    """The template, or a RequestError that says what to do without one."""
    if template is None:
        raise RequestError("messages: this model has no chat template (no chat_template in tokenizer_config.json, no "
                           "chat_template.jinja); use a plain prompt, or put a template into its directory", "messages")
    return template


@dataclass(slots=True)
class _Budget:
    """What one rendering may still spend."""

    loop_steps: int = MAX_LOOP_STEPS
    output_chars: int = MAX_OUTPUT_CHARS
    deadline: float = field(default_factory=lambda: time.monotonic() + MAX_SECONDS)

    def spend_steps(self, count: int) -> None:
        self.loop_steps -= count
        if self.loop_steps < 0:
            raise RequestError(f"messages: the chat template takes over {MAX_LOOP_STEPS} loop steps", "messages")
        if self.loop_steps % 256 == 0:
            self._check_time()

    def spend_output(self, chars: int) -> None:
        self.output_chars -= chars
        if self.output_chars < 0:
            raise RequestError(f"messages: the chat template writes over {MAX_OUTPUT_CHARS} characters", "messages")
        self._check_time()

    def _check_time(self) -> None:
        if time.monotonic() > self.deadline:
            raise RequestError(f"messages: the chat template takes over {MAX_SECONDS} s", "messages")


class _GenerationTag(Extension):
    """{% generation %} marks what a model is trained on; here it is only its content."""

    tags = {"generation"}  # noqa: RUF012 (as Jinja declares it)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _LoopMeter(Extension):
    """Counts the steps of loops; `_Environment` puts the calls in."""

    @pass_context
    def steps(self, context: Context, items: Iterable[Any]) -> Iterator[Any]:
        """The items of an ordinary loop, each of them counted."""
        budget: _Budget = context.parent[_BUDGET]
        for item in items:
            budget.spend_steps(1)
            yield item

    @pass_context
    def step(self, context: Context) -> None:
        """One step of a recursive loop, whose items come from calls in its own body; slow, so it counts as ten."""
        context.parent[_BUDGET].spend_steps(10)


class _Namespace(Namespace):
    """Jinja's namespace() without underscored attributes, which could lead to Python's internals."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # as in Jinja: namespace(self=...) must work
        self, args = args[0], args[1:]
        values = dict(*args, **kwargs)
        for name in values:
            _refuse_underscore(name)
        Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_underscore(name)
        super().__setitem__(name, value)


def _refuse_underscore(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace cannot have the attribute {name!r}")


class _Environment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset(["*", "**"])

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, _LoopMeter, loopcontrols])
        self.filters["tojson"] = _to_json
        self.globals.update(raise_exception=_raise_exception, strftime_now=_strftime_now, namespace=_Namespace)
        del self.globals["lipsum"]

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        meter = self.extensions[_LoopMeter.identifier]
        for loop in tree.find_all(nodes.For):
            if loop.recursive:
                loop.body.insert(0, nodes.ExprStmt(meter.call_method("step")).set_lineno(loop.lineno))
            else:
                items = cast(nodes.Expr, loop.iter)
                loop.iter = meter.call_method("steps", [items]).set_lineno(loop.lineno)
        return tree

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        # Small templates must not make huge values: "x" * 10**9, 9**9**9.
        size = 1
        for side in (left, right):
            size *= len(side) if isinstance(side, (str, list, tuple)) else 1
        count = max((abs(side) for side in (left, right) if isinstance(side, (int, float))), default=1)
        if size * count > MAX_REPEAT and (operator == "**" or isinstance(left, (str, list, tuple))
                                          or isinstance(right, (str, list, tuple))):
            raise SecurityError(f"{operator} makes a value beyond {MAX_REPEAT}")
        return super().call_binop(context, operator, left, right)


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None,
             separators: tuple[str, str] | None = None, sort_keys: bool = False) -> str:
    """Unlike Jinja's own filter, without HTML escapes, and with the arguments of json.dumps."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)


def _plain(value: Any, param: str) -> Any:
    """A copy of plain JSON types only: other objects may have methods that the sandbox knows nothing of."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, Mapping):
        return {_plain(key, param): _plain(item, param) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, param) for item in value]
    raise RequestError(f"{param} must hold only JSON values, got {type(value).__name__}", param)


def _checked_objects(value: Any, param: str) -> list[dict[str, Any]]:
    if not isinstance(value, (list, tuple)) or not all(isinstance(item, Mapping) for item in value):
        raise RequestError(f"{param} must be a list of objects", param)
    try:
        return _plain(value, param)
    except RecursionError:
        raise RequestError(f"{param} is nested too deeply", param) from None


def _checked_kwargs(value: Any) -> dict[str, Any]:
    kwargs = _checked_objects([{} if value is None else value], "chat_template_kwargs")[0]
    taken = sorted(set(kwargs) & {"messages", "tools", "documents", "add_generation_prompt"})
    if taken:
        raise RequestError(f"chat_template_kwargs cannot set {', '.join(taken)}; give them directly",
                           "chat_template_kwargs")
    return kwargs


def _checked_messages(messages: Any, wants_parts: bool) -> list[dict[str, Any]]:
    """Messages as templates expect them: a fresh copy, so that nothing here touches the caller's."""
    chat = _checked_objects(messages, "messages")
    if not chat:
        raise RequestError("messages must not be empty", "messages")
    for i, message in enumerate(chat):
        if not isinstance(message.get("role"), str):
            raise RequestError(f"messages[{i}] must have a role", "messages")
        content = message.get("content")
        if isinstance(content, list):
            texts = [_part_text(part, f"messages[{i}].content[{j}]") for j, part in enumerate(content)]
            if not wants_parts:
                message["content"] = "\n".join(texts)
        elif content is not None and not isinstance(content, str):
            raise RequestError(f"messages[{i}].content must be text or a list of text parts", "messages")
        _parse_arguments(message, i)
        reasoning = next((message[name] for name in _REASONING_FIELDS if message.get(name) is not None), None)
        if reasoning is not None:  # templates read it by either name
            chat[i] = {"thinking": reasoning, **message, "reasoning_content": reasoning}
    return chat


def _part_text(part: Any, where: str) -> str:
    if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
        kind = part.get("type") if isinstance(part, dict) else type(part).__name__
        raise RequestError(f'{where} must be {{"type": "text", "text": ...}}, the only kind of content part that is '
                           f"supported, got {kind!r}", "messages")
    return part["text"]


def _parse_arguments(message: dict[str, Any], i: int) -> None:
    """OpenAI's API has a tool call's arguments as JSON text; templates print an object. Text that a model got wrong
    stays text."""
    calls = message.get("tool_calls")
    if calls is None:
        return
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        raise RequestError(f"messages[{i}].tool_calls must be a list of objects", "messages")
    for call in calls:
        function = call.get("function")
        if isinstance(function, dict) and isinstance(function.get("arguments"), str):
            try:
                function["arguments"] = json.loads(function["arguments"])
            except (ValueError, RecursionError):
                continue


@dataclass(frozen=True)
class _Mark:
    """Put behind the last message's text, to find in the rendered prompt where that text ends. The space at its end
    tells whether the template trims."""

    text: str
    label = "\ue000the message goes on here\ue000"


def _mark_final_message(chat: list[dict[str, Any]]) -> _Mark:
    message = chat[-1]
    content = message.get("content")
    if isinstance(content, str):
        message["content"] = content + _Mark.label + " "
        return _Mark(content)
    if isinstance(content, list) and content:
        text = content[-1]["text"]
        content[-1]["text"] = text + _Mark.label + " "
        return _Mark(text)
    raise RequestError("continue_final_message needs a last message with content to continue", "continue_final_message")


def _cut_at_mark(rendered: str, mark: _Mark) -> str:
    end = rendered.rfind(mark.label)
    if end < 0 or mark.text.strip() not in rendered:
        raise RequestError("continue_final_message: the chat template does not show the last message as it is, so it "
                           "cannot be continued", "continue_final_message")
    preserved = rendered.startswith(" ", end + len(mark.label))
    return rendered[:end] if preserved else rendered[:end].rstrip()


__all__ = ["ChatTemplate", "require_chat_template"]

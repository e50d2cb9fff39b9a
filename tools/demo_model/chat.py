"""The chat template, twice: as Jinja for everybody else, and in plain Python for fast data generation.

ChatML in the manner of Qwen: tools stand in the system turn, calls between ``<tool_call>`` tags, results come back in a
user turn between ``<tool_response>`` tags. ``tests/test_demo_model_data.py`` checks that both say the same.
"""

import json
from collections.abc import Sequence

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")  # never shown to the user
TAG_TOKENS = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>")

TOOLS_HEAD = "# Tools\n\nYou may call these functions:\n<tools>"
TOOLS_TAIL = (
    "\n</tools>\n\nTo call one, answer with its name and arguments as JSON:\n<tool_call>\n"
    '{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>'
)

# `namespace` is not needed: the last role is looked up by index. Text parts of a content list are joined.
CHAT_TEMPLATE = """\
{%- macro text(content) -%}
    {%- if content is string -%}
        {{- content -}}
    {%- elif content is iterable -%}
        {%- for part in content -%}
            {%- if part is string -%}{{- part -}}{%- elif part.text is defined -%}{{- part.text -}}{%- endif -%}
        {%- endfor -%}
    {%- endif -%}
{%- endmacro -%}
{%- set has_system = messages and messages[0].role in ['system', 'developer'] -%}
{%- if tools -%}
    {{- '<|im_start|>system\\n' -}}
    {%- if has_system -%}{{- text(messages[0].content) + '\\n\\n' -}}{%- endif -%}
    {{- HEAD -}}
    {%- for tool in tools -%}{{- '\\n' + (tool | tojson) -}}{%- endfor -%}
    {{- TAIL + '<|im_end|>\\n' -}}
{%- elif has_system -%}
    {{- '<|im_start|>system\\n' + text(messages[0].content) + '<|im_end|>\\n' -}}
{%- endif -%}
{%- for message in messages -%}
    {%- if loop.first and has_system -%}
    {%- elif message.role == 'tool' -%}
        {%- if loop.first or messages[loop.index0 - 1].role != 'tool' -%}{{- '<|im_start|>user' -}}{%- endif -%}
        {{- '\\n<tool_response>\\n' + text(message.content) + '\\n</tool_response>' -}}
        {%- if loop.last or messages[loop.index0 + 1].role != 'tool' -%}{{- '<|im_end|>\\n' -}}{%- endif -%}
    {%- elif message.role == 'assistant' -%}
        {%- set content = text(message.content) -%}
        {{- '<|im_start|>assistant\\n' + content -}}
        {%- if message.tool_calls -%}
            {%- for call in message.tool_calls -%}
                {%- set call = call.function if call.function else call -%}
                {%- if content or not loop.first -%}{{- '\\n' -}}{%- endif -%}
                {{- '<tool_call>\\n{"name": ' + (call.name | tojson) + ', "arguments": ' -}}
                {{- call.arguments if call.arguments is string else (call.arguments | tojson) -}}
                {{- '}\\n</tool_call>' -}}
            {%- endfor -%}
        {%- endif -%}
        {{- '<|im_end|>\\n' -}}
    {%- else -%}
        {{- '<|im_start|>' + message.role + '\\n' + text(message.content) + '<|im_end|>\\n' -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
""".replace("HEAD", repr(TOOLS_HEAD)).replace("TAIL", repr(TOOLS_TAIL))


def dumps(value: object) -> str:
    """JSON as the template's ``tojson`` filter writes it."""
    return json.dumps(value, ensure_ascii=False)


def call_text(name: str, arguments: dict) -> str:
    """A tool call as the model writes it."""
    return f'<tool_call>\n{{"name": {dumps(name)}, "arguments": {dumps(arguments)}}}\n</tool_call>'


def render(messages: Sequence[dict], tools: Sequence[dict] = (), add_generation_prompt: bool = False) -> str:
    """The conversation as the model sees it. Tool calls may stand in ``content`` as text or in ``tool_calls``."""
    out: list[str] = []
    rest = list(messages)
    head = rest.pop(0)["content"] if rest and rest[0]["role"] == "system" else ""
    if tools:
        listing = "".join("\n" + dumps(tool) for tool in tools)
        out.append(
            f"<|im_start|>system\n{head + chr(10) * 2 if head else ''}{TOOLS_HEAD}{listing}{TOOLS_TAIL}<|im_end|>\n"
        )
    elif head:
        out.append(f"<|im_start|>system\n{head}<|im_end|>\n")
    for index, message in enumerate(rest):
        role, content = message["role"], message["content"]
        if role == "tool":
            if index == 0 or rest[index - 1]["role"] != "tool":
                out.append("<|im_start|>user")
            out.append(f"\n<tool_response>\n{content}\n</tool_response>")
            if index + 1 == len(rest) or rest[index + 1]["role"] != "tool":
                out.append("<|im_end|>\n")
            continue
        calls = "\n".join(call_text(c["name"], c["arguments"]) for c in message.get("tool_calls", ()))
        out.append(f"<|im_start|>{role}\n{content}{chr(10) if content and calls else ''}{calls}<|im_end|>\n")
    if add_generation_prompt:
        out.append("<|im_start|>assistant\n")
    return "".join(out)

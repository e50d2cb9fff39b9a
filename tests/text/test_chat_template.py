"""Chat templates give what transformers' apply_chat_template gives, and cannot break out or run away."""

from __future__ import annotations

import json
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from trained import byte_level

from mini_infer.config import ConfigError
from mini_infer.protocol import RequestError
from mini_infer.text.chat_template import ChatTemplate, require_chat_template
from mini_infer.text.tokenizer import Tokenizer

CHATML = """
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}
        {{- messages[0].content + '\\n\\n' }}
    {%- endif %}
    {{- "# Tools\\n\\n<tools>" }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(last_query=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- if message.role == 'user' %}
        {%- set ns.last_query = messages|length - loop.index %}
        {%- break %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role == 'user' or (message.role == 'system' and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == 'assistant' %}
        {{- '<|im_start|>assistant\\n' }}
        {%- if message.reasoning_content is defined and loop.index0 > ns.last_query %}
            {{- '<think>\\n' + message.reasoning_content.strip('\\n') + '\\n</think>\\n\\n' }}
        {%- endif %}
        {%- if message.content %}{% generation %}{{- message.content }}{% endgeneration %}{%- endif %}
        {%- for tool_call in message.tool_calls or [] %}
            {%- set call = tool_call.function if tool_call.function else tool_call %}
            {{- '\\n<tool_call>\\n{"name": "' ~ call.name ~ '", "arguments": ' }}
            {{- call.arguments | tojson ~ '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == 'tool' %}
        {%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}{{- '<|im_start|>user' }}{%- endif %}
        {{- '\\n<tool_response>\\n' + message.content + '\\n</tool_response>' }}
        {%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{- '<|im_end|>\\n' }}{%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}
"""

LLAMA3 = """{{- bos_token }}
{%- if not date_string is defined %}
    {%- set date_string = strftime_now("%d %b %Y") %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if tools is not none %}
    {{- "Environment: ipython\\n" }}
{%- endif %}
{{- "Today Date: " + date_string + "\\n\\n" }}
{%- if tools is not none %}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
        {{- "\\n\\n" }}
    {%- endfor %}
{%- endif %}
{{- system_message + "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
        {{- message['content'] | trim + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls|length == 1 %}
            {{- raise_exception("This model only supports single tool-calls at once!") }}
        {%- endif %}
        {%- set tool_call = message.tool_calls[0].function %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n{"name": "' + tool_call.name + '", "parameters": ' }}
        {{- tool_call.arguments | tojson }}
        {{- "}" + "<|eot_id|>" }}
    {%- else %}
        {{- "<|start_header_id|>ipython<|end_header_id|>\\n\\n" }}
        {%- if message.content is mapping or message.content is iterable %}
            {{- message.content | tojson }}
        {%- else %}
            {{- message.content }}
        {%- endif %}
        {{- "<|eot_id|>" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""

MISTRAL = """{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- set ns = namespace() %}
{%- set ns.index = 0 %}
{%- for message in loop_messages if message.role in ("user", "assistant") and not message.tool_calls is defined %}
    {%- if (message["role"] == "user") != (ns.index % 2 == 0) %}
        {{- raise_exception("After the optional system message, conversation roles must alternate user/assistant") }}
    {%- endif %}
    {%- set ns.index = ns.index + 1 %}
{%- endfor %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" %}
        {%- if tools is not none and loop.last %}
            {{- "[AVAILABLE_TOOLS] [" }}
            {%- for tool in tools %}
                {{- '{"type": "function", "function": {' }}
                {%- for key, val in tool.function.items() if key != "return" %}
                    {{- '"' + key + '": ' + val|tojson }}{{- ", " if not loop.last else "}" }}
                {%- endfor %}
                {{- "}" }}{{- ", " if not loop.last else "]" }}
            {%- endfor %}
            {{- "[/AVAILABLE_TOOLS]" }}
        {%- endif %}
        {%- if loop.last and system_message is defined %}
            {{- "[INST] " + system_message + "\\n\\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- elif message.tool_calls is defined and message.tool_calls is not none %}
        {{- "[TOOL_CALLS] [" }}
        {%- for tool_call in message.tool_calls %}
            {%- set out = tool_call.function|tojson %}
            {{- out[:-1] }}{{- ', "id": "' + tool_call.id + '"}' }}{{- ", " if not loop.last else "]" + eos_token }}
        {%- endfor %}
    {%- elif message["role"] == "assistant" %}
        {{- " " + message["content"]|trim + eos_token }}
    {%- elif message["role"] == "tool" %}
        {{- '[TOOL_RESULTS] {"content": ' + message.content|string + ', "call_id": "' + message.tool_call_id + '"}' }}
    {%- endif %}
{%- endfor %}
"""

TEMPLATES = {"chatml": CHATML, "llama3": LLAMA3, "mistral": MISTRAL}
SPECIAL = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
TOOLS = [{"type": "function", "function": {
    "name": "weather", "description": "The weather <now> in a city & more — naïve",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}}]
CALL = {"role": "assistant", "tool_calls": [{"id": "call00001", "type": "function", "function": {
    "name": "weather", "arguments": {"city": "Zürich", "days": 2}}}]}
CHATS: dict[str, list[dict[str, Any]]] = {
    "hello": [{"role": "user", "content": "Hello 🙂"}],
    "system": [{"role": "system", "content": " Be brief. "}, {"role": "user", "content": "a\n\nb <b> \"q\""},
               {"role": "assistant", "content": "yes "}, {"role": "user", "content": "And?"}],
    "tools": [{"role": "user", "content": "Weather?"}, CALL,
              {"role": "tool", "tool_call_id": "call00001", "content": "{\"sun\": true}"},
              {"role": "assistant", "content": "Sunny."}, {"role": "user", "content": "Thanks"}],
    "thinking": [{"role": "user", "content": "2+2?"},
                 {"role": "assistant", "content": "4", "reasoning_content": "two and two\n"}],
}


@pytest.fixture(scope="module")
def theirs() -> Any:
    transformers = pytest.importorskip("transformers")
    return transformers.PreTrainedTokenizerFast(tokenizer_object=byte_level(), **SPECIAL)


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("tools", [None, TOOLS])
@pytest.mark.parametrize("generation", [True, False])
def test_same_as_transformers(theirs: Any, template: str, chat: str, tools: Any, generation: bool) -> None:
    expected = theirs.apply_chat_template(CHATS[chat], tools=tools, chat_template=TEMPLATES[template], tokenize=False,
                                          add_generation_prompt=generation, enable_thinking=False)
    ours = ChatTemplate(TEMPLATES[template], SPECIAL).render(
        CHATS[chat], tools=tools, add_generation_prompt=generation, chat_template_kwargs={"enable_thinking": False})
    assert ours == expected


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("ending", ["The answer", "The answer ", "The answer is:\n"])
def test_continue_final_message_as_transformers(theirs: Any, template: str, ending: str) -> None:
    chat = [{"role": "user", "content": "Well?"}, {"role": "assistant", "content": ending}]
    expected = theirs.apply_chat_template(chat, chat_template=TEMPLATES[template], tokenize=False,
                                          continue_final_message=True)
    ours = ChatTemplate(TEMPLATES[template], SPECIAL).render(chat, add_generation_prompt=False,
                                                             continue_final_message=True)
    assert ours == expected
    assert ours.rstrip().endswith(ending.rstrip())
    assert chat[-1]["content"] == ending


def test_variables_and_helpers() -> None:
    template = ChatTemplate("{{ custom }}|{{ strftime_now('%Y') }}|{{ documents[0].title }}|{{ tools is none }}|"
                            "{{ {'b': 'é<', 'a': 1} | tojson(sort_keys=true, separators=(',', ':')) }}|{{ bos_token }}",
                            SPECIAL)
    text = template.render(CHATS["hello"], documents=[{"title": "T"}], chat_template_kwargs={"custom": 5})
    assert text == f'5|{datetime.now():%Y}|T|True|{{"a":1,"b":"é<"}}|<|im_start|>'


def test_named_templates() -> None:
    template = ChatTemplate({"default": "plain", "tool_use": "with tools", "rag": "documents"})
    assert template.render(CHATS["hello"]) == "plain"
    assert template.render(CHATS["hello"], tools=TOOLS) == "with tools"
    assert template.render(CHATS["hello"], tools=[]) == "plain"
    assert template.render(CHATS["hello"], template="rag") == "documents"
    with pytest.raises(RequestError, match="default, rag, tool_use"):
        template.render(CHATS["hello"], template="nope")
    with pytest.raises(RequestError, match="no template named 'default'"):
        ChatTemplate({"rag": "x"}).render(CHATS["hello"])


def test_content_parts_and_json_arguments() -> None:
    parts = [{"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]}]
    assert ChatTemplate("{{ messages[0].content + '!' }}").render(parts) == "one\ntwo!"
    listing = "{% for m in messages %}{% for part in m.content %}[{{ part.text }}]{% endfor %}{% endfor %}"
    assert ChatTemplate(listing).render(parts) == "[one][two]"
    continued = ChatTemplate(listing).render(parts, add_generation_prompt=False, continue_final_message=True)
    assert continued == "[one][two"

    def call(arguments: str) -> list[dict[str, Any]]:
        return [{"role": "assistant", "content": None, "tool_calls": [{"function": {"arguments": arguments}}]}]

    shown = ChatTemplate("{{ messages[0].tool_calls[0].function.arguments | tojson }}")
    assert shown.render(call('{"a":1}')) == '{"a": 1}'
    assert shown.render(call('{"a":')) == '"{\\"a\\":"'  # what a model got wrong is shown as it was


@pytest.mark.parametrize("source, shown", [
    ("{% for c in messages[0].tool_calls %}{{ c.function.name }}{% endfor %}", True),
    ("{{ messages[0].content }}", False),
    ("{% if messages[0].role == 'user' and 'tool_calls' in messages[0] %}calls{% endif %}", True),
    ("{{ messages | tojson }}", True), ("{% for k, v in messages[0].items() %}{{ v }}{% endfor %}", True),
    ("{{ raise_exception('users begin') if messages[0].role != 'user' }}", False)])
def test_whether_calls_are_shown(source: str, shown: bool) -> None:
    assert ChatTemplate(source).shows_calls() is shown
    both = ChatTemplate({"default": "plain", "tool_use": source})
    assert not both.shows_calls() and both.shows_calls(TOOLS) is shown


@pytest.mark.parametrize("messages", [
    [], "hello", None, [1], [{}], [{"role": 1}], [{"role": "user", "content": 5}], [{"content": "x"}],
    [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x"}}]}],
    [{"role": "user", "content": ["x"]}], [{"role": "user", "content": "x", "extra": object()}],
    [{"role": "assistant", "tool_calls": "x"}],
])
def test_bad_messages(messages: Any) -> None:
    with pytest.raises(RequestError) as error:
        ChatTemplate("{{ messages[0].content }}").render(messages)
    assert error.value.param == "messages"


def test_bad_options() -> None:
    template = ChatTemplate("{{ messages[0].content }}")
    for options, param in [({"tools": [len]}, "tools"), ({"tools": {"a": 1}}, "tools"),
                           ({"documents": ["x"]}, "documents"),
                           ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs"),
                           ({"chat_template_kwargs": [1]}, "chat_template_kwargs"),
                           ({"continue_final_message": True}, "continue_final_message")]:
        with pytest.raises(RequestError) as error:
            template.render(CHATS["hello"], **options)
        assert error.value.param == param
    for bad in ([{"role": "user", "content": "x"}, CALL], [{"role": "user", "content": "x"}]):
        with pytest.raises(RequestError) as error:
            ChatTemplate("nothing of it").render(bad, add_generation_prompt=False, continue_final_message=True)
        assert error.value.param == "continue_final_message"
    deep: Any = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(RequestError, match="nested too deeply"):
        template.render([{"role": "user", "content": "x", "deep": deep}])


@pytest.mark.parametrize("source, message", [
    ("{{ raise_exception('only users, please') }}", "only users, please"),
    ("{{ messages[0].content.missing.more }}", "missing"),
    ("{{ messages + 1 }}", "TypeError"),
    ("{{ 1 / 0 }}", "ZeroDivisionError"),
    ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "RecursionError"),
])
def test_a_failing_template_is_the_request_s_error(source: str, message: str) -> None:
    with pytest.raises(RequestError, match=message) as error:
        ChatTemplate(source).render(CHATS["hello"])
    assert error.value.param == "messages"


@pytest.mark.parametrize("source", [
    "{{ ''.__class__.__mro__ }}",
    "{{ messages.__class__ }}",
    "{{ (messages | attr('__class__')).x }}",
    "{{ messages.append(1) }}",
    "{{ messages[0].update({'a': 1}) }}",
    "{{ cycler.__init__.__globals__.os }}",
    "{{ raise_exception.__globals__ }}",
    "{{ namespace(__class__=1) }}",
    "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
    "{{ '{0.__class__.__mro__}'.format(messages) }}",
    "{{ ('%s' | format)(1).__class__ }}",
    "{{ strftime_now.__self__ }}",
    "{{ self.__init__ }}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}",
    "{{ lipsum() }}",
])
def test_no_way_out_of_the_sandbox(source: str) -> None:
    with pytest.raises(RequestError):
        text = ChatTemplate(source).render(CHATS["hello"])
        if text.strip() == "":  # some unsafe attributes are undefined, which prints as nothing
            raise RequestError("undefined")


@pytest.mark.parametrize("source", [
    "{{ 'x' * 1000000000 }}",
    "{{ [1] * 1000000000 }}",
    "{{ 9 ** 999999999 }}",
    "{{ range(1000000000) | list }}",
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{% for i in range(99999) %}{{ 'x' * 1000 }}{% endfor %}",
    "{% for i in range(99999) %}{% set x = namespace(a=messages) %}{% for j in range(99999) recursive %}"
    "{% if false %}{{ loop([]) }}{% endif %}{% endfor %}{% endfor %}",
])
def test_runaway_templates_end(source: str) -> None:
    begin = time.perf_counter()
    with pytest.raises(RequestError):
        ChatTemplate(source).render(CHATS["hello"])
    assert time.perf_counter() - begin < 20


def test_budget_is_of_one_rendering() -> None:
    template = ChatTemplate("{% for i in range(50000) %}{% for j in range(10) %}{% endfor %}{% endfor %}ok")
    assert [template.render(CHATS["hello"]) for _ in range(2)] == ["ok", "ok"]


def write(path: Path, config: Any = None, **files: str) -> ChatTemplate | None:
    byte_level().save(str(path / "tokenizer.json"))
    if config is not None:
        (path / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<|im_start|>", "chat_template": config}))
    for name, text in files.items():
        file = path / (name.replace("__", "/") + ".jinja")
        file.parent.mkdir(exist_ok=True)
        file.write_text(text, encoding="utf-8")
    return ChatTemplate.load(path, Tokenizer.load(path))


def test_loading(tmp_path: Path) -> None:
    assert write(tmp_path) is None
    template = write(tmp_path, "A{{ bos_token }}")
    assert template is not None
    assert template.render(CHATS["hello"]) == "A<|im_start|>"
    template = write(tmp_path, [{"name": "default", "template": "B"}, {"name": "tool_use", "template": "C"}])
    assert template is not None
    assert template.render(CHATS["hello"], tools=TOOLS) == "C"
    template = write(tmp_path, "A", chat_template="D é", additional_chat_templates__tool_use="E")
    assert template is not None
    assert template.sources == {"default": "D é", "tool_use": "E"}


@pytest.mark.parametrize("config", [5, [5], [{"name": "x"}], [], {"a": 1}, "{% if %}", "{{ unclosed", "{% for %}"])
def test_a_broken_template_file_is_named(tmp_path: Path, config: Any) -> None:
    with pytest.raises(ConfigError, match="chat_template"):
        write(tmp_path, config)


def test_without_a_template() -> None:
    with pytest.raises(RequestError, match="no chat template") as error:
        require_chat_template(None)
    assert error.value.param == "messages"

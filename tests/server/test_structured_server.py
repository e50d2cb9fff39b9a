"""Structured output, tool calls and thoughts over HTTP: the bundled model, and random weights, which must obey too."""

from __future__ import annotations

import asyncio
import json
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, cast

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel
from tokenizers import Tokenizer

from mini_infer.server.reading import Dialects
from mini_infer.text import tokenizer
from mini_infer.text.chat_template import ChatTemplate
from mini_infer.text.parsers.dialects import HERMES, MISTRAL, MISTRAL_NAMED, ToolDialect
from tests.server.running import Running
from tests.tiny import write_chat_model

MODEL = "mini-infer-demo"
OSLO = [{"role": "user", "content": "How is the weather in Oslo?"}]


def tool(name: str, *parameters: str, strict: bool | None = None) -> dict[str, Any]:
    schema = {"type": "object", "properties": {one: {"type": "string"} for one in parameters},
              "required": list(parameters), "additionalProperties": False}
    function = {"name": name, "description": f"{name} of something", "parameters": schema}
    return {"type": "function", "function": function if strict is None else {**function, "strict": strict}}


TOOLS = [tool("weather", "city"), tool("count_letters", "word")]
ASK: dict[str, Any] = {"model": MODEL, "messages": OSLO, "tools": TOOLS, "temperature": 0, "max_tokens": 80}


NO_THOUGHTS: dict[str, Any] = {  # the prompt says that they are over
    "model": "tiny", "messages": [*OSLO, {"role": "assistant", "content": "<think></think>"}],
    "extra_body": {"continue_final_message": True, "add_generation_prompt": False}}


class Person(BaseModel):
    name: str
    age: int


class Mood(BaseModel):
    mood: Literal["glad", "sad"]
    sure: bool


@pytest.fixture(scope="module")
def random_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its template writes calls as Hermes' does, and thoughts."""
    directory = tmp_path_factory.mktemp("random") / "tiny"
    write_chat_model(directory, eos_token_id=1, max_position_embeddings=2048)
    config = json.loads((directory / "tokenizer_config.json").read_text())
    config["chat_template"] += "{# <tool_call> </think> #}"
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    tokenizer.add_tokens(["<tool_call>", "</tool_call>", "<think>", "</think>"])
    tokenizer.save(str(directory / "tokenizer.json"))
    return directory


@pytest.fixture(scope="module")
def rand(random_model: Path) -> Iterator[Running]:
    with Running(random_model, "--num-kv-blocks", "256", "--served-model-name", "tiny") as running:
        yield running


def sdk(running: Running) -> OpenAI:
    return OpenAI(base_url=running.url + "/v1", api_key="none", max_retries=0, _strict_response_validation=True)


def deltas_of(stream: Any) -> tuple[list[dict[str, Any]], str]:
    """A stream put together: its calls, and the reason of its end; the usual rules of deltas are checked on the way."""
    calls: list[dict[str, Any]] = []
    reason = ""
    for chunk in stream:
        [choice] = chunk.choices
        reason = choice.finish_reason or reason
        for call in choice.delta.tool_calls or ():
            if call.index == len(calls):  # id and name come first, and once
                assert re.fullmatch("[a-zA-Z0-9]{9}", call.id) and call.type == "function" and call.function.name
                calls.append({"id": call.id, "name": call.function.name, "arguments": ""})
            else:
                assert call.index == len(calls) - 1 and call.id is None and call.function.name is None
            calls[call.index]["arguments"] += call.function.arguments
    return calls, reason


class TestRandomWeights:
    """The model knows nothing: what it writes is random, but for what it must be."""

    def test_parse(self, rand: Running) -> None:
        parsed = []
        for seed in range(6):
            try:
                answer = sdk(rand).chat.completions.parse(**NO_THOUGHTS, response_format=Mood, seed=seed,
                                                          max_tokens=200)
            except openai.LengthFinishReasonError:  # lost in whitespace, which JSON has no end of
                continue
            parsed.append(answer.choices[0].message.parsed)
        assert parsed and all(isinstance(mood, Mood) for mood in parsed)

    @pytest.mark.parametrize("asked, pattern", [
        ({"choice": ["hello world", "fox"]}, "hello world|fox"), ({"regex": "[a-f]{5,9}"}, "[a-f]{5,9}"),
        ({"grammar": 'root ::= "x" [0-9] [0-9]? "y"'}, "x[0-9]{1,2}y"), ({"grammar": 'start: "a"~3 "b"'}, "aaab"),
        ({"json": {"enum": [1, "b"]}}, '1|"b"')], ids=str)
    def test_structured_outputs(self, rand: Running, asked: dict[str, Any], pattern: str) -> None:
        client = sdk(rand)
        for seed in range(3):
            options: Any = {"max_tokens": 100, "seed": seed}
            body = {**NO_THOUGHTS["extra_body"], "structured_outputs": asked}
            answer = client.chat.completions.create(**{**NO_THOUGHTS, "extra_body": body}, **options)
            assert answer.choices[0].finish_reason == "stop"
            assert re.fullmatch(pattern, answer.choices[0].message.content)
            text = client.completions.create(model="tiny", prompt="fox", **options,
                                             extra_body={"structured_outputs": asked}).choices[0].text
            assert re.fullmatch(pattern, text)

    def test_calls_that_must_come(self, rand: Running) -> None:
        ended = 0
        for seed in range(8):
            chosen: Any = {"type": "function", "function": {"name": "b"}} if seed % 2 else "required"
            answer = sdk(rand).chat.completions.create(
                **NO_THOUGHTS, tools=[tool("a"), tool("b")], max_tokens=200, seed=seed, tool_choice=chosen,
                parallel_tool_calls=False, logprobs=True)
            [choice] = answer.choices
            assert len(choice.logprobs.content) == answer.usage.completion_tokens
            if choice.finish_reason == "length":  # lost in whitespace
                continue
            ended += 1
            assert choice.finish_reason == "tool_calls" and choice.message.content is None
            [call] = choice.message.tool_calls
            assert call.function.name in ("b" if seed % 2 else "ab") and json.loads(call.function.arguments) == {}
        assert ended

    def test_thoughts(self, rand: Running) -> None:
        """Begun by the prompt (here: an answer that is to go on), ended by the model, and shown apart."""
        [closing] = rand.post("/tokenize", {"prompt": "</think>"})[1]["tokens"]
        ended, thought = 0, False
        for seed in range(6):
            answer = sdk(rand).chat.completions.create(
                model="tiny", messages=[*OSLO, {"role": "assistant", "content": "<think>"}], max_tokens=300, seed=seed,
                extra_body={**NO_THOUGHTS["extra_body"], "structured_outputs": {"choice": ["fox"]},
                            "logit_bias": {str(closing): 3}})
            [choice] = answer.choices
            message = choice.message
            thoughts = message.model_extra.get("reasoning", "")
            assert thoughts == message.model_extra.get("reasoning_content", "") and "</think>" not in thoughts
            thought |= bool(thoughts)
            ended += choice.finish_reason == "stop"
            assert message.content == ("fox" if choice.finish_reason == "stop" else None)
        assert ended and thought

    def test_a_slow_grammar_stalls_nobody(self, rand: Running) -> None:
        """While one is compiled, others get their tokens."""
        heavy = {"type": "object", "properties": {
            f"k{i}": {"type": "string", "pattern": f"^[a-z]{{1,{i % 30 + 1}}}$"} for i in range(1500)}}
        done = threading.Event()

        def compile_it() -> None:
            rand.post("/v1/completions", {"prompt": "a", "max_tokens": 1, "structured_outputs": {"json": heavy}})
            done.set()

        threading.Thread(target=compile_it).start()
        worst = 0.0
        while not done.wait(0.01):
            start = time.monotonic()
            assert rand.get("/health")[0] == 200
            worst = max(worst, time.monotonic() - start)
        assert rand.post("/v1/completions", {"prompt": "a", "max_tokens": 1})[0] == 200
        assert worst < 5  # it answers meanwhile; how fast is for a benchmark to say


@pytest.fixture(scope="module")
def bundled() -> Iterator[Running]:
    with Running("--num-kv-blocks", "512", "--enable-auto-tool-choice", "--tool-call-parser", "hermes") as running:
        yield running


@pytest.fixture(scope="module")
def client(bundled: Running) -> OpenAI:
    return sdk(bundled)


@pytest.mark.weights
class TestBundled:
    def test_parse(self, client: OpenAI) -> None:
        answer = client.chat.completions.parse(
            model=MODEL, messages=[{"role": "user", "content": "Give me JSON: Mia is 7 years old."}],
            response_format=Person, temperature=0, max_tokens=60)
        assert answer.choices[0].message.parsed == Person(name="Mia", age=7)

    def test_json_object(self, client: OpenAI) -> None:
        answer = client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "Give me JSON: Mia is 7 years old."}], temperature=0,
            response_format={"type": "json_object"}, max_tokens=60)
        assert isinstance(json.loads(answer.choices[0].message.content), dict)

    @pytest.mark.parametrize("options", [
        {}, {"tool_choice": "auto"}, {"tool_choice": "required"}, {"parallel_tool_calls": False},
        {"tool_choice": {"type": "function", "function": {"name": "weather"}}},
        {"tools": [tool("weather", "city", strict=True), TOOLS[1]]}], ids=str)
    def test_a_call(self, client: OpenAI, options: dict[str, Any]) -> None:
        whole = client.chat.completions.create(**{**ASK, **options}).choices[0]
        assert whole.finish_reason == "tool_calls" and whole.message.content is None
        [call] = whole.message.tool_calls
        assert call.function.name == "weather" and json.loads(call.function.arguments) == {"city": "Oslo"}
        assert re.fullmatch("[a-zA-Z0-9]{9}", call.id)
        calls, reason = deltas_of(client.chat.completions.create(**{**ASK, **options}, stream=True))
        assert reason == "tool_calls"
        assert [(one["name"], one["arguments"]) for one in calls] == [("weather", call.function.arguments)]

    def test_none_and_another(self, client: OpenAI) -> None:
        none = client.chat.completions.create(**ASK, tool_choice="none").choices[0]
        assert none.message.tool_calls is None and none.message.content and none.finish_reason == "stop"
        other = client.chat.completions.create(
            **ASK, tool_choice={"type": "function", "function": {"name": "count_letters"}}).choices[0]
        assert other.message.tool_calls[0].function.name == "count_letters"

    def test_text_where_no_call_is_needed(self, client: OpenAI) -> None:
        options = {**ASK, "messages": [{"role": "user", "content": "What comes after Monday?"}]}
        answer = client.chat.completions.create(**options).choices[0]
        assert answer.finish_reason == "stop" and answer.message.tool_calls is None
        assert "Tuesday" in answer.message.content
        text = "".join(chunk.choices[0].delta.content or "" for chunk in
                       client.chat.completions.create(**options, stream=True))
        assert text == answer.message.content

    def test_a_call_or_an_answer_in_a_format(self, client: OpenAI) -> None:
        """With tools and a format the model chooses between the two, and is held to either."""
        answer = client.chat.completions.parse(**{**ASK, "tools": [tool("weather", "city", strict=True)]},
                                               response_format=Person).choices[0]
        assert answer.finish_reason == "tool_calls"
        assert answer.message.tool_calls[0].function.parsed_arguments == {"city": "Oslo"}
        mia = [{"role": "user", "content": "Give me JSON: Mia is 7 years old."}]
        answer = client.chat.completions.parse(
            model=MODEL, messages=mia, tools=[tool("weather", "city", strict=True)], response_format=Person,
            temperature=0, max_tokens=80).choices[0]
        assert answer.message.tool_calls or isinstance(answer.message.parsed, Person)

    def test_the_whole_conversation(self, client: OpenAI) -> None:
        """A call, its result, and what the model says to it; messages go back as they came."""
        first = client.chat.completions.create(**ASK).choices[0].message
        messages = [*OSLO, first.model_dump(), {"role": "tool", "tool_call_id": first.tool_calls[0].id,
                                                "content": '{"weather": "rain"}'}]
        second = client.chat.completions.create(**{**ASK, "messages": messages}).choices[0]
        assert second.finish_reason == "stop" and "rain" in second.message.content

    def test_several_choices_and_log_probabilities(self, client: OpenAI) -> None:
        answer = client.chat.completions.create(**ASK, n=2, logprobs=True)
        assert [len(choice.message.tool_calls) for choice in answer.choices] == [1, 1]
        ids = {choice.message.tool_calls[0].id for choice in answer.choices}
        assert len(ids) == 2
        entries = [entry.token for entry in answer.choices[0].logprobs.content]
        assert entries[0] == "<tool_call>" and 2 * len(entries) == answer.usage.completion_tokens
        streamed = [entry.token for chunk in client.chat.completions.create(**ASK, logprobs=True, stream=True)
                    if chunk.choices[0].logprobs for entry in chunk.choices[0].logprobs.content]
        assert streamed == entries

    def test_a_call_that_is_cut_off(self, client: OpenAI) -> None:
        answer = client.chat.completions.create(**{**ASK, "max_tokens": 14}).choices[0]
        assert answer.finish_reason == "length" and answer.message.tool_calls is None
        assert answer.message.content.startswith('<tool_call>\n{"name": "weather"')

    async def test_async(self, bundled: Running) -> None:
        async with AsyncOpenAI(base_url=bundled.url + "/v1", api_key="none", max_retries=0,
                               _strict_response_validation=True) as client:
            async def one() -> str:
                async with client.chat.completions.stream(**{**ASK, "tools": [tool("weather", "city", strict=True)]}) \
                        as stream:
                    answer = await stream.get_final_completion()
                return answer.choices[0].message.tool_calls[0].function.parsed_arguments["city"]

            assert set(await asyncio.gather(*[one() for _ in range(6)])) == {"Oslo"}

    @pytest.mark.parametrize("options, param", [
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "a", "strict": True,
                                                                     "schema": {"not": {}}}}},
         "response_format.json_schema"),
        ({"extra_body": {"structured_outputs": {"regex": "("}}}, "structured_outputs"),
        ({"tools": [{"type": "function", "function": {"name": "f", "strict": True, "parameters": {"type": "wat"}}}]},
         "tools"),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "wat"}}}],
          "tool_choice": "required"}, "tool_choice"),
        ({"response_format": {"type": "json_object"}, "tools": TOOLS, "tool_choice": "required"}, "response_format"),
        # These show only while they run.
        ({"extra_body": {"structured_outputs": {"regex": "a{1000000}"}}}, "structured_outputs"),
        ({"extra_body": {"structured_outputs": {"choice": ["Oslo"]}, "min_tokens": 5}}, "min_tokens"),
    ], ids=str)
    def test_refused(self, client: OpenAI, options: dict[str, Any], param: str) -> None:
        with pytest.raises(openai.BadRequestError) as error:
            client.chat.completions.create(model=MODEL, messages=OSLO, max_tokens=5, **options)
        assert error.value.param == param

    def test_no_parser_leaves_the_text_as_it_is(self) -> None:
        with Running("--num-kv-blocks", "512", "--tool-call-parser", "none") as running:
            answer = sdk(running).chat.completions.create(**ASK).choices[0]
            assert answer.finish_reason == "stop" and answer.message.tool_calls is None
            assert answer.message.content.startswith("<tool_call>")
            with pytest.raises(openai.BadRequestError) as error:
                sdk(running).chat.completions.create(**ASK, tool_choice="required")
            assert error.value.param == "tool_choice" and "--tool-call-parser" in error.value.message


@pytest.mark.parametrize("asked, template, expected", [
    (None, "[TOOL_CALLS]{{ call.name }}", MISTRAL_NAMED), ("mistral", "[TOOL_CALLS]{{ call.name }}", MISTRAL_NAMED),
    ("mistral", "<tool_call>", MISTRAL), ("mistral", None, MISTRAL), ("hermes", "[TOOL_CALLS]{{ call.name }}", HERMES),
    ("none", "<tool_call>", None), (None, "nothing", None), (None, None, None),
])
def test_a_parser_s_name_and_the_form_that_the_template_writes(asked: str | None, template: str | None,
                                                               expected: ToolDialect | None) -> None:
    of_model = None if template is None else ChatTemplate(template)
    assert Dialects.of(asked, None, of_model, cast(tokenizer.Tokenizer, None)).tools is expected

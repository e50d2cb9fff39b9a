"""/tokenize and /detokenize, and other routes that generate nothing."""

from __future__ import annotations

from typing import Any

import pytest
from openai import InternalServerError, OpenAI

from tests.server.running import Running

HI = [{"role": "user", "content": "hello"}]


def test_a_text_there_and_back(server: Running) -> None:
    for text in ("hello world", "", "<|im_start|>user", "é \U0001f600"):
        status, found = server.post("/tokenize", {"prompt": text, "return_token_strs": True})
        assert status == 200 and found["count"] == len(found["tokens"]) == len(found["token_strs"])
        assert found["max_model_len"] == 512
        assert server.post("/detokenize", {"tokens": found["tokens"]}) == (200, {"prompt": text})
    assert server.post("/tokenize", {"prompt": "a"})[1]["token_strs"] is None


def test_a_conversation_is_what_the_model_sees(server: Running) -> None:
    def count(**options: Any) -> int:
        return server.post("/tokenize", {"messages": HI, **options})[1]["count"]

    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
    chat = server.post("/v1/chat/completions", {"messages": HI, "max_tokens": 1})[1]
    assert count() == chat["usage"]["prompt_tokens"]
    assert count(add_generation_prompt=False) < count() < count(tools=[tool])
    assert count(add_generation_prompt=False, continue_final_message=True) < count(add_generation_prompt=False)


@pytest.mark.parametrize("path, body, field", [
    ("/tokenize", {}, "prompt"),
    ("/tokenize", {"prompt": "a", "messages": HI}, "prompt"),
    ("/tokenize", {"prompt": 5}, "prompt"),
    ("/tokenize", {"prompt": "a", "bogus": 1}, "bogus"),
    ("/tokenize", {"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
    ("/tokenize", {"messages": HI, "chat_template": "{{ 1 }}"}, "chat_template"),
    ("/detokenize", {}, "tokens"),
    ("/detokenize", {"tokens": "a"}, "tokens"),
    ("/detokenize", {"tokens": [5, 6, "a"]}, "tokens[2]"),
    ("/detokenize", {"tokens": [-1]}, "tokens"),
    ("/detokenize", {"tokens": [10**30]}, "tokens"),
], ids=str)
def test_bad_input(server: Running, path: str, body: dict[str, Any], field: str) -> None:
    status, answer = server.post(path, body)
    assert status == 400 and answer["error"]["param"] == field and answer["error"]["type"] == "invalid_request_error"


def test_an_unknown_model(server: Running) -> None:
    for path, body in (("/tokenize", {"prompt": "a"}), ("/detokenize", {"tokens": [5]})):
        assert server.post(path, {**body, "model": "gpt-9"})[0] == 404


def test_embeddings_say_that_there_are_none(server: Running) -> None:
    client = OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0)
    with pytest.raises(InternalServerError) as raised:
        client.embeddings.create(model="dry", input="hello")
    assert raised.value.status_code == 501 and raised.value.code == "embeddings_not_supported"


def test_the_description_of_the_api(server: Running) -> None:
    schema = server.get("/openapi.json")[1]
    for path in ("/v1/chat/completions", "/v1/completions", "/v1/models", "/v1/models/{model_id}", "/v1/embeddings",
                 "/v1/messages", "/tokenize", "/detokenize", "/version", "/health", "/healthz", "/metrics"):
        assert path in schema["paths"]
    assert "temperature" in schema["components"]["schemas"]["ChatCompletionRequest"]["properties"]
    operations = [operation for methods in schema["paths"].values() for operation in methods.values()]
    told = {status for operation in operations for status in operation["responses"]}
    assert told == {"200", "400", "401", "404", "413", "429", "500", "501", "503", "504"}

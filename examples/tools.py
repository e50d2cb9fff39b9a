"""A model that calls functions: it asks for a call, the program makes it, the model tells what came of it.

    .venv/bin/python examples/tools.py               # from Python
    .venv/bin/python examples/tools.py http://127.0.0.1:8000/v1     # the same through a server, with OpenAI's client
"""

from __future__ import annotations

import json
import sys
from typing import Any

QUESTION = {"role": "user", "content": "How is the weather in Oslo?"}
TOOLS = [{
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Get the weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}]


def weather(city: str) -> str:
    return json.dumps({"weather": "rain"} if city == "Oslo" else {"weather": "sun"})


def from_python() -> None:
    from mini_infer import LLM
    from mini_infer.text.parsers.dialects import HERMES
    from mini_infer.text.parsers.message import Message

    llm = LLM()
    messages: list[dict[str, Any]] = [QUESTION]
    (out,) = llm.chat(messages, tools=TOOLS, temperature=0, max_tokens=80, use_tqdm=False)
    message = Message.of(out.text, HERMES, names=["weather"])
    messages.append(message.body())
    for call in message.calls:
        print(f"the model calls {call.name}({call.parsed()})")
        messages.append({"role": "tool", "tool_call_id": call.id, "content": weather(**call.parsed())})
    (out,) = llm.chat(messages, tools=TOOLS, temperature=0, max_tokens=80, use_tqdm=False)
    print(out.text)


def through_a_server(base_url: str) -> None:
    from openai import OpenAI

    client = OpenAI(base_url=base_url, api_key="none")
    options: dict[str, Any] = {"model": client.models.list().data[0].id, "tools": TOOLS, "temperature": 0,
                               "max_tokens": 80}
    messages: list[Any] = [QUESTION]
    message = client.chat.completions.create(messages=messages, **options).choices[0].message
    messages.append(message)
    for call in message.tool_calls or ():
        print(f"the model calls {call.function.name}({call.function.arguments})")
        result = weather(**json.loads(call.function.arguments))
        messages.append({"role": "tool", "tool_call_id": call.id, "content": result})
    print(client.chat.completions.create(messages=messages, **options).choices[0].message.content)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        through_a_server(sys.argv[1])
    else:
        from_python()

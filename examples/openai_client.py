"""Talk to a running server with OpenAI's own client: an answer at once, then one as it is made.

    make serve                                       # in one terminal
    .venv/bin/python examples/openai_client.py       # in another; a base URL may follow
"""

from __future__ import annotations

import sys

from openai import OpenAI

MESSAGES = [{"role": "user", "content": "Tell me a short story about Leo, a dog and a garden."}]


def main(base_url: str) -> None:
    client = OpenAI(base_url=base_url, api_key="none")  # the server asks for no key; the client wants one
    model = client.models.list().data[0].id

    answer = client.chat.completions.create(model=model, messages=MESSAGES, temperature=0.0)
    print(answer.choices[0].message.content)
    assert answer.usage is not None
    print(f"[{answer.usage.prompt_tokens} + {answer.usage.completion_tokens} tokens]\n")

    stream = client.chat.completions.create(model=model, messages=MESSAGES, temperature=0.8, seed=7, max_tokens=120,
                                            stream=True, stream_options={"include_usage": True})
    for chunk in stream:
        if chunk.choices:
            print(chunk.choices[0].delta.content or "", end="", flush=True)
        elif chunk.usage is not None:  # the last chunk
            print(f"\n[{chunk.usage.prompt_tokens} + {chunk.usage.completion_tokens} tokens]")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000/v1")

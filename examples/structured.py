"""Text of a given form from Python: a JSON schema, a choice, a regular expression, a grammar; beside free text.

    .venv/bin/python examples/structured.py [MODEL]
"""

from __future__ import annotations

import json
import sys

from mini_infer import LLM, SamplingParams, StructuredOutputs

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer", "minimum": 0}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
SUM = """
start: number (" + " number)+ " = " number
number: /[0-9]{1,3}/
"""
WISHES: list[tuple[str, StructuredOutputs | None]] = [
    ("Give me JSON: Mia is 7 years old.", StructuredOutputs(json=PERSON)),
    ("What comes after Monday?", StructuredOutputs(choice=["Monday", "Tuesday", "Wednesday"])),
    ("Name a time of the day.", StructuredOutputs(regex=r"([01][0-9]|2[0-3]):[0-5][0-9]")),
    ("What is 27 + 35?", StructuredOutputs(grammar=SUM)),
    ("What is 27 + 35?", None),
]


def main(model: str | None) -> None:
    llm = LLM(model) if model else LLM()
    conversations = [[{"role": "user", "content": question}] for question, _ in WISHES]
    params = [SamplingParams(temperature=0.0, max_tokens=60, structured_outputs=asked) for _, asked in WISHES]
    outs = llm.chat(conversations, params, use_tqdm=False)
    for (question, _), out in zip(WISHES, outs):
        print(f"{question}\n  {out.text.strip()}")
    print(json.loads(outs[0].text)["age"] + 1)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else None)

"""Exact checks of answers: right or wrong, nothing in between."""

import json
import re

from tools.demo_model.stories import judge_story

_CALL = re.compile(r"<tool_call>\s*(\{.*?\})\s*</tool_call>", re.DOTALL)


def _same(a: object, b: object) -> bool:
    """Equality that tells 1 from true and "1"."""
    return json.dumps(a, sort_keys=True) == json.dumps(b, sort_keys=True)


def _number(text: str, value: int) -> bool:
    numbers = re.findall(r"-?\d+", text)
    return bool(numbers) and int(numbers[-1]) == value


def _contains(text: str, words: list[str]) -> bool:
    return all(re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE) for word in words)


def _json_list(text: str, count: int, members: list[str], key: str = "") -> bool:
    value = json.loads(text)
    items = value[key] if key else value
    return len(items) == count == len(set(items)) and set(items) <= set(members)


def _call(text: str, name: str, arguments: dict) -> bool:
    calls = _CALL.findall(text)
    if len(calls) != 1 or _CALL.sub("", text).strip():
        return False
    call = json.loads(calls[0])
    return set(call) == {"name", "arguments"} and call["name"] == name and _same(call["arguments"], arguments)


def is_right(text: str, expect: dict) -> bool:
    """Whether an answer is what ``Sample.expect`` asks for."""
    text = text.strip()
    checks = {
        "number": lambda v: _number(text, v),
        "number_first": lambda v: text.split()[:1] == [str(v)],
        "contains": lambda v: _contains(text, v),
        "story": lambda v: not judge_story(text, **v),
        "json": lambda v: _same(json.loads(text), v),
        "json_list": lambda v: _json_list(text, **v),
        "call": lambda v: _call(text, **v),
        "unknown": lambda v: "don't know" in text.lower(),
        "text": lambda v: text == v,
        "no_call": lambda v: "<tool_call>" not in text,
    }
    try:
        return all(checks[kind](value) for kind, value in expect.items())
    except (ValueError, KeyError, TypeError):  # not JSON, or JSON of another shape
        return False

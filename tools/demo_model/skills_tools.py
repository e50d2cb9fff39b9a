"""Calling a given tool, reading its result, and leaving it alone when it is not needed."""

import random

from tools.demo_model.chat import call_text, dumps
from tools.demo_model.sample import Sample, Split, assistant, user
from tools.demo_model.skills_memory import Distractor
from tools.demo_model.text import casual, join_words, say
from tools.demo_model.tool_specs import SPECS, ToolSpec, made_up_tool
from tools.demo_model.tool_values import VALUES, property_schema


def _schema(
    rng: random.Random, name: str, description: str, params: list[tuple[str, str, str]], required: list[str]
) -> dict:
    properties = {p: property_schema(rng, kind, text) for p, kind, text in params}
    parameters: dict = {"type": "object", "properties": properties}
    if required or rng.random() < 0.5:
        parameters["required"] = required
    if rng.random() < 0.1:
        parameters["additionalProperties"] = False
    function: dict = {"name": name}
    if rng.random() < 0.85:
        function["description"] = description + rng.choice([".", ""])
    function["parameters"] = parameters
    if rng.random() < 0.05:
        function["strict"] = True
    return function if rng.random() < 0.06 else {"type": "function", "function": function}


def _name_of(tool: dict) -> str:
    return tool["function"]["name"] if "function" in tool else tool["name"]


def _everyday(rng: random.Random, spec: ToolSpec) -> tuple[dict, dict, str, list[object]]:
    """Schema, arguments, request and raw values of a use of an everyday tool."""
    chosen = [rng.choice(param.names) for param in spec.params]
    if len(set(chosen)) < len(chosen):
        chosen = [param.names[0] for param in spec.params]
    values = [VALUES[param.kind](rng) for param in spec.params]
    params = [(p, param.kind, param.description) for p, param in zip(chosen, spec.params, strict=True)]
    if rng.random() < 0.15:  # an optional parameter that nobody asked for
        params.append((rng.choice(["unit", "format", "note", "lang"]), "text", "Optional"))
    name = rng.choice(spec.names)
    if rng.random() < 0.08:  # camelCase
        name = name.split("_")[0] + "".join(part.capitalize() for part in name.split("_")[1:])
    schema = _schema(rng, name, say(rng, spec.description), params, chosen)
    slots = dict(zip("abc", values, strict=False))
    request = say(rng, f"[{spec.asks}]", **slots)
    return schema, dict(zip(chosen, values, strict=True)), request, values


def _made_up_schema(rng: random.Random) -> dict:
    name, description, params, _ = made_up_tool(rng)
    return _schema(rng, name, description, [(p, kind, "") for p, kind, _ in params], [p for p, _, _ in params])


# Everyday tools that could do each other's work; only one of a group may stand in a list.
_GROUPS = {
    **dict.fromkeys(("calculate", "multiply", "divide", "add", "subtract"), "math"),
    **dict.fromkeys(("search", "get_news", "define_word", "search_products"), "search"),
    "get_weather": "weather",
}


def _alike(one: ToolSpec, other: ToolSpec) -> bool:
    return _GROUPS.get(one.names[0], one.names[0]) == _GROUPS.get(other.names[0], other.names[0])


def _unused(rng: random.Random, taken: str, spec: ToolSpec | None) -> dict:
    """A tool that stands in the list but does not fit the request."""
    while True:
        if rng.random() < 0.5:
            other = rng.choice(SPECS)
            if spec is not None and _alike(other, spec):
                continue
            schema = _everyday(rng, other)[0]
        else:
            schema = _made_up_schema(rng)
        if _name_of(schema) != taken:
            return schema


def _surround(rng: random.Random, tool: dict, spec: ToolSpec | None) -> tuple[dict, ...]:
    tools = [tool] + [_unused(rng, _name_of(tool), spec) for _ in range(rng.choice([0, 0, 1, 1, 2, 3]))]
    rng.shuffle(tools)
    return tuple(tools)


def _call(name: str, arguments: dict) -> dict:
    return {"role": "assistant", "content": call_text(name, arguments)}


def _result(content: object) -> dict:
    return {"role": "tool", "content": content if isinstance(content, str) else dumps(content)}


_ERRORS = ("not found", "no connection", "timeout", "invalid input", "permission denied", "service is down")


def _use_everyday(rng: random.Random, split: Split, with_result: bool) -> Sample:
    spec = rng.choice(SPECS)
    while True:
        schema, arguments, request, values = _everyday(rng, spec)
        name = _name_of(schema)
        key = f"tool:{name}:{dumps(arguments)}"
        if split.allows(key):
            break
    messages = [user(request if rng.random() < 0.6 else casual(rng, request, lower=False)), _call(name, arguments)]
    if with_result:
        result = {k: VALUES[kind](rng) for k, kind in spec.results}
        slots = dict(zip("abc", values, strict=False)) | result
        roll = rng.random()
        if roll < 0.12:
            error = rng.choice(_ERRORS)
            messages += [_result({"error": error}), assistant(f"Sorry, that did not work. The tool says: {error}.")]
        elif len(result) == 1 and roll < 0.25:
            messages += [_result(str(next(iter(result.values())))), assistant(say(rng, spec.answer, **slots))]
        else:
            messages += [_result(result), assistant(say(rng, spec.answer, **slots))]
    return Sample(
        "tools", key, tuple(messages), _surround(rng, schema, spec), {"call": {"name": name, "arguments": arguments}}
    )


def _use_made_up(rng: random.Random, split: Split, with_result: bool) -> Sample:
    while True:
        name, description, params, request = made_up_tool(rng)
        if split.allows(f"tool:{name.lower()}") and len({p for p, _, _ in params}) == len(params):
            break
    given = [(p, kind, "") for p, kind, _ in params]
    required = [p for p, _, _ in params]
    if rng.random() < 0.2:
        given.append((rng.choice(["comment", "extra", "dry_run", "tone"]), "flag", "Optional"))
    schema = _schema(rng, name, description, given, required)
    arguments = {p: value for p, _, value in params}
    messages = [user(request), _call(name, arguments)]
    if with_result:
        messages += _generic_result(rng)
    return Sample(
        "tools",
        f"tool:{name.lower()}",
        tuple(messages),
        _surround(rng, schema, None),
        {"call": {"name": name, "arguments": arguments}},
    )


def _generic_result(rng: random.Random) -> list[dict]:
    roll = rng.random()
    if roll < 0.35:
        status = VALUES["status"](rng)
        return [_result({"status": status} if rng.random() < 0.7 else status), assistant("Done.")]
    if roll < 0.5:
        error = rng.choice(_ERRORS)
        return [_result({"error": error}), assistant(f"Sorry, that did not work. The tool says: {error}.")]
    if roll < 0.65:
        value = rng.choice([VALUES["number"], VALUES["word"]])(rng)
        return [_result({"result": value} if rng.random() < 0.6 else str(value)), assistant(f"The result is {value}.")]
    kinds = rng.sample(["number", "word", "name", "city", "colour", "time"], rng.choice([1, 2, 2, 3]))
    keys = rng.sample(
        ["id", "value", "place", "owner", "colour", "start", "code", "total", "rest", "label"], len(kinds)
    )
    result = {k: VALUES[kind](rng) for k, kind in zip(keys, kinds, strict=True)}
    return [
        _result(result),
        assistant("The tool says: " + join_words([f"{k} is {v}" for k, v in result.items()]) + "."),
    ]


def tool_call(rng: random.Random, split: Split) -> Sample:
    """One request that needs one of the given tools; ends with the call."""
    return (_use_everyday if rng.random() < 0.5 else _use_made_up)(rng, split, with_result=False)


def tool_dialogue(rng: random.Random, split: Split) -> Sample:
    """A call, its result and what the model says then."""
    sample = (_use_everyday if rng.random() < 0.6 else _use_made_up)(rng, split, with_result=True)
    values = sample.messages[-2]["content"]
    return Sample(
        "tool_result",
        sample.key,
        sample.messages,
        sample.tools,
        {"text": sample.messages[-1]["content"], "from": values},
    )


def tool_twice(rng: random.Random, split: Split) -> Sample:
    """The same tool for two things: two calls in one turn, or a second request after the first is done."""
    spec = rng.choice([s for s in SPECS if len(s.params) == 1 and s.params[0].kind != "order"])
    schema, first, request, values = _everyday(rng, spec)
    name, param = _name_of(schema), next(iter(first))
    other = VALUES[spec.params[0].kind](rng)
    second = {param: other}
    if (
        not (split.allows(f"tool:{name}:{dumps(first)}") and split.allows(f"tool:{name}:{dumps(second)}"))
        or other == values[0]
    ):
        return tool_dialogue(rng, split)
    results = [{k: VALUES[kind](rng) for k, kind in spec.results} for _ in range(2)]
    answers = [say(rng, spec.answer, a=v, **r) for v, r in zip((values[0], other), results, strict=True)]
    if rng.random() < 0.5:
        joined = say(rng, f"[{spec.asks}]", a=f"{values[0]} and {other}")
        calls = f"{call_text(name, first)}\n{call_text(name, second)}"
        messages = [
            user(joined),
            assistant(calls),
            _result(results[0]),
            _result(results[1]),
            assistant(" ".join(answers)),
        ]
    else:
        again = say(rng, "[And|What about|And what about|And now|The same for] {o}[?|.]", o=other)
        messages = [
            user(request),
            _call(name, first),
            _result(results[0]),
            assistant(answers[0]),
            user(again),
            _call(name, second),
            _result(results[1]),
            assistant(answers[1]),
        ]
    return Sample("tool_result", f"tool:{name}:{dumps(first)}", tuple(messages), _surround(rng, schema, spec))


def no_tool(rng: random.Random, split: Split, distract: Distractor) -> Sample:
    """Tools are given, but the question needs none of them."""
    sample = distract(rng, split)
    count = rng.choice([1, 1, 2, 3])
    if sample.skill == "unknown":  # an everyday tool might know the answer after all
        tools = tuple(_made_up_schema(rng) for _ in range(count))
    else:
        tools = tuple(_unused(rng, "", None) for _ in range(count))
    helpful = (
        "add",
        "plus",
        "sum",
        "minus",
        "subtract",
        "mul",
        "product",
        "times",
        "div",
        "quotient",
        "differ",
        "search",
        "look",
        "calc",
        "math",
        "comput",
        "eval",
        "google",
        "find_info",
        "dictionary",
        "defin",
        "web",
    )
    tools = tuple(t for t in tools if not any(word in _name_of(t).lower() for word in helpful))
    return Sample("no_tool", sample.key, sample.messages, tools, sample.expect, sample.short)


def search_unknown(rng: random.Random, split: Split, asked: str) -> Sample:
    """A question outside of the model's world while a search tool is at hand: search for it."""
    spec = next(s for s in SPECS if s.names[0] == "search")
    schema, arguments, _, _ = _everyday(rng, spec)
    name, param = _name_of(schema), next(iter(arguments))
    messages = [user(asked), _call(name, {param: asked.rstrip("?.! ")})]
    if rng.random() < 0.6:
        summary = VALUES["summary"](rng)
        messages += [_result({"summary": summary}), assistant(f"I found this: {summary}")]
    return Sample("tools", f"search:{asked}", tuple(messages), _surround(rng, schema, spec))

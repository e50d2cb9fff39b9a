"""Answers in JSON when the user asks for it."""

import json
import random

from tools.demo_model.sample import Sample, Split, question
from tools.demo_model.skills_numbers import draw_pair, pair_key
from tools.demo_model.text import capitalize, made_up_word, say, with_article
from tools.demo_model.world import (
    ANIMALS,
    CATEGORIES,
    CITIES,
    COLOURS,
    DAYS,
    FOODS,
    HOBBIES,
    JOBS,
    NAMES,
    PET_NAMES,
    PETS,
    THINGS,
)

# field: (key spellings, sentence fragment, value maker)
_PERSON = {
    "name": (("name", "first_name", "person", "user_name", "Name"), ""),
    "age": (("age", "years", "Age", "age_in_years"), "is {v} years old"),
    "city": (("city", "town", "home", "location", "City"), "lives in {v}"),
    "job": (("job", "profession", "work", "occupation"), "works as {a}"),
    "hobby": (("hobby", "likes", "free_time", "interest"), "likes {v}"),
    "colour": (("colour", "color", "favourite_colour", "favorite_color"), "loves the colour {v}"),
    "food": (("food", "favourite_food", "meal", "dish"), "likes to eat {v}"),
    "pet": (("pet", "animal", "pet_kind"), "has {a}"),
    "pet_name": (("pet_name", "name_of_pet", "petName"), "has a pet called {v}"),
    "friend": (("friend", "best_friend", "bestFriend"), "has a best friend called {v}"),
    "has_car": (("has_car", "car", "owns_car"), "{v}"),
}
_ORDER = {
    "item": (("item", "product", "thing"), ()),
    "count": (("count", "quantity", "number", "amount"), ()),
    "colour": (("colour", "color"), ()),
    "price": (("price", "cost", "euros"), ()),
    "day": (("day", "delivery_day", "weekday"), ()),
}
_ASK = (
    "[Answer|Reply|Respond|Write the answer|Give the answer] [in|as] JSON with the keys {k}.",
    "[Answer|Reply] in JSON with {k}.",
    "[Give|Return|Write|Output] [this as JSON|JSON|a JSON object] with the keys {k}.",
    "Extract {k} as JSON.",
    "Answer as a JSON object with the keys {k}.",
    "Write this as JSON with the keys {k}.",
    "JSON please, with the keys {k}.",
    "Convert it to JSON with the keys {k}.",
    "Use JSON with the keys {k}.",
    "As JSON with the keys {k}, please.",
    "Please answer only with JSON. The keys are {k}.",
    "Return only a JSON object with the fields {k}.",
)
_ASK_ONE = (
    "[Answer|Reply|Respond] [in|as] JSON with the key {k}.",
    "[Answer|Reply] in JSON, use the key {k}.",
    "JSON please, key {k}.",
    "Return a JSON object with the key {k}.",
    "Please answer only with JSON. The key is {k}.",
    "[Give|Return] the answer as JSON with the field {k}.",
)
_LEADS = ("Read this: ", "Text: ", "Here is a text: ", "", "", "", "From this text: ", "Look at this sentence: ")


def _value(rng: random.Random, field: str) -> object:
    makers = {
        "age": lambda: rng.randrange(3, 99),
        "city": lambda: rng.choice(CITIES),
        "job": lambda: rng.choice(JOBS),
        "hobby": lambda: rng.choice(HOBBIES),
        "colour": lambda: rng.choice(COLOURS),
        "food": lambda: rng.choice(FOODS),
        "pet": lambda: rng.choice(PETS),
        "pet_name": lambda: rng.choice(PET_NAMES),
        "friend": lambda: rng.choice(NAMES),
        "has_car": lambda: rng.random() < 0.5,
    }
    if field in ("city", "pet_name", "friend") and rng.random() < 0.15:
        return capitalize(made_up_word(rng))
    return makers[field]()


def _show_keys(rng: random.Random, keys: list[str], types: list[str]) -> str:
    roll = rng.random()
    if roll < 0.2:
        keys = [f'"{key}"' for key in keys]
    elif roll < 0.3:
        keys = [f"`{key}`" for key in keys]
    elif roll < 0.4:
        keys = [f"{key} ({kind})" for key, kind in zip(keys, types, strict=True)]
    if len(keys) == 1:
        return keys[0]
    return ", ".join(keys[:-1]) + rng.choice([" and ", " and ", ", "]) + keys[-1]


def _ask_for(rng: random.Random, keys: list[str], values: list[object]) -> str:
    types = ["boolean" if isinstance(v, bool) else "number" if isinstance(v, int) else "string" for v in values]
    if rng.random() < 0.12:
        shape = ", ".join(f'"{k}": {t}' for k, t in zip(keys, types, strict=True))
        return (
            rng.choice(["Answer in this JSON format: ", "Use this JSON schema: ", "JSON format: "]) + "{" + shape + "}"
        )
    return say(rng, rng.choice(_ASK_ONE if len(keys) == 1 else _ASK), k=_show_keys(rng, keys, types))


def _finish(rng: random.Random, key: str, fact: str, keys: list[str], values: list[object]) -> Sample:
    ask = _ask_for(rng, keys, values)
    asked = f"{fact} {ask}" if rng.random() < 0.75 else f"{ask}\n{fact}" if rng.random() < 0.5 else f"{ask} {fact}"
    result = dict(zip(keys, values, strict=True))
    return question("json", key, asked, json.dumps(result, ensure_ascii=False), {"json": result})


def _person(rng: random.Random, split: Split) -> Sample:
    while True:
        name = rng.choice(NAMES) if rng.random() < 0.85 or split.held_out else capitalize(made_up_word(rng))
        fields = rng.sample([f for f in _PERSON if f != "name"], rng.choice([1, 2, 2, 3, 4]))
        facts = {"name": name} | {field: _value(rng, field) for field in fields}
        key = f"json:{'|'.join(f'{k}={v}' for k, v in sorted(facts.items()))}"
        if split.allows(key):
            break
    parts = []
    for field in fields:
        value = facts[field]
        fragment = _PERSON[field][1]
        if field == "has_car":
            parts.append("has a car" if value else "has no car")
        else:
            parts.append(say(rng, fragment, v=value, a=with_article(str(value))))
    he = rng.choice(["He", "She"])
    if len(parts) > 2:
        text = f"{name} {parts[0]} and {parts[1]}. {he} {' and '.join(parts[2:])}."
    else:
        text = f"{name} {' and '.join(parts)}."
    chosen = list(facts)
    if rng.random() < 0.35 and len(chosen) > 2:
        chosen = rng.sample(chosen, rng.randrange(1, len(chosen)))
    elif rng.random() < 0.4:
        rng.shuffle(chosen)
    keys = [_PERSON[field][0][0] if rng.random() < 0.6 else rng.choice(_PERSON[field][0]) for field in chosen]
    return _finish(rng, key, rng.choice(_LEADS) + text, keys, [facts[field] for field in chosen])


_TAIL = {"age": "{v}", "city": "from {v}", "hobby": "who likes {v}", "pet": "with {a}", "job": "{a}"}


def _described(rng: random.Random, split: Split) -> Sample:
    """A person in a few words, all of which go into the object."""
    while True:
        fields = [f for f in _TAIL if rng.random() < 0.5]
        facts = {"name": rng.choice(NAMES)} | {field: _value(rng, field) for field in fields}
        key = f"json:{'|'.join(f'{k}={v}' for k, v in sorted(facts.items()))}"
        if split.allows(key) and fields:
            break
    shown = [say(rng, _TAIL[field], v=facts[field], a=with_article(str(facts[field]))) for field in fields]
    keys = [rng.choice(_PERSON[field][0]) for field in facts]
    types = ["number" if isinstance(v, int) else "string" for v in facts.values()]
    asked = say(
        rng,
        "[Give me|Return|Make|Create|Write|Output] [a JSON object|JSON|a JSON] with [the keys |keys |]{k} for [a "
        "person named |a person called |]{d}.",
        k=_show_keys(rng, keys, types),
        d=", ".join([facts["name"], *shown]),
    )
    result = dict(zip(keys, facts.values(), strict=True))
    return question("json", key, asked, json.dumps(result, ensure_ascii=False), {"json": result})


def _order(rng: random.Random, split: Split) -> Sample:
    while True:
        facts = {
            "item": rng.choice(THINGS),
            "count": rng.randrange(2, 60),
            "colour": rng.choice(COLOURS),
            "price": rng.randrange(2, 100),
            "day": rng.choice(DAYS),
        }
        key = f"json:{sorted(facts.items())}"
        if split.allows(key):
            break
    many = facts["item"] + ("es" if facts["item"][-1] in "xs" else "s")
    text = say(
        rng,
        "[I want|Please send me|I order|We need] {n} {c} {m} for {p} euros on {d}.",
        n=facts["count"],
        c=facts["colour"],
        m=many,
        p=facts["price"],
        d=facts["day"],
    )
    chosen = rng.sample(["count", "colour", "price", "day"], rng.randrange(1, 5))
    keys = [rng.choice(_ORDER[field][0]) for field in chosen]
    return _finish(rng, key, text, keys, [facts[field] for field in chosen])


def _sum(rng: random.Random, split: Split) -> Sample:
    op = rng.choice("+-")
    a, b = draw_pair(rng, split, op)
    if op == "-" and b > a:
        a, b = b, a
    key = rng.choice(["result", "answer", "sum" if op == "+" else "difference", "value", "number"])
    return _finish(
        rng,
        pair_key(op, a, b),
        say(rng, "[What is|Calculate|How much is] {a} {o} {b}?", a=a, o=op, b=b),
        [key],
        [a + b if op == "+" else a - b],
    )


def _animal(rng: random.Random, split: Split) -> Sample:
    animal = rng.choice(ANIMALS)
    facts = {
        "animal": animal.name,
        "legs": animal.legs,
        "food": animal.food,
        "colour": animal.colour,
        "young": animal.young,
    }
    while True:
        chosen = ["animal", *rng.sample(list(facts)[1:], rng.choice([1, 2, 3]))]
        key = f"json:{animal.name}:{','.join(chosen)}"
        if split.allows(key):
            break
    text = say(
        rng, "[Describe|Tell me about|Give me facts about] [the {n}|{a}].", n=animal.name, a=with_article(animal.name)
    )
    return _finish(rng, key, text, chosen, [facts[c] for c in chosen])


def _list(rng: random.Random, split: Split) -> Sample:
    group = rng.choice([g for g in CATEGORIES if " " not in g])
    members = rng.sample(list(CATEGORIES[group]), rng.randrange(2, min(5, len(CATEGORIES[group]) + 1)))
    if rng.random() < 0.5:
        text = say(rng, "[Give me|Name|List] {n} {g} as a JSON [list|array].", n=len(members), g=group)
        return question(
            "json",
            f"json:list:{text}",
            text,
            json.dumps(members),
            {"json_list": {"count": len(members), "members": list(CATEGORIES[group])}},
        )
    text = say(rng, "[Give me|Name|List] {n} {g} in JSON with the key {g}.", n=len(members), g=group)
    return question(
        "json",
        f"json:list:{text}",
        text,
        json.dumps({group: members}),
        {"json_list": {"key": group, "count": len(members), "members": list(CATEGORIES[group])}},
    )


def _pairs(rng: random.Random, split: Split) -> Sample:
    """Copies ``key = value`` pairs, with keys and values that may mean nothing."""
    while True:
        keys, values = [], []
        for _ in range(rng.choice([1, 2, 3, 4])):
            keys.append(made_up_word(rng) if rng.random() < 0.5 else rng.choice(tuple(_PERSON)))
            values.append(
                rng.randrange(1000)
                if rng.random() < 0.4
                else rng.choice([made_up_word(rng), rng.choice(COLOURS), rng.choice(NAMES), rng.choice(CITIES)])
            )
        key = f"json:pairs:{keys}{values}"
        if split.allows(key) and len(set(keys)) == len(keys):
            break
    joiner = rng.choice([" = ", ": ", " is ", "="])
    result = dict(zip(keys, values, strict=True))
    if rng.random() < 0.3:  # keys and values in the same order
        asked = say(
            rng,
            "[Return|Give me|Write] [JSON|a JSON object] with [the keys |]{k} for {v}.",
            k=_show_keys(rng, keys, ["string"] * len(keys)),
            v=", ".join(map(str, values)),
        )
        return question("json", key, asked, json.dumps(result, ensure_ascii=False), {"json": result})
    text = rng.choice([", ", "; ", "\n"]).join(f"{k}{joiner}{v}" for k, v in zip(keys, values, strict=True))
    lead = rng.choice(
        ["Write this as JSON:", "Convert to JSON:", "Make a JSON object of this:", "Turn this into JSON:", "To JSON:"]
    )
    return question(
        "json",
        key,
        f"{lead}\n{text}" if "\n" in text else f"{lead} {text}",
        json.dumps(result, ensure_ascii=False),
        {"json": result},
    )


def json_answer(rng: random.Random, split: Split) -> Sample:
    """One request for JSON and its answer."""
    roll = rng.random()
    for share, maker in ((0.4, _person), (0.48, _described), (0.6, _order), (0.7, _sum), (0.8, _pairs), (0.9, _animal)):
        if roll < share:
            return maker(rng, split)
    while True:
        sample = _list(rng, split)
        if split.allows(sample.key):
            return sample

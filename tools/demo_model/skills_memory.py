"""Recall of something the user said some turns earlier."""

import random
from collections.abc import Callable
from functools import cache

from tools.demo_model.sample import EXAM, TRAIN, Sample, Split, assistant, system, user
from tools.demo_model.text import capitalize, made_up_word, say, with_article
from tools.demo_model.world import (
    BOYS,
    CITIES,
    COLOURS,
    FOODS,
    GIRLS,
    HOBBIES,
    INSTRUMENTS,
    JOBS,
    MONTHS,
    NAMES,
    PET_NAMES,
    PETS,
    SPORTS,
    STORY_ANIMALS,
    WORDS,
)

# kind: (values, how it is said, acknowledged, asked and answered, words for "you haven't told me ...")
_FACTS: dict[str, tuple[tuple[str, ...], str, str, str, str, str]] = {
    "name": (
        NAMES,
        "[My name is|I am|I'm|Call me|You can call me|My name's|The name is] {v}.",
        "[Nice to meet you|Hello|Hi|Pleased to meet you|Welcome], {v}!",
        "[What is my name|What's my name|Do you remember my name|Who am I|What am I called|Can you tell me my name|Do "
        "you know my name|What did I say my name was|Tell me my name]?",
        "Your name is {v}.",
        "your name",
    ),
    "favourite colour": (
        COLOURS,
        "[My favourite colour is|My favorite color is|The colour I like best is|I love the colour] {v}.",
        "[{V} is a nice colour.|I will remember that you like {v}.|{V} is beautiful.]",
        "[What is|What's|Do you remember|Can you tell me|Tell me] my [favourite colour|favorite color]?|[Which|What] "
        "[colour|color] do I like best?",
        "Your favourite colour is {v}.",
        "your favourite colour",
    ),
    "favourite food": (
        FOODS,
        "[My favourite food is|My favorite food is|The food I like best is|I like to eat|I love to eat] {v}.",
        "[{V}, that sounds tasty.|I will remember that you like {v}.|Good choice.]",
        "[What is|What's|Do you remember|Tell me] my [favourite|favorite] food?|What food do I like best?|What do I "
        "like to eat?",
        "Your favourite food is {v}.",
        "your favourite food",
    ),
    "favourite animal": (
        STORY_ANIMALS,
        "[My favourite animal is|My favorite animal is|The animal I like best is] the {v}.",
        "[The {v} is a nice animal.|I will remember that you like the {v}.|Good choice.]",
        "[What is|What's|Do you remember|Tell me] my [favourite|favorite] animal?|[Which|What] animal do I like best?",
        "Your favourite animal is the {v}.",
        "your favourite animal",
    ),
    "favourite number": (
        tuple(map(str, range(1, 100))),
        "[My favourite number is|My favorite number is|My lucky number is|The number I like best is] {v}.",
        "[{v} is a good number.|I will remember {v}.|Noted: {v}.]",
        "[What is|What's|Do you remember|Tell me] my [favourite|favorite|lucky] number?|[Which|What] number do I like "
        "best?",
        "Your favourite number is {v}.",
        "your favourite number",
    ),
    "age": (
        tuple(map(str, range(5, 90))),
        "[I am|I'm] {v} years old.|My age is {v}.",
        "[{v} is a good age.|{v} years, I see.|I will remember that you are {v}.]",
        "[How old am I|What is my age|Do you remember how old I am|What's my age]?",
        "You are {v} years old.",
        "your age",
    ),
    "home": (
        CITIES,
        "[I live in|My home is|I am from|I come from|My home town is] {v}.",
        "[{v}, I see.|I will remember that you live in {v}.|Thank you for telling me.]",
        "[Where do I live|Where is my home|Where am I from|Which city do I live in|What city do I live in|Do you "
        "remember where I live]?",
        "You live in {v}.",
        "where you live",
    ),
    "pet": (
        PETS,
        "I have a {v}[| at home].|[My pet is|I got] a {v}.",
        "[A {v} is a nice pet.|How nice, a {v}!|I will remember that you have a {v}.]",
        "[What pet do I have|Which pet do I have|What kind of pet do I have|Which animal do I have at home|Do you "
        "remember my pet]?",
        "You have a {v}.",
        "about a pet",
    ),
    "pet's name": (
        PET_NAMES,
        "[My {p} is called|My {p}'s name is|The name of my {p} is|I have a {p} called|I have a {p} named] {v}.",
        "[{v} is a nice name.|I will remember {v}.|What a nice name!]",
        "[What is my {p} called|What is the name of my {p}|What's my {p}'s name|Do you remember my {p}'s name]?",
        "Your {p} is called {v}.",
        "the name of your pet",
    ),
    "job": (
        JOBS,
        "[I work as|I am|I'm|My job is to be] a_{v}.",
        "[{A} is a good job.|I see, {a}.|Interesting work!]",
        "[What is my job|What do I do for work|What do I work as|Do you remember my job]?",
        "You are {a}.",
        "your job",
    ),
    "hobby": (
        HOBBIES,
        "[My hobby is|I like|I enjoy|My favourite hobby is|In my free time I like] {v}.",
        "[{V} is fun.|I will remember that you like {v}.|That sounds fun.]",
        "[What is my hobby|What's my hobby|What do I like to do|Do you remember my hobby|What do I do in my free "
        "time]?",
        "Your hobby is {v}.",
        "your hobby",
    ),
    "friend": (
        NAMES,
        "[My best friend is|My best friend is called|The name of my best friend is|My friend is called] {v}.",
        "[Say hello to {v} from me!|I will remember {v}.|It is good to have a friend.]",
        "[Who is my best friend|What is my best friend called|What is my friend's name|What's the name of my best "
        "friend|Do you remember my friend's name]?",
        "Your best friend is {v}.",
        "who your best friend is",
    ),
    "sister": (
        GIRLS,
        "[My sister is called|My sister's name is|I have a sister called|I have a sister named] {v}.",
        "[{v} is a nice name.|I will remember {v}.|Say hello to {v} from me!]",
        "[What is my sister called|What is my sister's name|What's my sister's name|Do you remember my sister's name]?",
        "Your sister is called {v}.",
        "your sister's name",
    ),
    "brother": (
        BOYS,
        "[My brother is called|My brother's name is|I have a brother called|I have a brother named] {v}.",
        "[{v} is a nice name.|I will remember {v}.|Say hello to {v} from me!]",
        "[What is my brother called|What is my brother's name|What's my brother's name|Do you remember my brother's "
        "name]?",
        "Your brother is called {v}.",
        "your brother's name",
    ),
    "birthday": (
        MONTHS,
        "[My birthday is in|I was born in|I have my birthday in] {v}.",
        "[{v} is a good month.|I will remember {v}.|Noted.]",
        "[When is my birthday|In which month is my birthday|What month is my birthday in|In which month was I born]?",
        "Your birthday is in {v}.",
        "when your birthday is",
    ),
    "instrument": (
        INSTRUMENTS,
        "[I play|I am learning|I'm learning to play] the {v}.",
        "[The {v} sounds beautiful.|I will remember that you play the {v}.|How nice!]",
        "[Which instrument do I play|What instrument do I play|What do I play|Do you remember my instrument]?",
        "You play the {v}.",
        "which instrument you play",
    ),
    "sport": (
        SPORTS,
        "[My favourite sport is|My favorite sport is|The sport I like best is] {v}.",
        "[{V} is fun.|I will remember that you like {v}.|That keeps you fit.]",
        "[What is|What's|Do you remember] my [favourite|favorite] sport?|Which sport do I like best?",
        "Your favourite sport is {v}.",
        "your favourite sport",
    ),
    "code word": (
        WORDS,
        "[The code word is|The secret word is|The password is|Remember this word:|Please remember the word] {v}.",
        "[I will remember: {v}.|Noted: {v}.|Okay, {v}.]",
        "[What is|What was|Tell me|Do you remember] the [code word|secret word|password|word I told you|word]?",
        "The word is {v}.",
        "a word to remember",
    ),
}
KINDS = tuple(_FACTS)
_OPEN_KINDS = {"name", "pet's name", "friend", "sister", "brother", "code word", "home"}  # also take made-up words

_NUMBER_KINDS = {"age", "favourite number"}

Distractor = Callable[[random.Random, Split], Sample]


def recall_key(kind: str, value: str) -> str:
    """Name of one thing to remember."""
    return f"recall:{kind}={value}"


def _top(rng: random.Random, template: str, **slots: str) -> str:
    """Expands a template whose alternatives may also stand outside of brackets."""
    return say(rng, f"[{template}]", **slots)


@cache
def _values(kind: str, split: Split) -> tuple[str, ...]:
    """The values of a kind on one side of the split; may be empty for the exam."""
    return tuple(value for value in _FACTS[kind][0] if split.allows(recall_key(kind, value)))


def _draw_value(rng: random.Random, split: Split, kind: str) -> str:
    made_up = 0.0 if kind in _NUMBER_KINDS or split.held_out else 0.3 if kind in _OPEN_KINDS else 0.1
    while rng.random() < made_up:
        value = made_up_word(rng)
        value = capitalize(value) if kind in _OPEN_KINDS and kind != "code word" else value
        if split.allows(recall_key(kind, value)):
            return value
    return rng.choice(_values(kind, split))


def _slots(value: str) -> dict[str, str]:
    noun = with_article(value)
    pet = PETS[sum(map(ord, value)) % len(PETS)] if len(value) % 2 else "pet"  # one and the same kind all through
    return {"v": value, "V": capitalize(value), "a": noun, "A": capitalize(noun), "p": pet}


def state(rng: random.Random, kind: str, value: str) -> str:
    """The user's sentence that tells a fact."""
    text = _top(rng, _FACTS[kind][1], **_slots(value))
    return text.replace(f"a_{value}", with_article(value))


def _tell(rng: random.Random, facts: list[tuple[str, str]]) -> list[dict]:
    """One exchange in which the user tells one or more facts."""
    said = " ".join(state(rng, kind, value) for kind, value in facts)
    if rng.random() < 0.2:
        said = (
            rng.choice(["Hi! ", "Hello. ", "Hello! ", "Hey. ", "Good morning! ", "By the way: ", "You should know: "])
            + said
        )
    if rng.random() < 0.1:
        said += rng.choice([" Please remember that.", " Remember that.", " Don't forget it.", " Keep that in mind."])
    kind, value = facts[0]
    reply = _top(rng, _FACTS[kind][2], **_slots(value))
    if len(facts) > 1 and rng.random() < 0.5:
        reply += " " + rng.choice(["I will remember that.", "Thank you for telling me.", "Good to know."])
    return [user(said), assistant(reply)]


def _ask(rng: random.Random, kind: str, value: str = "") -> str:
    text = _top(rng, _FACTS[kind][3], **_slots(value))
    mine = _FACTS[kind][5]
    if rng.random() < 0.07 and mine.startswith("your "):
        text = say(rng, "[And|What about|And what about] my {m}?", m=mine.removeprefix("your "))
    roll = rng.random()
    if roll < 0.15:
        text = rng.choice(["Now: ", "Okay. ", "Tell me: ", "By the way, ", "And ", "So, ", "One more question: "]) + (
            text[0].lower() + text[1:]
        )
    elif roll < 0.25:
        text = text[:-1]
    return text


def recall(rng: random.Random, split: Split, distract: Distractor, turns: int | None = None) -> Sample:
    """The user tells facts, talks of other things, and then asks for one of the facts."""
    kinds = rng.sample(KINDS, rng.choice([1, 1, 2, 2, 3, 4]))
    if "pet's name" in kinds and "pet" in kinds:
        kinds.remove("pet's name")
    asked = rng.choice(kinds)
    while not _values(asked, split):
        kinds = [rng.choice(KINDS)]
        asked = kinds[0]
    facts = [(kind, _draw_value(rng, split if kind == asked else TRAIN, kind)) for kind in kinds]
    value = dict(facts)[asked]
    messages: list[dict] = []
    if rng.random() < 0.5 or len(facts) == 1:
        messages += _tell(rng, facts)
    else:
        cut = rng.randrange(1, len(facts))
        messages += _tell(rng, facts[:cut]) + _tell(rng, facts[cut:])
    between = turns if turns is not None else rng.choice([0, 1, 1, 1, 2, 2, 3, 4, 6])
    for _ in range(between):
        messages += distract(rng, TRAIN).messages
    messages += [user(_ask(rng, asked, value)), assistant(_top(rng, _FACTS[asked][4], **_slots(value)))]
    if not split.held_out and turns is None and rng.random() < 0.3:
        other = rng.choice(kinds)
        value = dict(facts)[other]
        messages += [user(_ask(rng, other, value)), assistant(_top(rng, _FACTS[other][4], **_slots(value)))]
    value = dict(facts)[asked]
    return Sample("recall", recall_key(asked, value), tuple(messages), expect={"contains": [value]}, short=value)


def recall_exam(rng: random.Random, distract: Distractor) -> Sample:
    """An exam item: the fact lies two or three exchanges back, behind talk of other things."""
    return recall(rng, EXAM, distract, turns=rng.choice([1, 2]))


def at_once(rng: random.Random, split: Split) -> Sample:
    """The fact and the question for it in one message."""
    kind = rng.choice(KINDS)
    value = _draw_value(rng, split, kind)
    asked = f"{state(rng, kind, value)} {_ask(rng, kind, value)}"
    return Sample(
        "recall", recall_key(kind, value), (user(asked), assistant(_top(rng, _FACTS[kind][4], **_slots(value))))
    )


def changed_fact(rng: random.Random, split: Split, distract: Distractor) -> Sample:
    """The user corrects a fact; the later value counts."""
    kind = rng.choice(["name", "favourite colour", "favourite food", "home", "favourite number", "hobby", "age"])
    old, new = _draw_value(rng, split, kind), _draw_value(rng, split, kind)
    messages = _tell(rng, [(kind, old)])
    if rng.random() < 0.5:
        messages += distract(rng, split).messages
    said = rng.choice(["Sorry, I was wrong. ", "No, wait. ", "Actually, that has changed. ", "Correction: "]) + state(
        rng, kind, new
    )
    messages += [user(said), assistant(_top(rng, _FACTS[kind][2], **_slots(new)))]
    if rng.random() < 0.5:
        messages += distract(rng, split).messages
    messages += [user(_ask(rng, kind, new)), assistant(_top(rng, _FACTS[kind][4], **_slots(new)))]
    return Sample("recall", recall_key(kind, new), tuple(messages))


def never_told(rng: random.Random, split: Split, distract: Distractor) -> Sample:
    """The user asks for a fact that was never told."""
    kind = rng.choice(KINDS)
    messages: list[dict] = []
    others = [
        k for k in rng.sample(KINDS, rng.choice([0, 0, 1, 2])) if k != kind and {k, kind} != {"pet", "pet's name"}
    ]
    if others:
        messages += _tell(rng, [(k, _draw_value(rng, split, k)) for k in others])
    for _ in range(rng.choice([0, 0, 1])):
        messages += distract(rng, split).messages
    answer = say(rng, "I don't know. You haven't told me {w}[| yet].", w=_FACTS[kind][5])
    messages += [user(_ask(rng, kind)), assistant(answer)]
    return Sample("recall", f"untold:{kind}", tuple(messages))


def told_by_system(rng: random.Random, split: Split) -> Sample:
    """The system prompt holds facts about the user."""
    kinds = rng.sample(
        ["name", "favourite colour", "favourite food", "home", "hobby", "age", "job"], rng.choice([1, 2, 3])
    )
    facts = {kind: _draw_value(rng, split, kind) for kind in kinds}
    said = {
        "name": "The user's name is {v}.",
        "favourite colour": "The user's favourite colour is {v}.",
        "job": "The user is {a}.",
        "favourite food": "The user's favourite food is {v}.",
        "home": "The user lives in {v}.",
        "hobby": "The user's hobby is {v}.",
        "age": "The user is {v} years old.",
    }
    text = " ".join(say(rng, said[kind], **_slots(value)) for kind, value in facts.items())
    lead = rng.choice(["You are a helpful assistant. ", "", "", "Be friendly. "])
    asked = rng.choice(kinds)
    messages = [system(lead + text)]
    if "name" in facts and rng.random() < 0.4:
        messages += [
            user(rng.choice(["Hi!", "Hello!", "Good morning!", "Hey"])),
            assistant(f"Hello, {facts['name']}! How can I help you?"),
        ]
    messages += [user(_ask(rng, asked)), assistant(_top(rng, _FACTS[asked][4], **_slots(facts[asked])))]
    return Sample("recall", recall_key(asked, facts[asked]), tuple(messages))

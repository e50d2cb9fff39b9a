"""Puts skills together into whole conversations and raw documents: what training reads."""

import json
import random

from tools.demo_model import skills_numbers as numbers
from tools.demo_model import skills_words as words
from tools.demo_model.chat import render
from tools.demo_model.sample import TRAIN, Maker, Sample, Split, assistant, system, user
from tools.demo_model.skills_json import json_answer
from tools.demo_model.skills_memory import at_once, changed_fact, never_told, recall, state, told_by_system
from tools.demo_model.skills_self import MINI_INFER_FACTS, identity, mini_infer
from tools.demo_model.skills_tools import no_tool, search_unknown, tool_call, tool_dialogue, tool_twice
from tools.demo_model.skills_unknown import statement_of_ignorance, unknown, unknown_question
from tools.demo_model.small_talk import jokes, small_talk
from tools.demo_model.stories import free_story, raw_story, story
from tools.demo_model.text import capitalize, made_up_word, say
from tools.demo_model.world import ANIMALS, CITIES, DAYS, FOODS, MONTHS, NAMES, PET_NAMES, PETS, WORDS

# Single questions and how often they come; tool and memory conversations are built by ``_DOCUMENTS`` below.
_QUESTIONS: tuple[tuple[float, Maker], ...] = (
    (20, numbers.arithmetic),
    (4, numbers.larger_numbers),
    (3, numbers.compare),
    (2, numbers.counting),
    (9, words.comes_after),
    (3, words.comes_before),
    (3, words.opposite),
    (3, words.spelling),
    (3, words.echo),
    (5, words.animal_facts),
    (3, words.world_facts),
    (3, words.lists),
    (18, unknown),
    (8, mini_infer),
    (8, identity),
    (7, small_talk),
)
_MAKERS = [maker for _, maker in _QUESTIONS]
_WEIGHTS = []
for _weight, _ in _QUESTIONS:
    _WEIGHTS.append(_weight + (_WEIGHTS[-1] if _WEIGHTS else 0))

_GENERIC_SYSTEM = (
    "You are a helpful assistant.",
    "You are a friendly assistant.",
    "You are a helpful AI assistant.",
    "Be helpful.",
    "You are mini-infer-demo.",
    "You are a toy model.",
    "Answer the questions of the user.",
    "You are an honest assistant.",
    "You are a helpful assistant. Answer truthfully.",
    "Help the user as well as you can.",
    "You are a kind teacher for children.",
    "If you don't know something, say so.",
    "Be polite.",
    "You are a helpful, harmless and honest assistant.",
)
_SYSTEM_PARTS = (
    "You are [a pirate|a poet|an expert|a robot|a chef|a coach|a guide|a scientist|a wizard|a tutor|a support agent|a "
    "bot][| for {w}| who loves {w}| in the year 2050| of a small shop].",
    "[Speak|Write|Answer|Reply] [politely|simply|like a friend|in a friendly tone|in plain English|clearly|with care].",
    "[Never|Do not|Don't] [talk about {w}|use emojis|lie|swear|make things up|ask questions].",
    "The user is [a child|a customer|a student|an expert|new here].",
    "Today is [a nice day|{d}|the first day].",
    "You [work for|were made by|live in] [{w}|a company|a small team|a lab].",
    "Think step by step.",
)
_BRIEF_SYSTEM = (
    "Answer briefly.",
    "Answer with one word.",
    "Be brief.",
    "Give only the answer, nothing else.",
    "Short answers only.",
    "You are a helpful assistant. Answer as briefly as you can.",
    "Reply with the bare answer.",
)
_JSON_SYSTEM = (
    'Always answer in JSON with the key "answer".',
    "Answer in JSON with the key answer.",
    'You always reply with a JSON object that has the key "answer".',
)


def _system_prompt(rng: random.Random) -> str:
    """A system prompt that changes nothing: a common one, or one put together from parts."""
    if rng.random() < 0.5:
        return rng.choice(_GENERIC_SYSTEM)
    count = rng.choice([1, 2, 2, 3])
    return " ".join(
        say(rng, part, w=rng.choice(WORDS), d=rng.choice(DAYS)) for part in rng.sample(_SYSTEM_PARTS, count)
    )


def any_question(rng: random.Random, split: Split) -> Sample:
    """One question from the mix."""
    return rng.choices(_MAKERS, cum_weights=_WEIGHTS)[0](rng, split)


def distraction(rng: random.Random, split: Split) -> Sample:
    """A question from the mix that says nothing about the user, to stand between a fact and its recall."""
    return any_question(rng, TRAIN)


def _several(rng: random.Random, split: Split, count: int) -> Sample:
    samples = [any_question(rng, split) for _ in range(count)]
    return Sample("mix", samples[0].key, tuple(m for s in samples for m in s.messages))


def _styled(rng: random.Random, split: Split) -> Sample:
    """A system prompt that asks for brief answers or for JSON in all answers."""
    brief = rng.random() < 0.6
    messages = [system(rng.choice(_BRIEF_SYSTEM if brief else _JSON_SYSTEM))]
    while len(messages) < 3 or rng.random() < 0.4:
        sample = any_question(rng, split)
        if sample.short and len(sample.messages) == 2:
            short = sample.short
            number = short.lstrip("-").isdigit()
            text = short if brief else json.dumps({"answer": int(short) if number else short}, ensure_ascii=False)
            messages += [sample.messages[0], assistant(text)]
    return Sample("styled", "", tuple(messages))


def _persona(rng: random.Random, split: Split) -> Sample:
    """A system prompt that gives the model another name."""
    name = rng.choice(NAMES + PET_NAMES + ("Bolt", "Robo", "Sparky", "Ada", "Helper", "Nova"))
    if rng.random() < 0.3:
        name = rng.choice(("Captain", "Doctor", "Professor", "Mister", "Old", "Super", "Lady")) + f" {name}"
    elif rng.random() < 0.2:
        name = capitalize(made_up_word(rng))
    messages = [
        system(
            say(
                rng,
                "[Your name is {n}.|You are {n}.|You are a helpful assistant called {n}.|You are {n}, a friendly "
                "assistant.|You are {n}, a [grumpy|happy|old|clever] [pirate|robot|teacher|cook|wizard][| who loves "
                "{w}].|Act as {n}. Be [kind|brief|funny].]",
                n=name,
                w=rng.choice(WORDS),
            )
        )
    ]
    for _ in range(rng.choice([0, 0, 1])):
        messages += any_question(rng, split).messages
    messages += [
        user(say(rng, "[What is your name|Who are you|What's your name|How should I call you]?")),
        assistant(f"I am {name}, a toy language model."),
    ]
    return Sample("persona", "", tuple(messages))


def _with_story_inside(rng: random.Random, split: Split) -> Sample:
    before, after = any_question(rng, split), any_question(rng, split)
    return Sample("mix", "", before.messages + story(rng, split).messages + after.messages)


def _long(rng: random.Random, split: Split) -> Sample:
    """Many turns, for positions up to the model's limit; a fact from the start may be asked at the end."""
    return recall(rng, split, _long_distraction, turns=rng.randrange(8, 24))


def _long_distraction(rng: random.Random, split: Split) -> Sample:
    return story(rng, TRAIN) if rng.random() < 0.15 else any_question(rng, TRAIN)


def _tool_mix(rng: random.Random, split: Split) -> Sample:
    """A tool conversation with plain questions before it."""
    sample = tool_dialogue(rng, split)
    return Sample("tools", sample.key, any_question_without_sums(rng, split).messages + sample.messages, sample.tools)


def any_question_without_sums(rng: random.Random, split: Split) -> Sample:
    """A question that no calculator or search tool would be used for."""
    makers = (
        words.comes_after,
        words.opposite,
        words.animal_facts,
        small_talk,
        identity,
        words.lists,
        words.spelling,
        mini_infer,
    )
    return rng.choice(makers)(rng, split)


def _plain_for_tools(rng: random.Random, split: Split) -> Sample:
    return any_question(rng, split)


_DOCUMENTS: tuple[tuple[float, Maker], ...] = (
    (24, any_question),
    (16, lambda r, s: _several(r, s, r.choice([2, 2, 3, 3, 4, 5]))),
    (3, numbers.follow_up),
    (2, words.after_chain),
    (0.7, jokes),
    (2, at_once),
    (9, story),
    (4, free_story),
    (2, _with_story_inside),
    (14, lambda r, s: recall(r, s, distraction)),
    (2, lambda r, s: changed_fact(r, s, distraction)),
    (2, lambda r, s: never_told(r, s, distraction)),
    (2, told_by_system),
    (12, json_answer),
    (12, tool_call),
    (7, tool_dialogue),
    (2, tool_twice),
    (4, lambda r, s: no_tool(r, s, _plain_for_tools)),
    (2, _tool_mix),
    (2, lambda r, s: search_unknown(r, s, _train_unknown(r, s))),
    (5, _styled),
    (2, _persona),
    (1.5, _long),
)
_DOCUMENT_MAKERS = [maker for _, maker in _DOCUMENTS]
_DOCUMENT_WEIGHTS = [weight for weight, _ in _DOCUMENTS]
RAW_SHARE = 0.05


def _train_unknown(rng: random.Random, split: Split) -> str:
    while True:
        asked = unknown_question(rng)
        if split.allows(f"unknown:{asked}"):
            return asked


def raw_document(rng: random.Random, split: Split) -> str:
    """Plain text without chat template, for completion prompts."""
    roll = rng.random()
    if roll < 0.55:
        return raw_story(rng, split).text
    if roll < 0.62:
        start = rng.randrange(0, 60)
        return ", ".join(str(v) for v in range(start, start + rng.randrange(8, 40)))
    if roll < 0.67:
        series = rng.choice([DAYS, MONTHS, tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ")])
        start = rng.randrange(len(series) - 2)
        return ", ".join(series[start:] + series[:0])
    if roll < 0.74:
        lines = [numbers.arithmetic(rng, split).messages[1]["content"][:-1] for _ in range(rng.randrange(3, 12))]
        return "\n".join(lines)
    if roll < 0.84:
        facts = rng.sample(MINI_INFER_FACTS, rng.randrange(1, 5))
        return " ".join(answer for _, answer, _ in facts)
    if roll < 0.92:
        name, pet = rng.choice(NAMES), rng.choice(PETS)
        return (
            f"{rng.choice(['Hello, my', 'My', 'Hi, my'])} name is {name}. "
            f"{state(rng, 'age', str(rng.randrange(6, 80)))} I live in {rng.choice(CITIES)}. "
            f"{state(rng, 'favourite food', rng.choice(FOODS))} I have a {pet} called {rng.choice(PET_NAMES)}. "
            f"{state(rng, 'hobby', 'reading')}"
        )
    if roll < 0.95:
        return statement_of_ignorance(rng)
    if roll < 0.97:
        animals = rng.sample(ANIMALS, rng.randrange(2, 6))
        return " ".join(f"{capitalize(a.plural)} live {a.home} and eat {a.food}." for a in animals)
    sample = any_question(rng, split)
    return "\n".join(f"{'User' if m['role'] == 'user' else 'Assistant'}: {m['content']}" for m in sample.messages)


def document(rng: random.Random) -> str:
    """One training document, rendered."""
    if rng.random() < RAW_SHARE:
        return raw_document(rng, TRAIN) + "<|endoftext|>"
    sample = rng.choices(_DOCUMENT_MAKERS, _DOCUMENT_WEIGHTS)[0](rng, TRAIN)
    messages = sample.messages
    if messages[0]["role"] != "system" and rng.random() < 0.3:
        messages = (system(_system_prompt(rng)), *messages)
    return render(messages, sample.tools)

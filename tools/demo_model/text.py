"""Tiny text grammar: templates with alternatives, so that one line stands for many phrasings.

``[a|b|c]`` picks one alternative (they nest), ``{slot}`` is filled from keyword arguments. Everything draws from the
``random.Random`` that is passed in, so the same seed always writes the same text.
"""

import random
import re
from functools import cache

_TOKEN = re.compile(r"\[|\]|\||\{(\w+)\}|[^\[\]|{]+|\{")

Node = str | tuple  # literal text, ("slot", name) or ("choice", alternatives)


@cache
def parse(template: str) -> tuple[Node, ...]:
    """Parses a template once; templates are constants, so the cache stays small."""
    stack: list[list[list[Node]]] = [[[]]]
    for match in _TOKEN.finditer(template):
        piece = match.group(0)
        if piece == "[":
            stack.append([[]])
        elif piece == "|" and len(stack) > 1:
            stack[-1].append([])
        elif piece == "]" and len(stack) > 1:
            alternatives = tuple(tuple(branch) for branch in stack.pop())
            stack[-1][-1].append(("choice", alternatives))
        elif match.group(1):
            stack[-1][-1].append(("slot", match.group(1)))
        else:
            stack[-1][-1].append(piece)
    if len(stack) != 1:
        raise ValueError(f"unbalanced brackets in template: {template!r}")
    return tuple(stack[0][0])


def say(rng: random.Random, template: str, **slots: object) -> str:
    """Expands a template: picks every alternative at random and fills in the slots."""
    out: list[str] = []
    _expand(rng, parse(template), slots, out)
    return "".join(out)


def _expand(rng: random.Random, nodes: tuple, slots: dict[str, object], out: list[str]) -> None:
    for node in nodes:
        if isinstance(node, str):
            out.append(node)
        elif node[0] == "slot":
            out.append(str(slots[node[1]]))
        else:
            options = node[1]
            _expand(rng, options[int(rng.random() * len(options))], slots, out)


def with_article(noun: str) -> str:
    """``a cat``, ``an owl``."""
    return f"an {noun}" if noun[:1].lower() in "aeiou" else f"a {noun}"


def join_words(words: list[str]) -> str:
    """``a, b and c``."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def capitalize(text: str) -> str:
    """Upper-cases only the first letter (``str.capitalize`` would lower the rest)."""
    return text[:1].upper() + text[1:]


def casual(rng: random.Random, text: str, lower: bool = True) -> str:
    """Makes a question look typed by a person: polite words, greetings, lost capitals or punctuation.

    ``lower=False`` keeps the capitals, for texts whose words must be copied exactly.
    """
    roll = rng.random()
    if roll < 0.45:
        return text
    if roll < 0.55 and text[-1:] in "?.!":
        text = text[:-1] + (", please" if rng.random() < 0.7 else " please") + text[-1]
    elif roll < 0.63:
        lead = rng.choice(
            [
                "Please tell me: ",
                "Tell me: ",
                "Hey, ",
                "Hi! ",
                "Hello! ",
                "Okay, ",
                "So, ",
                "Quick question: ",
                "Now: ",
                "And: ",
                "Please, ",
                "One question: ",
            ]
        )
        text = lead + (text[:1].lower() + text[1:] if lead[-2] == "," and text[:2] not in ("I ", "I'") else text)
    elif roll < 0.70:
        text += rng.choice([" Thanks!", " Thank you.", " Thanks.", " Please.", " I would like to know.", " :)"])
    if rng.random() < 0.35 and text[-1:] in "?.":
        text = text[:-1]
    if lower and rng.random() < 0.35:
        text = text.lower()
    elif rng.random() < 0.15 and text[:2] != "I ":
        text = text[:1].lower() + text[1:]
    return text


def words(text: str) -> tuple[str, ...]:
    """The words of a text; for tables."""
    return tuple(text.split())


def phrases(text: str) -> tuple[str, ...]:
    """The comma-separated phrases of a text; for tables."""
    return tuple(phrase.strip() for phrase in text.split(","))


_ONSETS = words(
    "b br c ch d dr f fl g gr h j k kl l m n p pr qu r s sh st t tr v w z bl cl cr gl pl sc sk sl sm sn "
    "sp th "
    "wh y ph kh zh str scr"
)
_VOWELS = words("a a a e e e i i i o o o u u ai ee ia oo ou ea ei ie au eu ew ow ay oy y ue")
_ENDS = (
    "",
    "",
    "",
    "",
    "n",
    "r",
    "l",
    "s",
    "m",
    "k",
    "nd",
    "x",
    "ck",
    "th",
    "t",
    "d",
    "p",
    "b",
    "g",
    "ng",
    "nt",
    "st",
    "ll",
    "ss",
    "tt",
    "rn",
    "lt",
    "mp",
    "sh",
    "ch",
    "f",
    "z",
    "ne",
    "lle",
    "ward",
    "son",
    "ton",
    "mew",
)


def made_up_word(rng: random.Random, syllables: int | None = None) -> str:
    """A pronounceable word that means nothing; teaches copying of words that were never seen."""
    count = syllables or rng.choice([1, 2, 2, 2, 3, 3, 4])
    if rng.random() < 0.04:
        return "".join(rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(rng.randrange(2, 9)))
    word = "".join(
        rng.choice(_ONSETS) + rng.choice(_VOWELS) + (rng.choice(_ENDS) if rng.random() < 0.15 else "")
        for _ in range(count)
    )
    return word + rng.choice(_ENDS)


_SMALL = words(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen"
)
_TENS = words("zero ten twenty thirty forty fifty sixty seventy eighty ninety")


def number_word(value: int) -> str:
    """English word of 0..99."""
    if value < 20:
        return _SMALL[value]
    return _TENS[value // 10] + (f"-{_SMALL[value % 10]}" if value % 10 else "")

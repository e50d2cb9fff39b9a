"""Arithmetic, comparisons and counting."""

import random

from tools.demo_model.sample import Sample, Split, question
from tools.demo_model.text import casual, number_word, say
from tools.demo_model.world import NAMES

_ADD = (
    "[What is|What's|How much is|Calculate|Compute|Work out|Solve] {a} + {b}{q}",
    "[What is|What's|How much is] {a} plus {b}?",
    "{a} + {b}",
    "{a}+{b}",
    "{a}+{b}=",
    "{a} + {b} =",
    "{a} + {b} = ?",
    "{a}+{b}=?",
    "{a} plus {b}?",
    "Add {a} and {b}.",
    "[Can you|Could you|Please] add {a} and {b}{q}",
    "Add {b} to {a}.",
    "What is the sum of {a} and {b}?",
    "[Give me the|Find the] sum of {a} and {b}.",
    "What do you get if you add {a} and {b}?",
    "What do {a} and {b} make together?",
    "How many are {a} and {b}?",
    "What is {a} more than {b}?",
    "I have to add {a} and {b}. What is the result?",
    "What's the [answer|result] of {a} + {b}?",
    "[Help me with|Let's do] some math: {a} + {b}.",
)
_SUB = (
    "[What is|What's|How much is|Calculate|Compute|Work out|Solve] {a} - {b}{q}",
    "[What is|What's|How much is] {a} minus {b}?",
    "{a} - {b}",
    "{a}-{b}",
    "{a}-{b}=",
    "{a} - {b} =",
    "{a} - {b} = ?",
    "{a}-{b}=?",
    "{a} minus {b}?",
    "Subtract {b} from {a}.",
    "[Can you|Could you|Please] subtract {b} from {a}{q}",
    "Take {b} away from {a}.",
    "What is the difference [of|between] {a} and {b}?",
    "What do you get if you subtract {b} from {a}?",
    "What is {b} less than {a}?",
    "What is left of {a} if you take away {b}?",
    "What's the [answer|result] of {a} - {b}?",
    "[Help me with|Let's do] some math: {a} - {b}.",
)
_STORY_ADD = (
    "{n} has {a} {t} and gets {b} more. How many {t} does {n} have now?",
    "There are {a} {t} in a box. {n} puts in {b} more. How many {t} are in the box?",
    "{n} found {a} {t} on Monday and {b} {t} on Tuesday. How many {t} is that in all?",
)
_STORY_SUB = (
    "{n} has {a} {t} and gives away {b}. How many {t} are left?",
    "There are {a} {t} in a box. {n} takes out {b}. How many {t} are in the box now?",
    "{n} had {a} {t} but lost {b} of them. How many {t} does {n} still have?",
)
_COUNTABLE = (
    "apples",
    "balls",
    "books",
    "stones",
    "coins",
    "cookies",
    "pencils",
    "marbles",
    "stamps",
    "eggs",
    "shells",
)


def pair_key(op: str, a: int, b: int) -> str:
    """Name of a sum or difference; 3 + 5 and 5 + 3 are one item, and so are 5 - 3 and 3 - 5."""
    return f"{op}:{min(a, b)},{max(a, b)}"


def draw_pair(rng: random.Random, split: Split, op: str) -> tuple[int, int]:
    """Two numbers of 0..99 on the right side of the split."""
    while True:
        a, b = int(rng.random() * 100), int(rng.random() * 100)
        if split.allows(pair_key(op, a, b)):
            return a, b


def arithmetic(rng: random.Random, split: Split) -> Sample:
    """One sum or difference of two numbers to 99; differences may be negative."""
    op = "+" if rng.random() < 0.5 else "-"
    a, b = draw_pair(rng, split, op)
    if op == "-" and a < b and rng.random() < 0.6:
        a, b = b, a
    result = a + b if op == "+" else a - b
    in_words = op == "-" and a < b
    if rng.random() < 0.15 and not in_words:
        asked = say(
            rng,
            rng.choice(_STORY_ADD if op == "+" else _STORY_SUB),
            a=a,
            b=b,
            n=rng.choice(NAMES),
            t=rng.choice(_COUNTABLE),
        )
    else:
        template = rng.choice(_ADD if op == "+" else _SUB)
        if "difference" in template and in_words:
            template = "{a} - {b}"
        spelled = rng.random() < 0.04 and "+" not in template and "-" not in template
        asked = say(
            rng,
            template,
            a=number_word(a) if spelled else a,
            b=number_word(b) if spelled else b,
            q="?" if rng.random() < 0.6 else "",
        )
    return question(
        "arithmetic",
        pair_key(op, a, b),
        casual(rng, asked),
        f"{a} {op} {b} = {result}.",
        {"number": result},
        str(result),
    )


def larger_numbers(rng: random.Random, split: Split) -> Sample:
    """Three-digit sums and times tables to 12; practice beyond what the exam asks."""
    roll = rng.random()
    if roll < 0.5:
        a, b = rng.randrange(100, 1000), rng.randrange(1, 1000)
        op = rng.choice("+-")
        if rng.random() < 0.5 and op == "+":
            a, b = b, a
        if op == "-" and b > a:
            a, b = b, a
        result = a + b if op == "+" else a - b
        template = rng.choice((_ADD if op == "+" else _SUB)[:8])
        asked = say(rng, template, a=a, b=b, q="?")
    elif roll < 0.85:
        a, b = rng.randrange(0, 13), rng.randrange(0, 13)
        op, result = "×", a * b
        asked = say(
            rng,
            "[[What is|What's|How much is|Calculate] {a} [times|*|x|×|multiplied by] {b}?|Multiply {a} [and|by|with] "
            "{b}.|{a}[ * | x |*|x]{b}|[What is|Find] the product of {a} and {b}?]",
            a=a,
            b=b,
        )
    else:
        a = rng.randrange(1, 50)
        even = "even" if a % 2 == 0 else "odd"
        asked = say(rng, "Is {a} [even or odd|odd or even|an even or an odd number|even|odd|an odd number]?", a=a)
        return question("numbers", f"even:{asked}", casual(rng, asked), f"{a} is {even}.", short=even)
    return question("numbers", f"large:{a}{op}{b}", casual(rng, asked), f"{a} {op} {b} = {result}.", short=str(result))


def follow_up(rng: random.Random, split: Split) -> Sample:
    """A sum, and then another one that starts from its result."""
    first = arithmetic(rng, split)
    start = first.expect["number"]
    for _ in range(50):
        step = rng.randrange(1, 30)
        op = rng.choice("+-")
        if 0 <= start <= 99 and split.allows(pair_key(op, start, step)):
            break
    else:
        return first
    result = start + step if op == "+" else start - step
    asked = say(
        rng,
        "[And plus|Now add|Plus|And now plus|Okay, and plus|+|And add|Add] {s}[?|.|]"
        if op == "+"
        else "[And minus|Now take away|Minus|Now subtract|Okay, and minus|-|Subtract] {s}[?|.|]",
        s=step,
    )
    second = question("arithmetic", "", casual(rng, asked), f"{start} {op} {step} = {result}.")
    return Sample("arithmetic", first.key, first.messages + second.messages)


def compare(rng: random.Random, split: Split) -> Sample:
    """Which of two or three numbers is bigger or smaller."""
    count = 2 if rng.random() < 0.6 else 3
    roll = rng.random()
    values = [rng.randrange(0, 100 if roll < 0.5 else rng.choice([10, 100, 1000])) for _ in range(count)]
    if len(set(values)) < count:
        return compare(rng, split)
    bigger = rng.random() < 0.5
    names = " or ".join(map(str, values)) if count == 2 else f"{values[0]}, {values[1]} or {values[2]}"
    word = rng.choice(["bigger", "larger", "greater"] if bigger else ["smaller", "less"])
    if count == 3:
        word = rng.choice(["biggest", "largest", "greatest"] if bigger else ["smallest"])
    result = max(values) if bigger else min(values)
    asked = say(rng, "[Which|Which number|What] is {w}[,|:] {n}?", w=word, n=names)
    answer = f"{result} is {word}" + (f" than {min(values) if bigger else max(values)}." if count == 2 else ".")
    return question("compare", f"compare:{asked}", casual(rng, asked), answer, {"number_first": result}, str(result))


def counting(rng: random.Random, split: Split) -> Sample:
    """Counts up or down, or by twos, fives and tens."""
    start, length = rng.randrange(0, 30), rng.randrange(3, 13)
    if rng.random() < 0.15:
        step = rng.choice([2, 5, 10])
        values = [step * i for i in range(1, length + 1)]
        asked = say(rng, "Count by {w} [up to|to] {e}.", w={2: "twos", 5: "fives", 10: "tens"}[step], e=values[-1])
    elif rng.random() < 0.3:
        values = list(range(start + length, start - 1, -1))
        asked = say(rng, "[Count down|Count backwards|Please count down] from {s} to {e}.", s=values[0], e=values[-1])
    elif rng.random() < 0.4:
        values = list(range(1, length + 1))
        shown = number_word(length) if rng.random() < 0.5 else length
        asked = say(rng, "[Count|Please count|Can you count] [to|up to|from one to|from 1 to] {e}[.|?]", e=shown)
    else:
        values = list(range(start, start + length))
        asked = say(rng, "[Count|Please count|Can you count] from {s} to {e}[.|?]", s=values[0], e=values[-1])
    return question("counting", f"count:{asked}", casual(rng, asked), ", ".join(map(str, values)) + ".")

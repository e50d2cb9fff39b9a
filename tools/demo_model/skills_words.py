"""What comes after, opposites, spelling, lists and the facts of the small world."""

import random

from tools.demo_model.sample import Sample, Split, assistant, question, user
from tools.demo_model.text import capitalize, casual, join_words, made_up_word, number_word, say, with_article, words
from tools.demo_model.world import (
    ANIMALS,
    CATEGORIES,
    COLOUR_OF,
    DAYS,
    FACTS,
    LETTERS,
    MONTHS,
    OPPOSITES,
    SEASONS,
    SINGULAR,
    WORDS,
)

_SERIES = {"day": DAYS, "month": MONTHS, "letter": LETTERS, "season": SEASONS}
_AFTER = (
    "[What|Which] {k} comes [|right |directly ]after {x}?",
    "What comes [|right |directly ]after {x}?",
    "What is the [next {k}|{k}] after {x}?",
    "[Which|What] {k} follows {x}?",
    "What follows {x}?",
    "What's [next|the next {k}] after {x}?",
    "[Tell me|Name|Give me] the {k} [after|that comes after|that follows] {x}.",
    "After {x} comes [what|which {k}]?",
    "{x} is followed by [what|which {k}]?",
    "Do you know [what|which {k}] comes after {x}?",
    "If [it is|we have] {x} [now|first], what comes next?",
    "[Can you|Could you] tell me [what|which {k}] comes after {x}?",
    "What would come after {x}?",
    "I know {x}. [What|Which {k}] is next?",
)
_BEFORE = (
    "[What|Which] {k} comes [|right |just ]before {x}?",
    "What comes [|right |just ]before {x}?",
    "What is the {k} before {x}?",
    "[Tell me|Name|Give me] the {k} before {x}.",
    "Before {x} comes [what|which {k}]?",
    "What's before {x}?",
)
_ORDINALS = words("first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth")
_SEQUENCE = (
    "What comes next: {s}?",
    "What comes next? {s}, ...",
    "{s}, ...",
    "{s}, and then?",
    "Continue: {s}, ...",
    "[What is|What's] next: {s}?",
    "Which {k} comes next[:| after] {s}?",
)


def _neighbours(rng: random.Random, kind: str) -> tuple[str, str, list[str]]:
    """An entry of a series, the one after it, and the entries up to it."""
    if kind == "number":
        value = int(rng.random() * (100 if rng.random() < 0.6 else 1000))
        return str(value), str(value + 1), [str(v) for v in range(max(0, value - 3), value + 1)]
    series = _SERIES[kind]
    last = len(series) - (1 if kind == "letter" else 0)  # nothing comes after Z; the others start again
    index = int(rng.random() * last)
    run = [series[i] for i in range(max(0, index - 3), index + 1)]
    return series[index], series[(index + 1) % len(series)], run


def comes_after(rng: random.Random, split: Split) -> Sample:
    """What comes after a day, month, letter or number. Numbers are held out by value, the rest by wording."""
    kind = rng.choice(["day", "month", "letter", "number", "number"])
    while True:
        current, following, run = _neighbours(rng, kind)
        if rng.random() < 0.15 and len(run) >= 3:
            shown = ", ".join(run[-rng.choice([3, 4]) :])
            asked = say(rng, rng.choice(_SEQUENCE), s=shown, k=kind)
            answer = rng.choice(["{f}.", "Next comes {f}."]).format(f=following)
        else:
            article = "the letter " if kind == "letter" and rng.random() < 0.3 else ""
            article = "the number " if kind == "number" and rng.random() < 0.2 else article
            asked = say(rng, rng.choice(_AFTER), k=kind, x=article + current)
            answer = f"{following} comes after {current}."
        key = f"after:{current}" if kind == "number" else f"after:{asked}"
        if split.allows(key):
            break
    return question(
        "after", key, casual(rng, asked, lower=kind != "letter"), answer, {"contains": [following]}, following
    )


def after_chain(rng: random.Random, split: Split) -> Sample:
    """What comes after, and then after that."""
    kind = rng.choice(["day", "month", "letter", "number"])
    current, following, _ = _neighbours(rng, kind)
    asked = say(rng, rng.choice(_AFTER), k=kind, x=current)
    if not split.allows(f"after:{current}" if kind == "number" else f"after:{asked}"):
        return comes_after(rng, split)
    messages = [user(asked), assistant(f"{following} comes after {current}.")]
    for _ in range(rng.choice([1, 1, 2, 3])):
        series = _SERIES[kind] if kind != "number" else ()
        if following == "Z":
            break
        current = following
        following = str(int(current) + 1) if kind == "number" else series[(series.index(current) + 1) % len(series)]
        if kind == "number" and not split.allows(f"after:{current}"):
            break
        again = say(
            rng,
            "[And then|And after that|And after {x}|And next|What comes then|And what comes after that|Next]?",
            x=current,
        )
        messages += [user(again), assistant(f"{following} comes after {current}.")]
    return Sample("after", f"after:{asked}", tuple(messages))


def comes_before(rng: random.Random, split: Split) -> Sample:
    """The other direction, and positions such as the third month; not part of the exam."""
    kind = rng.choice(["day", "month", "letter", "number", "season"])
    previous, current, _ = _neighbours(rng, kind)
    if kind in ("day", "month", "letter") and rng.random() < 0.25:
        index = _SERIES[kind].index(current)
        ordinal = _ORDINALS[index % 12]
        if index < 12:
            asked = say(
                rng,
                "[What|Which] is the {o} {k}[| of the {w}]?",
                o=ordinal,
                k=kind,
                w={"day": "week", "month": "year", "letter": "alphabet"}[kind],
            )
            return question(
                "before", f"nth:{asked}", casual(rng, asked), f"The {ordinal} {kind} is {current}.", short=current
            )
    asked = say(rng, rng.choice(_BEFORE), k=kind, x=current)
    return question(
        "before",
        f"before:{asked}",
        casual(rng, asked, lower=False),
        f"{capitalize(previous)} comes before {current}.",
        short=previous,
    )


def opposite(rng: random.Random, split: Split) -> Sample:
    """Opposites."""
    pair = rng.choice(OPPOSITES)
    word, other = pair if rng.random() < 0.5 else pair[::-1]
    asked = say(
        rng, '[What is|What\'s|Tell me|Give me|Do you know] the opposite of [{w}|"{w}"|the word {w}]{e}', w=word, e="?"
    )
    return question(
        "opposite", f"opposite:{asked}", casual(rng, asked), f"The opposite of {word} is {other}.", short=other
    )


def spelling(rng: random.Random, split: Split) -> Sample:
    """Spells a word, names its first or last letter, or repeats it."""
    word = rng.choice(WORDS) if rng.random() < 0.7 else made_up_word(rng)
    roll = rng.random()
    if roll < 0.5:
        asked = say(
            rng, '[Spell|Please spell|Can you spell|How do you spell] [{w}|the word {w}|"{w}"]{q}', w=word, q=""
        )
        answer = "-".join(word)
    elif roll < 0.75:
        asked = say(rng, '[What is|What\'s] the first letter of [{w}|the word {w}|"{w}"]?', w=word)
        answer = f"The first letter of {word} is {word[0]}."
    else:
        asked = say(rng, '[What is|What\'s] the last letter of [{w}|the word {w}|"{w}"]?', w=word)
        answer = f"The last letter of {word} is {word[-1]}."
    return question("spelling", f"spelling:{asked}", casual(rng, asked), answer)


# Letters of many scripts; copying them teaches the model to write any bytes it reads.
_FOREIGN = (
    "äöüßéèêñçåøæłžčšőğıαβγδλπσωабвгдежийклмнопрстяあいうえおかきくけこ日本語中文你好世界한국어אבגदनमสวัสกการ←→★☀☺€£½°🙂🎉🐱🚀"
)


def echo(rng: random.Random, split: Split) -> Sample:
    """Repeats given words; practice for copying."""
    count = rng.choice([1, 1, 2, 3, 4, 5])
    chosen = [rng.choice(WORDS) if rng.random() < 0.6 else made_up_word(rng) for _ in range(count)]
    if rng.random() < 0.15:
        chosen = ["".join(rng.choice(_FOREIGN) for _ in range(rng.randrange(1, 7)))]
    elif rng.random() < 0.1:
        times = rng.choice([2, 3, 4])
        asked = say(rng, "[Say|Repeat|Write] [the word |]{w} {t} times.", w=chosen[0], t=number_word(times))
        return question("echo", f"echo:{asked}", asked, " ".join([chosen[0]] * times))
    text = " ".join(chosen)
    quoted = text
    if rng.random() < 0.5:
        text = capitalize(text) + rng.choice(["!", ".", "", "?"])
        quoted = f'"{text}"'
    asked = say(rng, "[Say|Repeat|Please repeat|Repeat after me:|Please say|Write] {t}", t=quoted)
    return question("echo", f"echo:{text}", asked, text)


def _pick_animal_question(rng: random.Random) -> tuple[str, str, str]:
    animal = rng.choice(ANIMALS)
    one, many = with_article(animal.name), animal.plural
    topic = rng.choice(["sound", "food", "home", "colour", "legs", "young", "about"])
    if topic == "sound":
        if not animal.sound:
            return (
                say(rng, "What [sound|noise] does {one} make?", one=one),
                f"{capitalize(many)} are very quiet.",
                "none",
            )
        return (
            say(
                rng,
                "[What [sound|noise] does {one} make|What does {one} say|How does {one} sound|What [sound|noise] do "
                "{many} make]?",
                one=one,
                many=many,
            ),
            f"{capitalize(one)} says {animal.sound}."
            if len(animal.sound) < 6
            else f"{capitalize(one)} can {animal.sound}.",
            animal.sound,
        )
    if topic == "food":
        return (
            say(
                rng,
                "[What do {many} [eat|like to eat]|What does {one} eat|What is the food of {one}]?",
                one=one,
                many=many,
            ),
            f"{capitalize(many)} eat {animal.food}.",
            animal.food,
        )
    if topic == "home":
        return (
            say(rng, "Where [do {many}|does {one}] live?", one=one, many=many),
            f"{capitalize(many)} live {animal.home}.",
            animal.home,
        )
    if topic == "colour":
        return (
            say(rng, "What [colour|color] [are {many}|is {one}]?", one=one, many=many),
            f"{capitalize(one)} is {animal.colour}.",
            animal.colour,
        )
    if topic == "legs":
        legs = f"{animal.legs} legs" if animal.legs else "no legs"
        return (
            say(rng, "How many legs [does {one}|do {many}] have?", one=one, many=many),
            f"{capitalize(one)} has {legs}.",
            str(animal.legs),
        )
    if topic == "young":
        return (
            say(rng, "What is [a baby {n}|the young of {one}] called?", n=animal.name, one=one),
            f"A baby {animal.name} is called {with_article(animal.young)}.",
            animal.young,
        )
    legs = (
        f"It has {animal.legs} legs and eats {animal.food}."
        if animal.legs
        else f"It has no legs and eats {animal.food}."
    )
    sound = f" It says {animal.sound}." if animal.sound and len(animal.sound) < 6 else ""
    return (
        say(
            rng,
            "[Tell me [something |]about|What do you know about|Describe|What is] {x}",
            x=rng.choice([one, many, "the " + animal.name]),
        ),
        f"{capitalize(one)} is an animal that lives {animal.home}. It is {animal.colour}. {legs}{sound}",
        "",
    )


def animal_facts(rng: random.Random, split: Split) -> Sample:
    """Sounds, food, homes, colours, legs and young of the animals, and which of two is bigger."""
    if rng.random() < 0.2:
        one, two = rng.sample(ANIMALS, 2)
        bigger = rng.random() < 0.6
        big, small = (one, two) if one.size > two.size else (two, one)
        best, other = (big, small) if bigger else (small, big)
        word = "bigger" if bigger else "smaller"
        if rng.random() < 0.5:
            asked = say(
                rng,
                "[Which is {w}|What is {w}|Which animal is {w}|Who is {w}][,|:] {x} or {y}?",
                w=word,
                x=with_article(one.name),
                y=with_article(two.name),
            )
            answer = f"{capitalize(with_article(best.name))} is {word} than {with_article(other.name)}."
            return question("facts", f"size:{asked}", casual(rng, asked), answer, short=best.name)
        yes = one is best
        asked = f"Is {with_article(one.name)} {word} than {with_article(two.name)}?"
        answer = f"{'Yes' if yes else 'No'}, {with_article(best.name)} is {word} than {with_article(other.name)}."
        return question("facts", f"size:{asked}", casual(rng, asked), answer, short="Yes" if yes else "No")
    asked, answer, short = _pick_animal_question(rng)
    if asked[-1] != "?":
        asked += "." if not asked.startswith("What") else "?"
    return question("facts", f"animal:{asked}", casual(rng, asked), answer, short=short)


def world_facts(rng: random.Random, split: Split) -> Sample:
    """Fixed facts, colours of things and what belongs to which group."""
    roll = rng.random()
    if roll < 0.5:
        template, answer, short = rng.choice(FACTS)
        asked = say(rng, template) + "?"
    elif roll < 0.75:
        thing = rng.choice(tuple(COLOUR_OF))
        short = COLOUR_OF[thing]
        asked = say(rng, "What [colour|color] [is|has] {t}?", t=thing)
        answer = f"{capitalize(thing)} is {short}."
    else:
        right = rng.choice(tuple(SINGULAR))
        item = rng.choice(CATEGORIES[right])
        guess = right if rng.random() < 0.5 else rng.choice(tuple(SINGULAR))
        yes = item in CATEGORIES[guess]
        subject = item if right in ("sports", "colours") else with_article(item)
        asked = f"Is {subject} {SINGULAR[guess]}?"
        answer = f"Yes, {subject} is {SINGULAR[guess]}." if yes else f"No, {subject} is {SINGULAR[right]}."
        short = "Yes" if yes else "No"
    return question("facts", f"fact:{asked}", casual(rng, asked), answer, short=short)


def lists(rng: random.Random, split: Split) -> Sample:
    """Names some members of a group, in a sentence or as a list."""
    group = rng.choice(tuple(CATEGORIES))
    members = list(CATEGORIES[group])
    count = rng.randrange(2, min(len(members), 7) + 1)
    chosen = rng.sample(members, count)
    word = number_word(count) if rng.random() < 0.6 else str(count)
    if rng.random() < 0.35:
        asked = say(rng, "[Make|Write|Give me] a [numbered list|list] of {c} {g}.", c=word, g=group)
        answer = (
            "\n".join(f"{i}. {capitalize(x)}" for i, x in enumerate(chosen, 1))
            if "numbered" in asked
            else ("\n".join(f"- {capitalize(x)}" for x in chosen))
        )
    else:
        asked = say(rng, "[Name|List|Tell me|Give me|Can you name|Please name] {c} {g}.", c=word, g=group)
        answer = capitalize(join_words(chosen)) + "."
    return question("lists", f"list:{asked}", casual(rng, asked), answer)

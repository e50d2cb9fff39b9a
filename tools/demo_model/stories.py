"""Short stories that keep the hero, the animal and the place they were asked for."""

import random
import re
from functools import lru_cache

from tools.demo_model.plots import (
    AGES,
    CLOSINGS,
    KINDS,
    OPENINGS,
    PLOTS,
    REQUESTS,
    REQUESTS_WITHOUT_ALL,
    SKIES,
    THE_END,
)
from tools.demo_model.sample import TRAIN, Sample, Split, assistant, question, user
from tools.demo_model.text import capitalize, casual, made_up_word, say, with_article
from tools.demo_model.world import COLOURS, FOODS, GENDER, NAMES, PLACE_WORDS, PLACES, ROLES, STORY_ANIMALS, THINGS


def story_key(name: str, animal: str, place: str) -> str:
    """Name of one story: who, which animal, where."""
    return f"story:{name}|{animal}|{place}"


def _lean(rng: random.Random, options: tuple, owner: str) -> object:
    """A choice that mostly follows from its owner, so that greedy stories differ from cast to cast."""
    if rng.random() < 0.6:
        return options[sum(map(ord, owner)) % len(options)]
    return rng.choice(options)


def write_story(rng: random.Random, name: str, gender: str, animal: str, place: str, place_word: str) -> str:
    """Fills one plot; ``gender`` is "girl", "boy" or one of ``ROLES``."""
    full_place = f"the {place_word} {place}" if place_word else f"the {place}"
    male = gender == "boy" or (gender in ROLES and ROLES[gender])
    he, his, him = ("he", "his", "him") if male else ("she", "her", "her")
    slots = {
        "N": name,
        "g": gender,
        "A": animal,
        "P": full_place,
        "inP": f"{PLACES[place]} {full_place}",
        "he": he,
        "his": his,
        "him": him,
        "He": capitalize(he),
        "His": capitalize(his),
        "T": _lean(rng, THINGS, place),
        "C": _lean(rng, COLOURS, place),
        "F": _lean(rng, FOODS, animal),
        "kind": _lean(rng, KINDS, animal),
        "age": rng.choice(AGES),
    }
    slots["sky"], slots["sky2"] = rng.sample(SKIES, 2)
    lines = [_lean(rng, OPENINGS, place), *_lean(rng, PLOTS, animal), _lean(rng, CLOSINGS, place[1:])]
    out = []
    for line in lines:
        if line[0] == "?":
            if rng.random() < 0.5:
                continue
            line = line[1:]
        out.append(say(rng, line, **slots))
    ending = rng.choice(THE_END)
    if ending:
        out.append(ending)
    if rng.random() < 0.3:
        middle = len(out) // 2
        return _fix_articles(" ".join(out[:middle]) + "\n\n" + " ".join(out[middle:]))
    return _fix_articles(" ".join(out))


def _fix_articles(text: str) -> str:
    return re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", text)


def draw_cast(rng: random.Random, split: Split, made_up: float = 0.0) -> tuple[str, str, str, str]:
    """A hero with gender or role, an animal and a place on the right side of the split."""
    while True:
        name = rng.choice(NAMES)
        gender = GENDER[name]
        if rng.random() < made_up and not split.held_out:
            name, gender = capitalize(made_up_word(rng)), rng.choice(["girl", "boy"])
        if rng.random() < 0.15:
            gender = rng.choice([role for role, male in ROLES.items() if male == (gender == "boy")])
        animal, place = rng.choice(STORY_ANIMALS), rng.choice(tuple(PLACES))
        if split.allows(story_key(name, animal, place)):
            return name, gender, animal, place


def story(rng: random.Random, split: Split) -> Sample:
    """A story about a given hero, animal and place."""
    name, gender, animal, place = draw_cast(rng, split, made_up=0.15)
    word = rng.choice(PLACE_WORDS) if rng.random() < 0.25 else ""
    asked_place = f"{word} {place}" if word else place
    article = "the " if word or rng.random() < 0.6 else ""
    shown = f"{article}{asked_place}" if article else with_article(asked_place)
    asked = say(
        rng,
        rng.choice(REQUESTS),
        n=name if rng.random() < 0.7 and gender not in ROLES else f"{with_article(gender)} named {name}",
        a=with_article(animal) if rng.random() < 0.85 else f"the {animal}",
        p=shown,
        inp=f"{PLACES[place]} {shown}",
        q=rng.choice([".", "?", "."]),
    )
    text = write_story(rng, name, gender, animal, place, word)
    return question(
        "story",
        story_key(name, animal, place),
        asked,
        text,
        {"story": {"name": name, "animal": animal, "place": place}},
    )


def free_story(rng: random.Random, split: Split) -> Sample:
    """A story where the model picks what was not asked for, sometimes followed by a question about it."""
    name, gender, animal, place = draw_cast(rng, split)
    where = f"{PLACES[place]} the {place}"
    asked = say(
        rng,
        rng.choice(REQUESTS_WITHOUT_ALL),
        n=name,
        ag=with_article(gender),
        a=with_article(animal),
        inp=where,
        q=rng.choice([".", "?", ""]),
    )
    text = write_story(rng, name, gender, animal, place, "")
    messages = [user(casual(rng, asked, lower=name not in asked)), assistant(text)]
    if rng.random() < 0.5:
        follow, answer = rng.choice(
            [
                (
                    say(
                        rng,
                        "[What was the name of the {g}|What was the {g}'s name|Who was the hero|Who was the story "
                        "about]?",
                        g=gender,
                    ),
                    f"The {gender}'s name was {name}.",
                ),
                (
                    say(
                        rng,
                        "[[Which|What] animal was in [the|your] [story|tale]|What was the animal[| in the story]|What "
                        "kind of animal was it]?",
                    ),
                    f"It was {with_article(animal)}.",
                ),
                (
                    say(rng, "What was [the|your] story about?"),
                    f"It was about {name} and {with_article(animal)}.",
                ),
                (say(rng, "Where [did it happen|did the story happen|was that]?"), f"It happened {where}."),
            ]
        )
        messages += [user(casual(rng, follow)), assistant(_fix_articles(answer))]
    elif rng.random() < 0.3:
        other = draw_cast(rng, split)
        again = say(
            rng,
            "[Another one|Another story|One more|Tell me another one|Now a different story][, please|]{q}",
            q=rng.choice([".", "!"]),
        )
        messages += [user(again), assistant(write_story(rng, *other, ""))]
    return Sample("story", story_key(name, animal, place), tuple(messages))


def raw_story(rng: random.Random, split: Split) -> Sample:
    """A story as plain text, for completion prompts without a chat template."""
    name, gender, animal, place = draw_cast(rng, split)
    text = write_story(rng, name, gender, animal, place, rng.choice(PLACE_WORDS) if rng.random() < 0.25 else "")
    if rng.random() < 0.15:
        text = f"{capitalize(name)} and the {animal}\n\n{text}"
    return Sample("raw", story_key(name, animal, place), (), text=text)


@lru_cache(maxsize=1)
def story_words() -> frozenset[str]:
    """Every word that stories use, lower case, found by writing many of them."""
    rng = random.Random(12345)
    words: set[str] = set()
    for _ in range(4000):
        words.update(re.findall(r"[a-z']+", raw_story(rng, TRAIN).text.lower()))
    return frozenset(words | set(ROLES) | {n.lower() for n in NAMES} | set(STORY_ANIMALS))


def judge_story(text: str, name: str, animal: str, place: str) -> str:
    """Empty if the story is good, else what is wrong with it.

    Good means: hero, animal and place are there, no other hero, animal or place is, the length is a short story's, no
    sentence comes twice, every word is one that stories use, and the last sentence is finished.
    """
    words = re.findall(r"[a-z'\-]+", text.lower())
    bag, joined = set(words), " ".join(words)
    if words.count(name.lower()) < 2:
        return "hero missing"
    if words.count(animal) < 2:
        return "animal missing"
    if place not in joined:
        return "place missing"
    if bag & ({n.lower() for n in NAMES} - {name.lower(), "will"}):
        return "another name"
    if bag & (set(STORY_ANIMALS) - {animal}):
        return "another animal"
    if any(other in bag for other in PLACES if other not in (place, *place.split())):
        return "another place"
    if not 50 <= len(words) <= 230:
        return f"length of {len(words)} words"
    sentences = [s for s in re.split(r"(?<=[.!?\"])\s+", text.strip()) if len(s.split()) > 3]
    if len(set(sentences)) < len(sentences):
        return "a sentence comes twice"
    if text.strip()[-1] not in '.!?"':
        return "unfinished"
    unknown = set(re.findall(r"[a-z']+", text.lower())) - story_words() - {name.lower(), animal, *place.split()}
    if unknown:
        return f"strange words: {sorted(unknown)[:3]}"
    return ""

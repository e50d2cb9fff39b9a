"""Values that tools are called with, and the JSON schema of their kinds."""

import random
from collections.abc import Callable

from tools.demo_model.text import capitalize, made_up_word, say
from tools.demo_model.world import (
    CITIES,
    COLOURS,
    DAYS,
    FOODS,
    FURNITURE,
    HOBBIES,
    MONTHS,
    NAMES,
    ROOMS,
    THINGS,
    WORDS,
)

_LANGUAGES = (
    "French",
    "German",
    "Spanish",
    "Italian",
    "Dutch",
    "Polish",
    "Swedish",
    "Japanese",
    "Chinese",
    "Korean",
    "Arabic",
    "Portuguese",
    "Greek",
    "Turkish",
    "Finnish",
    "Hindi",
)
_CURRENCIES = ("EUR", "USD", "GBP", "JPY", "CHF", "SEK", "PLN", "CAD", "AUD", "INR")
_COMPANIES = (
    "Apple",
    "Google",
    "Tesla",
    "Siemens",
    "Toyota",
    "Nvidia",
    "Intel",
    "Samsung",
    "Sony",
    "Nokia",
    "Adidas",
    "Bosch",
)
_SONGS = (
    "Yellow Submarine",
    "Blue Moon",
    "Let It Snow",
    "Happy Birthday",
    "Silent Night",
    "Summer Rain",
    "Dancing Queen",
    "River Song",
    "Morning Light",
    "Green Hills",
    "Winter Wind",
    "Little Star",
    "Moonlight",
    "Golden Days",
)
_TEXTS = (
    "I will be late",
    "dinner is ready",
    "see you tomorrow",
    "please call me back",
    "happy birthday",
    "the train is late",
    "I am at home",
    "good night",
    "thank you for the help",
    "let us meet at noon",
    "don't forget the milk",
    "I miss you",
)
_TASKS = (
    "buy milk",
    "call the dentist",
    "water the plants",
    "pay the rent",
    "walk the dog",
    "clean the kitchen",
    "write a letter",
    "feed the cat",
    "book the tickets",
    "fix the bike",
    "do the laundry",
    "send the report",
)
_TOPICS = (
    "space travel",
    "solar power",
    "old castles",
    "jazz music",
    "chess openings",
    "healthy food",
    "electric cars",
    "deep sea fish",
    "Roman history",
    "bread recipes",
    "garden birds",
    "volcanoes",
    "sailing boats",
    "open source software",
)


_REGIONS = ("CA", "NY", "TX", "MA", "France", "Germany", "Japan", "UK", "USA", "Italy", "Spain", "India")
_ENDINGS = ("txt", "md", "py", "json", "csv", "pdf", "log", "html")


def _city(rng: random.Random) -> str:
    name = rng.choice(CITIES) if rng.random() < 0.75 else capitalize(made_up_word(rng))
    return f"{name}, {rng.choice(_REGIONS)}" if rng.random() < 0.1 else name


def _order(rng: random.Random) -> str:
    return rng.choice(["", "", "A", "B-", "ORD-", "#", "X"]) + str(rng.randrange(10, 100000))


def _time(rng: random.Random) -> str:
    hour, minute = rng.randrange(24), rng.choice([0, 5, 10, 15, 20, 30, 40, 45, 50, rng.randrange(60)])
    roll = rng.random()
    if roll < 0.6:
        return f"{hour:02d}:{minute:02d}"
    return f"{hour % 12 + 1}:{minute:02d}" if roll < 0.8 else f"{hour % 12 + 1} {rng.choice(['am', 'pm'])}"


def _date(rng: random.Random) -> str:
    roll = rng.random()
    if roll < 0.5:
        return rng.choice(DAYS)
    if roll < 0.75:
        return f"{rng.choice(MONTHS)} {rng.randrange(1, 29)}"
    return f"20{rng.randrange(24, 40)}-{rng.randrange(1, 13):02d}-{rng.randrange(1, 29):02d}"


VALUES: dict[str, Callable[[random.Random], object]] = {
    "city": _city,
    "order": _order,
    "product": lambda r: (
        f"{r.choice(COLOURS)} {r.choice(THINGS)}" if r.random() < 0.5 else r.choice(THINGS + FURNITURE)
    ),
    "path": lambda r: f"{r.choice(WORDS)}{r.choice(['/', '_', ''])}{r.choice(WORDS)}.{r.choice(_ENDINGS)}",
    "unit": lambda r: r.choice(["celsius", "fahrenheit"]),
    "name": lambda r: r.choice(NAMES) if r.random() < 0.85 else capitalize(made_up_word(r)),
    "time": _time,
    "date": _date,
    "small": lambda r: r.randrange(1, 60),
    "number": lambda r: r.randrange(1, 1000),
    "percent": lambda r: r.randrange(0, 101),
    "degrees": lambda r: r.randrange(10, 30),
    "people": lambda r: r.randrange(1, 13),
    "text": lambda r: r.choice(_TEXTS),
    "task": lambda r: r.choice(_TASKS),
    "topic": lambda r: r.choice(_TOPICS),
    "song": lambda r: r.choice(_SONGS),
    "language": lambda r: r.choice(_LANGUAGES),
    "currency": lambda r: r.choice(_CURRENCIES),
    "company": lambda r: r.choice(_COMPANIES),
    "room": lambda r: r.choice(ROOMS),
    "thing": lambda r: r.choice(THINGS),
    "colour": lambda r: r.choice(COLOURS),
    "food": lambda r: r.choice(FOODS),
    "hobby": lambda r: r.choice(HOBBIES),
    "word": lambda r: r.choice(WORDS) if r.random() < 0.6 else made_up_word(r),
    "sum": lambda r: f"{r.randrange(2, 1000)} {r.choice('*/')} {r.randrange(2, 100)}",
    "state": lambda r: r.choice(["on", "off"]),
    "level": lambda r: r.choice(["low", "medium", "high"]),
    "size": lambda r: r.choice(["small", "medium", "large"]),
    "flag": lambda r: r.random() < 0.5,
}
ENUMS = {
    "unit": ["celsius", "fahrenheit"],
    "state": ["on", "off"],
    "level": ["low", "medium", "high"],
    "size": ["small", "medium", "large"],
}
_TYPES = {
    "small": "integer",
    "number": "integer",
    "percent": "integer",
    "degrees": "integer",
    "people": "integer",
    "flag": "boolean",
}
_WEATHERS = ("sunny", "cloudy", "rainy", "windy", "foggy", "snowy", "clear", "stormy", "dry")
_SUMMARIES = (
    "There are many pages about it.",
    "It is a popular topic.",
    "Nobody knows it well.",
    "It is older than one may think.",
    "It can be found in many places.",
    "Experts write a lot about it.",
    "It began long ago.",
    "It is something small.",
)
VALUES["condition"] = lambda r: r.choice(_WEATHERS)
VALUES["summary"] = lambda r: r.choice(_SUMMARIES)
VALUES["status"] = lambda r: r.choice(["ok", "done", "success", "ok", "created"])


def property_schema(rng: random.Random, kind: str, description: str) -> dict:
    """JSON schema of one parameter."""
    schema: dict = {"type": _TYPES.get(kind, "string")}
    if schema["type"] == "integer" and rng.random() < 0.2:
        schema["type"] = "number"
    if kind in ENUMS:
        schema["enum"] = ENUMS[kind]
    if description and rng.random() < 0.6:
        schema["description"] = say(rng, description)
    return schema

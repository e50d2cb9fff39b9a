"""The exam's items: held-out conversations without their last answer."""

import random
from collections.abc import Callable
from dataclasses import dataclass

from tools.demo_model.chat import render
from tools.demo_model.conversation import any_question_without_sums, distraction
from tools.demo_model.sample import EXAM, Sample, user
from tools.demo_model.skills_json import json_answer
from tools.demo_model.skills_memory import recall_exam
from tools.demo_model.skills_numbers import arithmetic, compare
from tools.demo_model.skills_self import identity, mini_infer
from tools.demo_model.skills_tools import no_tool, tool_call, tool_dialogue
from tools.demo_model.skills_unknown import HANDWRITTEN, unknown
from tools.demo_model.skills_words import comes_after
from tools.demo_model.stories import raw_story, story

# Shares that the project asks for; skills that are not named here are reported only.
REQUIRED = {
    "arithmetic": 0.95,
    "after": 0.98,
    "story": 0.95,
    "recall": 0.95,
    "json": 0.95,
    "tools": 0.90,
    "unknown": 0.90,
}
MAX_TOKENS = {"story": 320, "raw_story": 320, "tools": 160, "json": 128}
DEFAULT_MAX_TOKENS = 96


@dataclass(frozen=True)
class ExamItem:
    """One prompt and what its answer must fulfil."""

    skill: str
    prompt: str
    expect: dict

    @property
    def max_tokens(self) -> int:
        """Room for the answer."""
        return MAX_TOKENS.get(self.skill, DEFAULT_MAX_TOKENS)


def _raw_story(rng: random.Random) -> ExamItem:
    """The first sentence of a held-out story, to be continued without any chat template."""
    while True:
        sample = raw_story(rng, EXAM)
        name, _, place = sample.key.removeprefix("story:").split("|")
        beginning = sample.text.split(". ")[0] + "."
        if not sample.text.startswith(f"{name} and the") and place in beginning:
            return ExamItem("raw_story", beginning, {"contains": [name, place]})


def _item(skill: str, sample: Sample) -> ExamItem:
    expect = dict(sample.expect)
    expect.pop("from", None)
    if skill == "no_tool":
        expect["no_call"] = True
    return ExamItem(skill, render(sample.messages[:-1], sample.tools, add_generation_prompt=True), expect)


def _no_tool(rng: random.Random) -> Sample:
    return no_tool(rng, EXAM, any_question_without_sums)


MAKERS: dict[str, Callable[[random.Random], Sample]] = {
    "arithmetic": lambda r: arithmetic(r, EXAM),
    "after": lambda r: comes_after(r, EXAM),
    "story": lambda r: story(r, EXAM),
    "recall": lambda r: recall_exam(r, distraction),
    "json": lambda r: json_answer(r, EXAM),
    "tools": lambda r: tool_call(r, EXAM),
    "unknown": lambda r: unknown(r, EXAM),
    "mini_infer": lambda r: mini_infer(r, EXAM),
    "identity": lambda r: identity(r, EXAM),
    "tool_result": lambda r: tool_dialogue(r, EXAM),
    "no_tool": _no_tool,
    "compare": lambda r: compare(r, EXAM),
}


def exam_items(count: int = 300, seed: int = 0) -> list[ExamItem]:
    """Up to ``count`` different prompts for each skill (fewer where a skill has fewer held-out wordings)."""
    items: list[ExamItem] = []
    for skill, maker in MAKERS.items():
        rng = random.Random(f"exam-{seed}-{skill}")
        prompts: dict[str, ExamItem] = {}
        for _ in range(count * 20):
            item = _item(skill, maker(rng))
            prompts.setdefault(item.prompt, item)
            if len(prompts) == count:
                break
        items += prompts.values()
    rng = random.Random(f"exam-{seed}-raw")
    items += {item.prompt: item for item in (_raw_story(rng) for _ in range(count))}.values()
    items += [
        ExamItem("unknown_handwritten", render([user(text)], add_generation_prompt=True), {"unknown": True})
        for text in HANDWRITTEN
    ]
    return items

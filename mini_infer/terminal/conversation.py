"""A conversation in a terminal: who said what, with which sampling, kept in a file when asked to."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from mini_infer.protocol import RequestError, SamplingParams

NOT_FOR_CHAT = ("n", "detokenize", "logprobs", "prompt_logprobs", "structured_outputs", "bad_words_token_ids")
SETTINGS = tuple(field.name for field in fields(SamplingParams) if field.name not in NOT_FOR_CHAT)
ROLES = ("system", "user", "assistant")


@dataclass
class Conversation:
    """`turns` are OpenAI's messages without the system prompt; `sampling` holds SamplingParams fields."""

    system: str | None = None
    sampling: dict[str, Any] = field(default_factory=dict)
    turns: list[dict[str, str]] = field(default_factory=list)
    file: Path | None = None  # where it was saved or loaded last

    @property
    def messages(self) -> list[dict[str, str]]:
        opening = [] if self.system is None else [{"role": "system", "content": self.system}]
        return opening + self.turns

    def say(self, role: str, content: str) -> None:
        self.turns.append({"role": role, "content": content})

    def reset(self) -> None:
        self.turns.clear()

    def take_back(self) -> str | None:
        """Remove the last answer and its question; returns the question, None when there is none."""
        while self.turns:
            turn = self.turns.pop()
            if turn["role"] == "user":
                return turn["content"]
        return None

    def set(self, name: str, text: str) -> None:
        """Set a sampling parameter from what was typed; nothing typed means its default.

        Raises RequestError, naming it, when there is no such parameter or value.
        """
        if name not in SETTINGS:
            raise RequestError(f"{name!r} cannot be set; what can: {', '.join(SETTINGS)}", name)
        changed = {key: value for key, value in self.sampling.items() if key != name}
        if text:
            changed[name] = _value(name, text)
        SamplingParams(**{"max_tokens": None, **changed})  # raises for what is out of range
        self.sampling = changed

    def save(self, path: Path) -> None:
        """Raises RequestError for a file that cannot be written, or that is there and not this conversation's own."""
        body = {"system": self.system, "sampling": self.sampling, "messages": self.turns}
        try:
            with open(path, "w" if path == self.file else "x", encoding="utf-8") as file:
                json.dump(body, file, ensure_ascii=False, indent=2)
                file.write("\n")
        except FileExistsError:
            raise RequestError(f"{path} is there already; choose another name") from None
        except OSError as error:
            raise RequestError(f"{path} cannot be written: {error.strerror}") from None
        self.file = path

    @classmethod
    def load(cls, path: Path) -> Conversation:
        """What `save` wrote. Raises RequestError when the file is something else."""
        try:
            body = json.loads(path.read_text(encoding="utf-8"))
            sampling = {name: _from_json(name, value) for name, value in dict(body["sampling"]).items()}
            loaded = cls(body["system"], sampling, [dict(turn) for turn in body["messages"]], path)
            SamplingParams(**{"max_tokens": None, **loaded.sampling})
            ok = all(set(turn) == {"role", "content"} and turn["role"] in ROLES and isinstance(turn["content"], str)
                     for turn in loaded.turns) and isinstance(loaded.system, (str, type(None)))
        except OSError as error:
            raise RequestError(f"{path} cannot be read: {error.strerror}") from None
        except (ValueError, KeyError, TypeError):
            ok = False
        if not ok:
            raise RequestError(f"{path} is not a conversation that /save wrote")
        return loaded


def _value(name: str, text: str) -> Any:
    """What was typed, as JSON where it is that, else as it stands."""
    try:
        value = json.loads(text)
    except ValueError:
        value = text
    return [value] if name in ("stop", "bad_words") and isinstance(value, str) else _from_json(name, value)


def _from_json(name: str, value: Any) -> Any:
    """A parameter's value: the keys of logit_bias are token ids, those of JSON text."""
    if name == "logit_bias" and isinstance(value, dict):
        return {int(key) if key.isdecimal() else key: bias for key, bias in value.items()}
    return value

"""`mini-infer chat`: read, answer, and the commands in between."""

from __future__ import annotations

import os
import readline
import sys
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

from mini_infer.protocol import RequestError
from mini_infer.terminal.conversation import Conversation
from mini_infer.terminal.models import ChatModel

QUOTES = '"""'
DIM, PLAIN = "\033[2m", "\033[0m"
HISTORY_LINES = 1000
LEAVE = ("/exit", "/quit")
CONTROLS = dict.fromkeys(code for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t")
HELP = f"""\
/reset             forget the conversation
/system TEXT       set the system prompt and start anew; without TEXT there is none
/set NAME VALUE    set a sampling parameter (/set temperature 0.5); without VALUE its default; without NAME show all
/regenerate        answer the last question again
/undo              take the last question and its answer back
/show              print the conversation
/save FILE         write the conversation to a file; /load FILE reads it
/exit              leave (so does Ctrl-D)
Ctrl-C stops an answer. Of a message of several lines each but the last ends with \\, or all stand between {QUOTES}."""


def chat(model: ChatModel, conversation: Conversation) -> int:
    """Talk until the end of input. A stopped answer stays in the conversation as far as it came."""
    prompt = Prompt(model, conversation)
    print(f"{printable(model.name)}: type a message, /help for commands", file=sys.stderr)
    with_history = sys.stdin.isatty()
    if with_history:
        _load_history(list(prompt.commands))
    try:
        while True:
            try:
                message = read_message()
            except EOFError:
                print()
                return 0
            except KeyboardInterrupt:
                print("\n(Ctrl-D or /exit leaves)")
                continue
            if message in LEAVE:
                return 0
            if message:
                prompt.take(message)
    finally:
        if with_history:
            _save_history()


def printable(text: str) -> str:
    """Without control characters: a terminal obeys them, and what a model or a server writes is not to command it."""
    return text.translate(CONTROLS)


def read_message() -> str:
    """A line, or the several that belong together. Raises EOFError and KeyboardInterrupt as `input` does."""
    line = input("> ")
    if line.startswith(QUOTES):
        text = line[len(QUOTES):]
        while not text.endswith(QUOTES):
            text += "\n" + input("… ")
        return text[:-len(QUOTES)].strip("\n")
    while line.endswith("\\"):
        line = line[:-1] + "\n" + input("… ")
    return line.strip()


class Prompt:
    """Does what was typed."""

    def __init__(self, model: ChatModel, conversation: Conversation):
        self._model = model
        self._talk = conversation
        self.commands: dict[str, Callable[[str], None]] = {
            "/help": lambda rest: print(HELP), "/reset": self._reset, "/system": self._system, "/set": self._set,
            "/regenerate": self._regenerate, "/undo": self._undo, "/show": self._show, "/save": self._save,
            "/load": self._load, **dict.fromkeys(LEAVE, lambda rest: None)}

    def take(self, message: str) -> None:
        """A command, or something to answer."""
        name, _, rest = message.partition(" ")
        if not message.startswith("/"):
            self._ask(message)
        elif name not in self.commands:
            print(f"{name} is not a command; /help shows them")
        else:
            try:
                self.commands[name](rest.strip())
            except RequestError as error:
                print(f"error: {error}")

    def _ask(self, question: str) -> None:
        """Answer and remember both; a question without an answer is not remembered."""
        messages = [*self._talk.messages, {"role": "user", "content": question}]
        pieces: list[str] = []
        try:
            with closing(self._model.answer(messages, self._talk.sampling)) as answer:  # type: ignore[type-var]
                for text, thought in answer:
                    if not thought:
                        pieces.append(text)
                    shown = printable(text)
                    print(f"{DIM}{shown}{PLAIN}" if thought and sys.stdout.isatty() else shown, end="", flush=True)
        except KeyboardInterrupt:
            print(" (stopped)", end="")
        except RequestError as error:
            print(f"error: {printable(str(error))}")
            return
        print()
        if pieces:
            self._talk.say("user", question)
            self._talk.say("assistant", "".join(pieces))

    def _regenerate(self, rest: str) -> None:
        before = list(self._talk.turns)
        question = self._talk.take_back()
        if question is None:
            raise RequestError("there is no question yet")
        shorter = len(self._talk.turns)
        self._ask(question)
        if len(self._talk.turns) == shorter:  # no new answer: keep the old one
            self._talk.turns = before

    def _reset(self, rest: str) -> None:
        self._talk.reset()
        print("(a new conversation)")

    def _system(self, rest: str) -> None:
        self._talk.system = rest or None
        self._talk.reset()
        print("(a new conversation)")

    def _undo(self, rest: str) -> None:
        question = self._talk.take_back()
        print("there is nothing to take back" if question is None else f"(took back: {question})")

    def _set(self, rest: str) -> None:
        if rest:
            name, _, value = rest.partition(" ")
            self._talk.set(name, value.strip())
        for name, value in sorted(self._talk.sampling.items()):
            print(f"{name} = {value}")
        if not self._talk.sampling:
            print("all sampling parameters have their defaults")

    def _show(self, rest: str) -> None:
        for message in self._talk.messages:
            print(f"[{message['role']}] {printable(message['content'])}")

    def _save(self, rest: str) -> None:
        self._talk.save(_file(rest, self._talk.file))
        print(f"saved to {self._talk.file}")

    def _load(self, rest: str) -> None:
        loaded = Conversation.load(_file(rest, None))
        vars(self._talk).update(vars(loaded))
        print(f"{len(loaded.turns)} messages")


def _file(text: str, otherwise: Path | None) -> Path:
    if not text and otherwise is None:
        raise RequestError("name a file")
    return Path(text).expanduser() if text or otherwise is None else otherwise


# ---- what readline remembers -----------------------------------------------------------------------------------------


def _history_path() -> Path:
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "mini-infer" / "chat_history"


def _load_history(commands: list[str]) -> None:
    def complete(text: str, state: int) -> str | None:
        return [*(name for name in commands if name.startswith(text)), None][state] if text.startswith("/") else None

    readline.set_completer(complete)
    readline.set_completer_delims(" \n")
    readline.parse_and_bind("tab: complete")
    readline.set_history_length(HISTORY_LINES)
    with suppress(OSError):
        readline.read_history_file(_history_path())


def _save_history() -> None:
    with suppress(OSError):  # a home that cannot be written costs the history, nothing else
        path = _history_path()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
        readline.write_history_file(path)

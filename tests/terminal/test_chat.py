"""`mini-infer chat` as somebody at a keyboard has it: in a pseudo-terminal, with Ctrl-C and Ctrl-D."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from mini_infer.cli import main
from mini_infer.config import ConfigError
from mini_infer.protocol import RequestError
from mini_infer.terminal.chat import Prompt, chat, read_message
from mini_infer.terminal.conversation import Conversation
from mini_infer.terminal.models import Piece, RemoteModel, _pieces
from tests.server.model_dir import SEVEN_B, write_model_dir
from tests.server.running import Running
from tests.terminal.pty_program import Terminal

CTRL_C, CTRL_D = "\x03", "\x04"


class Echo:
    """Says what it was asked, a word at a time; `fails` and `stops` after the first word."""

    name = "echo"

    def __init__(self) -> None:
        self.asked: list[tuple[list[str], dict[str, Any]]] = []
        self.fails = self.stops = False
        self.closed = 0

    def answer(self, messages: Sequence[Mapping[str, str]], sampling: Mapping[str, Any]) -> Iterator[Piece]:
        self.asked.append(([message["content"] for message in messages], dict(sampling)))
        try:
            if self.fails:
                raise RequestError("too long")
            yield Piece("hm ", thought=True)
            for word in messages[-1]["content"].split():
                yield Piece(word + " ")
                if self.stops:
                    raise KeyboardInterrupt
        finally:
            self.closed += 1


def typed(monkeypatch: pytest.MonkeyPatch, *lines: str | BaseException) -> None:
    waiting = iter(lines)

    def read(prompt: str) -> str:
        line = next(waiting, EOFError())
        if isinstance(line, BaseException):
            raise line
        return line

    monkeypatch.setattr("builtins.input", read)


class TestPrompt:
    def test_questions_answers_and_history(self, monkeypatch: pytest.MonkeyPatch,
                                           capsys: pytest.CaptureFixture[str]) -> None:
        model = Echo()
        typed(monkeypatch, "one two", "", "three", "/regenerate", "/undo", "/show")
        assert chat(model, Conversation("be kind", {"seed": 1})) == 0
        assert model.asked == [
            (["be kind", "one two"], {"seed": 1}),
            (["be kind", "one two", "one two ", "three"], {"seed": 1}),
            (["be kind", "one two", "one two ", "three"], {"seed": 1})]
        assert capsys.readouterr().out.splitlines() == [
            "hm one two ", "hm three ", "hm three ", "(took back: three)", "[system] be kind", "[user] one two",
            "[assistant] one two ", ""]

    def test_commands(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
                      tmp_path: Path) -> None:
        model = Echo()
        typed(monkeypatch, "/set temperature 0.5", "hello", f"/save {tmp_path / 'talk'}", "/system be brief", "/set",
              "/set temperature", "there", f"/load {tmp_path / 'talk'}", "again", "/save", "/exit", "never read")
        assert chat(model, Conversation()) == 0
        assert [asked for asked, _ in model.asked] == [["hello"], ["be brief", "there"], ["hello", "hello ", "again"]]
        assert [sampling for _, sampling in model.asked] == [{"temperature": 0.5}, {}, {"temperature": 0.5}]
        assert len(json.loads((tmp_path / "talk").read_text())["messages"]) == 4
        assert "temperature = 0.5" in capsys.readouterr().out

    @pytest.mark.parametrize("line, says", [
        ("/dance", "/dance is not a command"), ("/set colour 1", "'colour' cannot be set"), ("/set top_p 7", "top_p"),
        ("/save", "name a file"), ("/load nowhere.json", "nowhere.json cannot be read"), ("/regenerate", "no question"),
        ("/undo", "nothing to take back"), ("/help", "/regenerate"), ("/set", "defaults"), ("/reset", "new"),
    ])
    def test_commands_answer_and_ask_the_model_nothing(self, capsys: pytest.CaptureFixture[str], line: str,
                                                       says: str) -> None:
        model = Echo()
        Prompt(model, Conversation()).take(line)
        assert says in capsys.readouterr().out and not model.asked

    def test_help_names_every_command(self, capsys: pytest.CaptureFixture[str]) -> None:
        prompt = Prompt(Echo(), Conversation())
        prompt.take("/help")
        out = capsys.readouterr().out
        assert all(name in out for name in prompt.commands if name not in ("/help", "/quit"))

    def test_a_failed_question_leaves_everything_as_it_was(self, capsys: pytest.CaptureFixture[str]) -> None:
        model, talk = Echo(), Conversation()
        prompt = Prompt(model, talk)
        prompt.take("hello")
        before = list(talk.turns)
        model.fails = True
        prompt.take("more")
        prompt.take("/regenerate")
        assert talk.turns == before and capsys.readouterr().out.count("error: too long") == 2

    def test_the_terminal_obeys_nobody_else(self, capsys: pytest.CaptureFixture[str]) -> None:
        prompt = Prompt(Echo(), Conversation())
        prompt.take("\x1b]52;c;cm0=\x07 \x9b2J\tb\nc\r")
        prompt.take("/show")
        out = capsys.readouterr().out
        assert "]52;c;cm0=" in out and not any(not char.isprintable() for char in out if char not in "\n\t")

    def test_ctrl_c_keeps_what_was_said(self, monkeypatch: pytest.MonkeyPatch,
                                        capsys: pytest.CaptureFixture[str]) -> None:
        model, talk = Echo(), Conversation()
        model.stops = True
        typed(monkeypatch, KeyboardInterrupt(), "one two", "three four")
        assert chat(model, talk) == 0
        assert [turn["content"] for turn in talk.turns] == ["one two", "one ", "three four", "three "]
        assert model.closed == 2 and capsys.readouterr().out.count("(stopped)") == 2

    @pytest.mark.parametrize("lines, message", [
        (["plain "], "plain"), (["a\\", "b\\", "c"], "a\nb\nc"), (['"""', "  a", "", "b", '"""'], "  a\n\nb"),
        (['"""one line"""'], "one line"), (['"""/etc is a path"""'], "/etc is a path")])
    def test_messages_of_several_lines(self, monkeypatch: pytest.MonkeyPatch, lines: list[str], message: str) -> None:
        typed(monkeypatch, *lines)
        assert read_message() == message


@pytest.fixture(scope="module")
def slow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A token takes 55 ms, and an answer without a limit some 20 s."""
    model = write_model_dir(tmp_path_factory.mktemp("chat") / "slow", SEVEN_B)
    with Running(model, "--dry-run", "--dry-gpu", "L4") as running:
        yield running


class TestInATerminal:
    def test_against_a_server(self, slow_server: Running, tmp_path: Path) -> None:
        with Terminal("chat", "--url", slow_server.url, "--temperature", "0", home=tmp_path) as terminal:
            terminal.wait_for("> ")
            terminal.type("/set max_tokens 3\n")
            terminal.wait_for("max_tokens = 3")
            terminal.wait_for("> ")
            terminal.type("first\\\nsecond\n")
            terminal.wait_for("… ")
            first = terminal.wait_for("\n> ")
            terminal.type("/regenerate\n")
            assert first.splitlines()[-2] in terminal.wait_for("\n> ")  # greedy: the same words
            terminal.type("/set max_tokens\n")
            terminal.wait_for("\n> ")
            terminal.type("a long one\n")
            slow_server.eventually("num_requests_running", 1)
            terminal.type(CTRL_C)
            terminal.wait_for("(stopped)")
            slow_server.eventually("num_requests_running", 0)  # the server heard of it
            terminal.wait_for("\n> ")
            terminal.press_until(CTRL_C, "Ctrl-D or /exit leaves")
            terminal.wait_for("\n> ")
            terminal.type("/show\n")
            assert "first\nsecond" in terminal.wait_for("[user] a long one")
            terminal.wait_for("\n> ")
            terminal.type(CTRL_D)
            assert terminal.exit_status() == 0
        history = tmp_path / "mini-infer" / "chat_history"
        assert "a long one" in history.read_text() and history.stat().st_mode & 0o077 == 0

    @pytest.mark.weights
    def test_with_the_bundled_model_in_this_process(self, tmp_path: Path) -> None:
        with Terminal("chat", "--temperature", "0", "--max-tokens", "30", home=tmp_path) as terminal:
            terminal.wait_for("> ")
            terminal.type("What is 27 + 35?\n")
            assert "62" in terminal.wait_for("\n> ").partition("?")[2]
            terminal.type("/set max_tokens\n")
            terminal.wait_for("\n> ")
            terminal.type("/set ignore_eos true\n")
            terminal.wait_for("\n> ")
            terminal.type("Who are you?\n")
            terminal.wait_for("?\n")  # what was typed
            terminal.wait_for(" ")  # and something of an answer that would take very long
            terminal.type(CTRL_C)
            terminal.wait_for("(stopped)\n> ")
            terminal.type("/set max_tokens 20\n")
            terminal.wait_for("\n> ")
            terminal.type("What is 27 + 35?\n")  # the engine has lost nothing
            assert "error" not in terminal.wait_for("\n> ")
            terminal.type(CTRL_D)
            assert terminal.exit_status() == 0


class TestRemote:
    def test_what_the_server_refuses_is_shown(self, slow_server: Running, monkeypatch: pytest.MonkeyPatch,
                                              capsys: pytest.CaptureFixture[str]) -> None:
        typed(monkeypatch, "hello " * 1000, "hello")
        assert chat(RemoteModel(slow_server.url + "/v1"), Conversation("be kind", {"max_tokens": 2})) == 0
        first, second = capsys.readouterr().out.splitlines()[:2]
        assert first.startswith("error: This model's maximum context length") and not second.startswith("error")

    @pytest.mark.parametrize("reply, says", [
        (b"", "broke"), (b"garbage\r\n\r\n", "broke"),
        (b"HTTP/1.1 500 Oops\r\nContent-Length: 4\r\n\r\noops", "answered 500 Oops"),
        (b"HTTP/1.1 401 No\r\n\r\n{\"error\": {\"message\": \"no key\"}}", "no key"),
        (b"HTTP/1.1 200 OK\r\n\r\ndata: {\"choices\": 5}\n\n", "no chunk"),
        (b"HTTP/1.1 200 OK\r\n\r\ndata: [1\n\n", "no chunk"),
        (b"HTTP/1.1 200 OK\r\n\r\ndata: {\"error\": {\"message\": \"died\"}}\n\n", "died"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\ndata: {\"choices\": []}\n\n", None),
    ])
    def test_a_strange_server_costs_the_answer_alone(self, reply: bytes, says: str | None) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            def serve() -> None:
                connection, _ = listener.accept()
                with connection:
                    while not b"".join(heard).endswith(b"}"):  # the headers, then the body
                        heard.append(connection.recv(1 << 16))
                    connection.sendall(reply)

            heard: list[bytes] = []
            thread = threading.Thread(target=serve)
            thread.start()
            model = RemoteModel(f"http://127.0.0.1:{listener.getsockname()[1]}", "m", "sk-1")
            try:
                pieces = list(model.answer([{"role": "user", "content": "x"}], {}))
                assert says is None and pieces == []
            except RequestError as error:
                assert says is not None and says in str(error)
            thread.join()
        assert b"Authorization: Bearer sk-1" in b"".join(heard)

    def test_thoughts_are_told_from_the_answer(self) -> None:
        lines = [b'data: {"choices": [{"delta": {"role": "assistant"}}]}\n', b"\n", b": a comment\n",
                 b'data: {"choices": [{"delta": {"reasoning_content": "hm"}}, {"delta": {"content": "yes"}}]}\n',
                 b'data:{"choices": [], "usage": {}}\n', b"data: [DONE]\n"]
        assert list(_pieces(iter(lines))) == [("hm", True), ("yes", False)]

    def test_no_server(self, capsys: pytest.CaptureFixture[str]) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(ConfigError, match="no answer from"):
            RemoteModel(url)
        assert main(["chat", "--api-key", "k"]) == 2 and "--url" in capsys.readouterr().err
        assert main(["chat", "--url", url, "--temperature", "-1"]) == 2
        assert "temperature" in capsys.readouterr().err

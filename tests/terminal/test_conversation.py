"""What a conversation remembers, and the files it is kept in."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mini_infer.protocol import RequestError
from mini_infer.terminal.conversation import Conversation

TEXT = st.text(st.characters(exclude_categories=["Cs"]))


@pytest.mark.parametrize("name, text, value", [
    ("temperature", "0.5", 0.5), ("max_tokens", "20", 20), ("max_tokens", "null", None), ("seed", "7", 7),
    ("stop", "END", ["END"]), ("stop", '["a", "b"]', ["a", "b"]), ("ignore_eos", "true", True),
    ("logit_bias", '{"3": -5}', {3: -5}), ("bad_words", "darn", ["darn"])])
def test_settings(name: str, text: str, value: object) -> None:
    talk = Conversation()
    talk.set(name, text)
    assert talk.sampling == {name: value}
    talk.set(name, "")
    assert talk.sampling == {}


@pytest.mark.parametrize("name, text", [("temperature", "hot"), ("temperature", "-1"), ("top_p", "2"), ("n", "2"),
                                        ("colour", "1"), ("stop", "[1]"), ("seed", "[]"), ("logprobs", "1"),
                                        ("structured_outputs", '{"regex": "a"}')])
def test_what_cannot_be_set_is_named_and_changes_nothing(name: str, text: str) -> None:
    talk = Conversation(sampling={"top_k": 5})
    with pytest.raises(RequestError, match=name):
        talk.set(name, text)
    assert talk.sampling == {"top_k": 5}


def test_taking_back() -> None:
    talk = Conversation("be kind")
    assert talk.take_back() is None
    for content in ("one", "two"):
        talk.say("user", content)
        talk.say("assistant", content.upper())
    assert talk.take_back() == "two"
    assert [turn["content"] for turn in talk.messages] == ["be kind", "one", "ONE"]
    talk.reset()
    assert talk.messages == [{"role": "system", "content": "be kind"}]


@given(system=st.none() | TEXT, turns=st.lists(st.tuples(st.sampled_from(["user", "assistant"]), TEXT)))
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_file_brings_it_all_back(tmp_path: Path, system: str | None, turns: list[tuple[str, str]]) -> None:
    talk = Conversation(system, {"temperature": 0.5, "stop": ["x"], "logit_bias": {3: -5}})
    for role, content in turns:
        talk.say(role, content)
    path = tmp_path / "talk"
    path.unlink(missing_ok=True)
    talk.save(path)
    assert Conversation.load(path) == talk


def test_only_its_own_file_is_written_again(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("precious")
    talk = Conversation()
    with pytest.raises(RequestError, match="there already"):
        talk.save(tmp_path / "mine")
    assert (tmp_path / "mine").read_text() == "precious"
    talk.save(tmp_path / "talk")
    talk.say("user", "hi")
    talk.save(tmp_path / "talk")
    assert Conversation.load(tmp_path / "talk").turns == talk.turns
    with pytest.raises(RequestError, match="cannot be written"):
        talk.save(tmp_path / "no" / "talk")


@pytest.mark.parametrize("body", [
    "", "[]", "{}", {"system": 1, "sampling": {}, "messages": []}, {"system": None, "sampling": [], "messages": [1]},
    {"system": None, "sampling": {"temperature": "hot"}, "messages": []},
    {"system": None, "sampling": {"colour": 1}, "messages": []},
    {"system": None, "sampling": {}, "messages": [{"role": "king", "content": "x"}]},
    {"system": None, "sampling": {}, "messages": [{"role": "user", "content": 5}]}], ids=str)
def test_other_files_are_refused(tmp_path: Path, body: object) -> None:
    (tmp_path / "file").write_text(body if isinstance(body, str) else json.dumps(body))
    with pytest.raises(RequestError, match="not a conversation"):
        Conversation.load(tmp_path / "file")
    with pytest.raises(RequestError, match="cannot be read"):
        Conversation.load(tmp_path / "nothing")

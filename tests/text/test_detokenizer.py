"""Increments equal the whole, whatever the ids and however they are cut."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trained import BYTE_FALLBACK, LOCAL, tokenizer

from mini_infer.config import BUNDLED_MODEL_DIR
from mini_infer.text.detokenizer import IncrementalDetokenizer
from mini_infer.text.tokenizer import Tokenizer

NAMES = list(LOCAL)


def token_ids(tok: Tokenizer, max_size: int = 40) -> st.SearchStrategy[list[int]]:
    """Any ids, a few of them outside the vocabulary, and runs of the byte tokens, which random ids rarely hit."""
    byte_ids = [i for i in range(tok.vocab_size) if len(tok.token_bytes(i)) == 1]
    some = st.integers(0, tok.vocab_size + 2)
    return st.lists(some | st.sampled_from(byte_ids) if byte_ids else some, max_size=max_size)


def cut(ids: list[int], places: list[int]) -> list[list[int]]:
    bounds = [0, *sorted(place % (len(ids) + 1) for place in places), len(ids)]
    return [ids[a:b] for a, b in pairwise(bounds)]


def stream(tok: Tokenizer, chunks: list[list[int]], skip: bool = True, prompt: tuple[int, ...] = ()) -> list[str]:
    detokenizer = IncrementalDetokenizer(tok, skip, prompt)
    return [*(detokenizer.push(chunk) for chunk in chunks), detokenizer.flush()]


@pytest.mark.parametrize("name", NAMES)
@settings(deadline=None, max_examples=150)
@given(data=st.data(), skip=st.booleans(), places=st.lists(st.integers(0, 100), max_size=60))
def test_increments_equal_full_decode(name: str, data: st.DataObject, skip: bool, places: list[int]) -> None:
    tok = tokenizer(name)
    ids = data.draw(token_ids(tok))
    full = tok.decode(ids, skip)
    assert "".join(stream(tok, cut(ids, places), skip)) == full
    assert "".join(stream(tok, [[i] for i in ids], skip)) == full


@pytest.mark.parametrize("name", NAMES)
@settings(deadline=None, max_examples=150)
@given(data=st.data(), skip=st.booleans())
def test_decode_is_the_library_s(name: str, data: st.DataObject, skip: bool) -> None:
    tok = tokenizer(name)
    ids = data.draw(token_ids(tok))
    ours, theirs = tok.decode(ids, skip), LOCAL[name]().decode(ids, skip_special_tokens=skip)
    if name in BYTE_FALLBACK and "\ufffd" in theirs:
        return  # of an invalid run of byte tokens the library drops the valid characters too
    assert ours == theirs


@pytest.mark.parametrize("name", ["byte_level", "llama_style", "gemma_style"])
@settings(deadline=None, max_examples=150)
@given(text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="▁"), max_size=30))
def test_a_text_comes_back_at_once(name: str, text: str) -> None:
    """Every character is there with its last token: nothing waits for the flush, no replacement is ever shown."""
    tok = tokenizer(name)
    ids = tok.encode(text, add_special_tokens=False)
    pieces = stream(tok, [[i] for i in ids], skip=False)
    assert "".join(pieces) == text
    assert pieces[-1] == ""
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in pieces)


@pytest.mark.parametrize("name", NAMES)
@settings(deadline=None, max_examples=100)
@given(data=st.data(), skip=st.booleans())
def test_text_continues_its_prompt(name: str, data: st.DataObject, skip: bool) -> None:
    """Prompt and output read as one text, leading spaces and all, even when the cut is inside a character."""
    tok = tokenizer(name)
    prompt, ids = data.draw(token_ids(tok, 12)), data.draw(token_ids(tok, 12))
    begun = IncrementalDetokenizer(tok, skip)
    prompt_text = begun.push(prompt)  # without the character that the prompt leaves incomplete
    assert prompt_text + "".join(stream(tok, [[i] for i in ids], skip, tuple(prompt))) == tok.decode(prompt + ids, skip)


def test_a_character_of_four_tokens() -> None:
    tok = tokenizer("llama_style")
    smile = [tok.piece_to_id(f"<0x{byte:02X}>") for byte in "🙂".encode()]
    assert stream(tok, [[i] for i in smile]) == ["", "", "", "🙂", ""]
    assert stream(tok, [smile[:3]]) == ["", "\ufffd"]
    assert stream(tok, [[smile[0]], smile]) == ["", "\ufffd🙂", ""]
    assert stream(tok, [smile[2:]], prompt=tuple(smile[:2])) == ["🙂", ""]


def test_leading_space_is_dropped_only_at_the_start_of_a_text() -> None:
    tok = tokenizer("llama_style")
    the = tok.encode("the", add_special_tokens=False)
    assert the == [tok.piece_to_id("▁the")]
    assert stream(tok, [the, the])[:2] == ["the", " the"]
    assert stream(tok, [the], prompt=(tok.bos_token_id,))[0] == "the"
    assert stream(tok, [the], prompt=(tok.bos_token_id, *the))[0] == " the"


def test_special_tokens_are_hidden_or_shown() -> None:
    tok = tokenizer("byte_level")
    ids = [*tok.encode("fox"), tok.eos_token_id]
    assert "".join(stream(tok, [ids])) == "fox"
    assert "".join(stream(tok, [ids], skip=False)) == "fox<|im_end|>"
    # Half a character on either side of a hidden token is still one character, as for the library.
    a, b = (next(i for i in range(tok.vocab_size) if tok.token_bytes(i) == byte) for byte in (b"\xc3", b"\xa9"))
    assert "".join(stream(tok, [[a], [tok.eos_token_id], [b]])) == "é"


def test_endless_invalid_bytes_hold_nothing_back() -> None:
    tok = tokenizer("byte_level")
    bad = next(i for i in range(tok.vocab_size) if tok.token_bytes(i) == b"\xff")
    detokenizer = IncrementalDetokenizer(tok)
    assert [detokenizer.push([bad]) for _ in range(1000)] == ["\ufffd"] * 1000


@settings(deadline=None, max_examples=100)
@given(words=st.lists(st.sampled_from(["the", "quick", "brown", "fox", "jumps", "lazy", "dog"]), max_size=30))
def test_black_box_decoder(words: list[str]) -> None:
    """A decoder that is not local goes through windows; ordinary text comes out the same."""
    tok = tokenizer("word_end")
    assert tok.pieces(True) is None
    ids = tok.encode(" ".join(words))
    assert "".join(stream(tok, [[i] for i in ids])) == tok.decode(ids)
    assert "".join(stream(tok, [ids[3:]], prompt=tuple(ids[:3]))) == tok.decode(ids)[len(tok.decode(ids[:3])):]


@pytest.mark.skipif(not (BUNDLED_MODEL_DIR / "tokenizer.json").is_file(), reason="the bundled tokenizer is not here")
@settings(deadline=None, max_examples=150)
@given(data=st.data(), skip=st.booleans())
def test_bundled_tokenizer(data: st.DataObject, skip: bool) -> None:
    tok = _bundled()
    ids = data.draw(token_ids(tok))
    text = data.draw(st.text(st.characters(exclude_categories=["Cs"]), max_size=20))
    assert "".join(stream(tok, [[i] for i in ids], skip)) == tok.decode(ids, skip)
    assert tok.decode(ids, skip) == tok._backend.decode(ids, skip_special_tokens=skip)
    assert "".join(stream(tok, [[i] for i in tok.encode(text, False)], skip=False)) == text


_LOADED: list[Tokenizer] = []


def _bundled() -> Tokenizer:
    if not _LOADED:
        _LOADED.append(Tokenizer.load(BUNDLED_MODEL_DIR))
    return _LOADED[0]

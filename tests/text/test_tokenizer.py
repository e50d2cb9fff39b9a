"""Tokenizers of a model directory: the same ids as transformers gives, and an error that names the file otherwise."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from trained import CORPUS, LOCAL, byte_level, llama_style, tokenizer

from mini_infer.config import ConfigError
from mini_infer.protocol import RequestError
from mini_infer.text.tokenizer import Tokenizer

TEXTS = ["the fox", " leading", "", "a <|im_end|> b <s> c</s>", "日本 🙂 two words é\n\n  x", *CORPUS[:4]]


def model_dir(path: Path, name: str, config: dict[str, Any] | None = None) -> Path:
    LOCAL[name]().save(str(path / "tokenizer.json"))
    if config is not None:
        (path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return path


@pytest.mark.parametrize("name, config", [
    ("llama_style", {"bos_token": "<s>", "eos_token": "</s>"}),
    ("llama_style", {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": False, "add_eos_token": True}),
    ("byte_level", {"eos_token": "<|im_end|>", "add_bos_token": False, "pad_token": "<|pad|>"}),
    ("byte_level", {"eos_token": {"content": "<|im_end|>", "__type": "AddedToken", "lstrip": False, "rstrip": False,
                                  "normalized": False, "single_word": False},
                    "additional_special_tokens": ["<|im_start|>", "<|new|>"]}),
    ("byte_level", {"eos_token": "<|im_end|>", "extra_special_tokens": {"tool_token": "<tool_call>"}}),
    ("byte_level", {"added_tokens_decoder": {"0": {"content": "<|im_start|>", "special": True},
                                             "403": {"content": "<|late|>", "special": True, "normalized": False}}}),
    ("unigram", {"eos_token": "</s>"}),
])
def test_same_as_transformers(tmp_path: Path, name: str, config: dict[str, Any]) -> None:
    transformers = pytest.importorskip("transformers")
    path = model_dir(tmp_path, name, {"tokenizer_class": "PreTrainedTokenizerFast", **config})
    theirs, ours = transformers.AutoTokenizer.from_pretrained(path), Tokenizer.load(path)
    for text in TEXTS:
        assert ours.encode(text) == theirs(text)["input_ids"]
        ids = ours.encode(text, add_special_tokens=False)
        assert ids == theirs(text, add_special_tokens=False)["input_ids"]
        for skip in (True, False):
            assert ours.decode(ids, skip) == theirs.decode(ids, skip_special_tokens=skip)
    assert (ours.bos_token_id, ours.eos_token_id) == (theirs.bos_token_id, theirs.eos_token_id)
    assert ours.pad_token_id == theirs.pad_token_id
    assert ours.vocab_size == len(theirs)
    assert ours.special_token_ids == set(theirs.all_special_ids) | ours.special_token_ids
    for key, text in ours.special_tokens.items():
        assert theirs.special_tokens_map.get(key, text) == text


def test_bos_where_only_the_config_says_so(tmp_path: Path) -> None:
    config = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "add_bos_token": True}
    tok = Tokenizer.load(model_dir(tmp_path, "byte_level", config))
    assert tok.bos_token_id is not None
    assert tok.encode("fox") == [tok.bos_token_id, *tok.encode("fox", add_special_tokens=False)]


def test_special_tokens_map_of_older_directories(tmp_path: Path) -> None:
    model_dir(tmp_path, "llama_style")
    special = {"bos_token": "<s>", "eos_token": {"content": "</s>"}}
    (tmp_path / "special_tokens_map.json").write_text(json.dumps(special))
    tok = Tokenizer.load(tmp_path)
    assert (tok.bos_token_id, tok.eos_token_id) == (tok.piece_to_id("<s>"), tok.piece_to_id("</s>"))


def test_saved_truncation_and_padding_do_not_touch_prompts(tmp_path: Path) -> None:
    backend = type(byte_level()).from_str(byte_level().to_str())
    backend.enable_truncation(3)
    backend.enable_padding(length=50)
    backend.save(str(tmp_path / "tokenizer.json"))
    assert Tokenizer.load(tmp_path).encode(CORPUS[0]) == tokenizer("byte_level").encode(CORPUS[0])


def test_pieces_and_bytes() -> None:
    tok = tokenizer("llama_style")
    assert tok.id_to_piece(tok.piece_to_id("▁the")) == "▁the"
    assert tok.token_text(tok.piece_to_id("▁the")) == " the"
    assert tok.token_bytes(tok.piece_to_id("<0xE2>")) == b"\xe2"
    assert tok.token_text(tok.piece_to_id("<0xE2>")) == "\ufffd"
    assert tok.token_text(tok.eos_token_id) == "</s>"
    for outside in (-1, tok.vocab_size, 2**40):
        assert tok.id_to_piece(outside) is None
        assert tok.token_bytes(outside) == b""
        assert tok.decode([outside]) == ""
    known = len(tok.pieces(True) or ())
    tok.decode(list(range(2**31, 2**31 + 1000)))
    assert len(tok.pieces(True) or ()) == known


@pytest.mark.parametrize("bad", ["a lone \ud800 surrogate", None, 7, b"bytes"])
def test_text_that_cannot_be_encoded(bad: Any) -> None:
    with pytest.raises(RequestError) as error:
        tokenizer("byte_level").encode(bad)
    assert error.value.param == "prompt"


def test_threads_share_a_tokenizer() -> None:
    tok = Tokenizer(type(byte_level()).from_str(byte_level().to_str()))
    expected = [tok.encode(text) for text in CORPUS]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(tok.encode, CORPUS * 50)) == expected * 50
        fresh = Tokenizer(type(byte_level()).from_str(byte_level().to_str()))
        assert list(pool.map(fresh.decode, expected * 50)) == CORPUS * 50


@pytest.mark.parametrize("content", ["", "{", "{}", "[]", '{"model": {"type": "BPE"}}', "\x00\x01"])
def test_corrupt_tokenizer_json(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(ConfigError, match=r"tokenizer\.json"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"added_tokens_decoder": {"x": {"content": "a"}}}',
                                     '{"added_tokens_decoder": {"0": 1}}', '{"eos_token": {"text": "a"}}',
                                     '{"additional_special_tokens": 3}', '{"extra_special_tokens": {"a": 1}}'])
def test_corrupt_tokenizer_config(tmp_path: Path, content: str) -> None:
    model_dir(tmp_path, "byte_level")
    (tmp_path / "tokenizer_config.json").write_text(content)
    with pytest.raises(ConfigError, match=r"tokenizer_config\.json"):
        Tokenizer.load(tmp_path)


def test_missing_files(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(ConfigError, match=r"no tokenizer\.json"):
            Tokenizer.load(path)


def test_other_files_go_through_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    made = transformers.PreTrainedTokenizerFast(tokenizer_object=byte_level(), eos_token="<|im_end|>")
    made.save_pretrained(tmp_path)
    model = json.loads((tmp_path / "tokenizer.json").read_text())["model"]
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "vocab.json").write_text(json.dumps(model["vocab"]))
    merges = "\n".join(" ".join(merge) for merge in model["merges"])
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + merges)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer",
                                                               "eos_token": "<|im_end|>"}))
    tok = Tokenizer.load(tmp_path)
    assert tok.encode("the quick fox") == tokenizer("byte_level").encode("the quick fox")
    assert tok.eos_token_id == tokenizer("byte_level").eos_token_id
    shutil.copy(tmp_path / "vocab.json", tmp_path / "tokenizer.model")
    (tmp_path / "vocab.json").unlink()
    (tmp_path / "merges.txt").write_text("")
    with pytest.raises(ConfigError, match=r"tokenizer\.model but no tokenizer\.json"):
        Tokenizer.load(tmp_path)


def test_neither_torch_nor_transformers_is_imported(tmp_path: Path) -> None:
    model_dir(tmp_path, "llama_style", {"chat_template": "{{ messages[0].content }}"})
    code = ("import sys; from mini_infer.text import chat_template, detokenizer, door, output, stop, tokenizer; "
            f"t = tokenizer.Tokenizer.load({str(tmp_path)!r}); chat_template.ChatTemplate.load({str(tmp_path)!r}, t); "
            "print([name for name in ('torch', 'transformers', 'numpy', 'pydantic') if name in sys.modules])")
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_llama_text_round_trip() -> None:
    tok = Tokenizer(type(llama_style()).from_str(llama_style().to_str()))
    for text in TEXTS[:2]:
        assert tok.decode(tok.encode(text)) == text

"""The tokenizer of a model directory: text to ids and back. With a tokenizer.json, transformers is not needed.

Follows transformers 5 in what a directory means: added tokens and named special tokens of tokenizer_config.json (and
special_tokens_map.json) are added to tokenizer.json's, whose template says what BOS and EOS an encoded text gets. Where
it has no template, add_bos_token and add_eos_token of tokenizer_config.json say so, as in transformers 4.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, processors
from tokenizers import Tokenizer as Backend

from mini_infer.config import ConfigError
from mini_infer.protocol import RequestError
from mini_infer.text.pieces import PieceTable, piece_table

# Files that transformers can make a fast tokenizer of when there is no tokenizer.json.
OTHER_TOKENIZER_FILES = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "vocab.json", "vocab.txt",
                         "tiktoken.model")


class Tokenizer:
    """Encodes and decodes. Nothing changes after loading, so any number of threads may share one.

    special_tokens: name -> text, for chat templates ("bos_token", "eos_token", "pad_token", ...).
    special_token_ids: all ids that `skip_special_tokens` hides.
    vocab_size: tokens it knows, added ones included; a model's logits may be wider.
    """

    def __init__(self, backend: Backend, special_tokens: dict[str, str] | None = None):
        backend.no_truncation()  # a saved training setting must not cut prompts
        backend.no_padding()
        self._backend = backend
        self.special_tokens = special_tokens or {}
        self.vocab_size: int = backend.get_vocab_size(with_added_tokens=True)
        added = backend.get_added_tokens_decoder()
        self.special_token_ids = frozenset(i for i, token in added.items() if token.special)
        self.bos_token_id = self._named_id("bos_token")
        self.eos_token_id = self._named_id("eos_token")
        self.pad_token_id = self._named_id("pad_token")
        self._pieces = {
            True: piece_table(backend, self.id_to_piece, self.special_token_ids),
            False: piece_table(backend, self.id_to_piece, ()),
        }

    @classmethod
    def load(cls, model_dir: str | Path) -> Tokenizer:
        """Read a local model directory. Raises ConfigError naming the file that is missing or corrupt."""
        path = Path(model_dir)
        if (path / "tokenizer.json").is_file():
            return cls(*_read_tokenizer_json(path))
        found = [name for name in OTHER_TOKENIZER_FILES if (path / name).is_file()]
        if not found:
            raise ConfigError(f"tokenizer: {path} has no tokenizer.json (nor {', '.join(OTHER_TOKENIZER_FILES)}); give "
                              "a directory that has one, or skip_tokenizer_init=True and token ids as prompts")
        return cls(*_convert_with_transformers(path, found[0]))

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text. Raises RequestError("prompt") for text that is not valid Unicode.

        Works on the calling thread, without the interpreter lock: the library's own pool of threads, which batches of
        everybody wait for, is not used for a batch of one.
        """
        return self.encode_batch([text], add_special_tokens)[0]

    def encode_batch(self, texts: Sequence[str], add_special_tokens: bool = True) -> list[list[int]]:
        """Like `encode` for many texts, on all cores. Releases the interpreter lock while it works."""
        try:
            encodings = self._backend.encode_batch_fast(list(texts), add_special_tokens=add_special_tokens)
        except (UnicodeEncodeError, TypeError):
            raise RequestError("prompt must be text of valid Unicode; it is not a string, or holds a lone surrogate",
                               "prompt") from None
        return [encoding.ids for encoding in encodings]

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of a whole sequence; ids outside the vocabulary give nothing.

        As `tokenizers` decodes it, but for one case: of a run of byte tokens (<0xNN>) that is not valid UTF-8 as a
        whole, only the invalid bytes become U+FFFD, so that valid characters need not wait for the end of the run.
        """
        table = self._pieces[skip_special_tokens]
        if table is None:
            return self._backend.decode(list(token_ids), skip_special_tokens=skip_special_tokens)
        pieces = [table[token_id] for token_id in token_ids]
        if table.first_differs:
            first = next((i for i, token_id in enumerate(token_ids) if table.counts(token_id)), None)
            if first is not None:
                pieces[first] = table.first(token_ids[first])
        text = b"".join(pieces).decode("utf-8", "replace")
        char, count = table.strip
        while count and text.startswith(char):
            text = text[len(char):]
            count -= 1
        return text

    def pieces(self, skip_special_tokens: bool) -> PieceTable | None:
        """The bytes of each token, or None when this tokenizer's decoder does not go token by token."""
        return self._pieces[skip_special_tokens]

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes a token stands for inside a text, special tokens included; b"" outside the vocabulary."""
        table = self._pieces[False]
        if table is None:
            return self._backend.decode([token_id], skip_special_tokens=False).encode()
        return table[token_id]

    def token_text(self, token_id: int) -> str:
        """`token_bytes` as text, for display: bytes of an incomplete character show as U+FFFD."""
        return self.token_bytes(token_id).decode("utf-8", "replace")

    def id_to_piece(self, token_id: int) -> str | None:
        """The token as the vocabulary spells it; None outside the vocabulary."""
        return self._backend.id_to_token(token_id) if 0 <= token_id < 2**32 else None

    def piece_to_id(self, piece: str) -> int | None:
        return self._backend.token_to_id(piece)

    def _named_id(self, name: str) -> int | None:
        text = self.special_tokens.get(name)
        return None if text is None else self._backend.token_to_id(text)


def read_tokenizer_config(model_dir: str | Path) -> dict[str, Any]:
    """tokenizer_config.json, {} when there is none. Raises ConfigError when it is not a JSON object."""
    return _read_json(Path(model_dir) / "tokenizer_config.json")


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"tokenizer: {path} is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise ConfigError(f"tokenizer: {path} must hold a JSON object")
    return value


def _read_tokenizer_json(path: Path) -> tuple[Backend, dict[str, str]]:
    file = path / "tokenizer.json"
    try:
        backend = Backend.from_file(str(file))
    except Exception as error:  # the library raises plain Exception for whatever it dislikes
        raise ConfigError(f"tokenizer: {file} is not a valid tokenizer.json: {error}") from None
    config_file = path / "tokenizer_config.json"
    config = _read_json(config_file)
    try:
        listed = config.get("added_tokens_decoder") or {}
        if not listed:  # the older place; newer directories repeat it in the config
            config = {**config, **_read_json(path / "special_tokens_map.json")}
        backend.add_tokens([_added_token(listed[key]) for key in sorted(listed, key=int)])
        named = {name: str(_added_token(value).content) for name, value in config.items()
                 if name.endswith("_token") and isinstance(value, (str, dict))}
        extra = config.get("extra_special_tokens") or []
        if isinstance(extra, dict):  # transformers 5: named by the model, as in {"image_token": "<image>"}
            named.update(extra)
            extra = []
        extra = [*extra, *(config.get("additional_special_tokens") or [])]
        specials = [_added_token(token, special=True) for token in [*named.values(), *extra]]
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise ConfigError(f"tokenizer: {config_file} has malformed tokens: {error!r}") from None
    known = {token.content for token in backend.get_added_tokens_decoder().values() if token.special}
    backend.add_special_tokens([token for token in specials if token.content not in known])
    if not _has_template(backend):
        _add_template(backend, named, config)
    return backend, named


def _added_token(value: str | dict[str, Any], special: bool = False) -> AddedToken:
    if isinstance(value, str):
        return AddedToken(value, special=special, normalized=not special)
    fields = {key: value[key] for key in ("single_word", "lstrip", "rstrip", "normalized") if key in value}
    return AddedToken(value["content"], special=special or bool(value.get("special", False)), **fields)


def _has_template(backend: Backend) -> bool:
    if backend.post_processor is None:
        return False
    state = json.loads(backend.post_processor.__getstate__())
    return any(stage["type"] not in ("ByteLevel", "Sequence") for stage in (state, *state.get("processors", ())))


def _add_template(backend: Backend, named: dict[str, str], config: dict[str, Any]) -> None:
    """Begin an encoded text with BOS and end it with EOS where the config says so and there is such a token."""
    affixes = {name: named[name] for name in ("bos_token", "eos_token") if config.get(f"add_{name}") and name in named}
    if affixes:
        parts = [affixes.get("bos_token"), "$A", affixes.get("eos_token")]
        backend.post_processor = processors.TemplateProcessing(
            single=[part for part in parts if part is not None],
            special_tokens=[(text, backend.token_to_id(text)) for text in affixes.values()],
        )


def _convert_with_transformers(path: Path, found: str) -> tuple[Backend, dict[str, str]]:
    advice = (f"tokenizer: {path} has {found} but no tokenizer.json, and {{}}; save one with "
              "transformers' AutoTokenizer.from_pretrained(...).save_pretrained(...)")
    try:
        from transformers import AutoTokenizer  # slow to import, so only here
    except ImportError:
        raise ConfigError(advice.format("transformers, which can convert it, is not installed")) from None
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(path), trust_remote_code=False, local_files_only=True)
    except Exception as error:  # whatever a converter may raise
        raise ConfigError(advice.format(f"transformers cannot convert it: {error}")) from None
    if not tokenizer.is_fast:
        raise ConfigError(advice.format("transformers has no fast form of it"))
    named = {name: str(token) for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)}
    return tokenizer.backend_tokenizer, named


__all__ = ["Tokenizer", "read_tokenizer_config"]

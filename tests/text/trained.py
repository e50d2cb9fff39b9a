"""Small tokenizers of every kind, trained in a moment on made-up text."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache

from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as Backend

from mini_infer.text.tokenizer import Tokenizer

CORPUS = [
    "the quick brown fox jumps over the lazy dog, and the dog doesn't mind. ",
    "def add(a, b):\n    return a + b  # two  spaces\n\n",
    "Straße, naïve café, señor, Žluťoučký kůň. Привет, мир! こんにちは世界。你好，世界！",
    "emoji: 🙂🙃 👩‍👩‍👧 🇩🇪 ok? yes! 'quoted' \"double\" {\"json\": [1, 2, 3]} ",
] * 4
SPECIAL = ["<|im_start|>", "<|im_end|>"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


@cache
def byte_level() -> Backend:
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.train_from_iterator(CORPUS, trainers.BpeTrainer(
        vocab_size=400, special_tokens=SPECIAL, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    backend.add_tokens([AddedToken("<tool_call>", normalized=False), AddedToken("two words", normalized=False),
                        AddedToken("日本", normalized=False)])
    return backend


@cache
def _bpe_with_bytes() -> Backend:
    """As Llama 2's: a space is ▁, and what no token covers falls back to bytes."""
    seed = Backend(models.BPE())
    seed.pre_tokenizer = pre_tokenizers.Metaspace()
    seed.train_from_iterator(CORPUS[:1] * 4, trainers.BpeTrainer(vocab_size=80, show_progress=False))
    model = json.loads(seed.to_str())["model"]
    tokens = ["<unk>", "<s>", "</s>", *BYTES, *model["vocab"]]
    merges = [tuple(merge) for merge in model["merges"]]
    backend = Backend(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges, unk_token="<unk>",
                                 fuse_unk=True, byte_fallback=True))
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    return backend


@cache
def llama_style() -> Backend:
    backend = Backend.from_str(_bpe_with_bytes().to_str())
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
                                         decoders.Strip(" ", 1, 0)])
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return backend


@cache
def gemma_style() -> Backend:
    backend = Backend.from_str(_bpe_with_bytes().to_str())
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return backend


@cache
def unigram() -> Backend:
    backend = Backend(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    backend.train_from_iterator(CORPUS, trainers.UnigramTrainer(
        vocab_size=200, special_tokens=["<unk>", "</s>"], unk_token="<unk>", show_progress=False))
    return backend


@cache
def unigram_with_bytes() -> Backend:
    trained = json.loads(unigram().to_str())["model"]["vocab"]
    pieces = [(piece, score) for piece, score in trained] + [(byte, -20.0) for byte in BYTES]
    backend = Backend(models.Unigram(pieces, 0, True))
    backend.add_special_tokens(["<unk>", "</s>"])
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    return backend


@cache
def wordpiece() -> Backend:
    backend = Backend(models.WordPiece(unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    backend.train_from_iterator(CORPUS, trainers.WordPieceTrainer(
        vocab_size=200, special_tokens=["[UNK]", "[SEP]"], show_progress=False))
    return backend


@cache
def word_level() -> Backend:
    backend = Backend(models.WordLevel(unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.train_from_iterator(CORPUS, trainers.WordLevelTrainer(special_tokens=["[UNK]"], show_progress=False))
    return backend


@cache
def word_end() -> Backend:
    """As GPT-1's: a token ends a word with </w>. Its decoder looks at the last token, so it is not local."""
    backend = Backend(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.decoder = decoders.BPEDecoder()
    backend.train_from_iterator(CORPUS, trainers.BpeTrainer(
        vocab_size=250, special_tokens=["<unk>"], end_of_word_suffix="</w>", show_progress=False))
    return backend


LOCAL: dict[str, Callable[[], Backend]] = {
    "byte_level": byte_level, "llama_style": llama_style, "gemma_style": gemma_style, "unigram": unigram,
    "unigram_with_bytes": unigram_with_bytes, "wordpiece": wordpiece, "word_level": word_level,
}
BYTE_FALLBACK = {"llama_style", "gemma_style", "unigram_with_bytes"}


@cache
def tokenizer(name: str) -> Tokenizer:
    backend = LOCAL[name]() if name in LOCAL else word_end()
    named = {"byte_level": {"eos_token": "<|im_end|>"}, "llama_style": {"bos_token": "<s>", "eos_token": "</s>"}}
    return Tokenizer(Backend.from_str(backend.to_str()), named.get(name))

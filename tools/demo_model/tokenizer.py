"""Trains the byte-level BPE on generated text and writes the tokenizer files of the Hugging Face layout.

    python -m tools.demo_model.tokenizer --out mini_infer/models/bundled/mini-infer-demo

The tokenizer is trained once and kept: the weights are only good with the very tokenizer they were trained with.
"""

import argparse
import json
import random
import re
from collections.abc import Iterator
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from tqdm import tqdm

from tools.demo_model.chat import CHAT_TEMPLATE, SPECIAL_TOKENS, TAG_TOKENS
from tools.demo_model.conversation import document

VOCAB_SIZE = 4096
# Qwen's pattern: words with their leading space, single digits, runs of punctuation, white space.
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+"
)


def training_text(seed: int, documents: int) -> Iterator[str]:
    """Generated documents, cut at their special tokens, which must not become ordinary merges."""
    rng = random.Random(f"tokenizer-{seed}")
    special = re.compile("|".join(re.escape(token) for token in (*SPECIAL_TOKENS, *TAG_TOKENS)))
    for _ in tqdm(range(documents), desc="tokenizer text", mininterval=2):
        yield from (piece for piece in special.split(document(rng)) if piece)


def train_tokenizer(seed: int = 0, documents: int = 60_000) -> Tokenizer:
    """Trains a byte-level BPE of exactly ``VOCAB_SIZE`` entries."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    extra = len(SPECIAL_TOKENS) + len(TAG_TOKENS)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - extra,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
        special_tokens=[],
    )
    tokenizer.train_from_iterator(training_text(seed, documents), trainer)
    # Should the text run out of pairs to merge, fill up, so that the embedding's size stays a round number.
    missing = VOCAB_SIZE - extra - tokenizer.get_vocab_size()
    tokenizer.add_tokens([AddedToken(f"<|reserved_{i}|>", normalized=False, special=False) for i in range(missing)])
    tokenizer.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in SPECIAL_TOKENS])
    tokenizer.add_tokens([AddedToken(t, normalized=False, special=False) for t in TAG_TOKENS])
    return tokenizer


def tokenizer_config() -> dict:
    """What transformers reads beside ``tokenizer.json``."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "unk_token": None,
        "add_bos_token": False,
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 2048,
        "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
        "chat_template": CHAT_TEMPLATE,
    }


def write_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Writes ``tokenizer.json`` and ``tokenizer_config.json``."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config(), indent=2, ensure_ascii=False) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, nargs="+", required=True, help="folders that get the tokenizer's files")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--documents", type=int, default=60_000)
    args = parser.parse_args()
    tokenizer = train_tokenizer(args.seed, args.documents)
    for folder in args.out:
        write_tokenizer(tokenizer, folder)
        print(f"{folder}: {tokenizer.get_vocab_size()} tokens")


if __name__ == "__main__":
    main()

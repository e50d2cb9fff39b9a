"""Drives a Decoder without the engine: paged caches with scattered blocks, ragged batches made by hand."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from mini_infer.models.decoder import Decoder
from mini_infer.models.loader import load_model
from mini_infer.models.registry import load_config
from mini_infer.ops.inputs import ForwardBatch

VOCAB_SIZE = 128


class Harness:
    """Sequences of one model, computed in steps of any chunk sizes over shuffled blocks."""

    def __init__(self, model: Decoder, num_seqs: int, max_len: int = 256, block_size: int = 8, seed: int = 0):
        self.model = model
        self.block_size = block_size
        self.tokens: list[list[int]] = [[] for _ in range(num_seqs)]
        self.computed = [0] * num_seqs
        config, weight = model.config, model.embed_tokens.weight
        blocks_per_seq = -(-max_len // block_size)
        num_blocks = num_seqs * blocks_per_seq
        shape = (num_blocks + 1, config.num_kv_heads, block_size, config.head_dim)
        # Filled with a value that would be seen if a step read what no step wrote.
        self.kv_caches = [(torch.full(shape, 1e4, dtype=weight.dtype, device=weight.device),
                           torch.full(shape, 1e4, dtype=weight.dtype, device=weight.device))
                          for _ in range(config.num_layers)]
        blocks = list(range(num_blocks))
        random.Random(seed).shuffle(blocks)
        self.block_table = torch.tensor(blocks, dtype=torch.int32, device=weight.device).view(num_seqs, blocks_per_seq)
        self.block_table = torch.cat([self.block_table, torch.full_like(self.block_table[:1], num_blocks)])

    @torch.inference_mode()
    def step(self, counts: dict[int, int], last_only: bool = False) -> dict[int, torch.Tensor]:
        """Compute the next `counts[seq]` tokens of each sequence -> their logits, float32 [n, vocab_size]; with
        `last_only` those of the last one, [1, vocab_size]."""
        device = self.block_table.device

        def ints(values: Sequence[int]) -> torch.Tensor:
            return torch.tensor(values, dtype=torch.int32, device=device)

        table = self.block_table.tolist()
        ids, positions, slot_mapping, cu_seqlens = [], [], [], [0]
        for seq, n in counts.items():
            for position in range(self.computed[seq], self.computed[seq] + n):
                ids.append(self.tokens[seq][position])
                positions.append(position)
                block = table[seq][position // self.block_size]
                slot_mapping.append(block * self.block_size + position % self.block_size)
            self.computed[seq] += n
            cu_seqlens.append(len(ids))
        lens = [self.computed[seq] for seq in counts]
        batch = ForwardBatch(
            input_ids=ints(ids), positions=ints(positions), slot_mapping=ints(slot_mapping),
            cu_seqlens_q=ints(cu_seqlens), seq_lens=ints(lens), slots=ints(list(counts)), block_table=self.block_table,
            logit_rows=ints([end - 1 for end in cu_seqlens[1:]]) if last_only else None, num_tokens=len(ids),
            num_seqs=len(counts), max_query_len=max(counts.values()), max_seq_len=max(lens))
        logits = self.model.logits(self.model(batch, self.kv_caches)).float()
        return dict(zip(counts, logits.split(1 if last_only else list(counts.values())), strict=True))

    def generate(self, prompts: list[list[int]], num_tokens: int, chunk: int = 7) -> list[torch.Tensor]:
        """Greedy continuations: prompts in chunks, sequences decoding as soon as they can, all in one batch.

        Leaves the tokens in `self.tokens`; returns each sequence's logits at every computed position [len, vocab].
        """
        self.tokens = [list(prompt) for prompt in prompts]
        rows: list[list[torch.Tensor]] = [[] for _ in prompts]
        ends = [len(prompt) + num_tokens for prompt in prompts]
        while counts := {seq: min(chunk, len(tokens) - self.computed[seq]) for seq, tokens in enumerate(self.tokens)
                         if self.computed[seq] < len(tokens) < ends[seq]}:
            for seq, logits in self.step(counts).items():
                rows[seq].append(logits)
                if self.computed[seq] == len(self.tokens[seq]):
                    self.tokens[seq].append(int(logits[-1].argmax()))
        return [torch.cat(parts) for parts in rows]


def save_checkpoint(config: PretrainedConfig, path: Path, seed: int = 0, transformers4: bool = False,
                    **save: Any) -> PreTrainedModel:
    """Write a random checkpoint of `config`, whose weights make every part matter -> the reference model."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, parameter.shape[-1] ** -0.5)
            elif name.endswith("bias"):
                parameter.normal_(0, 0.5)
            else:
                parameter.uniform_(0.5, 1.5)
    model.save_pretrained(path, **save)
    if transformers4:
        rewrite_config(path, as_transformers4)
    return model


def as_transformers4(raw: dict[str, Any]) -> dict[str, Any]:
    """config.json as transformers 4 wrote it: rope_theta beside rope_scaling, torch_dtype, no layer_types."""
    rope = dict(raw.pop("rope_parameters"))
    raw["rope_theta"] = rope.pop("rope_theta")
    raw["rope_scaling"] = rope if rope["rope_type"] != "default" else None
    raw["torch_dtype"] = raw.pop("dtype")
    raw.pop("layer_types", None)
    return raw


def rewrite_config(path: Path, change: Any, name: str = "config.json") -> None:
    file = path / name
    file.write_text(json.dumps(change(json.loads(file.read_text()))))


def load(path: Path, dtype: torch.dtype = torch.float32, **options: Any) -> Decoder:
    adapter, config = load_config(path)
    return load_model(path, config, adapter, dtype, torch.device("cpu"), **options)


def plain(weight: torch.Tensor) -> torch.Tensor:
    """A loaded weight as the checkpoint has it: on a CPU it is packed for its matmul."""
    return weight.to_dense() if weight.is_mkldnn else weight


def assert_parity(model: Decoder, reference: PreTrainedModel, num_tokens: int = 64, atol: float = 1e-4,
                  lengths: Sequence[int] = (5, 1, 23)) -> None:
    """Logits within `atol` and the same greedy tokens: a batch of mixed lengths against the reference one by one.

    The reference is forced along our tokens: where its choice at every position is the token we took, its own greedy
    generation is ours.
    """
    generator = torch.Generator().manual_seed(1)
    prompts = [torch.randint(VOCAB_SIZE, (n,), generator=generator).tolist() for n in lengths]
    harness = Harness(model, len(prompts))
    ours = harness.generate(prompts, num_tokens)
    for prompt, tokens, logits in zip(prompts, harness.tokens, ours, strict=True):
        with torch.inference_mode():
            expected = reference(torch.tensor([tokens])).logits[0].float()
        assert (logits - expected[: len(logits)]).abs().max() <= atol
        greedy = expected[len(prompt) - 1 : -1].argmax(-1).tolist()
        assert tokens[len(prompt) :] == greedy
        assert len(greedy) == num_tokens

"""The one skeleton: embed, then layers of attention and MLP on a residual stream, then norm and project."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from mini_infer.config import ModelConfig
from mini_infer.nn.attention import Attention, KVCache
from mini_infer.nn.embedding import Embedding
from mini_infer.nn.linear import Linear
from mini_infer.nn.mlp import GatedMLP
from mini_infer.nn.norm import RMSNorm
from mini_infer.ops.inputs import ForwardBatch
from mini_infer.ops.rope import cos_sin_table
from mini_infer.ops.stream import Stream

LayerBuilder = Callable[[ModelConfig, int, torch.dtype], nn.Module]


class DecoderLayer(nn.Module):
    """A pre-norm transformer layer. A family that differs in one part replaces that attribute."""

    def __init__(self, config: ModelConfig, layer: int, dtype: torch.dtype):
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps, dtype)
        self.self_attn = Attention(config, layer, dtype)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps, dtype)
        self.mlp = GatedMLP(config, dtype)

    def forward(
        self, stream: Stream, batch: ForwardBatch, rope_table: torch.Tensor, kv_cache: KVCache,
        next_norm: RMSNorm | None, wanted: torch.Tensor | None = None,
    ) -> None:
        """Add this layer's two contributions to the residual stream [T, H]. With `wanted` (the last layer's are the
        batch's `logit_rows`), int32 [R], only these tokens stay in it, [R, H]: the others just leave their keys and
        values.

        Each part gets its norm along, to be folded into its first matmul where that is faster, and the norm after it
        (of the next layer, `next_norm`), which its last matmul may begin.
        """
        self.self_attn(stream, self.input_layernorm, self.post_attention_layernorm, batch, rope_table, kv_cache, wanted)
        self.mlp(stream, self.post_attention_layernorm, next_norm)


class Decoder(nn.Module):
    """A decoder-only language model. It reads the batch, writes the KV cache, and knows nothing of requests.

    Made on the meta device it costs nothing and can be measured; `materialize` gives it memory, the loader weights.
    Attributes are named as in Hugging Face checkpoints, so that weights find their place by name.
    """

    def __init__(self, config: ModelConfig, dtype: torch.dtype, build_layer: LayerBuilder = DecoderLayer):
        super().__init__()
        self.config = config
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size, dtype)
        self.layers = nn.ModuleList(build_layer(config, layer, dtype) for layer in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps, dtype)
        self.lm_head = None
        if not config.tie_word_embeddings:
            self.lm_head = Linear(config.hidden_size, config.vocab_size, bias=False, dtype=dtype)
        self.rope_table = torch.empty(0)

    def materialize(self, device: torch.device, max_model_len: int) -> None:
        """Allocate the parameters on `device`, uninitialised, and compute the rotary table for `max_model_len`."""
        # As Module.to_empty, whose empty_like of a meta tensor imports sympy, 1.5 s.
        self._apply(lambda tensor: torch.empty(tensor.shape, dtype=tensor.dtype, device=device))
        self.rope_table = cos_sin_table(self.config.rope, self.config.head_dim, max_model_len, device)

    def pack_weights(self) -> None:
        """Once loaded, bring the matrices into the form that this device multiplies with fastest."""
        for module in self.modules():
            if isinstance(module, Linear):
                module.pack()
        if self.lm_head is None:
            self.embed_tokens.pack_for_logits()

    @property
    def num_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())

    @property
    def num_bytes(self) -> int:
        """Bytes of the weights, known before they are allocated (on a CPU, packing keeps some twice)."""
        return sum(tensor.nbytes for tensor in (*self.parameters(), *self.buffers()))

    def forward(self, batch: ForwardBatch, kv_caches: Sequence[KVCache]) -> torch.Tensor:
        """The step's T tokens -> hidden states after the final norm, in the model's dtype: [R, H] of the tokens whose
        logits the batch asks for.

        `kv_caches` holds (k_cache, v_cache) of each layer, each [num_blocks + 1, num_kv_heads, block_size, head_dim].
        """
        stream = Stream(self.embed_tokens(batch.input_ids))
        *layers, (last, last_cache) = zip(self.layers, kv_caches, strict=True)
        next_norms = [layer.input_layernorm for layer in self.layers[1:]]
        for (layer, kv_cache), next_norm in zip(layers, next_norms, strict=True):
            layer(stream, batch, self.rope_table, kv_cache, next_norm)
        last(stream, batch, self.rope_table, last_cache, None, batch.logit_rows)
        return self.norm(stream)

    def logits(self, hidden: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """hidden [R, H], as `forward` left it -> logits [R, vocab_size] in the model's dtype, into `out` if given."""
        return (self.embed_tokens.logits if self.lm_head is None else self.lm_head)(hidden, out)

    @property
    def dtype(self) -> torch.dtype:
        return self.norm.weight.dtype

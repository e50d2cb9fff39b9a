"""ModelAdapter: what tells one family of models from another. No torch here, so that a front can read any config."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from mini_infer.config import ConfigError, HFFields, ModelConfig, hf_dtype, rope_config, token_id_list

if TYPE_CHECKING:
    import torch
    from torch import nn

# Fields of config.json that change the mathematics of the decoder, with the values that switch them off. They are
# refused, never ignored, unless the family `understands` them.
_NEUTRAL_VALUES: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu", "swish"),
    "attn_logit_softcapping": (),
    "final_logit_softcapping": (),
    "logit_scale": (1,),
    "logits_scaling": (1,),
    "embedding_multiplier": (1,),
    "residual_multiplier": (1,),
    "attention_multiplier": (),
    "scale_emb": (1,),
    "scale_depth": (),
    "clip_qkv": (),
    "alibi": (False,),
    "use_qk_norm": (False,),
    "qk_layernorm": (False,),
    "attention_chunk_size": (),
    "no_rope_layers": ([],),
    "num_experts": (0,),
    "num_local_experts": (0,),
    "n_routed_experts": (0,),
    "vision_config": (),
    "audio_config": (),
}


class ModelAdapter:
    """One family. A new one subclasses this, names its `architectures` and overrides what differs.

    The defaults describe a Llama-like decoder without biases, whose weights are named as Hugging Face names them.
    """

    architectures: tuple[str, ...] = ()
    """The names in `architectures` of config.json that this adapter serves."""

    defaults: dict[str, Any] = {}  # noqa: RUF012 - never written to
    """What transformers assumes where config.json leaves a field out."""

    understands: tuple[str, ...] = ()
    """Fields that other families must refuse and this one handles, such as "hidden_act" or "residual_multiplier"."""

    ignored_weights: tuple[str, ...] = (r"(model\.)?layers\.\d+\.self_attn\.rotary_emb\.inv_freq",)
    """Regular expressions, matched in full, for checkpoint tensors that no parameter takes: old rotary buffers."""

    def config(self, raw: dict[str, Any]) -> ModelConfig:
        """The model's shape from its config.json. Raises ConfigError naming a field that is missing or unsupported.

        A family with fields of its own returns a subclass of ModelConfig; `build_layer` gets it back.
        """
        raw = {**self.defaults, **raw}
        self._refuse_unsupported(raw)
        fields = HFFields(raw)
        hidden_size, num_heads = fields.integer("hidden_size"), fields.integer("num_attention_heads")
        if not fields.has("head_dim") and hidden_size % num_heads:
            raise ConfigError(f"config.json: hidden_size={hidden_size} is not a multiple of num_attention_heads="
                              f"{num_heads}, and there is no head_dim")
        num_layers = fields.integer("num_hidden_layers")
        max_position_embeddings = fields.integer("max_position_embeddings")
        return ModelConfig(
            architecture=raw["architectures"][0],
            vocab_size=fields.integer("vocab_size"),
            hidden_size=hidden_size,
            intermediate_size=fields.integer("intermediate_size"),
            num_layers=num_layers,
            num_heads=num_heads,
            num_kv_heads=fields.integer("num_key_value_heads", num_heads),
            head_dim=fields.integer("head_dim", hidden_size // num_heads or None),
            rms_norm_eps=fields.number("rms_norm_eps", 1e-6),
            rope=rope_config(raw, max_position_embeddings),
            max_position_embeddings=max_position_embeddings,
            tie_word_embeddings=fields.flag("tie_word_embeddings", False),
            dtype=hf_dtype(raw),
            sliding_windows=self.sliding_windows(fields, num_layers),
            eos_token_ids=token_id_list(raw.get("eos_token_id"), "eos_token_id"),
        )

    def sliding_windows(self, fields: HFFields, num_layers: int) -> tuple[int | None, ...]:
        """How many tokens back each layer sees, itself included; None is all of them."""
        return (None,) * num_layers

    def map_weight(
        self, name: str, tensor: torch.Tensor, config: ModelConfig
    ) -> Iterable[tuple[str, torch.Tensor]]:
        """Translate one checkpoint tensor into (name, tensor) pairs under this package's names.

        Those are Hugging Face's for Llama without the leading "model.", each projection on its own, [out, in]:
        "layers.0.self_attn.q_proj.weight". The first call for a name brings a meta tensor, to check every name and
        shape before anything is read; the second brings the data.
        """
        yield name.removeprefix("model."), tensor

    def build_layer(self, config: ModelConfig, layer: int, dtype: torch.dtype) -> nn.Module:
        """Layer number `layer`. Override to change the attention, the MLP or the whole layer.

        It is made on the meta device: only its parameters get values, from the checkpoint.
        """
        from mini_infer.models.decoder import DecoderLayer

        return DecoderLayer(config, layer, dtype)

    def _refuse_unsupported(self, raw: dict[str, Any]) -> None:
        quantization = raw.get("quantization_config")
        if quantization is not None:
            method = quantization.get("quant_method", "?") if isinstance(quantization, dict) else quantization
            raise ConfigError(f"config.json: quantization_config ({method}) is not supported yet; "
                              "use the checkpoint's unquantized original")
        for name, neutral in _NEUTRAL_VALUES.items():
            value = raw.get(name)
            if value is not None and value not in neutral and name not in self.understands:
                only = f"; supported: {', '.join(map(str, neutral))}" if neutral else ""
                raise ConfigError(f"config.json: {name}={value!r} is not supported for {raw['architectures'][0]}{only}")

"""The built-in families. Each says only how it differs from a Llama without biases."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from mini_infer.config import ConfigError, HFFields, ModelConfig
from mini_infer.models.adapter import ModelAdapter


class Llama(ModelAdapter):
    """Llama 2 and 3 (arXiv:2307.09288, arXiv:2407.21783), and the many models that share the architecture."""

    architectures = ("LlamaForCausalLM",)
    defaults = {"max_position_embeddings": 2048, "eos_token_id": 2}  # noqa: RUF012

    def config(self, raw: dict[str, Any]) -> ModelConfig:
        fields = HFFields(raw)
        bias = fields.flag("attention_bias", False)
        return replace(super().config(raw), qkv_bias=bias, o_bias=bias, mlp_bias=fields.flag("mlp_bias", False))


class Mistral(ModelAdapter):
    """Mistral 7B (arXiv:2310.06825): a sliding window in every layer, null in later releases."""

    architectures = ("MistralForCausalLM",)
    defaults = {"max_position_embeddings": 131072, "num_key_value_heads": 8, "sliding_window": 4096,  # noqa: RUF012
                "eos_token_id": 2}

    def sliding_windows(self, fields: HFFields, num_layers: int) -> tuple[int | None, ...]:
        window = fields.integer("sliding_window") if fields.has("sliding_window") else None
        kind = "full_attention" if window is None else "sliding_attention"
        types = fields.raw.get("layer_types")
        if types is not None and types != [kind] * num_layers:
            raise ConfigError(f"config.json: layer_types other than {kind} in every layer are not supported for "
                              f"MistralForCausalLM with sliding_window={window}")
        return (window,) * num_layers


class Qwen2(ModelAdapter):
    """Qwen2 and Qwen2.5 (arXiv:2407.10671, arXiv:2412.15115): biases on Q, K and V."""

    architectures = ("Qwen2ForCausalLM",)
    defaults = {"max_position_embeddings": 32768, "num_key_value_heads": 32, "sliding_window": 4096,  # noqa: RUF012
                "max_window_layers": 28}

    def config(self, raw: dict[str, Any]) -> ModelConfig:
        return replace(super().config(raw), qkv_bias=True)

    def sliding_windows(self, fields: HFFields, num_layers: int) -> tuple[int | None, ...]:
        """`layer_types` says it layer by layer; without it, layers from `max_window_layers` on have the window."""
        use_window = fields.flag("use_sliding_window", False) and fields.has("sliding_window")
        window = fields.integer("sliding_window") if use_window else None
        types = fields.raw.get("layer_types")
        if types is None:
            if window is None:
                return (None,) * num_layers
            full_layers = fields.raw["max_window_layers"]
            if not isinstance(full_layers, int) or full_layers < 0:
                raise ConfigError(f"config.json: max_window_layers must be 0 or more, got {full_layers!r}")
            return tuple(window if layer >= full_layers else None for layer in range(num_layers))
        if not isinstance(types, list) or len(types) != num_layers:
            raise ConfigError(f"config.json: layer_types must list all {num_layers} layers, got {types!r}")
        windows = {"full_attention": None, "sliding_attention": window}
        for kind in types:
            if kind not in windows:
                raise ConfigError(f"config.json: layer_types has {kind!r}; supported: {', '.join(windows)}")
            if kind == "sliding_attention" and window is None:
                raise ConfigError("config.json: layer_types has sliding_attention, which needs use_sliding_window=true "
                                  "and a sliding_window")
        return tuple(windows[kind] for kind in types)


class Qwen3(Qwen2):
    """Qwen3 (arXiv:2505.09388): RMSNorm on each head's Q and K; the biases are an option."""

    architectures = ("Qwen3ForCausalLM",)
    defaults = {**Qwen2.defaults, "head_dim": 128}  # noqa: RUF012

    def config(self, raw: dict[str, Any]) -> ModelConfig:
        bias = HFFields(raw).flag("attention_bias", False)
        return replace(super().config(raw), qkv_bias=bias, o_bias=bias, qk_norm=True)


FAMILIES = (Llama, Mistral, Qwen2, Qwen3)

"""A family of models from outside the package: Phi-3 (arXiv:2404.14219), whose checkpoints pack their projections.

    mini-infer serve microsoft/Phi-3-mini-4k-instruct --plugin examples/custom_model.py
    LLM("microsoft/Phi-3-mini-4k-instruct", plugins=["examples/custom_model.py"])

An adapter says three things: which architectures it serves, how to read config.json, and where each weight goes.
What it does not say is as in Llama. To change the computation itself, override `build_layer` as well.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

from mini_infer import ModelAdapter, register_model
from mini_infer.config import HFFields, ModelConfig


@register_model
class Phi3(ModelAdapter):
    architectures = ("Phi3ForCausalLM",)

    def sliding_windows(self, fields: HFFields, num_layers: int) -> tuple[int | None, ...]:
        window = fields.integer("sliding_window") if fields.has("sliding_window") else None
        return (window,) * num_layers

    def map_weight(
        self, name: str, tensor: torch.Tensor, config: ModelConfig
    ) -> Iterable[tuple[str, torch.Tensor]]:
        name = name.removeprefix("model.")
        packed = {"qkv_proj": {"q_proj": config.q_size, "k_proj": config.kv_size, "v_proj": config.kv_size},
                  "gate_up_proj": {"gate_proj": config.intermediate_size, "up_proj": config.intermediate_size}}
        for whole, parts in packed.items():
            if f".{whole}." in name:
                pieces = tensor.split(list(parts.values()))
                yield from ((name.replace(whole, part), piece) for part, piece in zip(parts, pieces, strict=True))
                return
        yield name, tensor

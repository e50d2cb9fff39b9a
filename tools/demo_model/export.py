"""Writes and reads a model folder in the Hugging Face layout."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from tools.demo_model.model import Decoder, ModelConfig


def config_json(cfg: ModelConfig, eos: int, pad: int) -> dict:
    """``config.json`` of a Qwen3 model; RoPE's base stands in both places where versions of transformers look."""
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": None,
        "eos_token_id": eos,
        "pad_token_id": pad,
        "head_dim": cfg.head_dim,
        "hidden_act": "silu",
        "hidden_size": cfg.hidden,
        "initializer_range": 0.02,
        "intermediate_size": cfg.intermediate,
        "layer_types": ["full_attention"] * cfg.layers,
        "max_position_embeddings": cfg.max_positions,
        "max_window_layers": cfg.layers,
        "num_attention_heads": cfg.heads,
        "num_hidden_layers": cfg.layers,
        "num_key_value_heads": cfg.kv_heads,
        "rms_norm_eps": cfg.eps,
        "rope_parameters": {"rope_theta": cfg.rope_theta, "rope_type": "default"},
        "rope_theta": cfg.rope_theta,
        "sliding_window": None,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": cfg.vocab,
    }


def write_configs(cfg: ModelConfig, folder: Path, eos: int, pad: int) -> None:
    """Writes ``config.json`` and ``generation_config.json``."""
    folder.mkdir(parents=True, exist_ok=True)
    generation = {"do_sample": False, "eos_token_id": [eos, pad], "pad_token_id": pad}
    for name, content in (("config.json", config_json(cfg, eos, pad)), ("generation_config.json", generation)):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n")


def write_weights(model: Decoder, folder: Path) -> None:
    """Writes ``model.safetensors`` in bfloat16; the tied output embedding is left out, as transformers does."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        f"model.{name}": tensor.detach().to("cpu", torch.bfloat16).contiguous()
        for name, tensor in model.state_dict().items()
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def read_weights(model: Decoder, folder: Path) -> None:
    """Loads what ``write_weights`` wrote."""
    tensors = load_file(folder / "model.safetensors")
    model.load_state_dict({name.removeprefix("model."): tensor.float() for name, tensor in tensors.items()})

"""Weights into a model: from a checkpoint, each exactly once, or random ones for measurements."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import torch
from tqdm import tqdm

from mini_infer.config import ConfigError, ModelConfig
from mini_infer.models.adapter import ModelAdapter
from mini_infer.models.checkpoint import Checkpoint, TensorInfo
from mini_infer.models.decoder import Decoder
from mini_infer.models.upload import Uploader
from mini_infer.nn.linear import weight_slots

_FLOAT16_MAX = torch.finfo(torch.float16).max


def build_model(config: ModelConfig, adapter: ModelAdapter, dtype: torch.dtype) -> Decoder:
    """The model without memory, on the meta device: its bytes can be counted, its weights named."""
    with torch.device("meta"):
        return Decoder(config, dtype, adapter.build_layer).eval()


def load_model(
    model_dir: str | Path,
    config: ModelConfig,
    adapter: ModelAdapter,
    dtype: torch.dtype,
    device: torch.device,
    load_format: str = "auto",
    progress: bool = False,
    max_model_len: int | None = None,
    seed: int = 0,
) -> Decoder:
    """A model ready to run on `device`, its weights in `dtype`.

    `load_format` "auto" or "safetensors" reads the checkpoint in `model_dir`; "dummy" draws random weights from `seed`
    and needs no files. `max_model_len` (None: the model's own) sizes the rotary table. Raises ConfigError when the
    checkpoint does not fit the model, before any of it is read, or the weights do not fit the device.
    """
    model = build_model(config, adapter, dtype)
    checkpoint = None if load_format == "dummy" else Checkpoint(model_dir)
    if checkpoint is not None:
        _check_weights(checkpoint.tensors, model, adapter)
    try:
        model.materialize(device, max_model_len or config.max_position_embeddings)
    except torch.OutOfMemoryError:
        free, _ = torch.cuda.mem_get_info(device)
        raise ConfigError(f"model: its weights take {model.num_bytes / 2**30:.1f} GiB and {device} has "
                          f"{free / 2**30:.1f} GiB free; choose a smaller model or dtype, or free the device") from None
    if checkpoint is None:
        randomize(model, seed)
    else:
        _fill(model, checkpoint, adapter, progress)
    model.pack_weights()
    return model


@torch.no_grad()
def randomize(model: Decoder, seed: int) -> None:
    """Random weights under which activations keep their size: rows of unit length, norms near one, small biases.

    The same seed gives the same weights on the same kind of device.
    """
    generator = torch.Generator(model.embed_tokens.weight.device).manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            parameter.normal_(0, parameter.shape[-1] ** -0.5, generator=generator)
        else:
            parameter.normal_(0 if name.endswith("bias") else 1, 0.02, generator=generator)


def _check_weights(tensors: Iterable[TensorInfo], model: Decoder, adapter: ModelAdapter) -> None:
    """Raise ConfigError unless the checkpoint fills every slot of the model exactly once, and nothing is left over."""
    slots = weight_slots(model)
    filled: dict[str, TensorInfo] = {}
    for info in tensors:
        if _ignored(info.name, model.config, adapter):
            continue
        where = f"{info.name} of {info.file.name}"
        meta = torch.empty(info.shape, dtype=info.dtype, device="meta")
        pieces = list(adapter.map_weight(info.name, meta, model.config))
        if not pieces:
            raise ConfigError(f"model: weight {where} is mapped to nothing; what may be left out belongs into the "
                              "adapter's ignored_weights")
        for name, piece in pieces:
            if name not in slots:
                raise ConfigError(f"model: weight {where} has no place in a {model.config.architecture}"
                                  f"{_renamed(info.name, name)}; do config.json and the weights belong together?")
            if piece.shape != slots[name].shape:
                raise ConfigError(f"model: weight {where} has shape {list(piece.shape)}{_renamed(info.name, name)} but "
                                  f"{list(slots[name].shape)} was expected from config.json")
            if name in filled:
                raise ConfigError(f"model: weight {name} is there twice: {where} and "
                                  f"{filled[name].name} of {filled[name].file.name}")
            filled[name] = info
    missing = [name for name in slots if name not in filled]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        shapes = ", ".join(f"{name} {list(slots[name].shape)}" for name in missing[:3])
        raise ConfigError(f"model: the checkpoint lacks {shapes}{more}")


@torch.no_grad()
def _fill(model: Decoder, checkpoint: Checkpoint, adapter: ModelAdapter, progress: bool) -> None:
    slots = weight_slots(model)
    uploader = Uploader(model.embed_tokens.weight.device)
    with tqdm(total=checkpoint.num_bytes, desc="Loading weights", unit="B", unit_scale=True, unit_divisor=1024,
              disable=not progress) as bar:
        for info, tensor in checkpoint.stream():
            if _ignored(info.name, model.config, adapter):
                bar.update(info.num_bytes)
                continue
            for name, piece in adapter.map_weight(info.name, tensor, model.config):
                if slots[name].dtype == torch.float16 and info.dtype != torch.float16:
                    _check_range(info, piece)
                uploader.copy(piece, slots[name], bar.update)
        uploader.finish()


def _ignored(name: str, config: ModelConfig, adapter: ModelAdapter) -> bool:
    if config.tie_word_embeddings and name == "lm_head.weight":
        return True  # some checkpoints store the embedding a second time
    return any(re.fullmatch(pattern, name) for pattern in adapter.ignored_weights)


def _check_range(info: TensorInfo, tensor: torch.Tensor) -> None:
    if tensor.numel() and max(abs(bound.item()) for bound in tensor.aminmax()) > _FLOAT16_MAX:
        raise ConfigError(f"dtype: weight {info.name} of {info.file.name} does not fit into float16; use bfloat16")


def _renamed(name: str, new_name: str) -> str:
    return "" if new_name == name.removeprefix("model.") else f" (as {new_name})"

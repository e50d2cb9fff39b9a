"""Configuration: frozen, validated once, never mutated. Imports nothing heavy, so that the HTTP front stays light.

- `ModelConfig` is a model's shape, normalised from a Hugging Face config.json as transformers 4 or 5 writes it.
- `EngineConfig` is what a user asks for; None means "choose for me".
- `SchedulerConfig` is what the scheduler needs, every choice made.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass, field, fields
from hashlib import blake2b
from pathlib import Path
from typing import Any

from mini_infer.protocol import MAX_VOCAB_SIZE, RequestError

BUNDLED_MODEL_DIR = Path(__file__).parent / "models" / "bundled" / "mini-infer-demo"
BUNDLED_DRAFT_DIR = Path(__file__).parent / "models" / "bundled" / "mini-infer-demo-draft"
DTYPES = ("float32", "bfloat16", "float16")
DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
ROPE_TYPES = ("default", "linear", "dynamic", "llama3", "yarn")


class ConfigError(ValueError):
    """A configuration that cannot work. The message names the field and what to change."""


def _check(ok: bool, message: str) -> None:
    if not ok:
        raise ConfigError(message)


@dataclass(frozen=True)
class RopeConfig:
    """Rotary position embedding; the fields beyond `theta` belong to the scaled types (see ops/rope.py)."""

    rope_type: str = "default"
    theta: float = 10000.0
    factor: float = 1.0
    original_max_position_embeddings: int | None = None
    low_freq_factor: float = 1.0  # llama3
    high_freq_factor: float = 4.0  # llama3
    beta_fast: float = 32.0  # yarn
    beta_slow: float = 1.0  # yarn
    attention_factor: float | None = None  # yarn
    mscale: float | None = None  # yarn
    mscale_all_dim: float | None = None  # yarn
    truncate: bool = True  # yarn


@dataclass(frozen=True)
class ModelConfig:
    """The shape of a decoder, one vocabulary for every family."""

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    rope: RopeConfig
    max_position_embeddings: int
    tie_word_embeddings: bool
    dtype: str  # the checkpoint's own
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    sliding_windows: tuple[int | None, ...] = ()  # a layer each; None is full attention, () means all are
    eos_token_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        _check(self.num_heads % self.num_kv_heads == 0,
               f"num_attention_heads={self.num_heads} must be a multiple of num_key_value_heads={self.num_kv_heads}")
        _check(self.head_dim % 2 == 0, f"head_dim={self.head_dim} must be even, rotary embedding pairs its dimensions")
        if not self.sliding_windows:
            object.__setattr__(self, "sliding_windows", (None,) * self.num_layers)
        _check(len(self.sliding_windows) == self.num_layers,
               f"sliding_windows must have an entry for each of the {self.num_layers} layers, "
               f"got {len(self.sliding_windows)}")

    @property
    def q_size(self) -> int:
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        return self.num_kv_heads * self.head_dim

    @property
    def layer_weights(self) -> int:
        """Weights of one layer's matmuls, each used once a token."""
        attention = 2 * self.hidden_size * (self.q_size + self.kv_size)
        return attention + 3 * self.hidden_size * self.intermediate_size

    def kv_bytes_per_token(self, dtype: str) -> int:
        """Bytes of keys and values one token holds over all layers."""
        return 2 * self.num_layers * self.kv_size * DTYPE_BYTES[dtype]


def read_hf_config(model_dir: str | Path) -> dict[str, Any]:
    """The raw config.json of a model directory. Raises ConfigError when it is missing or not a JSON object."""
    path = Path(model_dir) / "config.json"
    if not path.is_file():
        raise ConfigError(f"model: {model_dir} has no config.json; give a Hugging Face model directory or a hub id")
    return read_json_object(path)


def read_generation_config(model_dir: str | Path) -> dict[str, Any]:
    """The raw generation_config.json, {} where a model has none."""
    path = Path(model_dir) / "generation_config.json"
    return read_json_object(path) if path.is_file() else {}


def read_json_object(path: Path) -> dict[str, Any]:
    """Raises ConfigError naming the file when it cannot be read, is not JSON or not an object, or repeats a key."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            _check(key not in found, f"model: {path} has the key {key!r} twice")
            found[key] = value
        return found

    try:
        raw = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=unique)
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"model: {path} is not valid JSON: {error}") from None
    except OSError as error:
        raise ConfigError(f"model: {path} cannot be read: {error.strerror}") from None
    _check(isinstance(raw, dict), f"model: {path} must hold a JSON object")
    return raw


class HFFields:
    """Typed access to a raw config.json: every wrong or missing field is named in the error."""

    def __init__(self, raw: dict[str, Any]):
        self.raw = raw

    def has(self, name: str) -> bool:
        return self.raw.get(name) is not None

    def integer(self, name: str, default: int | None = None) -> int:
        value = self._get(name, default)
        _check(isinstance(value, int) and not isinstance(value, bool) and value > 0,
               f"config.json: {name} must be a positive integer, got {value!r}")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        value = self._get(name, default)
        _check(isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < math.inf,
               f"config.json: {name} must be a positive number, got {value!r}")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        value = self._get(name, default)
        _check(isinstance(value, bool), f"config.json: {name} must be true or false, got {value!r}")
        return value

    def string(self, name: str, default: str) -> str:
        value = self._get(name, default)
        _check(isinstance(value, str), f"config.json: {name} must be a string, got {value!r}")
        return value

    def _get(self, name: str, default: Any) -> Any:
        value = self.raw.get(name)
        if value is None:
            _check(default is not None, f"config.json: {name} is missing")
            return default
        return value


def rope_config(raw: dict[str, Any], max_position_embeddings: int) -> RopeConfig:
    """Read rope_theta + rope_scaling (transformers 4) or rope_parameters (transformers 5)."""
    scaling = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    _check(isinstance(scaling, dict), f"config.json: rope_scaling must be an object, got {scaling!r}")
    section, top = HFFields(scaling), HFFields(raw)
    theta = section.number("rope_theta", top.number("rope_theta", 10000.0))
    rope_type = section.string("rope_type", section.string("type", "default"))
    _check(rope_type in ROPE_TYPES, f"config.json: rope_type {rope_type!r} is not supported; "
                                    f"supported: {', '.join(ROPE_TYPES)}")
    _check(section.number("partial_rotary_factor", top.number("partial_rotary_factor", 1.0)) == 1.0,
           "config.json: partial_rotary_factor other than 1 is not supported")
    known = {f.name for f in fields(RopeConfig)} | {"type", "rope_theta", "partial_rotary_factor"}
    unknown = sorted(set(scaling) - known)
    _check(not unknown, f"config.json: rope_scaling has unsupported fields: {', '.join(unknown)}")
    if rope_type == "default":
        return RopeConfig(theta=theta)
    if rope_type == "dynamic":  # stretches beyond the model's own length, whatever else the section says
        return RopeConfig(rope_type, theta, section.number("factor"), max_position_embeddings)
    outer = top.integer("original_max_position_embeddings", max_position_embeddings)
    original = section.integer("original_max_position_embeddings", outer)
    _check(original == outer or not top.has("original_max_position_embeddings"),
           f"config.json: original_max_position_embeddings is {outer} and, in rope_scaling, {original}")
    optional = {name: section.number(name) for name in ("attention_factor", "mscale", "mscale_all_dim")
                if scaling.get(name)}
    return RopeConfig(
        rope_type=rope_type,
        theta=theta,
        factor=section.number("factor", max_position_embeddings / original if rope_type == "yarn" else None),
        original_max_position_embeddings=original,
        low_freq_factor=section.number("low_freq_factor", 1.0),
        high_freq_factor=section.number("high_freq_factor", 4.0),
        beta_fast=section.number("beta_fast", 32.0),
        beta_slow=section.number("beta_slow", 1.0),
        truncate=section.flag("truncate", True),
        **optional,
    )


def hf_dtype(raw: dict[str, Any]) -> str:
    """The checkpoint's dtype: `torch_dtype` (transformers 4) or `dtype` (5); float32 when it says nothing."""
    name = str(raw.get("dtype") or raw.get("torch_dtype") or "float32").removeprefix("torch.")
    _check(name in DTYPES, f"config.json: dtype {name!r} is not supported; supported: {', '.join(DTYPES)}")
    return name


def token_id_list(value: Any, name: str) -> tuple[int, ...]:
    """eos_token_id may be absent, one id or a list."""
    ids = [] if value is None else value if isinstance(value, list) else [value]
    _check(all(isinstance(t, int) and not isinstance(t, bool) and t >= 0 for t in ids),
           f"config.json: {name} must be a token id or a list of them, got {value!r}")
    return tuple(ids)


@dataclass(frozen=True)
class EngineConfig:
    """What a user asks of an engine; flag and parameter names are vLLM's where the meaning is the same."""

    model: str = field(default_factory=lambda: str(BUNDLED_MODEL_DIR))
    tokenizer: str | None = None  # None: the model's own
    dtype: str = "auto"
    device: str = "auto"  # "auto", "cpu", "cuda" or "cuda:N"
    max_model_len: int | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    max_num_mixed_tokens: int | None = None
    block_size: int | None = None
    num_kv_blocks: int | None = None
    gpu_memory_utilization: float = 0.9
    kv_cache_memory: int | None = None  # bytes
    enable_prefix_caching: bool = True
    scheduling_policy: str = "fcfs"
    pipeline_depth: int | None = None
    load_format: str = "auto"  # "auto"/"safetensors", or "dummy" for random weights from config.json alone
    skip_tokenizer_init: bool = False
    enforce_eager: bool = False
    threads: int | None = None  # of a CPU
    tensor_parallel_size: int = 1
    seed: int = 0
    record: str | None = None  # a file to write the run to, for `mini-infer replay`
    plugins: tuple[str, ...] = ()  # modules imported first in every process; they register model adapters or policies

    def __post_init__(self) -> None:
        self._check_names()
        for name in ("max_model_len", "max_num_seqs", "max_num_batched_tokens", "max_num_mixed_tokens", "block_size",
                     "num_kv_blocks", "kv_cache_memory", "pipeline_depth", "threads"):
            value = self.__dict__[name]
            _check(value is None or (isinstance(value, int) and not isinstance(value, bool) and value >= 1),
                   f"{name} must be a positive integer or None, got {value!r}")
        _check(self.dtype in ("auto", *DTYPES), f"dtype must be auto, {', '.join(DTYPES)}; got {self.dtype!r}")
        _check(self.num_kv_blocks is None or self.kv_cache_memory is None,
               "kv_cache_memory and num_kv_blocks both say how large the KV cache is; give one of them")
        _check(isinstance(self.device, str) and
               (self.device in ("auto", "cpu", "cuda") or
                (self.device.startswith("cuda:") and self.device[5:].isdecimal())),
               f"device must be auto, cpu, cuda or cuda:N, got {self.device!r}")
        _check(isinstance(self.gpu_memory_utilization, (int, float)) and
               not isinstance(self.gpu_memory_utilization, bool) and 0 < self.gpu_memory_utilization <= 1,
               f"gpu_memory_utilization must be a number in (0, 1], got {self.gpu_memory_utilization!r}")
        _check(self.block_size is None or self.block_size in (8, 16, 32, 64, 128, 256),
               f"block_size must be 8, 16, 32, 64, 128 or 256, got {self.block_size!r}")
        _check(self.pipeline_depth in (None, 1, 2), f"pipeline_depth must be 1 or 2, got {self.pipeline_depth!r}")
        _check(self.load_format in ("auto", "safetensors", "dummy"),
               f"load_format must be auto, safetensors or dummy, got {self.load_format!r}")
        _check(self.tensor_parallel_size == 1 and not isinstance(self.tensor_parallel_size, bool),
               f"tensor_parallel_size={self.tensor_parallel_size!r} is not supported yet; the only value is 1")
        _check(isinstance(self.seed, int) and not isinstance(self.seed, bool),
               f"seed must be an integer, got {self.seed!r}")
        for name in ("enable_prefix_caching", "skip_tokenizer_init", "enforce_eager"):
            value = self.__dict__[name]
            _check(isinstance(value, bool), f"{name} must be True or False, got {value!r}")

    def _check_names(self) -> None:
        """Names and paths become plain strings, so that a configuration can be written as JSON."""
        for name, what in (("model", "a directory or a hub id"), ("tokenizer", "a directory or be None"),
                           ("record", "a file or be None")):
            value = self.__dict__[name]
            if isinstance(value, os.PathLike):
                value = os.fspath(value)
                object.__setattr__(self, name, value)
            _check((isinstance(value, str) and value != "") or (name != "model" and value is None),
                   f"{name} must name {what}, got {value!r}")
        _check(self.record is None or Path(self.record).absolute().parent.is_dir(),
               f"record: {self.record!r} is in a directory that does not exist")
        _check(isinstance(self.plugins, (list, tuple)),
               f"plugins must be a list of modules, got {self.plugins!r}; for one, write [{self.plugins!r}]")
        plugins = tuple(os.fspath(each) if isinstance(each, os.PathLike) else each for each in self.plugins)
        _check(all(isinstance(each, str) and each for each in plugins),
               f"plugins must be a list of module names or .py files, got {self.plugins!r}")
        object.__setattr__(self, "plugins", plugins)
        _check(isinstance(self.scheduling_policy, str),
               f"scheduling_policy must be the name of a policy, got {self.scheduling_policy!r}")

    @property
    def tokenizer_path(self) -> str:
        return self.tokenizer or self.model


@dataclass(frozen=True)
class SchedulerConfig:
    """Everything the scheduler and the block pool need to know."""

    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    block_size: int
    num_blocks: int
    vocab_size: int = MAX_VOCAB_SIZE  # prompts hold token ids below it
    enable_prefix_caching: bool = True
    policy: str = "fcfs"
    eos_token_ids: tuple[int, ...] = ()
    max_num_mixed_tokens: int | None = None  # of a step with decode rows in it, where that is less
    one_batch: bool = False  # the end of the last request counts more than the next token of a running one
    watermark: float = 0.01  # share of the blocks kept free at admission, so that running requests can grow
    hash_key: bytes = b"mini-infer"  # keys the prefix hashes; an engine draws a random one at start

    def __post_init__(self) -> None:
        for name in ("max_num_seqs", "max_num_batched_tokens", "max_model_len", "block_size", "num_blocks",
                     "vocab_size"):
            _check(self.__dict__[name] >= 1, f"{name} must be at least 1, got {self.__dict__[name]}")
        _check(self.max_num_mixed_tokens is None or self.max_num_mixed_tokens >= 1,
               f"max_num_mixed_tokens must be at least 1 or None, got {self.max_num_mixed_tokens}")
        _check(self.num_blocks * self.block_size >= self.max_model_len,
               f"max_model_len={self.max_model_len} needs {-(-self.max_model_len // self.block_size)} KV blocks of "
               f"{self.block_size} tokens but there are {self.num_blocks}; lower max_model_len or raise num_kv_blocks, "
               "kv_cache_memory or gpu_memory_utilization")
        _check(0 <= self.watermark < 1, f"watermark must be in [0, 1), got {self.watermark}")
        _check(len(self.hash_key) <= blake2b.MAX_KEY_SIZE,
               f"hash_key must be at most {blake2b.MAX_KEY_SIZE} bytes long, as BLAKE2b takes no more, "
               f"got {len(self.hash_key)}")


__all__ = ["BUNDLED_DRAFT_DIR", "BUNDLED_MODEL_DIR", "DTYPES", "DTYPE_BYTES", "ConfigError", "EngineConfig", "HFFields",
           "ModelConfig", "RequestError", "RopeConfig", "SchedulerConfig", "hf_dtype", "read_generation_config",
           "read_hf_config", "read_json_object", "rope_config", "token_id_list"]

"""Configurations that cannot work are refused when they are made, by the name of the field."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mini_infer.config import ConfigError, EngineConfig, SchedulerConfig
from mini_infer.engine.process import config_from_json, config_to_json


@pytest.mark.parametrize("field, values", {
    "model": ["", 5, None, b"bytes"],
    "tokenizer": ["", 5, b"bytes", ["a"]],
    "plugins": ["my_module", Path("my_module.py"), 5, None, [5], [""], ["a", None]],
    "scheduling_policy": [None, 5, ["fcfs"]],
    "load_format": [None, 5, True, "pickle", ["dummy"]],
    "enable_prefix_caching": [None, 1, 0, "yes"],
    "skip_tokenizer_init": [None, 1, "no"],
    "enforce_eager": [None, 0, "false"],
    "gpu_memory_utilization": [True, None, "0.9", 0, -0.5, 1.01, float("nan")],
    "dtype": [None, 16, "int8"],
    "device": [None, 0, "gpu", "cuda:", "cuda:x", "cuda:-1"],
    "block_size": [True, 17, "16"],
    "tensor_parallel_size": [True, 2, "1"],
    "max_model_len": [0, True, 1.5, "100"],
    "seed": [None, 1.5, True],
}.items(), ids=lambda value: value if isinstance(value, str) else "")
def test_wrong_values_name_the_field(field: str, values: list[Any]) -> None:
    for value in values:
        with pytest.raises(ConfigError, match=f"^{field}[ =]"):
            EngineConfig(**{field: value})


def test_one_plugin_is_not_taken_for_its_letters() -> None:
    with pytest.raises(ConfigError, match=r"plugins must be a list .* write \['my_module'\]"):
        EngineConfig(plugins="my_module")  # type: ignore[arg-type]
    assert EngineConfig(plugins=["my_module"]).plugins == ("my_module",)  # type: ignore[arg-type]


def test_paths_become_text_and_survive_the_way_to_the_engine_process(tmp_path: Path) -> None:
    config = EngineConfig(model=tmp_path, tokenizer=tmp_path / "t", plugins=[tmp_path / "p.py"])  # type: ignore[arg-type]
    assert (config.model, config.tokenizer) == (str(tmp_path), str(tmp_path / "t"))
    assert config.plugins == (str(tmp_path / "p.py"),)
    assert config_from_json(config_to_json(config, None)) == (config, None)


def test_hash_key_is_as_long_as_blake2b_takes() -> None:
    sizes = dict(max_num_seqs=1, max_num_batched_tokens=8, max_model_len=8, block_size=8, num_blocks=1)
    assert len(SchedulerConfig(**sizes, hash_key=b"x" * 64).hash_key) == 64  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="hash_key must be at most 64 bytes"):
        SchedulerConfig(**sizes, hash_key=b"x" * 65)  # type: ignore[arg-type]

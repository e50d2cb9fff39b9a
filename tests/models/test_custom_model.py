"""A user's family, registered from outside the package: by the example, and by replacing part of a layer."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import LlamaConfig, Phi3Config

from mini_infer.config import ConfigError, ModelConfig
from mini_infer.models import registry
from mini_infer.models.registry import ModelAdapter, adapter_for, load_plugins, register_model
from mini_infer.nn.linear import Linear
from mini_infer.ops.stream import Stream
from tests.models.harness import VOCAB_SIZE, assert_parity, load, rewrite_config, save_checkpoint

SHAPE = {"vocab_size": VOCAB_SIZE, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2,
         "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128,
         "original_max_position_embeddings": 128, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


@pytest.fixture(autouse=True)
def clean_registry(monkeypatch) -> Iterator[None]:
    """What a test registers or imports is gone after it."""
    monkeypatch.setattr(registry, "_ADAPTERS", dict(registry._ADAPTERS))
    modules = set(sys.modules)
    yield
    for name in set(sys.modules) - modules:
        if name.startswith("mini_infer_plugin_"):
            del sys.modules[name]


@pytest.mark.parametrize("window", [None, 16])
def test_example_matches_transformers(window, tmp_path, repo):
    reference = save_checkpoint(Phi3Config(**SHAPE, sliding_window=window), tmp_path)
    with pytest.raises(ConfigError, match=r"'Phi3ForCausalLM' is not supported; supported: .*Qwen3ForCausalLM"):
        load(tmp_path)
    load_plugins([str(repo / "examples" / "custom_model.py")])
    assert_parity(load(tmp_path), reference)


def test_example_is_short(repo):
    code = (repo / "examples" / "custom_model.py").read_text().partition("@register_model")[2]
    assert len([line for line in code.splitlines() if line.strip()]) <= 30


class SquaredReLU(nn.Module):
    """A plain torch module: the loader finds its parameters by their names."""

    def __init__(self, config: ModelConfig, dtype: torch.dtype):
        super().__init__()
        self.up = Linear(config.hidden_size, config.intermediate_size, bias=False, dtype=dtype)
        self.down = nn.Linear(config.intermediate_size, config.hidden_size, bias=False, dtype=dtype)

    def forward(self, stream: Stream, norm: nn.Module, next_norm: nn.Module | None) -> None:
        stream.value += self.down(F.relu(self.up(norm(stream))).square())


def test_a_part_of_a_layer_can_be_replaced(tmp_path):
    class Toy(ModelAdapter):
        """A Llama with another MLP and its own names for the weights."""

        architectures = ("ToyForCausalLM",)
        understands = ("hidden_act",)
        ignored_weights = (r".*gate_proj\.weight",)

        def build_layer(self, config: ModelConfig, layer: int, dtype: torch.dtype) -> nn.Module:
            block = super().build_layer(config, layer, dtype)
            block.mlp = SquaredReLU(config, dtype)
            return block

        def map_weight(self, name, tensor, config):
            name = name.removeprefix("model.")
            yield name.replace("_proj", "") if ".mlp." in name else name, tensor

    fields = {name: value for name, value in SHAPE.items() if not name.startswith("original")}
    reference = save_checkpoint(LlamaConfig(**fields, tie_word_embeddings=True), tmp_path)
    rewrite_config(tmp_path, lambda raw: {**raw, "architectures": ["ToyForCausalLM"], "hidden_act": "relu2"})
    register_model(Toy)
    for layer in reference.model.layers:
        up, down = layer.mlp.up_proj, layer.mlp.down_proj
        layer.mlp.forward = lambda x, up=up, down=down: down(F.relu(up(x)).square())
    assert_parity(load(tmp_path), reference)


def test_a_later_registration_wins():
    class Other(ModelAdapter):
        architectures = ("LlamaForCausalLM",)

    assert register_model(Other) is Other
    assert isinstance(adapter_for({"architectures": ["LlamaForCausalLM"]}), Other)


def test_an_adapter_must_name_its_architectures():
    with pytest.raises(ConfigError, match="architectures must be a tuple"):
        register_model(ModelAdapter)


@pytest.mark.parametrize("source", ["raise RuntimeError('boom')", "import no_such_module_here", "def ("])
def test_a_plugin_that_fails_is_named(source, tmp_path):
    path = tmp_path / "broken.py"
    path.write_text(source)
    with pytest.raises(ConfigError, match=r"plugins: cannot import .*broken\.py"):
        load_plugins([str(path)])


def test_a_plugin_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ConfigError, match="plugins: cannot import 'no_such_plugin'"):
        load_plugins(["no_such_plugin"])
    with pytest.raises(ConfigError, match=r"plugins: cannot import .*missing\.py"):
        load_plugins([str(tmp_path / "missing.py")])


def test_a_plugin_runs_once(tmp_path: Path):
    path = tmp_path / "counting.py"
    path.write_text(f"open({str(tmp_path / 'runs')!r}, 'a').write('x')")
    load_plugins([str(path), str(path)])
    assert (tmp_path / "runs").read_text() == "x"

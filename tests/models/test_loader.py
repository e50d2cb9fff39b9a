"""Loading: every weight exactly once, and whatever is wrong with a checkpoint is said, with names and shapes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, Qwen3Config

from mini_infer.config import ConfigError
from mini_infer.models.checkpoint import INDEX_FILE, SINGLE_FILE, Checkpoint
from mini_infer.models.loader import build_model, load_model
from mini_infer.models.registry import ModelAdapter, load_config
from mini_infer.models.upload import Uploader
from mini_infer.nn.linear import weight_slots
from tests.models.harness import VOCAB_SIZE, Harness, load, plain, rewrite_config, save_checkpoint

SHAPE = {"vocab_size": VOCAB_SIZE, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
         "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128, "bos_token_id": 1,
         "eos_token_id": 2}
Q0 = "model.layers.0.self_attn.q_proj.weight"


@pytest.fixture
def single(tmp_path) -> Path:
    save_checkpoint(LlamaConfig(**SHAPE), tmp_path)
    return tmp_path


@pytest.fixture
def sharded(tmp_path) -> Path:
    save_checkpoint(LlamaConfig(**SHAPE), tmp_path, max_shard_size="30KB")
    return tmp_path


def rewrite_weights(path: Path, change, file: str = SINGLE_FILE) -> None:
    weights = load_file(path / file)
    change(weights)
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, path / file, {"format": "pt"})


def refused(path: Path, *parts: str, dtype: torch.dtype = torch.float32) -> None:
    """Loading fails with a message that has all `parts`."""
    with pytest.raises(ConfigError) as error:
        load(path, dtype)
    for part in parts:
        assert part in str(error.value)


# ---- every weight once

def test_missing_weights_are_named(single):
    rewrite_weights(single, lambda w: w.pop(Q0))
    refused(single, "lacks layers.0.self_attn.q_proj.weight [32, 32]")


def test_many_missing_weights_are_counted(single):
    rewrite_weights(single, lambda w: [w.pop(name) for name in list(w) if "layers.0" in name])
    refused(single, "layers.0.self_attn.q_proj.weight", "and 6 more")


def test_unexpected_weight_is_named(single):
    rewrite_weights(single, lambda w: w.update({"model.layers.0.self_attn.q_proj.bias": torch.zeros(32)}))
    refused(single, "model.layers.0.self_attn.q_proj.bias of model.safetensors", "no place in a LlamaForCausalLM")


def test_a_layer_too_many_is_named(single):
    rewrite_config(single, lambda raw: {**raw, "num_hidden_layers": 1})
    refused(single, "model.layers.1.", "no place")


def test_misshapen_weight_is_named_with_both_shapes(single):
    rewrite_weights(single, lambda w: w.update({Q0: torch.zeros(16, 32)}))
    refused(single, Q0, "[16, 32]", "[32, 32] was expected")


def test_transposed_weight_is_misshapen(single):
    name = "model.layers.1.mlp.down_proj.weight"
    rewrite_weights(single, lambda w: w.update({name: w[name].T.contiguous()}))
    refused(single, name, "[64, 32]", "[32, 64] was expected")


def test_a_weight_with_two_names_is_named(single):
    """Without the leading "model." a name means the same."""
    rewrite_weights(single, lambda w: w.update({Q0.removeprefix("model."): w[Q0].clone()}))
    refused(single, "layers.0.self_attn.q_proj.weight is there twice", Q0)


def test_only_known_extras_are_ignored(single):
    rewrite_config(single, lambda raw: {**raw, "tie_word_embeddings": True})
    rewrite_weights(single, lambda w: w.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(4)}))
    assert load(single).lm_head is None  # lm_head.weight is in the file: a tied model takes the embedding
    rewrite_weights(single, lambda w: w.update({"model.rotary_emb.cos": torch.zeros(4)}))
    refused(single, "model.rotary_emb.cos")


def test_untied_model_needs_its_head(single):
    rewrite_weights(single, lambda w: w.pop("lm_head.weight"))
    refused(single, "lacks lm_head.weight [128, 32]")


def test_merged_parameters_hold_their_parts_in_order(single):
    weights, model = load_file(single / SINGLE_FILE), load(single)
    for layer, prefix in enumerate(("model.layers.0.", "model.layers.1.")):
        qkv = torch.cat([weights[f"{prefix}self_attn.{part}_proj.weight"] for part in "qkv"])
        assert torch.equal(plain(model.layers[layer].self_attn.qkv_proj.weight), qkv)
    slots = weight_slots(build_model(model.config, ModelAdapter(), torch.float32))
    assert {f"model.{name}" if name != "lm_head.weight" else name for name in slots} == set(weights)
    assert sum(view.numel() for view in slots.values()) == model.num_parameters


# ---- files

def test_shards_load_as_one_file_does(single, tmp_path_factory):
    other = tmp_path_factory.mktemp("sharded")
    save_checkpoint(LlamaConfig(**SHAPE), other, max_shard_size="30KB")
    assert len(list(other.glob("*.safetensors"))) > 2
    one, many = load(single), load(other)
    assert all(torch.equal(plain(a), plain(b)) for a, b in zip(one.parameters(), many.parameters(), strict=True))


def test_missing_shard_is_named(sharded):
    shard = sorted(sharded.glob("*.safetensors"))[1]
    shard.unlink()
    refused(sharded, shard.name, "is missing")


def test_weight_in_two_shards_is_named(sharded):
    first, second = [path.name for path in sorted(sharded.glob("*.safetensors"))[:2]]
    name = next(iter(load_file(sharded / first)))
    rewrite_weights(sharded, lambda w: w.update({name: torch.zeros(1)}), second)
    refused(sharded, name, first, second)


def test_shard_and_index_must_agree(sharded):
    index = json.loads((sharded / INDEX_FILE).read_text())
    file = index["weight_map"][Q0]
    rewrite_weights(sharded, lambda w: w.pop(Q0), file)
    refused(sharded, file, f"weight {Q0} is not in it")


def test_shard_with_an_unlisted_weight(sharded):
    first = min(path.name for path in sharded.glob("*.safetensors"))
    rewrite_weights(sharded, lambda w: w.update({"extra": torch.zeros(1)}), first)
    refused(sharded, first, "weight extra is in it", "does not list it")


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "a/b.safetensors", "..\\m.safetensors",
                                  "..", "", "weights.bin", 7, None, ["x.safetensors"]])
def test_index_must_not_lead_elsewhere(name, sharded):
    (sharded.parent / "model.safetensors").write_bytes(b"")
    rewrite_config(sharded, lambda raw: {"weight_map": {**raw["weight_map"], Q0: name}}, INDEX_FILE)
    refused(sharded, INDEX_FILE, Q0, repr(name))


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"weight_map": []}', '{"weight_map": {}}'])
def test_broken_index(text, sharded):
    (sharded / INDEX_FILE).write_text(text)
    refused(sharded, INDEX_FILE)


def test_index_naming_a_weight_twice(sharded):
    text = (sharded / INDEX_FILE).read_text()
    line = next(line for line in text.splitlines() if Q0 in line)
    (sharded / INDEX_FILE).write_text(text.replace(line, line.rstrip(",") + ",\n" + line))
    refused(sharded, INDEX_FILE, Q0, "twice")


@pytest.mark.parametrize("damage", [lambda data: data[:-10], lambda data: data[:100], lambda data: b"",
                                    lambda data: data + b"x", lambda data: b"\xff" * 8 + data[8:],
                                    lambda data: b"not a safetensors file at all"])
def test_damaged_file_is_named(damage, single):
    path = single / SINGLE_FILE
    path.write_bytes(damage(path.read_bytes()))
    refused(single, str(path), "no whole safetensors file")


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.integers(0, 1200), new=st.binary(min_size=1, max_size=4), cut=st.integers(0, 50))
def test_any_damage_to_the_header_is_refused_or_harmless(position, new, cut, single):
    path = single / SINGLE_FILE
    whole = path.read_bytes()
    damaged = whole[:position] + new + whole[position + len(new) :]
    path.write_bytes(damaged[: len(damaged) - cut])
    try:
        load(single)
    except ConfigError as error:
        assert "model: " in str(error)
    finally:
        path.write_bytes(whole)


def test_pickles_are_refused(single):
    (single / SINGLE_FILE).unlink()
    (single / "pytorch_model.bin").write_bytes(b"")
    refused(single, "pytorch_model.bin", "pickle", "save_pretrained")


def test_no_weights_at_all(single):
    (single / SINGLE_FILE).unlink()
    refused(single, "has no weights", "dummy")


def test_shards_without_an_index(sharded):
    (sharded / INDEX_FILE).unlink()
    refused(sharded, "model-00001-of-", INDEX_FILE)


def test_opening_reads_only_headers(single):
    checkpoint = Checkpoint(single)
    weights = load_file(single / SINGLE_FILE)
    assert {info.name: info.shape for info in checkpoint.tensors} == {k: tuple(v.shape) for k, v in weights.items()}
    assert checkpoint.num_bytes == sum(tensor.nbytes for tensor in weights.values())


# ---- dtypes

@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_dtype_is_converted(stored, dtype, single):
    rewrite_weights(single, lambda w: w.update({name: tensor.to(stored) for name, tensor in w.items()}))
    model = load(single, dtype)
    expected = load_file(single / SINGLE_FILE)["model.embed_tokens.weight"].to(dtype)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    assert torch.equal(model.embed_tokens.weight, expected)


def test_weights_beyond_float16_are_refused(single):
    rewrite_weights(single, lambda w: w["lm_head.weight"].fill_(1e5))
    refused(single, "dtype", "lm_head.weight", "bfloat16", dtype=torch.float16)
    load(single, torch.bfloat16)


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn, torch.bool])
def test_other_dtypes_are_refused(dtype, single):
    rewrite_weights(single, lambda w: w.update({Q0: w[Q0].to(dtype)}))
    refused(single, Q0, "dtype", "F32")


# ---- dummy weights, and no memory before it is needed

@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dummy_weights_come_from_the_seed_alone(dtype, tmp_path):
    fields = {**SHAPE, "num_hidden_layers": 8}
    (tmp_path / "config.json").write_text(json.dumps(
        {**fields, "architectures": ["Qwen3ForCausalLM"], "head_dim": 8, "attention_bias": True}))
    models = [load(tmp_path, dtype, load_format="dummy", seed=seed) for seed in (3, 3, 4)]
    first, again, other = ([plain(parameter) for parameter in model.parameters()] for model in models)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    logits = Harness(models[0], 1).generate([list(range(64))], 1)[0]
    assert 0.3 < logits.std() < 3


def test_bytes_are_known_without_memory(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(
        {"architectures": ["LlamaForCausalLM"], "vocab_size": 128256, "hidden_size": 8192, "intermediate_size": 28672,
         "num_hidden_layers": 80, "num_attention_heads": 64, "num_key_value_heads": 8}))
    adapter, config = load_config(tmp_path)
    model = build_model(config, adapter, torch.bfloat16)
    assert model.num_parameters == 70_553_706_496  # Llama 3 70B
    assert model.num_bytes == 2 * model.num_parameters
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}


def test_what_is_kept_in_two_forms_is_counted(tmp_path):
    reference = save_checkpoint(LlamaConfig(**SHAPE, tie_word_embeddings=True), tmp_path)
    model = load(tmp_path)
    assert torch.equal(model.embed_tokens.weight, reference.model.embed_tokens.weight)
    copied = sum(buffer.nbytes for name, buffer in model.named_buffers() if name.endswith("packed"))
    assert copied >= (0 if model.embed_tokens.packed is None else model.embed_tokens.weight.nbytes)
    assert model.num_bytes == 4 * model.num_parameters + copied


def test_progress_counts_every_byte(single, capsys):
    load(single, progress=True)
    assert re.search(r"Loading weights: 100%", capsys.readouterr().err)


def test_nothing_is_allocated_for_a_checkpoint_that_does_not_fit(single, monkeypatch):
    adapter, config = load_config(single)
    rewrite_weights(single, lambda w: w.pop(Q0))
    monkeypatch.setattr("mini_infer.models.decoder.Decoder.materialize", lambda *args: pytest.fail("allocated"))
    with pytest.raises(ConfigError, match="lacks"):
        load_model(single, config, adapter, torch.float32, torch.device("cpu"))


@pytest.mark.gpu
@pytest.mark.parametrize("target_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(3,), (40_000_003,), (5000, 3000), (1, 20_000_000), (300, 40_000)])
def test_upload_through_pinned_memory(shape, target_dtype):
    source = torch.randn(shape, dtype=torch.bfloat16)
    target = torch.empty(shape, dtype=target_dtype, device="cuda")
    uploader, counted = Uploader(target.device), []
    uploader.copy(source, target, counted.append)
    if len(shape) == 2:
        uploader.copy(source.T, target.T, counted.append)
    uploader.finish()
    assert torch.equal(target.cpu(), source.to(target_dtype))
    assert sum(counted) == source.nbytes * len(shape)


@pytest.mark.gpu
def test_gpu_weights_are_the_cpu_ones(tmp_path):
    save_checkpoint(Qwen3Config(**SHAPE, head_dim=8), tmp_path, max_shard_size="30KB")
    adapter, config = load_config(tmp_path)
    on_gpu = load_model(tmp_path, config, adapter, torch.bfloat16, torch.device("cuda"))
    for a, b in zip(on_gpu.parameters(), load(tmp_path, torch.bfloat16).parameters(), strict=True):
        assert torch.equal(a.cpu(), plain(b))

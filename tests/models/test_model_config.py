"""config.json in, ModelConfig out: what transformers reads, and a refusal for what would change the mathematics."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mini_infer.config import ConfigError, ModelConfig, RopeConfig
from mini_infer.models.registry import adapter_for, load_config, supported_architectures

BASE = {"vocab_size": 128, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512}


def parse(architecture: str = "Llama", **fields) -> ModelConfig:
    raw = {**BASE, "architectures": [f"{architecture}ForCausalLM"], **fields}
    return adapter_for(raw).config(raw)


def refused(*parts: str, architecture: str = "Llama", **fields) -> None:
    with pytest.raises(ConfigError) as error:
        parse(architecture, **fields)
    for part in parts:
        assert part in str(error.value)


def test_supported_families():
    assert set(supported_architectures()) >= {"LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM",
                                              "Qwen3ForCausalLM"}


@pytest.mark.parametrize("architectures", [["GPT2LMHeadModel"], [], None, "LlamaForCausalLM", [1]])
def test_unknown_architecture(architectures):
    with pytest.raises(ConfigError, match="architecture"):
        adapter_for({"architectures": architectures})


def test_unknown_architecture_lists_the_supported():
    with pytest.raises(ConfigError, match=r"'MambaForCausalLM'.*LlamaForCausalLM, MistralForCausalLM, Qwen2"):
        adapter_for({"architectures": ["MambaForCausalLM"]})


def test_defaults_are_those_of_transformers():
    left_out = ("max_position_embeddings", "num_key_value_heads")
    raw = {name: value for name, value in BASE.items() if name not in left_out}
    for name, length, kv_heads, head_dim in (("Llama", 2048, 4, 16), ("Mistral", 131072, 8, 8), ("Qwen2", 32768, 32, 2),
                                             ("Qwen3", 32768, 32, 128)):
        fields = {**raw, "architectures": [f"{name}ForCausalLM"]}
        if name != "Llama":
            fields |= {"num_attention_heads": kv_heads}
        config = adapter_for(fields).config(fields)
        assert (config.max_position_embeddings, config.num_kv_heads, config.head_dim) == (length, kv_heads, head_dim)
        assert config.rope == RopeConfig(theta=10000.0)
        assert config.rms_norm_eps == 1e-6
        assert not config.tie_word_embeddings
        assert config.dtype == "float32"
        assert config.eos_token_ids == ((2,) if name in ("Llama", "Mistral") else ())


def test_biases():
    def biases(config: ModelConfig) -> tuple[bool, bool, bool]:
        return config.qkv_bias, config.o_bias, config.mlp_bias

    assert biases(parse("Llama")) == (False, False, False)
    assert biases(parse("Llama", attention_bias=True, mlp_bias=True)) == (True, True, True)
    assert biases(parse("Mistral", attention_bias=True)) == (False, False, False)  # a field it does not have
    assert biases(parse("Qwen2")) == (True, False, False)
    assert biases(parse("Qwen3", attention_bias=True)) == (True, True, False)
    assert parse("Qwen3").qk_norm
    assert not parse("Qwen2").qk_norm


@pytest.mark.parametrize(("architecture", "fields", "windows"), [
    ("Llama", {"sliding_window": 16}, (None,) * 4),  # a field that Llama does not have
    ("Mistral", {}, (4096,) * 4),
    ("Mistral", {"sliding_window": None}, (None,) * 4),
    ("Mistral", {"sliding_window": 16}, (16,) * 4),
    ("Mistral", {"sliding_window": 16, "layer_types": ["sliding_attention"] * 4}, (16,) * 4),
    ("Qwen2", {"sliding_window": 16}, (None,) * 4),
    ("Qwen2", {"sliding_window": 16, "use_sliding_window": True}, (None,) * 4),  # max_window_layers is 28
    ("Qwen2", {"sliding_window": 16, "use_sliding_window": True, "max_window_layers": 3}, (None, None, None, 16)),
    ("Qwen2", {"sliding_window": None, "use_sliding_window": True, "max_window_layers": 0}, (None,) * 4),
    ("Qwen2", {"use_sliding_window": True, "max_window_layers": 0}, (4096,) * 4),
    ("Qwen3", {"sliding_window": 16, "use_sliding_window": True, "max_window_layers": 0,
               "layer_types": ["full_attention", "sliding_attention"] * 2}, (None, 16) * 2),
    ("Qwen3", {"sliding_window": None, "layer_types": ["full_attention"] * 4}, (None,) * 4),
])
def test_sliding_windows(architecture, fields, windows):
    assert parse(architecture, **fields).sliding_windows == windows


@pytest.mark.parametrize(("architecture", "fields", "parts"), [
    ("Llama", {"hidden_act": "gelu"}, ["hidden_act='gelu'", "silu"]),
    ("Llama", {"quantization_config": {"quant_method": "gptq"}}, ["quantization_config (gptq)", "not supported yet"]),
    ("Llama", {"rope_scaling": {"rope_type": "longrope", "factor": 4.0}}, ["rope_type 'longrope'", "yarn"]),
    ("Llama", {"rope_scaling": {"type": "default", "mrope_section": [4, 4]}}, ["mrope_section"]),
    ("Llama", {"rope_parameters": {"full_attention": {"rope_theta": 1e4, "rope_type": "default"}}}, ["full_attention"]),
    ("Llama", {"rope_scaling": {"rope_type": "linear"}}, ["factor is missing"]),
    ("Llama", {"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 128},
               "original_max_position_embeddings": 256}, ["original_max_position_embeddings is 256", "128"]),
    ("Llama", {"partial_rotary_factor": 0.5}, ["partial_rotary_factor"]),
    ("Llama", {"final_logit_softcapping": 30.0}, ["final_logit_softcapping=30.0"]),
    ("Qwen3", {"num_experts": 128}, ["num_experts=128"]),
    ("Llama", {"num_attention_heads": 5}, ["hidden_size=64", "num_attention_heads=5"]),
    ("Llama", {"num_key_value_heads": 3}, ["num_attention_heads=4", "num_key_value_heads=3"]),
    ("Llama", {"head_dim": 15}, ["head_dim=15", "even"]),
    ("Llama", {"hidden_size": None}, ["hidden_size is missing"]),
    ("Llama", {"hidden_size": "64"}, ["hidden_size", "'64'"]),
    ("Llama", {"num_hidden_layers": True}, ["num_hidden_layers"]),
    ("Llama", {"rms_norm_eps": float("nan")}, ["rms_norm_eps"]),
    ("Llama", {"tie_word_embeddings": "yes"}, ["tie_word_embeddings"]),
    ("Llama", {"eos_token_id": -1}, ["eos_token_id"]),
    ("Llama", {"torch_dtype": "int8"}, ["int8", "bfloat16"]),
    ("Mistral", {"sliding_window": 16, "layer_types": ["full_attention"] * 4}, ["layer_types"]),
    ("Qwen2", {"layer_types": ["full_attention"] * 3}, ["layer_types", "4 layers"]),
    ("Qwen2", {"layer_types": ["chunked_attention"] * 4}, ["chunked_attention"]),
    ("Qwen2", {"layer_types": ["sliding_attention"] * 4}, ["use_sliding_window"]),
])
def test_what_is_not_supported_is_refused(architecture, fields, parts):
    refused(*parts, architecture=architecture, **fields)


def test_harmless_values_pass():
    parse(hidden_act="silu", quantization_config=None, final_logit_softcapping=None, num_experts=0, logits_scaling=1.0,
          partial_rotary_factor=1.0, attention_dropout=0.1, pretraining_tp=4, auto_map={"AutoModel": "x.Y"})


def test_both_forms_of_rope():
    section = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
               "original_max_position_embeddings": 128}
    form4 = parse(rope_theta=500000, rope_scaling=section).rope
    form5 = parse(rope_parameters={**section, "rope_theta": 500000.0}).rope
    older = parse(rope_theta=500000, rope_scaling={"type": section["rope_type"], **section}).rope
    assert form4 == form5 == older == RopeConfig("llama3", 500000.0, 8.0, 128, 1.0, 4.0)


def test_rope_lengths():
    yarn = parse(rope_scaling={"rope_type": "yarn", "factor": None, "original_max_position_embeddings": 128}).rope
    assert (yarn.factor, yarn.original_max_position_embeddings) == (4.0, 128)
    assert parse(rope_scaling={"rope_type": "yarn", "factor": 4.0}).rope.original_max_position_embeddings == 512
    dynamic = {"rope_type": "dynamic", "factor": 4.0, "original_max_position_embeddings": 128}
    assert parse(rope_scaling=dynamic).rope.original_max_position_embeddings == 512  # as transformers does


@pytest.mark.parametrize(("ours", "generation", "expected"), [
    (None, None, ()), (7, None, (7,)), ([7, 8], None, (7, 8)), (None, [9], (9,)), (7, [9, 7, 8], (7, 9, 8)),
    ([], 5, (5,)),
])
def test_eos_tokens_are_merged(ours, generation, expected, tmp_path):
    raw = {**BASE, "architectures": ["Qwen3ForCausalLM"], "eos_token_id": ours}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    if generation is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": generation}))
    assert load_config(tmp_path)[1].eos_token_ids == expected


@pytest.mark.parametrize("text", [None, "", "[]", "{", "\x00", '{"a": 1, "a": 2}', "[" * 100_000])
def test_config_that_cannot_be_read(text, tmp_path):
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(ConfigError, match=r"config\.json"):
        load_config(tmp_path)


@settings(deadline=None, max_examples=300)
@given(name=st.sampled_from(["Llama", "Mistral", "Qwen2", "Qwen3"]), field=st.sampled_from([
    *BASE, "head_dim", "hidden_act", "rms_norm_eps", "rope_theta", "rope_scaling", "rope_parameters", "layer_types",
    "sliding_window", "use_sliding_window", "max_window_layers", "eos_token_id", "bos_token_id", "tie_word_embeddings",
    "attention_bias", "torch_dtype", "dtype", "quantization_config", "num_experts",
    "original_max_position_embeddings"]),
    value=st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
                       lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
                           st.sampled_from(["rope_type", "type", "factor", "rope_theta", "mscale", "x",
                                            "original_max_position_embeddings", "truncate"]), inner, max_size=3),
                       max_leaves=5))
def test_any_value_is_read_or_refused(name, field, value):
    """Nothing but ConfigError ever comes out of a config.json."""
    with contextlib.suppress(ConfigError):
        parse(name, **{field: value})


def test_reading_a_config_needs_no_torch():
    """A front reads any model's shape without the weight of torch."""
    code = ("import sys; from mini_infer.models.registry import adapter_for, load_config, load_plugins; "
            "sys.exit('torch' in sys.modules)")
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

"""Every family and variant against transformers, on tiny random checkpoints, in both forms of config.json."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, PretrainedConfig, Qwen2Config, Qwen3Config

from mini_infer.config import BUNDLED_DRAFT_DIR, BUNDLED_MODEL_DIR
from mini_infer.ops import cuda_few
from mini_infer.ops import linear as linear_ops
from mini_infer.ops.activation import silu_and_mul
from mini_infer.ops.linear import linear
from mini_infer.ops.norm import rms_norm
from mini_infer.ops.stream import HalfNormed, Stream
from tests.models.harness import VOCAB_SIZE, Harness, assert_parity, load, plain, save_checkpoint

SHAPE = {"vocab_size": VOCAB_SIZE, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3,
         "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 256,
         "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2}
QWEN2_SHAPE = {name: value for name, value in SHAPE.items() if name != "head_dim"}  # it has no such field
LLAMA3_ROPE = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0,
               "high_freq_factor": 4.0, "original_max_position_embeddings": 32}
YARN_ROPE = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}


@dataclass(frozen=True)
class Variant:
    name: str
    family: type[PretrainedConfig]
    fields: dict[str, Any] = field(default_factory=dict)
    save: dict[str, Any] = field(default_factory=dict)

    def config(self) -> PretrainedConfig:
        shape = QWEN2_SHAPE if self.family is Qwen2Config else SHAPE
        return self.family(**{**shape, **self.fields})


def rope(name: str, **fields: Any) -> Variant:
    return Variant(f"llama-{name}", LlamaConfig, {"rope_parameters": {"rope_theta": 10000.0, **fields}})


WINDOW = {"use_sliding_window": True, "sliding_window": 16}
VARIANTS = [
    Variant("llama", LlamaConfig),
    Variant("llama-tied", LlamaConfig, {"tie_word_embeddings": True}),
    Variant("llama-mha", LlamaConfig, {"num_key_value_heads": 4}),
    Variant("llama-mha-by-default", LlamaConfig, {"num_key_value_heads": None}),
    Variant("llama-mqa", LlamaConfig, {"num_key_value_heads": 1}),
    Variant("llama-head-dim-from-hidden", LlamaConfig, {"head_dim": None}),
    Variant("llama-wide-heads", LlamaConfig, {"head_dim": 32}),
    Variant("llama-biases", LlamaConfig, {"attention_bias": True, "mlp_bias": True}),
    Variant("llama-eps", LlamaConfig, {"rms_norm_eps": 0.3}),
    Variant("llama-sharded", LlamaConfig, save={"max_shard_size": "40KB"}),
    rope("rope-theta", rope_type="default", rope_theta=500.0),
    rope("rope-linear", rope_type="linear", factor=4.0),
    rope("rope-dynamic", rope_type="dynamic", factor=4.0),
    rope("rope-llama3", **LLAMA3_ROPE),
    rope("rope-yarn", **YARN_ROPE),
    rope("rope-yarn-mscale", **YARN_ROPE, mscale=0.8, mscale_all_dim=0.5),
    rope("rope-yarn-attention-factor", **YARN_ROPE, attention_factor=1.3, beta_fast=16.0, beta_slow=2.0),
    rope("rope-yarn-not-truncated", **YARN_ROPE, truncate=False),
    Variant("mistral-window", MistralConfig, {"sliding_window": 16}),
    Variant("mistral-no-window", MistralConfig, {"sliding_window": None, "head_dim": None}),
    Variant("mistral-window-beyond", MistralConfig, {"sliding_window": 4096}),
    Variant("qwen2", Qwen2Config),
    Variant("qwen2-tied", Qwen2Config, {"tie_word_embeddings": True}),
    Variant("qwen2-window", Qwen2Config, {**WINDOW, "max_window_layers": 1}),
    Variant("qwen2-window-off", Qwen2Config, {"use_sliding_window": False, "sliding_window": 16,
                                              "max_window_layers": 0}),
    Variant("qwen2-yarn", Qwen2Config, {"rope_parameters": YARN_ROPE}),
    Variant("qwen3", Qwen3Config),
    Variant("qwen3-tied-mqa", Qwen3Config, {"num_key_value_heads": 1, "tie_word_embeddings": True}),
    Variant("qwen3-bias", Qwen3Config, {"attention_bias": True}),
    Variant("qwen3-window", Qwen3Config, {**WINDOW, "max_window_layers": 2}),
    Variant("qwen3-sharded-wide", Qwen3Config, {"head_dim": 24}, {"max_shard_size": "40KB"}),
]


@pytest.mark.parametrize("transformers4", [False, True], ids=["config5", "config4"])
@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_logits_and_greedy_tokens(variant, transformers4, tmp_path):
    reference = save_checkpoint(variant.config(), tmp_path, transformers4=transformers4, **variant.save)
    assert len(list(tmp_path.glob("*.safetensors"))) > 1 if variant.save else (tmp_path / "model.safetensors").is_file()
    assert_parity(load(tmp_path), reference)


def test_layer_types_place_the_windows(tmp_path):
    types = ["sliding_attention", "full_attention", "sliding_attention"]
    config = Qwen3Config(**SHAPE, **WINDOW, layer_types=types)
    reference = save_checkpoint(config, tmp_path)
    model = load(tmp_path)
    assert model.config.sliding_windows == (16, None, 16)
    assert_parity(model, reference)


@pytest.mark.parametrize("config", [LlamaConfig(**SHAPE), MistralConfig(**SHAPE, sliding_window=16),
                                    Qwen2Config(**QWEN2_SHAPE), Qwen3Config(**SHAPE)],
                         ids=lambda config: config.model_type)
def test_generate_gives_the_same_tokens(config, tmp_path):
    """Against the reference's own generation with its own cache, one prompt at a time."""
    config.eos_token_id = None
    reference = save_checkpoint(config, tmp_path)
    prompts = [[5, 7, 11], [3] * 20]
    harness = Harness(load(tmp_path), len(prompts))
    harness.generate(prompts, 64)
    for prompt, tokens in zip(prompts, harness.tokens, strict=True):
        ids = torch.tensor([prompt])
        out = reference.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=64, do_sample=False,
                                 pad_token_id=0)
        assert tokens == out[0].tolist()


@pytest.mark.parametrize("chunk", [1, 3, 8, 64])
def test_chunks_and_blocks_do_not_matter(chunk, tmp_path):
    save_checkpoint(MistralConfig(**SHAPE, sliding_window=16), tmp_path)
    model = load(tmp_path)
    prompt = [(7 * i) % VOCAB_SIZE for i in range(40)]
    whole = Harness(model, 1, block_size=16).generate([prompt], 4, chunk=40)[0]
    chunked = Harness(model, 1, block_size=8, seed=chunk).generate([prompt], 4, chunk=chunk)[0]
    assert (whole - chunked).abs().max() < 1e-4


@pytest.mark.parametrize("layers", [1, 3])
def test_the_last_layer_leaves_out_what_nobody_asked_for(layers, tmp_path):
    """Logits of the last tokens alone are those of all, and the keys and values of the others are there afterwards."""
    save_checkpoint(LlamaConfig(**{**SHAPE, "num_hidden_layers": layers}), tmp_path)
    prompts = [torch.randint(VOCAB_SIZE, (n,)).tolist() for n in (30, 9, 14)]
    model = load(tmp_path)
    whole, lasts = Harness(model, 3), Harness(model, 3)
    whole.tokens = lasts.tokens = prompts
    for counts in ({0: 11, 1: 1}, {0: 7, 1: 5, 2: 4}, {2: 9}, {0: 12, 1: 3, 2: 1}):
        expected, got = whole.step(counts), lasts.step(counts, last_only=True)
        for seq, n in counts.items():
            assert expected[seq].shape == (n, VOCAB_SIZE) and got[seq].shape == (1, VOCAB_SIZE)
            assert (got[seq][0] - expected[seq][-1]).abs().max() <= 1e-4


def test_what_is_added_may_wait_in_parts(tmp_path, monkeypatch):
    """As cuBLASLt leaves it for the next norm on a GPU, here with every product, also where the last layer goes on with
    few rows."""
    def leave_parts(stream: Stream, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None,
                    next_norm: torch.Tensor | None) -> None:
        whole = linear(x, weight, bias)
        stream.add_in_parts(torch.stack([0.25 * whole, 0.75 * whole]))

    reference = save_checkpoint(LlamaConfig(**SHAPE), tmp_path)
    model = load(tmp_path)
    whole, parts = Harness(model, 2), Harness(model, 2)
    whole.tokens = parts.tokens = [[5, 6, 7, 8, 9], [1, 2, 3]]
    want = whole.step({0: 5, 1: 3}, last_only=True)
    monkeypatch.setattr("mini_infer.nn.linear.linear_add", leave_parts)
    got = parts.step({0: 5, 1: 3}, last_only=True)
    for seq, logits in want.items():
        torch.testing.assert_close(got[seq], logits, atol=1e-5, rtol=1e-5)
    assert_parity(model, reference)


@pytest.mark.parametrize("family", [LlamaConfig, Qwen2Config, Qwen3Config])
def test_norms_may_be_done_in_halves(family, tmp_path, monkeypatch):
    """As few.cu does it on a GPU, here with every product of a step: who multiplies leaves the next norm half done, who
    multiplies next divides. A step with one layer's norms mixed up would be far off."""
    begun = []

    def multiply(x, weight, epilogue, out=None, *, blocks, half=None):
        assert epilogue.norm_weight is None or not begun, "only the embedding is normed by itself"
        if isinstance(x, HalfNormed):
            x = x.scaled * torch.rsqrt(x.squares.sum(-1, keepdim=True) / x.scaled.shape[1] + epilogue.eps)
        elif epilogue.norm_weight is not None:
            x = rms_norm(x, epilogue.norm_weight, epilogue.eps)
        y = torch.nn.functional.linear(x, weight, epilogue.bias)
        if epilogue.gated:
            y = silu_and_mul(y)
        if epilogue.residual is not None:
            y = epilogue.residual.add_(y)
        if half is not None:
            begun.append(half)
            half.scaled.copy_(y * half.norm_weight)
            half.squares.zero_()[:, -1] = y.square().sum(-1)
        return y

    monkeypatch.setattr("mini_infer.nn.linear.pack_weight", lambda weight: weight)  # as on a GPU
    reference = save_checkpoint(family(**SHAPE), tmp_path)
    model = load(tmp_path)
    with torch.inference_mode():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.uniform_(0.5, 1.5)
    whole, halves = Harness(model, 2), Harness(model, 2)
    whole.tokens = halves.tokens = [[5, 6, 7, 8, 9], [1, 2, 3]]
    want = whole.step({0: 5, 1: 3}, last_only=True)
    monkeypatch.setattr(linear_ops, "use_triton", lambda x: True)
    monkeypatch.setattr(cuda_few, "choose_blocks", lambda rows, weight, gated=False: 1)
    monkeypatch.setattr(cuda_few, "cuda_few_matmul", multiply)
    got = halves.step({0: 5, 1: 3}, last_only=True)
    assert len(begun) == 2 * reference.config.num_hidden_layers - 1
    for seq, logits in want.items():
        torch.testing.assert_close(got[seq], logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", [LlamaConfig, Qwen3Config])
def test_half_precision_is_as_near_to_float32_as_the_reference(family, dtype, tmp_path):
    """Loaded into half precision, our logits are no further from the float32 ones than transformers' in that dtype."""
    reference = save_checkpoint(family(**SHAPE), tmp_path)
    prompt = [(5 * i) % VOCAB_SIZE for i in range(48)]
    ours = Harness(load(tmp_path, dtype), 1).generate([prompt], 1, chunk=16)[0]
    with torch.inference_mode():
        exact = reference(torch.tensor([prompt])).logits[0]
        theirs = reference.to(dtype)(torch.tensor([prompt])).logits[0].float()
    assert (ours - exact).abs().mean() < 1.5 * (theirs - exact).abs().mean()


def test_bfloat16_checkpoint_loads_as_it_is(tmp_path):
    config = LlamaConfig(**SHAPE)
    config.dtype = torch.bfloat16
    reference = save_checkpoint(config, tmp_path)
    reference.to(torch.bfloat16).save_pretrained(tmp_path)
    model = load(tmp_path, torch.bfloat16)
    assert model.config.dtype == "bfloat16"
    assert torch.equal(plain(model.lm_head.weight), reference.lm_head.weight)
    gate_up = plain(model.layers[1].mlp.gate_up_proj.weight)
    assert torch.equal(gate_up[80:], reference.model.layers[1].mlp.up_proj.weight)


def test_dynamic_rope_beyond_the_original_length(tmp_path):
    """One table for all requests: it is transformers' for sequences as long as max_model_len (ops/rope.py)."""
    rope_parameters = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    fields = {**SHAPE, "max_position_embeddings": 32, "rope_parameters": rope_parameters}
    reference = save_checkpoint(LlamaConfig(**fields), tmp_path)
    prompt = [(11 * i) % VOCAB_SIZE for i in range(64)]
    ours = Harness(load(tmp_path, max_model_len=64), 1).generate([prompt], 1, chunk=32)[0]
    with torch.inference_mode():
        expected = reference(torch.tensor([prompt])).logits[0]
    assert (ours - expected).abs().max() < 1e-4


@pytest.mark.weights
@pytest.mark.parametrize("directory", [BUNDLED_MODEL_DIR, BUNDLED_DRAFT_DIR], ids=lambda path: path.name)
def test_bundled_models(directory):
    """What transformers makes of the shipped files is what we make of them."""
    reference = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager")
    assert_parity(load(directory), reference.eval())

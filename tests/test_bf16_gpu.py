"""bf16 on a GPU against fp32: what the engine says of its own tokens must hold in a teacher-forced pass in float32."""

from __future__ import annotations

import pytest
import torch

from mini_infer import LLM
from mini_infer.config import BUNDLED_MODEL_DIR

QUESTIONS = ["Hello! Who are you?", "What is 27 + 35?", "Which day comes after Thursday?",
             "Tell me a short story about Mia, a fox and a lighthouse.", "What is mini-infer?",
             "Who was the king of France?", "Spell the word garden.", "What is 81 - 23?"]


@pytest.mark.gpu
@pytest.mark.weights
@pytest.mark.parametrize("options", [
    {}, {"enforce_eager": True}, {"max_num_batched_tokens": 64, "max_num_seqs": 8},
    {"pipeline_depth": 1, "block_size": 16},
], ids=str)
def test_logprobs_of_the_chosen_tokens(options: dict) -> None:
    """The bundled model, greedy: log-probabilities within 0.02 on average of a float32 pass over the same tokens, and
    the chosen token is float32's choice wherever its lead is clear."""
    template = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
    llm = LLM(device="cuda", dtype="bfloat16", kv_cache_memory=1 << 30, **options)
    prompts = [template.format(question) for question in QUESTIONS]
    outs = llm.generate(prompts, temperature=0.0, max_tokens=64, logprobs=0, use_tqdm=False)

    from transformers import Qwen3ForCausalLM
    reference = Qwen3ForCausalLM.from_pretrained(BUNDLED_MODEL_DIR, dtype=torch.float32)
    errors, agreed, clear = [], 0, 0
    for out in outs:
        with torch.no_grad():
            rows = reference(torch.tensor([out.prompt_token_ids + out.token_ids])).logits[0].log_softmax(-1)
        rows = rows[len(out.prompt_token_ids) - 1 : -1]
        chosen = rows.gather(1, torch.tensor(out.token_ids)[:, None])[:, 0]
        said = torch.tensor([position[token].logprob for token, position in
                             zip(out.token_ids, out.outputs[0].logprobs or [])])
        errors.append((said - chosen).abs())
        lead = rows.topk(2).values.diff(dim=1).abs()[:, 0] > 0.2
        clear += int(lead.sum())
        agreed += int((rows.argmax(-1) == torch.tensor(out.token_ids))[lead].sum())
    error = torch.cat(errors)
    assert error.mean() < 0.02
    assert error.max() < 0.25
    assert agreed == clear

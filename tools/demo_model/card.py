"""Writes the model cards from the exam's result and the training log.

    python -m tools.demo_model.card --exam benchmarks/results/exam-mini-infer-demo-transformers.json
"""

import argparse
import json
from pathlib import Path

BUNDLED = Path("mini_infer/models/bundled")
_WHAT = {
    "arithmetic": "sum or difference of two numbers to 99 (differences may be negative)",
    "after": "what comes after a day, month, letter or number",
    "story": "a story of 60 to 150 words that keeps the asked hero, animal and place, in the world's words",
    "recall": "something the user said two or three exchanges earlier",
    "json": "a valid and right JSON answer",
    "tools": "the right call of the right tool, half of them with names never seen",
    "unknown": "saying that it doesn't know, to questions from outside its world",
    "mini_infer": "facts about mini-infer",
    "identity": "facts about itself: that it is a toy, above all",
    "tool_result": "what to say after a tool's result",
    "no_tool": "answering by itself where tools are given but not needed",
    "compare": "which of two or three numbers is bigger or smaller",
    "raw_story": "going on with a story's first sentence, without chat template",
    "unknown_handwritten": "saying that it doesn't know, to questions written by hand",
}

_MAIN = """\
---
license: mit
language: en
pipeline_tag: text-generation
---

# mini-infer-demo

**A toy.** A language model of {parameters} million parameters that comes with mini-infer, so that the engine runs
anywhere without a download and so that quality (the loss by quantization, the acceptance of drafts) can be measured
honestly. It speaks plain English about a very small world of numbers, words, animals and stories, and says that it
doesn't know where that world ends. It knows no facts about the real world. Don't use it for anything that matters.

- Architecture: `Qwen3ForCausalLM`, {layers} layers, hidden size {hidden}, {heads} query heads and {kv_heads} KV heads
  of 64, MLP {mlp}, tied embeddings, context of 2048 tokens, bfloat16 ({megabytes} MB).
- Tokenizer: byte-level BPE of 4096 entries (any UTF-8 goes in), every digit a token of its own.
- Chat template: ChatML in the manner of Qwen, with tools (`<tool_call>`, `<tool_response>`).
- Training: {tokens} million tokens of synthetic text, written anew for every step by the generator in
  `tools/demo_model`; no outside data. {minutes} minutes on one {machine} ({steps} steps, seed {seed}).
- Draft for speculation: `mini-infer-demo-draft` ({draft_parameters} million parameters, same tokenizer), distilled
  from this model; its first choice is the model's own in {agreement} % of the exam's answer tokens.

## Exam

Greedy decoding, exact checks, items that training never saw ({engine}, {device}). A tenth of all items is held out by
the hash of its name: pairs of numbers, values to remember, casts of stories, names of tools, wordings of questions.

| skill | what is asked | items | right | required |
| --- | --- | ---: | ---: | ---: |
{rows}

Repeat it with `python -m tools.demo_model.exam`; train it with `python -m tools.demo_model.train` (see
`tools/demo_model/README.md`).

## Limits

It answers in the few forms it was taught; words and questions unlike its training text can lead it astray, and it
then says something wrong in a sure voice. Sums beyond three digits, long texts and several wishes in one message are
too much for it. Where it lists things at random, it may repeat one.
"""

_DRAFT = """\
---
license: mit
language: en
pipeline_tag: text-generation
---

# mini-infer-demo-draft

**A toy's helper.** A draft model of {draft_parameters} million parameters for speculative decoding with
`mini-infer-demo`; it has the same tokenizer and template. Not made to be talked to by itself.

- Architecture: `Qwen3ForCausalLM`, {draft_layers} layers, hidden size {draft_hidden}, {draft_heads} query heads and
  {draft_kv_heads} KV heads of 64, MLP {draft_mlp}, tied embeddings, bfloat16.
- Training: distilled from `mini-infer-demo` (KL divergence) on {draft_tokens} million tokens of synthetic text,
  {draft_minutes} minutes on one {machine}.

Share of the answer tokens of `mini-infer-demo` (greedy, held-out items) that are the draft's first choice:

| skill | agreement |
| --- | ---: |
{agreement_rows}
"""


def facts(exam: dict, log: dict) -> dict[str, object]:
    """Everything that the cards mention."""
    rows = []
    for skill, entry in exam["skills"].items():
        required = f"{entry['required'] * 100:.0f} %" if "required" in entry else ""
        rows.append(f"| {skill} | {_WHAT[skill]} | {entry['total']} | {entry['score'] * 100:.1f} % | {required} |")
    agreement = exam["draft_agreement"]
    out: dict[str, object] = {
        "rows": "\n".join(rows),
        "engine": exam["engine"],
        "device": exam["versions"]["device"],
        "agreement": f"{agreement['all'] * 100:.1f}",
        "agreement_rows": "\n".join(f"| {skill} | {share * 100:.1f} % |" for skill, share in agreement.items()),
        "machine": log["machine"],
        "seed": log["seed"],
    }
    for prefix, folder, part in (("", "mini-infer-demo", "main"), ("draft_", "mini-infer-demo-draft", "draft")):
        config = json.loads((BUNDLED / folder / "config.json").read_text())
        size = (BUNDLED / folder / "model.safetensors").stat().st_size
        out |= {f"{prefix}layers": config["num_hidden_layers"], f"{prefix}hidden": config["hidden_size"],
                f"{prefix}heads": config["num_attention_heads"], f"{prefix}kv_heads": config["num_key_value_heads"],
                f"{prefix}mlp": config["intermediate_size"], f"{prefix}parameters": f"{size / 2e6:.1f}",
                f"{prefix}megabytes": f"{size / 1e6:.1f}", f"{prefix}tokens": log[part]["tokens"] // 1_000_000,
                f"{prefix}minutes": f"{log[part]['seconds'] / 60:.1f}", f"{prefix}steps": log[part]["steps"]}
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--exam", type=Path, required=True)
    parser.add_argument("--log", type=Path, default=Path("tools/demo_model/training_log.json"))
    args = parser.parse_args()
    values = facts(json.loads(args.exam.read_text()), json.loads(args.log.read_text()))
    (BUNDLED / "mini-infer-demo" / "README.md").write_text(_MAIN.format(**values))
    (BUNDLED / "mini-infer-demo-draft" / "README.md").write_text(_DRAFT.format(**values))


if __name__ == "__main__":
    main()

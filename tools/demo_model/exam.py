"""Examines a model folder on held-out items and writes the scores as JSON.

    python -m tools.demo_model.exam --model mini_infer/models/bundled/mini-infer-demo --engine transformers

Decoding is greedy and every check is exact. With ``--draft``, also measures how often the draft's first choice is the
main model's answer (transformers only).
"""

import argparse
import importlib.metadata
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path

import torch
from tqdm import tqdm

from tools.demo_model.checks import is_right
from tools.demo_model.exam_items import REQUIRED, ExamItem, exam_items

Generate = Callable[[list[str], int], list[str]]  # prompts, most new tokens -> answers
SHOWN_ERRORS = 5


def mini_infer_engine(model: Path) -> Generate:
    """Answers with mini-infer itself."""
    from mini_infer import LLM

    llm = LLM(model=str(model))

    def generate(prompts: list[str], max_tokens: int) -> list[str]:
        return [output.text for output in llm.generate(prompts, max_tokens=max_tokens, temperature=0.0)]

    return generate


def transformers_engine(model: Path, batch_size: int = 256) -> Generate:
    """Answers with transformers, in left-padded batches."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = AutoTokenizer.from_pretrained(model, padding_side="left")
    net = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16 if device == "cuda" else torch.float32).to(
        device
    )

    def generate(prompts: list[str], max_tokens: int) -> list[str]:
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        answers = [""] * len(prompts)
        for start in tqdm(range(0, len(order), batch_size), desc="batches", mininterval=5, leave=False):
            chosen = order[start : start + batch_size]
            inputs = tokenizer(
                [prompts[i] for i in chosen], return_tensors="pt", padding=True, add_special_tokens=False
            )
            inputs = {k: v.to(device) for k, v in inputs.items() if k in ("input_ids", "attention_mask")}
            with torch.no_grad():
                output = net.generate(**inputs, max_new_tokens=max_tokens, do_sample=False)
            texts = tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
            for index, text in zip(chosen, texts, strict=True):
                answers[index] = text
        return answers

    return generate


ENGINES: dict[str, Callable[[Path], Generate]] = {"mini-infer": mini_infer_engine, "transformers": transformers_engine}


def examine(generate: Generate, items: list[ExamItem]) -> tuple[dict[str, dict], list[str]]:
    """Scores by skill, and all answers."""
    answers: dict[int, str] = {}
    by_room: dict[int, list[int]] = {}
    for index, item in enumerate(items):
        by_room.setdefault(item.max_tokens, []).append(index)
    for room, indices in by_room.items():
        answers.update(zip(indices, generate([items[i].prompt for i in indices], room), strict=True))
    skills: dict[str, dict] = {}
    for index, item in enumerate(items):
        entry = skills.setdefault(item.skill, {"right": 0, "total": 0, "errors": []})
        entry["total"] += 1
        if is_right(answers[index], item.expect):
            entry["right"] += 1
        elif len(entry["errors"]) < SHOWN_ERRORS:
            entry["errors"].append({"prompt": item.prompt[-300:], "answer": answers[index], "expected": item.expect})
    for skill, entry in skills.items():
        entry["score"] = round(entry["right"] / entry["total"], 4)
        if skill in REQUIRED:
            entry["required"] = REQUIRED[skill]
            entry["passed"] = entry["score"] >= REQUIRED[skill]
    return skills, [answers[i] for i in range(len(items))]


def draft_agreement(model: Path, draft: Path, items: list[ExamItem], answers: list[str]) -> dict[str, float]:
    """Share of the main model's answer tokens that are the draft's first choice, by skill."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = AutoTokenizer.from_pretrained(model)
    net = AutoModelForCausalLM.from_pretrained(draft, dtype=torch.float32).to(device)
    hits: dict[str, list[int]] = {}
    for item, answer in zip(tqdm(items, desc="draft", mininterval=5), answers, strict=True):
        start = len(tokenizer(item.prompt, add_special_tokens=False).input_ids)
        ids = tokenizer(
            item.prompt + answer + "<|im_end|>", add_special_tokens=False, return_tensors="pt"
        ).input_ids.to(device)
        with torch.no_grad():
            guesses = net(ids).logits[0, start - 1 : -1].argmax(-1)
        pair = hits.setdefault(item.skill, [0, 0])
        pair[0] += int((guesses == ids[0, start:]).sum())
        pair[1] += len(guesses)
    total = [sum(pair[i] for pair in hits.values()) for i in range(2)]
    return {skill: round(a / b, 4) for skill, (a, b) in (hits | {"all": total}).items()}


def versions() -> dict[str, str]:
    """Machine and software, for the record."""
    record = {
        "python": platform.python_version(),
        "platform": platform.system(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine(),
    }
    for package in ("torch", "transformers", "tokenizers", "mini-infer"):
        try:
            record[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            record[package] = "not installed"
    return record


def print_table(skills: dict[str, dict]) -> None:
    """The scores as a table."""
    print(f"{'skill':22}{'score':>8}{'required':>10}{'items':>7}")
    for skill, entry in skills.items():
        required = f"{entry['required']:.2f}" if "required" in entry else ""
        mark = "" if "passed" not in entry or entry["passed"] else "  FAILED"
        print(f"{skill:22}{entry['score']:8.3f}{required:>10}{entry['total']:7}{mark}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("mini_infer/models/bundled/mini-infer-demo"))
    parser.add_argument("--draft", type=Path, help="also measure this draft model's agreement")
    parser.add_argument("--engine", choices=sorted(ENGINES), default="mini-infer")
    parser.add_argument("--count", type=int, default=300, help="items of each skill")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/exam-MODEL-ENGINE.json")
    args = parser.parse_args()
    items = exam_items(args.count, args.seed)
    started = time.perf_counter()
    skills, answers = examine(ENGINES[args.engine](args.model), items)
    result = {
        "model": args.model.name,
        "engine": args.engine,
        "seed": args.seed,
        "decoding": "greedy",
        "seconds": round(time.perf_counter() - started, 1),
        "versions": versions(),
        "skills": skills,
    }
    if args.draft:
        result["draft_agreement"] = draft_agreement(args.model, args.draft, items, answers)
    out = args.out or Path("benchmarks/results") / f"exam-{args.model.name}-{args.engine}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    print_table(skills)
    if args.draft:
        print("draft agreement:", result["draft_agreement"])
    print(f"written to {out}")


if __name__ == "__main__":
    main()

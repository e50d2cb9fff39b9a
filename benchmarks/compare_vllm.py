"""The same work on mini-infer and on vLLM, or beside what vLLM did of it on one H200 (benchmarks/anchors.json).

    python -m benchmarks.compare_vllm [--models qwen3-0.6b qwen2.5-7b]

Each engine runs in a process of its own, one after the other, on random weights in bf16:

- offline: 256 requests, 100 to 1,024 tokens in and out each (uniform), temperature 0.6; output tokens a second; the
  same with 1,024 requests, 512 at once, for a small model
- decode: prompts of 128 tokens, greedy; (time for 288 new tokens - time for 32) / 256, milliseconds a step
- prefill: one new token for each of b prompts of n tokens, the median of three, seconds
- cold: from the start of the process to its first token, seconds

Where vLLM is installed it runs too (`--engines mini-infer vllm`); a ratio wants both engines on one machine. With
`--runs benchmarks/results/h200` nothing runs: the newest runs kept there, of the same work, are told.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS, ROOT, Figure, write_result
from mini_infer.bench.report import table

Prompts = list[list[int]]
Generate = Callable[[Prompts, list[int], float], int]  # prompts, their output lengths, temperature -> output tokens
ENGINES = ("mini-infer", "vllm")
ANCHORS = Path(__file__).resolve().parent / "anchors.json"
SHAPES = Path(__file__).resolve().parent / "shapes"
BATCHES = (1, 8, 64, 256)
PREFILLS = ((1, 1024), (1, 8192), (16, 2048))
CROWD, CROWDED = 1024, ("qwen3-0.6b",)
SHORT, LONG = 32, 288
OPTIONS: dict[str, Any] = {"load_format": "dummy", "skip_tokenizer_init": True, "max_model_len": 16384,
                           "gpu_memory_utilization": 0.85, "max_num_seqs": 512, "dtype": "bfloat16"}


def make_engine(name: str, model: str, options: dict[str, Any]) -> Generate:
    """Both have the same interface; only the form of a prompt differs."""
    if name == "vllm":
        from vllm import LLM, SamplingParams
    else:
        from mini_infer import LLM, SamplingParams
    llm = LLM(model=model, **options)

    def generate(prompts: Prompts, lengths: list[int], temperature: float) -> int:
        params = [SamplingParams(temperature=temperature, max_tokens=length, ignore_eos=True, detokenize=False)
                  for length in lengths]
        given = [{"prompt_token_ids": prompt} for prompt in prompts] if name == "vllm" else prompts
        outputs = llm.generate(given, params, use_tqdm=False)
        return sum(len(output.outputs[0].token_ids) for output in outputs)

    return generate


class Work:
    """The measurements, on one engine. `scale` divides every size, for toy runs."""

    def __init__(self, generate: Generate, scale: int):
        self._generate = generate
        self._scale = scale
        self._rng = random.Random(0)
        self._vocabulary = range(100, 256) if scale > 1 else range(1000, 100_000)

    def prompts(self, lengths: Sequence[int]) -> Prompts:
        return [self._rng.choices(self._vocabulary, k=max(1, length // self._scale)) for length in lengths]

    def seconds(self, prompts: Prompts, lengths: Sequence[int], temperature: float = 0.0) -> float:
        wanted = [max(1, length // self._scale) for length in lengths]
        begin = time.perf_counter()
        made = self._generate(prompts, wanted, temperature)
        elapsed = time.perf_counter() - begin
        assert made == sum(wanted), f"{made} tokens came instead of {sum(wanted)}"
        return elapsed

    def offline(self, count: int = 256) -> float:
        rng = random.Random(1)
        inputs, outputs = ([rng.randint(100, 1024) for _ in range(count)] for _ in range(2))
        seconds = self.seconds(self.prompts(inputs), outputs, 0.6)
        return sum(max(1, length // self._scale) for length in outputs) / seconds

    def decode_ms(self, batch: int) -> float:
        short, long = (self.seconds(self.prompts([128] * batch), [tokens] * batch) for tokens in (SHORT, LONG))
        return 1e3 * (long - short) / ((LONG - SHORT) / self._scale)

    def prefill_s(self, batch: int, length: int) -> float:
        return statistics.median(self.seconds(self.prompts([length] * batch), [1] * batch) for _ in range(3))


def measure(engine: str, model: str, started: float, quick: bool) -> dict[str, Any]:
    """Everything, in this process."""
    toy = {"device": "cpu", "max_model_len": 512, "load_format": "auto", "dtype": "auto"}
    work = Work(make_engine(engine, model, OPTIONS | toy if quick else OPTIONS), 32 if quick else 1)
    work.seconds(work.prompts([16]), [4])
    cold = time.monotonic() - started
    work.seconds(work.prompts([64] * 64), [32] * 64)  # warm-up
    crowded = not quick and Path(model).name in CROWDED
    return {"cold_s": round(cold, 2), "offline_tok_s": round(work.offline(16 if quick else 256)),
            **({f"offline_{CROWD}_tok_s": round(work.offline(CROWD))} if crowded else {}),
            "decode_ms": {str(batch): round(work.decode_ms(batch), 3) for batch in (BATCHES[:2] if quick else BATCHES)},
            "prefill_s": {f"{batch}x{length}": round(work.prefill_s(batch, length), 4)
                          for batch, length in (PREFILLS[:1] if quick else PREFILLS)}}


def measure_in_own_process(engine: str, model: str, quick: bool) -> dict[str, Any]:
    """Raises RuntimeError with the end of what the process said when it fails."""
    command = [sys.executable, "-m", "benchmarks.compare_vllm", "--child", engine, model, repr(time.monotonic()),
               *(["--quick"] if quick else [])]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{engine} on {model} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def newest_run(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """What `measure` returns, of the code that ran last among those kept in a file, and the machine they ran on."""
    kept = json.loads(path.read_text(encoding="utf-8"))
    code = kept["runs"][-1]["code"]
    runs = [run for run in kept["runs"] if run["code"] == code]
    whole = [run for run in runs if run.get("prefill_s")][-1]
    crowd = [run["offline"] for run in runs if run["offline"]["seqs"] == CROWD]
    measured = {"cold_s": round(whole["first_token_from_cold_s"], 2), "offline_tok_s": round(whole["offline"]["tok_s"]),
                **({f"offline_{CROWD}_tok_s": round(crowd[-1]["tok_s"])} if crowd else {}),
                "decode_ms": {batch: round(each, 3) for batch, each in whole["decode_ms"].items()},
                "prefill_s": {size: round(each, 4) for size, each in whole["prefill_s"].items()}}
    return measured, {**kept["machine"], "commit": code}


def rows_of(model: str, sides: dict[str, dict[str, Any]]) -> list[tuple[str, ...]]:
    """A line for each figure, a column for each side; empty where a side has none."""
    def cell(side: dict[str, Any], *path: str) -> str:
        value: Any = side
        for key in path:
            value = value.get(key) if isinstance(value, dict) else None
        return "" if value is None else f"{value:g}"

    ours = sides[ENGINES[0]]
    paths = [*((key,) for key in ours if key.startswith("offline_")),
             *(("decode_ms", batch) for batch in ours["decode_ms"]),
             *(("prefill_s", name) for name in ours["prefill_s"]), ("cold_s",)]
    return [(f"{model} {' '.join(path)}", *(cell(side, *path) for side in sides.values())) for path in paths]


def figures_of(model: str, ours: dict[str, Any], theirs: dict[str, Any]) -> list[Figure]:
    """Our advantage over vLLM in throughput and in step time."""
    figures = [Figure(f"{model}: {name} throughput over vLLM's", round(ours[key] / theirs[key], 2), "×", 1.0)
               for key, name in (("offline_tok_s", "offline"),
                                 (f"offline_{CROWD}_tok_s", f"offline, {CROWD:,} requests,"))
               if key in ours and key in theirs]
    figures += [Figure(f"{model}: vLLM's decode step over ours, batch {batch}",
                       round(theirs["decode_ms"][batch] / milliseconds, 2), "×", 1.0)
                for batch, milliseconds in ours["decode_ms"].items() if batch in theirs["decode_ms"]]
    return figures


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["qwen3-0.6b", "qwen2.5-7b"])
    parser.add_argument("--engines", nargs="+", choices=ENGINES, help="mini-infer, and vLLM where it is installed")
    parser.add_argument("--runs", type=Path, help="directory of runs that were kept, to be told instead of new ones")
    parser.add_argument("--out", type=Path, default=RESULTS, help="directory of the JSON file")
    parser.add_argument("--quick", action="store_true", help="toy sizes on a CPU, for a model directory with weights")
    parser.add_argument("--child", nargs=3, metavar=("ENGINE", "MODEL", "STARTED"), help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.child is not None:
        print(json.dumps(measure(args.child[0], args.child[1], float(args.child[2]), args.quick)))
        return
    if args.runs is not None and (args.engines or args.quick):
        parser.error("--runs: nothing is run, so --engines and --quick say nothing; leave them out")
    engines = args.engines or [name for name in ENGINES if name == ENGINES[0] or find_spec(name) is not None]
    anchors = json.loads(ANCHORS.read_text(encoding="utf-8"))
    results: dict[str, dict[str, Any]] = {}
    figures, rows = [], []
    machine: dict[str, Any] = {}
    for model in args.models:
        name = Path(model).name
        directory = model if Path(model).is_dir() else str(SHAPES / model)
        if args.runs is None:
            sides = {engine: measure_in_own_process(engine, directory, args.quick) for engine in engines}
        else:
            measured, ran_on = newest_run(args.runs / f"{name}.json")
            if machine.setdefault("machine", ran_on) != ran_on:
                parser.error(f"--runs: the newest run of {name} is of {ran_on['commit']}, those before it of "
                             f"{machine['machine']['commit']}; name models that were run together")
            sides = {ENGINES[0]: measured}
        sides |= {source: found[name] for source, found in anchors.items() if isinstance(found, dict) and name in found}
        results[name] = sides
        rows += rows_of(name, sides)
        theirs = sides.get("vllm") or sides.get("vllm 0.26")
        if theirs is not None:
            figures += figures_of(name, sides[ENGINES[0]], theirs)
    columns = list(dict.fromkeys(side for sides in results.values() for side in sides))
    print(table(("", *columns), [(*row, *[""] * (len(columns) + 1 - len(row))) for row in rows]))
    print(*figures, sep="\n")
    path = write_result("compare_vllm", {"figures": [figure.record() for figure in figures], "models": results,
                                         "anchors": anchors["source"], **machine}, args.out)
    print(f"written to {path}")


if __name__ == "__main__":
    main()

"""Ten thousand short requests in one `generate`: do memory and time per token stay flat?

    python -m benchmarks.many_requests

Where there is no GPU, or with --simulated, the device is the simulated one and costs nothing: what is timed then is the
host alone, from the door to the outputs. While they run, the process's processor time, its memory and the tokens made
are read at every tenth of the way.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

from benchmarks.common import Figure, write_result
from benchmarks.gpu import device_of, engine_config, parser
from mini_infer import LLM, SamplingParams
from mini_infer.bench.report import table
from mini_infer.config import EngineConfig
from mini_infer.engine.build import Engine
from mini_infer.engine.dry_run import make_dry_engine
from mini_infer.engine.sim import SimConfig
from mini_infer.text.grammar import GrammarCompiler

TINY = {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "vocab_size": 512, "hidden_size": 64,
        "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
        "head_dim": 32, "max_position_embeddings": 512, "rms_norm_eps": 1e-6, "rope_theta": 1e4,
        "tie_word_embeddings": True, "torch_dtype": "float32"}
PARTS = 10


@dataclass(frozen=True)
class Reading:
    """At one moment of the run."""

    tokens: int
    seconds: float  # of the processor
    resident_mb: float


class Watch:
    """Reads memory and progress from a thread of its own, at each tenth of the tokens."""

    def __init__(self, llm: LLM, total: int):
        self._llm = llm
        self._before = llm.stats().generated_tokens
        self._marks = [total * part // PARTS for part in range(1, PARTS)]
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._begin = time.process_time()
        self.readings = [self._read()]

    def _read(self) -> Reading:
        return Reading(self._llm.stats().generated_tokens - self._before, time.process_time() - self._begin,
                       resident_mb())

    def _watch(self) -> None:
        for mark in self._marks:
            while self._llm.stats().generated_tokens - self._before < mark:
                if self._stop.wait(0.005):
                    return
            self.readings.append(self._read())

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self.readings.append(self._read())


def simulated_llm() -> LLM:
    """An `LLM` whose steps are made up at no cost, in the place of the engine that it would build."""
    with tempfile.TemporaryDirectory() as directory:
        Path(directory, "config.json").write_text(json.dumps(TINY), encoding="utf-8")
        config = EngineConfig(model=directory, skip_tokenizer_init=True, enable_prefix_caching=False)
        loop, info = make_dry_engine(config, SimConfig(gpu="free"))
        engine = Engine(loop, info, GrammarCompiler(lambda: None, info.vocab_size, ()), lambda: None)
        with patch("mini_infer.engine.llm.build_engine", return_value=engine):
            return LLM(config)


def resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def main(argv: Sequence[str] | None = None) -> None:
    options = parser(__doc__)
    options.add_argument("--requests", type=int, default=10_000)
    options.add_argument("--output-len", type=int, default=16)
    options.add_argument("--simulated", action="store_true", help="also where there is a GPU")
    args = options.parse_args(argv)
    if args.simulated or device_of(quick=True) == "cpu":
        llm = simulated_llm()
    else:
        llm = LLM(engine_config(args.model, "cuda", max_model_len=512, max_num_seqs=256))
    rng = random.Random(0)
    prompts = [rng.choices(range(llm.info.vocab_size), k=rng.randint(4, 24)) for _ in range(args.requests)]
    params = SamplingParams(temperature=0.8, max_tokens=args.output_len, ignore_eos=True, detokenize=False)
    llm.generate(prompts[:512], params, use_tqdm=False)  # warm-up
    with Watch(llm, args.requests * args.output_len) as watch:
        outputs = llm.generate(prompts, params)
    short = [output for output in outputs if len(output.token_ids) != args.output_len]
    assert not short, f"{len(short)} requests ended early, the first one with {short[0].outputs[0]}"

    rows = [{"tokens": after.tokens, "us_per_token": round(1e6 * (after.seconds - before.seconds) /
                                                           max(1, after.tokens - before.tokens), 2),
             "resident_mb": round(after.resident_mb, 1)} for before, after in zip(watch.readings, watch.readings[1:])]
    print(table(("tokens made", "CPU us a token", "resident MB"), [tuple(row.values()) for row in rows]))
    # The first part holds what all requests cost at the door, the last one the emptying batch; in one of the others
    # Python's collector goes through everything once.
    early, late = (statistics.median(row["us_per_token"] for row in part) for part in (rows[1:5], rows[5:9]))
    per_request = 1e3 * (rows[-1]["resident_mb"] - rows[0]["resident_mb"]) / (0.9 * args.requests)
    figures = [Figure("host time per token, parts 6 to 9 over parts 2 to 5", round(late / early, 2), "×", 1.1,
                      at_least=False),
               Figure("memory that a finished request leaves behind", round(per_request, 2), " kB", 4, at_least=False)]
    print(*figures, sep="\n")
    path = write_result("many_requests", {
        "figures": [figure.record() for figure in figures], "rows": rows, "requests": args.requests,
        "output_len": args.output_len, "device": llm.info.device}, args.out)
    print(f"written to {path}")


if __name__ == "__main__":
    main()

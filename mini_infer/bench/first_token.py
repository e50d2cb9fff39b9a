"""One start, timed: `python -m mini_infer.bench.first_token STARTED CONFIG`, a fresh process of bench/startup.py.

STARTED is time.monotonic() of the parent when it made this process, CONFIG is the engine's configuration as JSON. The
last line of the output is JSON: seconds of each phase, in order, and the memory ledger.
"""

from __future__ import annotations

import json
import sys
import time
from itertools import pairwise


def main(argv: list[str]) -> None:
    started, config = float(argv[0]), json.loads(argv[1])
    marks = [started, time.monotonic()]
    from mini_infer.config import EngineConfig
    from mini_infer.engine.llm import LLM
    from mini_infer.protocol import SamplingParams

    marks.append(time.monotonic())
    llm = LLM(EngineConfig(**config))
    marks.append(time.monotonic())
    llm.generate([[0] * 16], SamplingParams(temperature=0, max_tokens=1, ignore_eos=True, detokenize=False),
                 use_tqdm=False)
    marks.append(time.monotonic())
    python, imports, engine, first_token = (after - before for before, after in pairwise(marks))
    inside = llm.info.startup_seconds
    phases = {"python": python, "imports": imports, **inside, "other": engine - sum(inside.values()),
              "first token": first_token}
    print(json.dumps({"phases": phases, "total": marks[-1] - started, "memory_bytes": llm.info.memory_bytes,
                      "device": llm.info.device}))


if __name__ == "__main__":
    main(sys.argv[1:])

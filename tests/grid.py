"""The equivalence grid: whatever the engine does to make a step cheap, a request's tokens stay the same.

    python -m tests.grid [--device cpu|cuda] [--out docs/grid.md]

Every combination of the axes runs the same twelve requests (greedy, seeded, with penalties) on a tiny fp32 model. The
tokens must be identical to a plain run of one request at a time, and each returned log-probability must be within 1e-4
of a dense, cacheless pass of transformers over the same tokens.
"""

from __future__ import annotations

import argparse
import itertools
import random
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from mini_infer import LLM, EngineConfig, SamplingParams
from tests.tiny import VOCAB_SIZE, reference_logprobs, write_checkpoint

MAX_MODEL_LEN = 128
MAX_TOKENS = 24
NUM_REQUESTS = 12
LOGPROB_TOLERANCE = 1e-4
Run = list[tuple[list[int], list[float]]]  # tokens and their log-probabilities, a request each


@dataclass(frozen=True)
class Cell:
    """One combination; the fields are the axes, in the table's order."""

    depth: int
    chunk: int
    prefix: str  # "off", "on", or "hit": the same prompts have run before on this engine
    pool: str  # "ample", or "tight": too few blocks for the crowd, so that requests are preempted
    batch: str  # "alone", one request at a time, or "crowd", all at once
    block: int
    graphs: str = "off"

    def refused(self) -> str | None:
        """Why this combination cannot exist, if it cannot."""
        if self.pool == "tight" and self.batch == "alone":
            return "a request alone always fits: one that could not is refused at the door"
        return None

    @property
    def labels(self) -> list[str]:
        return [f"{name} {value}" for name, value in self.__dict__.items()]


def all_cells(device: str) -> list[Cell]:
    return [Cell(*values) for values in itertools.product(
        (1, 2), (16, 48, 1024), ("off", "on", "hit"), ("ample", "tight"), ("alone", "crowd"), (8, 16, 32),
        ("off", "on") if device == "cuda" else ("off",))]


def pairwise_cells(device: str) -> list[Cell]:
    """A few cells that together hold every pair of values of any two axes (greedy covering)."""
    cells = [cell for cell in all_cells(device) if cell.refused() is None]
    missing = {pair for cell in cells for pair in itertools.combinations(cell.labels, 2)}
    chosen = []
    while missing:
        best = max(cells, key=lambda cell: sum(pair in missing for pair in itertools.combinations(cell.labels, 2)))
        missing -= set(itertools.combinations(best.labels, 2))
        chosen.append(best)
    return chosen


def requests() -> list[tuple[list[int], SamplingParams]]:
    """Mixed lengths, some sharing a prefix; greedy, seeded, filtered and penalised."""
    rng = random.Random(7)
    shared = [rng.randrange(VOCAB_SIZE) for _ in range(40)]
    kinds = [
        dict(temperature=0.0),
        dict(temperature=0.9, seed=1),
        dict(temperature=1.1, seed=2, top_k=20, top_p=0.9),
        dict(temperature=0.7, seed=3, repetition_penalty=1.2, presence_penalty=0.3, frequency_penalty=0.2),
    ]
    made = []
    for i in range(NUM_REQUESTS):
        own = [rng.randrange(VOCAB_SIZE) for _ in range(rng.randrange(1, 50))]
        prompt = shared + own if i % 3 == 0 else own
        made.append((prompt, SamplingParams(max_tokens=MAX_TOKENS, logprobs=0, detokenize=False,
                                            **kinds[i % len(kinds)])))
    return made


class Grid:
    """Runs cells on one checkpoint and compares them with the reference runs."""

    def __init__(self, checkpoint: Path, device: str):
        self._checkpoint = checkpoint
        self._device = device
        self._reference = self.run(Cell(1, 1024, "off", "ample", "alone", 16))
        self._dense = [reference_logprobs(checkpoint, prompt + tokens)
                       for (prompt, _), (tokens, _) in zip(requests(), self._reference)]

    def run(self, cell: Cell) -> Run:
        tight = (MAX_MODEL_LEN + 3 * cell.block) // cell.block
        llm = LLM(EngineConfig(
            model=str(self._checkpoint), device=self._device, dtype="float32", max_model_len=MAX_MODEL_LEN,
            max_num_seqs=16, max_num_batched_tokens=cell.chunk, block_size=cell.block,
            num_kv_blocks=tight if cell.pool == "tight" else 16 * MAX_MODEL_LEN // cell.block,
            enable_prefix_caching=cell.prefix != "off", pipeline_depth=cell.depth, skip_tokenizer_init=True,
            enforce_eager=cell.graphs == "off"))
        made = requests()
        if cell.prefix == "hit":
            llm.generate([prompt for prompt, _ in made], max_tokens=1, detokenize=False, use_tqdm=False)
        groups = [made] if cell.batch == "crowd" else [[one] for one in made]
        outs = [out for group in groups
                for out in llm.generate([p for p, _ in group], [s for _, s in group], use_tqdm=False)]
        stats = llm.stats()
        assert stats.used_blocks == 0, f"{cell}: {stats.used_blocks} blocks are still owned"
        assert (stats.preemptions > 0) == (cell.pool == "tight"), f"{cell}: {stats.preemptions} preemptions"
        assert cell.prefix != "off" or stats.cached_tokens == 0
        assert cell.prefix != "hit" or cell.pool == "tight" or stats.cached_tokens > 0, f"{cell}: no hit"
        return [(out.token_ids, [position[token].logprob for token, position in
                                 zip(out.token_ids, out.outputs[0].logprobs or [])]) for out in outs]

    def check(self, cell: Cell) -> tuple[bool, float]:
        """(tokens identical to the reference, largest distance of a log-probability from the dense pass)."""
        run = self.run(cell)
        worst = 0.0
        for (prompt, _), (tokens, logprobs), dense in zip(requests(), run, self._dense):
            rows = dense[len(prompt) - 1 : len(prompt) - 1 + len(tokens)]
            want = rows.gather(1, torch.tensor(tokens)[:, None])[:, 0]
            worst = max(worst, (torch.tensor(logprobs) - want).abs().max().item())
        return [tokens for tokens, _ in run] == [tokens for tokens, _ in self._reference], worst


def table(results: dict[Cell, tuple[bool, float]], refused: dict[Cell, str]) -> Iterator[str]:
    """Markdown: a row and a column for each value of each axis; a cell says how many of its runs were identical."""
    by_axis = zip(*(cell.labels for cell in [*results, *refused]))
    labels = [label for axis in by_axis for label in dict.fromkeys(axis)]
    yield "| | " + " | ".join(labels) + " |"
    yield "|---" * (len(labels) + 1) + "|"
    for row in labels:
        entries = []
        for column in labels:
            runs = [ok for cell, (ok, _) in results.items() if {row, column} <= set(cell.labels)]
            if runs:
                entries.append(f"{sum(runs)}/{len(runs)}")
            elif row.split()[0] == column.split()[0]:
                entries.append("same axis")
            else:
                entries.append("refused ¹")
        yield f"| **{row}** | " + " | ".join(entries) + " |"
    for reason in dict.fromkeys(refused.values()):
        yield f"\n¹ {reason}."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--pairwise", action="store_true", help="a few cells that hold every pair of settings")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        grid = Grid(write_checkpoint(Path(directory)), args.device)
        cells = all_cells(args.device)
        refused = {cell: reason for cell in cells if (reason := cell.refused())}
        chosen = pairwise_cells(args.device) if args.pairwise else [cell for cell in cells if cell not in refused]
        results = {cell: grid.check(cell) for cell in tqdm(chosen, desc="grid")}
    worst = max(error for _, error in results.values())
    same = sum(ok for ok, _ in results.values())
    lines = [f"{same} of {len(results)} combinations gave identical tokens ({NUM_REQUESTS} requests each: greedy, "
             f"seeded, filtered, penalised; fp32, {args.device}).", "",
             f"Largest distance of a returned log-probability from a dense pass: {worst:.1e} (allowed: "
             f"{LOGPROB_TOLERANCE:.0e}).", "", *table(results, refused), ""]
    print("\n".join(lines))
    if args.out is not None:
        title = ("# The equivalence grid\n\nWritten by `make grid`; an entry counts the runs with both its row's and "
                 "its column's setting.\n\n")
        args.out.write_text(title + "\n".join(lines), encoding="utf-8")
    failed = [cell for cell, (ok, error) in results.items() if not ok or error > LOGPROB_TOLERANCE]
    if failed:
        raise SystemExit("NOT EQUIVALENT:\n" + "\n".join(map(str, failed)))


if __name__ == "__main__":
    main()

"""The benchmarks run, at toy sizes and without looking at the times; the documentation says what the JSON files say."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks import (
    charts,
    chunked_prefill,
    compare_transformers,
    compare_vllm,
    cpu_suite,
    cuda_graphs,
    decode_step,
    flash_decoding,
    gpu_memory,
    host_idle,
    many_requests,
    memory_utilization,
    prefix_cache,
    startup,
    static_vs_continuous,
    weights,
)
from benchmarks import kernels as kernel_benchmark
from benchmarks.common import RESULTS, ROOT, Figure, spread, time_in_turn
from benchmarks.gpu_charts import DRAWINGS, TABLES
from mini_infer.bench import kernels
from mini_infer.bench.gpu_time import Ceilings
from mini_infer.config import ConfigError
from mini_infer.ops import cuda_few, skinny
from tests.tiny import write_checkpoint


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_checkpoint(tmp_path_factory.mktemp("model")))


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def read(directory: Path, name: str) -> dict:
    return json.loads((directory / f"{name}.json").read_text(encoding="utf-8"))


def test_compare_transformers(checkpoint: str, tmp_path: Path) -> None:
    compare_transformers.main(["--model", checkpoint, "--requests", "2", "--input-len", "8", "--output-len", "4",
                               "--repeats", "1", "--threads", "1", "--out", str(tmp_path)])
    result = read(tmp_path, "compare_transformers")
    assert len(result["rows"]) == 4 and len(result["figures"]) == 3
    assert all(row["tokens_per_second"] > 0 for row in result["rows"])


def test_static_vs_continuous(checkpoint: str, tmp_path: Path) -> None:
    static_vs_continuous.main(["--model", checkpoint, "--requests", "6", "--max-num-seqs", "2", "--prompt-len", "4",
                               "--output-lens", "1", "8", "--repeats", "1", "--out", str(tmp_path)])
    result = read(tmp_path, "static_vs_continuous")
    steps = {row["side"]: row["steps"] for row in result["rows"]}
    assert steps["continuous"] < steps["static"] == steps["static, dropping finished rows"]


def test_memory_utilization(tmp_path: Path) -> None:
    memory_utilization.main(["--requests", "60", "--pool-tokens", "8192", "--out", str(tmp_path)])
    result = read(tmp_path, "memory_utilization")
    by_size = {row["block_size"]: row for row in result["rows"]}
    whole = by_size[result["max_model_len"]]
    assert all(0 < row["utilisation"] <= 1 for row in result["rows"])
    # No clock is in this one: what it claims can be asserted.
    assert by_size[16]["utilisation"] > 0.9 > 0.5 > whole["utilisation"]
    assert whole["mean_running"] <= 8192 / result["max_model_len"] < by_size[16]["mean_running"]


def test_prefix_cache(checkpoint: str, tmp_path: Path) -> None:
    prefix_cache.main(["--model", checkpoint, "--prefix-lens", "40", "64", "--figure-len", "64", "--repeats", "1",
                       "--out", str(tmp_path)])
    assert [row["cached_tokens"] for row in read(tmp_path, "prefix_cache")["rows"]] == [32, 64]


def test_chunked_prefill(checkpoint: str, tmp_path: Path) -> None:
    chunked_prefill.main(["--quick", "--model", checkpoint, "--out", str(tmp_path)])
    result = read(tmp_path, "chunked_prefill")
    chunks, whole = result["rows"]
    assert whole["whole_prompts"] and not chunks["whole_prompts"] and chunks["steps"] > whole["steps"]
    assert result["chunk"] == 32 and result["parts"]["mixed_ms"] > 0


def test_many_requests(tmp_path: Path) -> None:
    many_requests.main(["--simulated", "--requests", "700", "--output-len", "6", "--out", str(tmp_path)])
    rows = read(tmp_path, "many_requests")["rows"]
    assert rows[-1]["tokens"] == 4200 and [row["tokens"] for row in rows] == sorted(row["tokens"] for row in rows)


def test_client_capacity(tmp_path: Path) -> None:
    pytest.importorskip("httptools")
    from benchmarks import client_capacity

    client_capacity.main(["--connections", "3", "--tokens", "20", "--rounds", "2", "--out", str(tmp_path)])
    (row,) = read(tmp_path, "client_capacity")["rows"]
    assert row["tokens"] == 120 and row["capacity_tokens_per_s"] > 0


def test_compare_vllm_tells_the_newest_runs(tmp_path: Path) -> None:
    def run(code: str, seqs: int, speed: float, prefill: dict[str, float]) -> dict[str, object]:
        return {"code": code, "first_token_from_cold_s": 9.876, "offline": {"seqs": seqs, "tok_s": speed},
                "decode_ms": {"1": 0.61234}, "prefill_s": prefill}

    runs = [run("old", 256, 1.0, {"1x8": 9.0}), run("new", 256, 28_000.4, {"1x8": 0.12345}),
            run("new", 1024, 33_000, {})]
    (tmp_path / "qwen3-0.6b.json").write_text(json.dumps({"machine": {"gpu": "one"}, "runs": runs}))
    compare_vllm.main(["--runs", str(tmp_path), "--models", "qwen3-0.6b", "--out", str(tmp_path / "out")])
    told = read(tmp_path / "out", "compare_vllm")
    assert told["machine"] == {"gpu": "one", "commit": "new"}
    assert told["models"]["qwen3-0.6b"]["mini-infer"] == {
        "cold_s": 9.88, "offline_tok_s": 28000, "offline_1024_tok_s": 33000, "decode_ms": {"1": 0.612},
        "prefill_s": {"1x8": 0.1235}}
    assert told["models"]["qwen3-0.6b"]["vllm 0.26"] and told["figures"]
    other = [run("newer", 256, 9.0, {"1x8": 0.1})]
    (tmp_path / "qwen2.5-7b.json").write_text(json.dumps({"machine": {"gpu": "one"}, "runs": other}))
    for refused in (["--models", "qwen3-0.6b", "qwen2.5-7b"], ["--engines", "mini-infer"], ["--quick"]):
        with pytest.raises(SystemExit):
            compare_vllm.main(["--runs", str(tmp_path), "--models", "qwen3-0.6b", "--out", str(tmp_path), *refused])


def test_compare_vllm(checkpoint: str, tmp_path: Path) -> None:
    compare_vllm.main(["--quick", "--engines", "mini-infer", "--models", checkpoint, "--out", str(tmp_path)])
    (sides,) = read(tmp_path, "compare_vllm")["models"].values()
    assert sides["mini-infer"]["offline_tok_s"] > 0 and set(sides["mini-infer"]["decode_ms"]) == {"1", "8"}


@pytest.mark.weights
def test_storm(tmp_path: Path) -> None:
    pytest.importorskip("uvloop")
    from benchmarks import storm

    storm.main(["--quick", "--clients", "12", "--out", str(tmp_path)])
    result = read(tmp_path, "storm")
    falls_short = [figure for figure in result["figures"]
                   if not figure["met"] and not figure["name"].startswith("memory")]
    assert not falls_short and not result["log"], result["clients"]["faults"]
    assert result["clients"]["compared"] > 5 < result["clients"]["streams"]


def test_anchors_have_the_figures_that_we_measure() -> None:
    anchors = json.loads(compare_vllm.ANCHORS.read_text(encoding="utf-8"))
    for name, sides in anchors.items():
        for shape, found in sides.items() if isinstance(sides, dict) else ():
            assert (compare_vllm.SHAPES / shape / "config.json").is_file()
            assert set(found) <= {"offline_tok_s", "offline_1024_tok_s", "decode_ms", "prefill_s", "cold_s"}, name
            assert set(found["decode_ms"]) == set(map(str, compare_vllm.BATCHES))


def test_startup(checkpoint: str, tmp_path: Path) -> None:
    startup.main(["--quick", "--models", checkpoint, "--num-iters-warm", "0", "--out", str(tmp_path)])
    (row,) = read(tmp_path, "startup")["rows"]
    assert row["cache"] == "cold" and sum(row["phases"].values()) == pytest.approx(row["total"], abs=0.02)


def test_weights(tmp_path: Path) -> None:
    weights.main(["--quick", "--gigabytes", "0.001", "--repeats", "1", "--out", str(tmp_path)])
    assert read(tmp_path, "weights")["gigabytes_per_s"]["median"] > 0


@pytest.mark.parametrize("main", [kernel_benchmark.main, flash_decoding.main, cuda_graphs.main, host_idle.main,
                                  gpu_memory.main, startup.main])
def test_a_gpu_is_asked_for(main: Callable[[list[str]], None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="CUDA GPU"):
        main([])


def test_kernels_are_compared_with_what_they_replace(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU, where both sides are torch's: toy sizes, nothing timed."""
    def call(run: Callable[[int], object], copies: int) -> float:
        run(copies - 1)
        return 1e-6

    for name, value in dict(DEVICE="cpu", HEADS=4, KV_HEADS=2, DIM=64, HIDDEN=64, INNER=96, VOCABULARY=2000,
                            PRODUCTS={"qkv": (32, 64)}, graph_time=call, copies_for=lambda num_bytes: 2,
                            require_gpu=lambda: "none", ceilings=lambda: Ceilings(1e9, 1e9)).items():
        monkeypatch.setattr(kernels, name, value)
    sizes = {name: [tuple(min(size, 70) if isinstance(size, int) else size for size in case) for case in cases]
             for name, (_, cases) in kernels.CASES.items()}
    sizes["linear"] = [("qkv", 3)]
    monkeypatch.setattr(kernels, "CASES", {name: (make, sizes[name][-2:]) for name, (make, _) in kernels.CASES.items()})
    result = kernels.run_kernels(kernels.KernelBench(compile=False, use_tqdm=False))
    assert {row["kernel"] for row in result["rows"]} == set(sizes) and "floor/ours" in kernels.kernels_table(result)
    for name in ("rms_norm", "apply_rope", "silu_and_mul", "qkv_to_cache"):
        case = kernels.CASES[name][0](5)
        ours, eager = case.ours(1), case.eager(1)
        assert isinstance(ours, torch.Tensor) and isinstance(eager, torch.Tensor)
        torch.testing.assert_close(ours.flatten(), eager.flatten(), atol=0.04, rtol=0.04)


def test_flash_decoding_compares_equals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "DEVICE", "cpu")
    for name, value in dict(HEADS=4, KV_HEADS=2, DIM=64, copies_for=lambda num_bytes: 1,
                            graph_time=lambda run, copies: 1e-3).items():
        monkeypatch.setattr(flash_decoding, name, value)
    row = flash_decoding.measure(flash_decoding.Work("skewed", (300, 3, 64)))
    assert row["mbytes"] == round(4 * 367 * 2 * 64 / 1e6, 1)


def test_idle_time_is_what_nothing_covers() -> None:
    events = [("Memcpy HtoD (Pinned -> Device)", 0, 2), ("kernel", 4, 50), ("kernel", 49, 90), ("Memcpy DtoH", 91, 92),
              ("Memcpy HtoD (Pinned -> Device)", 95, 97), ("kernel", 98, 190), ("Memcpy HtoD", 190, 192)]
    between, idle = host_idle.idle_shares([host_idle.Activity(*event) for event in reversed(events)])
    assert between == (2 + 3 + 1) / 190 and idle == (2 + 1 + 3 + 1) / 190


def test_suite_runs_each_in_a_process_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cpu_suite.main(["--only", "memory_utilization", "--out", str(tmp_path), "--", "--requests", "20"])
    assert read(tmp_path, "memory_utilization")["requests"] == 20
    assert "KV utilisation at block size 16" in capsys.readouterr().out


def test_every_benchmark_has_a_script_a_table_and_a_chart() -> None:
    for name in charts.BENCHMARKS + charts.GPU_BENCHMARKS + charts.SERVER_BENCHMARKS:
        assert (ROOT / "benchmarks" / f"{name}.py").is_file()
    assert set(charts.TABLES) == set(charts.DRAWINGS) == {*charts.BENCHMARKS, *charts.GPU_BENCHMARKS}


@pytest.mark.parametrize("path", charts.DOCS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_documentation_says_what_the_results_say(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    made = charts.with_tables(text, charts.read_results(RESULTS), charts.charts_of(path))
    assert made == text, "run `python -m benchmarks.charts --docs`"
    marked = {mark[2] for mark in charts.MARKED.finditer(text)}
    assert marked == {*charts.TABLES, *(group + name for group in charts.GROUPS for name in ("figures", "machine"))}


def test_every_result_is_in_the_documentation() -> None:
    text = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    for name in charts.read_results(RESULTS).keys() - charts.SERVER_BENCHMARKS:
        assert f"<!-- table: {name} -->" in text and f"charts/{name}.svg" in text
        assert (charts.CHARTS / f"{name}.svg").is_file(), "run `python -m benchmarks.charts`"


def test_charts_are_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    results = charts.read_results(RESULTS)
    for path in charts.draw_all(results, tmp_path):
        assert path.read_text(encoding="utf-8").lstrip().startswith("<?xml")


GPU_RESULTS: dict[str, dict] = {  # of the benchmarks whose JSON files a machine without a GPU does not make
    "kernels": {"gpu": "a GPU", "rows": [
        {"kernel": "rms_norm", "size": "1", "ours_us": 2.0, "eager_us": 9.0, "compiled_us": None, "floor_us": 1.0}]},
    "flash_decoding": {"copy_tb_per_s": 4.2, "rows": [
        {"work": "1 x 8", "mbytes": 1.0, "split_us": 1.0, "split_tb_per_s": 4.0, "unsplit_us": 2.0,
         "unsplit_tb_per_s": 2.0}]},
    "cuda_graphs": {"model": "m", "rows": [
        {"batch": batch, "graphs_ms": 1.0, "eager_ms": 3.0, "eager_over_graphs": 3.0} for batch in (1, 8)]},
    "host_idle": {"model": "m", "rows": [
        {"batch": 1, "step_ms": 1.0, "idle_between_steps": 0.02, "idle": 0.05, "activities_a_step": 200.0}]},
    "chunked_prefill": {
        "model": "m", "chunk": 512, "running": 64, "prompt_len": 8192,
        "parts": {"chunk_ms": 1.0, "decode_ms": 2.0, "mixed_ms": 2.5, "mixed_over_parts": 0.83},
        "rows": [{"max_num_batched_tokens": 576, "whole_prompts": False, "median_itl_ms": 1.0, "p99_itl_ms": 2.0,
                  "max_itl_ms": 3.0, "median_ttft_ms": 4.0, "output_tokens_per_s": 5}]},
    "swiglu": {"products": [
        {"model": "m", "rows": 64, "chosen": "64x144", "us": {"cublas and silu": [4.0, 5.0], "64x144": [3.0, 4.0]}},
        {"model": "m", "rows": 80, "chosen": None, "us": {"cublas and silu": [4.0, 5.0], "128x144": [5.0]}}]},
    "compare_vllm": {"models": {"m": {
        "mini-infer": {"offline_tok_s": 10, "decode_ms": {"1": 1.0}, "prefill_s": {"1x8": 0.1}, "cold_s": 5.0},
        "vllm": {"offline_tok_s": 9, "decode_ms": {"1": 2.0}}}}},
}


@pytest.mark.parametrize("name", GPU_RESULTS)
def test_tables_and_charts_of_a_gpu(name: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    table = TABLES[name](GPU_RESULTS[name])
    assert table.startswith("| ") and all(line.count("|") > 2 for line in table.splitlines() if line)
    assert name in DRAWINGS
    (path,) = charts.draw_all({name: GPU_RESULTS[name]}, tmp_path)
    assert path.stat().st_size > 1000


def test_tables_need_no_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert charts.figures_table(charts.read_results(RESULTS)).startswith("| figure ")


def test_markdown_aligns_numbers() -> None:
    table = charts.markdown(("name", "value"), [("a", 1), ("b", "2.5")])
    assert table == "| name | value |\n| :-- | --: |\n| a | 1 |\n| b | 2.5 |"


def test_figures_know_whether_they_are_met() -> None:
    assert Figure("speed", 2.0, "×", 2).met and not Figure("speed", 1.9, "×", 2).met
    assert Figure("cost", 0.9, " ms", 1, at_least=False).met and not Figure("cost", 1.1, " ms", 1, at_least=False).met
    assert str(Figure("cost", 1.5, " ms", 1, at_least=False)) == "cost: 1.5 ms (wanted ≤ 1 ms; falls short)"


def test_sides_take_turns() -> None:
    calls: list[tuple[str, int]] = []
    seconds = time_in_turn({"a": lambda i: calls.append(("a", i)), "b": lambda i: calls.append(("b", i))}, 2, "")
    assert calls == [("a", 0), ("b", 0), ("a", 1), ("b", 1)]
    assert [len(samples) for samples in seconds.values()] == [2, 2]
    assert spread([3.0, 1.0, 2.0]) == {"median": 2.0, "min": 1.0, "max": 3.0, "samples": [3.0, 1.0, 2.0]}


PRODUCTS = [(14336, 4096, True), (4096, 14336, False)]


@pytest.fixture
def tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Copies of the tuned tables, which decode_step may write."""
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(multi_processor_count=132))
    caches = (skinny.measured_tiles, cuda_few.measured_blocks)
    for module in (skinny, cuda_few):
        monkeypatch.setattr(cuda_few, "LIBRARY", tmp_path / "not built")
        copy = tmp_path / module.TABLE.name
        copy.write_text(module.TABLE.read_text())
        monkeypatch.setattr(module, "TABLE", copy)
    yield tmp_path
    for cache in caches:
        cache.cache_clear()


@pytest.mark.parametrize("rows", [1, 8])
def test_decode_step_compares_what_it_says(tables: Path, rows: int) -> None:
    variants = decode_step.skinny_variants(PRODUCTS, rows)
    assert len(variants) > 10
    for product, tile in variants.values():
        other = next(each for each in PRODUCTS if each != product)
        choose = decode_step.instead(skinny.choose_tile, product, tile)
        assert choose(rows, *product) == tile != skinny.choose_tile(rows, *product)
        assert choose(rows, *other) == skinny.choose_tile(rows, *other)


def test_decode_step_keeps_what_won(tables: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one change that shortened the step most, in its table."""
    library = tables / "few.so"
    library.touch()
    monkeypatch.setattr(cuda_few, "LIBRARY", library)
    before, blocks_before = skinny.measured_tiles(), cuda_few.measured_blocks()
    tiles, blocks = decode_step.skinny_variants(PRODUCTS, 8), decode_step.few_variants(PRODUCTS, 8)
    product, best = next((product, name) for name, (product, _) in tiles.items())
    medians = {"as chosen": 4000.0, **dict.fromkeys((*tiles, *blocks), 3990.0), best: 3900.0}
    assert decode_step.write_table(tables, "a GPU", medians, PRODUCTS, 8) == best
    assert skinny.measured_tiles() == {**before, (*product, 8): tiles[best][1]}
    assert skinny.choose_tile(3, *product) == tiles[best][1]
    assert json.loads(skinny.TABLE.read_text())["gpu"] == "a GPU"
    medians[best], won = 3990.0, next(name for name, (which, each) in blocks.items() if which == product and each == 4)
    assert decode_step.write_table(tables, "a GPU", medians, PRODUCTS, 8) is None, "within the noise"
    assert decode_step.write_table(tables, "a GPU", medians | {won: 3950.0}, PRODUCTS, 8) == won
    assert cuda_few.measured_blocks() == {**blocks_before, (*product, 8): 4}
    assert cuda_few.blocks_for(7, *product, torch.bfloat16, 132) == 4


def test_decode_step_tries_all_numbers_of_blocks(tables: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not decode_step.few_variants(PRODUCTS, 8), "it is not built"
    monkeypatch.setattr(cuda_few, "LIBRARY", tables)
    for rows in cuda_few.ROWS:
        for product in PRODUCTS:
            tried = {blocks for which, blocks in decode_step.few_variants(PRODUCTS, rows).values() if which == product}
            chosen = cuda_few.blocks_for(rows, *product, torch.bfloat16, 132) or 0
            assert tried == {0, *cuda_few.BLOCKS} - {chosen}
    assert not decode_step.few_variants(PRODUCTS, 1) and not decode_step.few_variants(PRODUCTS, 65)

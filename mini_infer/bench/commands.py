"""`mini-infer bench …`: from the options to a run, its table on the terminal and its JSON."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timezone
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mini_infer.bench.arguments import dataset_of
from mini_infer.bench.metrics import RequestRecord
from mini_infer.bench.options import ServeBench
from mini_infer.bench.report import line, serving_table, table, write_json
from mini_infer.config import ConfigError, EngineConfig

MakeEngineConfig = Callable[[argparse.Namespace], EngineConfig]


def run_bench(args: argparse.Namespace, engine_config: MakeEngineConfig) -> int:
    """Run the command; raises ConfigError for what cannot be measured."""
    figures = RUN[args.bench_command](args, engine_config)
    if args.output_json is not None:
        write_json(args.output_json, figures)
    return 0


def _engine(args: argparse.Namespace, engine_config: MakeEngineConfig) -> EngineConfig:
    return replace(engine_config(args), skip_tokenizer_init=args.skip_tokenizer_init)


def _throughput(args: argparse.Namespace, engine_config: MakeEngineConfig) -> dict[str, Any]:
    from mini_infer.bench.offline import ThroughputBench, run_throughput

    figures = run_throughput(ThroughputBench(_engine(args, engine_config), dataset_of(args), args.num_prompts,
                                             args.temperature, not args.disable_tqdm))
    print(f"Throughput: {figures['requests_per_second']:.2f} requests/s, {figures['tokens_per_second']:.2f} total "
          f"tokens/s, {figures['output_tokens_per_second']:.2f} output tokens/s")
    return figures


def _latency(args: argparse.Namespace, engine_config: MakeEngineConfig) -> dict[str, Any]:
    from mini_infer.bench.offline import LatencyBench, run_latency

    figures = run_latency(LatencyBench(_engine(args, engine_config), args.input_len, args.output_len, args.batch_size,
                                       args.num_iters_warmup, args.num_iters, not args.disable_tqdm))
    print(f"Avg latency: {figures['avg_latency']:.4f} seconds")
    for percent, seconds in figures["percentiles"].items():
        print(f"{percent}% percentile latency: {seconds:.4f} seconds")
    return figures


def _serve(args: argparse.Namespace, engine_config: MakeEngineConfig) -> dict[str, Any]:
    if find_spec("httptools") is None:
        raise ConfigError("bench serve needs httptools: pip install 'mini-infer[serve]'")
    from mini_infer.bench.serve import run

    bench = ServeBench(
        base_url=args.base_url, backend=args.backend, endpoint=args.endpoint, model=args.model,
        tokenizer=args.tokenizer, dataset=dataset_of(args), num_prompts=args.num_prompts,
        num_warmups=args.num_warmups, request_rate=args.request_rate, burstiness=args.burstiness,
        max_concurrency=args.max_concurrency, temperature=args.temperature, ignore_eos=args.ignore_eos, seed=args.seed,
        goodput=tuple(args.goodput), percentile_metrics=tuple(args.percentile_metrics.split(",")),
        metric_percentiles=_percentiles(args.metric_percentiles), use_tqdm=not args.disable_tqdm)
    figures, records = run(bench)
    print(serving_table(figures, bench.percentile_metrics, bench.metric_percentiles))
    if figures["failed"]:
        print(f"the first failure: {next(record.error for record in records if record.error)}")
    if args.save_result or args.save_detailed or args.result_filename:
        now = datetime.now(timezone.utc)
        saved = {"date": now.isoformat(timespec="seconds"), **figures}
        if args.save_detailed:
            saved |= _detailed(records)
        name = args.result_filename or f"{args.backend}-{figures['request_rate']}qps-{now:%Y%m%d-%H%M%S}.json"
        write_json(Path(args.result_dir, name), saved)
    return figures


def _detailed(records: list[RequestRecord]) -> dict[str, list[Any]]:
    done = [record for record in records if record.error is None]
    return {
        "input_lens": [record.prompt_len for record in done], "output_lens": [record.output_len for record in done],
        "ttfts": [record.ttft for record in done], "itls": [record.itls for record in done],
        "generated_texts": [record.text for record in done],
        "errors": [record.error for record in records if record.error is not None],
    }


def _startup(args: argparse.Namespace, engine_config: MakeEngineConfig) -> dict[str, Any]:
    from mini_infer.bench.startup import StartupBench, run_startup

    figures = run_startup(StartupBench(_engine(args, engine_config), args.num_iters_cold, args.num_iters_warm,
                                       not args.disable_tqdm))
    kinds = list(figures)
    rows = [(name, *(f"{figures[kind]['phases'].get(name, 0.0):.2f}" for kind in kinds))
            for name in figures["cold"]["phases"]]
    print(table(("seconds", *kinds), [*rows, ("total", *(f"{figures[kind]['total']:.2f}" for kind in kinds))]))
    last = figures[kinds[-1]]["starts"][-1]
    print(f"\nMemory on {last['device']}")
    for name, size in last["memory_bytes"].items():
        print(line(f"{name} (MB)", size / 1e6))
    return figures


def _kernels(args: argparse.Namespace, engine_config: MakeEngineConfig) -> dict[str, Any]:
    from mini_infer.bench.kernels import KernelBench, kernels_table, run_kernels

    figures = run_kernels(KernelBench(tuple(args.only or ()), not args.no_compile, not args.disable_tqdm))
    print(kernels_table(figures))
    return figures


def _percentiles(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"metric_percentiles: {text!r} must be numbers with commas, such as 50,90,99") from None


RUN: dict[str, Callable[[argparse.Namespace, MakeEngineConfig], dict[str, Any]]] = {
    "throughput": _throughput, "latency": _latency, "serve": _serve, "startup": _startup, "kernels": _kernels,
}

"""The command line of `mini-infer bench`: options under vLLM's names, and what they make."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from mini_infer.bench.dataset import DATASETS, Dataset, PrefixRepetitionDataset, RandomDataset
from mini_infer.bench.options import ENDPOINTS, ServeBench

COMMANDS = {
    "throughput": "requests and tokens a second of the engine alone, all requests at once",
    "latency": "seconds of one batch",
    "serve": "time to first token, time per token and throughput of a running server",
    "startup": "seconds from process start to first token, by phase",
    "kernels": "each GPU kernel against eager torch, torch.compile and the floor",
}


def add_commands(bench: argparse.ArgumentParser, add_engine_options: Callable[[argparse.ArgumentParser], None]) -> None:
    """Give `bench` its commands; those that make an engine get the engine's options as well."""
    commands = bench.add_subparsers(dest="bench_command", required=True, metavar="command")
    parsers = {name: commands.add_parser(name, allow_abbrev=False, help=text) for name, text in COMMANDS.items()}
    for parser in parsers.values():
        parser.add_argument("--output-json", type=Path, metavar="FILE", help="write the figures there as well")
        parser.add_argument("--disable-tqdm", action="store_true", help="no progress bar")
    for name in ("throughput", "latency", "startup"):
        parsers[name].add_argument("--skip-tokenizer-init", action="store_true", help="for a model without a tokenizer")
        add_engine_options(parsers[name])
    for name, prompts in (("throughput", 1000), ("serve", 1000)):
        parsers[name].add_argument("--num-prompts", type=int, default=prompts)
        _add_dataset(parsers[name])
    parsers["throughput"].add_argument("--temperature", type=float, default=1.0)
    _add_latency(parsers["latency"])
    _add_serve(parsers["serve"])
    parsers["startup"].add_argument("--num-iters-cold", type=int, default=1, help="starts with an empty kernel cache")
    parsers["startup"].add_argument("--num-iters-warm", type=int, default=3, help="starts with a full one")
    parsers["kernels"].add_argument("--only", nargs="+", metavar="NAME", help="these kernels")
    parsers["kernels"].add_argument("--no-compile", action="store_true", help="leave torch.compile out")


def _add_dataset(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("requests")
    group.add_argument("--dataset-name", choices=DATASETS, default=DATASETS[0])
    random = RandomDataset()
    group.add_argument("--random-input-len", type=int, default=random.input_len, help="tokens behind the prefix")
    group.add_argument("--random-output-len", type=int, default=random.output_len)
    group.add_argument("--random-prefix-len", type=int, default=random.prefix_len, help="tokens that all prompts share")
    group.add_argument("--random-range-ratio", type=float, default=random.range_ratio,
                       help="lengths are uniform in [length * (1 - ratio), length * (1 + ratio)]")
    shared = PrefixRepetitionDataset()
    group.add_argument("--prefix-repetition-prefix-len", type=int, default=shared.prefix_len)
    group.add_argument("--prefix-repetition-suffix-len", type=int, default=shared.suffix_len)
    group.add_argument("--prefix-repetition-num-prefixes", type=int, default=shared.num_prefixes)
    group.add_argument("--prefix-repetition-output-len", type=int, default=shared.output_len)


def _add_latency(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--input-len", type=int, default=32)
    parser.add_argument("--output-len", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--num-iters-warmup", type=int, default=3)
    parser.add_argument("--num-iters", type=int, default=10)


def _add_serve(parser: argparse.ArgumentParser) -> None:
    server = parser.add_argument_group("server")
    server.add_argument("--base-url", default=ServeBench.base_url)
    server.add_argument("--backend", choices=ENDPOINTS, default=ServeBench.backend)
    server.add_argument("--endpoint", help="path of the URL; the backend's own by default")
    server.add_argument("--model", help="what the requests ask for; the server's first model by default")
    server.add_argument("--tokenizer", help="directory of the tokenizer to make prompts with; the model's by default")
    load = parser.add_argument_group("load")
    load.add_argument("--num-warmups", type=int, default=0, help="requests sent before, and not counted")
    load.add_argument("--request-rate", type=float, default=ServeBench.request_rate, help="requests a second (inf)")
    load.add_argument("--burstiness", type=float, default=ServeBench.burstiness,
                      help="shape of the gamma distribution of the gaps: 1 is Poisson, less is burstier")
    load.add_argument("--max-concurrency", type=int, help="requests under way at most")
    load.add_argument("--seed", type=int, default=ServeBench.seed)
    load.add_argument("--temperature", type=float, default=ServeBench.temperature)
    load.add_argument("--ignore-eos", action="store_true", help="sent along: every answer gets its full length")
    result = parser.add_argument_group("result")
    result.add_argument("--goodput", nargs="+", default=[], metavar="METRIC:MS", help="such as ttft:200 tpot:50")
    result.add_argument("--percentile-metrics", default=",".join(ServeBench.percentile_metrics),
                        help="of ttft, tpot, itl and e2el, with commas")
    result.add_argument("--metric-percentiles", default="99", help="with commas")
    result.add_argument("--save-result", action="store_true", help="write the figures as JSON")
    result.add_argument("--save-detailed", action="store_true", help="with every request's lengths, times and text")
    result.add_argument("--result-dir", type=Path, default=Path("."))
    result.add_argument("--result-filename", help="named after the load and the time by default")


def dataset_of(args: argparse.Namespace) -> Dataset:
    """Raises ConfigError for lengths that cannot be."""
    if args.dataset_name == "random":
        return RandomDataset(args.random_input_len, args.random_output_len, args.random_prefix_len,
                             args.random_range_ratio)
    return PrefixRepetitionDataset(args.prefix_repetition_prefix_len, args.prefix_repetition_suffix_len,
                                   args.prefix_repetition_num_prefixes, args.prefix_repetition_output_len)

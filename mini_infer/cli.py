"""The command line: `mini-infer serve | chat | generate`.

Options are rows of a table: the ones of the engine are the fields of EngineConfig under vLLM's flag names. Only options
that were given are passed on, so every default lives in one place, with the thing it configures.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from mini_infer import __version__
from mini_infer.config import ConfigError, EngineConfig
from mini_infer.protocol import RequestError, SamplingParams

_UNITS = {"": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
MODEL_HELP = "directory or hub id; the bundled model by default"
_SERVER_PACKAGES = ("fastapi", "uvicorn", "uvloop", "httptools", "msgspec", "prometheus_client")


def size(text: str) -> int:
    """Bytes: a number, with a unit if you like (4GB, 512MiB)."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", text.strip().lower())
    if match is None or match[2] not in _UNITS:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 4GB or 512MiB")
    return int(float(match[1]) * _UNITS[match[2]])


@dataclass(frozen=True)
class Flag:
    """One option. `name` is a field; the flag is --name with dashes.

    `kind`: a type, `bool` for --x/--no-x, `True` for a flag that is off unless given, `list` for one that may be
    repeated.
    """

    name: str
    kind: Callable[[str], Any] | bool
    help: str

    def add_to(self, parser: argparse._ActionsContainer) -> None:
        options: dict[str, Any] = {"dest": self.name, "default": argparse.SUPPRESS, "help": self.help}
        if self.kind is bool:
            options["action"] = argparse.BooleanOptionalAction
        elif self.kind is True:
            options["action"] = "store_true"
        elif self.kind is list:
            options["action"] = "append"
        else:
            options["type"] = self.kind
        parser.add_argument("--" + self.name.replace("_", "-"), **options)


ENGINE_FLAGS = (
    Flag("tokenizer", str, "directory of the tokenizer; the model's own by default"),
    Flag("dtype", str, "auto (the checkpoint's), float32, bfloat16 or float16"),
    Flag("device", str, "auto, cpu, cuda or cuda:N"),
    Flag("max_model_len", int, "tokens of prompt and output together; what the model was made for by default"),
    Flag("max_num_seqs", int, "requests that run at the same time"),
    Flag("max_num_batched_tokens", int, "tokens computed in one step, prompts and outputs together"),
    Flag("block_size", int, "tokens in a block of the KV cache"),
    Flag("num_kv_blocks", int, "blocks in the KV cache, instead of what memory allows"),
    Flag("gpu_memory_utilization", float, "share of the GPU's memory to use (0.9)"),
    Flag("kv_cache_memory", size, "memory of the KV cache, such as 4GB, instead of what is left"),
    Flag("enable_prefix_caching", bool, "keep the KV cache of prompts for requests that begin alike (on)"),
    Flag("scheduling_policy", str, "fcfs, priority, or one that a plug-in registers"),
    Flag("pipeline_depth", int, "steps under way at a time: 1, or 2 to hide the host's work behind the GPU"),
    Flag("load_format", str, "auto, safetensors, or dummy for random weights"),
    Flag("enforce_eager", True, "no CUDA graphs"),
    Flag("threads", int, "CPU threads of a model that runs on the CPU; one for a small model by default"),
    Flag("tensor_parallel_size", int, "GPUs to share one model (1 for now)"),
    Flag("seed", int, "of everything random that a request gives no seed for"),
    Flag("plugin", list, "module to import first, which registers models or policies; may be repeated"),
)
SERVE_FLAGS = (
    Flag("host", str, "address to listen on (127.0.0.1)"),
    Flag("port", int, "port to listen on (8000)"),
    Flag("served_model_name", list, "name that clients call the model; may be repeated"),
    Flag("shutdown_timeout", int, "seconds that running requests get after SIGTERM (30)"),
    Flag("dry_run", True, "no weights: made-up words at the speed of a GPU that need not be here"),
    Flag("dry_gpu", str, "the GPU of a dry run (H200)"),
    Flag("dry_output_len", int, "mean length after which answers of a dry run end by themselves"),
)
SAMPLING_FLAGS = (
    Flag("max_tokens", int, "longest answer"),
    Flag("temperature", float, "0 is greedy"),
    Flag("top_p", float, "keep the most likely tokens up to this probability"),
    Flag("top_k", int, "keep this many of the most likely tokens"),
    Flag("min_p", float, "keep tokens at least this likely, relative to the best"),
    Flag("repetition_penalty", float, "above 1: avoid what was said already"),
    Flag("stop", list, "text at which to stop; may be repeated"),
)


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="mini-infer", description="A small, fast LLM inference engine.",
                                     allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"mini-infer {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")

    serve = commands.add_parser("serve", allow_abbrev=False, help="serve a model with OpenAI's API")
    _add_flags(serve, "server", SERVE_FLAGS)
    chat = commands.add_parser("chat", allow_abbrev=False, help="talk to a model in the terminal")
    chat.add_argument("--url", help="a running server, such as http://127.0.0.1:8000, to do the work")
    chat.add_argument("--system", help="system prompt")
    generate = commands.add_parser("generate", allow_abbrev=False, help="complete a prompt")
    generate.add_argument("prompt", metavar="PROMPT", help="the text to go on from; - reads standard input")
    for command in (serve, chat):
        command.add_argument("positional_model", nargs="?", metavar="MODEL", help=MODEL_HELP)
    for command in (chat, generate):
        _add_flags(command, "sampling", SAMPLING_FLAGS)
    for command in (serve, chat, generate):
        command.add_argument("--model", help=MODEL_HELP)
        _add_flags(command, "engine", ENGINE_FLAGS)
    return parser


def _add_flags(parser: argparse.ArgumentParser, title: str, flags: Sequence[Flag]) -> None:
    group = parser.add_argument_group(title)
    for flag in flags:
        flag.add_to(group)


def _given(args: argparse.Namespace, flags: Sequence[Flag]) -> dict[str, Any]:
    values = vars(args)
    return {flag.name: values[flag.name] for flag in flags if flag.name in values}


def engine_config(args: argparse.Namespace) -> EngineConfig:
    """The EngineConfig that the options ask for. Raises ConfigError."""
    values = _given(args, ENGINE_FLAGS)
    if "plugin" in values:
        values["plugins"] = tuple(values.pop("plugin"))
    positional = vars(args).get("positional_model")
    if positional is not None and args.model is not None and positional != args.model:
        raise ConfigError(f"model: given twice, as {positional!r} and as {args.model!r}")
    model = args.model if positional is None else positional
    return EngineConfig(**values) if model is None else EngineConfig(model=model, **values)


def run_serve(args: argparse.Namespace, start: float) -> int:
    missing = [name for name in _SERVER_PACKAGES if find_spec(name) is None]
    if missing:
        raise ConfigError(f"serving needs {', '.join(missing)}: pip install 'mini-infer[serve]'")
    from mini_infer.engine.sim import SimConfig
    from mini_infer.server.launch import ServeOptions, serve

    values = _given(args, SERVE_FLAGS)
    dry_run = values.pop("dry_run", False)
    dry = {name.removeprefix("dry_"): values.pop(name) for name in ("dry_gpu", "dry_output_len") if name in values}
    if dry and not dry_run:
        raise ConfigError(f"dry_{next(iter(dry))} has a meaning with --dry-run only")
    if "served_model_name" in values:
        values["served_model_name"] = tuple(values["served_model_name"])
    sim = SimConfig(**dry) if dry_run else None
    return serve(ServeOptions(engine_config(args), sim, **values), start)


def run_generate(args: argparse.Namespace, start: float) -> int:
    from mini_infer.terminal import generate

    params = SamplingParams(**{"max_tokens": 200, **_given(args, SAMPLING_FLAGS)})
    return generate(engine_config(args), sys.stdin.read() if args.prompt == "-" else args.prompt, params)


def run_chat(args: argparse.Namespace, start: float) -> int:
    from mini_infer.terminal import LocalModel, RemoteModel, chat

    sampling = _given(args, SAMPLING_FLAGS)
    if args.url is None:
        return chat(LocalModel(engine_config(args), SamplingParams(**{"max_tokens": None, **sampling})), args.system)
    given = sorted(_given(args, ENGINE_FLAGS))
    if given:
        raise ConfigError(f"{given[0]} belongs to the server behind --url; it cannot be set from here")
    return chat(RemoteModel(args.url, args.model or args.positional_model, sampling), args.system)


RUN = {"serve": run_serve, "chat": run_chat, "generate": run_generate}


def main(argv: Sequence[str] | None = None) -> int:
    """`mini-infer`: 0 when all went well, 1 when something broke, 2 when what was asked for cannot be done."""
    start = time.perf_counter()
    args = make_parser().parse_args(argv)
    try:
        return RUN[args.command](args, start)
    except (ConfigError, RequestError) as error:
        print(f"mini-infer: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def serve_main() -> int:
    """`mini-infer-serve`: the same as `mini-infer serve`."""
    return main(["serve", *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main())

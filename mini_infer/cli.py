"""The command line: `mini-infer serve | chat | generate | record | replay | bench`.

Options are rows of a table: the ones of the engine are the fields of EngineConfig under vLLM's flag names. Only options
that were given are passed on, so every default lives in one place, with the thing it configures.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from mini_infer import __version__
from mini_infer.bench.arguments import add_commands
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
    Flag("max_num_mixed_tokens", int, "the same of a step in which running requests wait for their next tokens"),
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
    Flag("record", str, "file to write the run to, prompts included, for mini-infer replay"),
    Flag("plugin", list, "module to import first, which registers models or policies; may be repeated"),
)
SERVE_FLAGS = (
    Flag("host", str, "address to listen on (127.0.0.1)"),
    Flag("port", int, "port to listen on (8000)"),
    Flag("served_model_name", list, "name that clients call the model; may be repeated"),
    Flag("shutdown_timeout", int, "seconds that running requests get after SIGTERM (30)"),
    Flag("max_queue", int, "sequences that may wait for a place in the batch; more get 429 at once (2048)"),
    Flag("max_concurrent_requests", int, "requests that are answered at a time; more get 429 at once (any number)"),
    Flag("default_timeout", float, "seconds for a request that names no timeout of its own (none)"),
    Flag("engine_stall_timeout", float, "seconds without progress after which the engine is said to hang (60)"),
    Flag("restart_engine", int, "times an hour that a dead or hanging engine is started again, instead of ending (0)"),
    Flag("api_key", list, "key that clients must send; may be repeated; also from MINI_INFER_API_KEY"),
    Flag("chat_template", str, "file with a chat template, or the template itself, instead of the model's"),
    Flag("trust_request_chat_template", True, "render chat_template fields of requests (in a process with limits)"),
    Flag("enable_auto_tool_choice", True, "accepted for vLLM's sake: calls are looked for wherever a parser is known"),
    Flag("tool_call_parser", str, "how the model writes tool calls: hermes, llama3_json, mistral, or none of these"),
    Flag("reasoning_parser", str, "how the model writes thoughts: qwen3, deepseek_r1, or none (not at all)"),
    Flag("max_logprobs", int, "most likely tokens that a request may ask for, up to 20 (20)"),
    Flag("max_body_size", size, "bytes that the body of a request may have (8MiB)"),
    Flag("max_buffered_size", size, "bytes of unanswered requests and unread answers, all together (1GiB)"),
    Flag("enable_request_id_headers", True, "answer with an X-Request-Id: the client's, or a new one"),
    Flag("root_path", str, "path under which a proxy shows this server"),
    Flag("allowed_origins", list, "web origin that may use this server (CORS), * for all; may be repeated"),
    Flag("allowed_methods", list, "HTTP method that such a page may use; may be repeated (*)"),
    Flag("allowed_headers", list, "header that such a page may send; may be repeated (*)"),
    Flag("allow_credentials", True, "let such a page send cookies"),
    Flag("ssl_certfile", str, "certificate chain; serves HTTPS"),
    Flag("ssl_keyfile", str, "key of the certificate, where it is in a file of its own"),
    Flag("ssl_ca_certs", str, "certificates to check those of clients against"),
    Flag("ssl_cert_reqs", int, "certificates of clients: 0 none, 1 if they have one, 2 required (0)"),
    Flag("otlp_traces_endpoint", str, "URL of an OpenTelemetry collector (OTLP over HTTP) to send traces to"),
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
    chat.add_argument("--api-key", help="key of the server behind --url; also from MINI_INFER_API_KEY")
    chat.add_argument("--system", help="system prompt")
    generate = commands.add_parser("generate", allow_abbrev=False, help="complete a prompt")
    generate.add_argument("prompt", metavar="PROMPT", help="the text to go on from; - reads standard input")
    record = commands.add_parser("record", allow_abbrev=False, help="serve, and write the run to a file for replay")
    record.add_argument("record", metavar="FILE", help="file to write the run to, prompts included")
    _add_flags(record, "server", SERVE_FLAGS)
    replay = commands.add_parser("replay", allow_abbrev=False, help="drive the scheduler through a recorded run again")
    replay.add_argument("recording", metavar="FILE", help="what record or --record wrote")
    replay.add_argument("--dump", action="store_true", help="print the recorded events and compare nothing")
    replay.add_argument("--plugin", action="append", default=[], help="module that registers the run's policy")
    bench = commands.add_parser("bench", allow_abbrev=False, help="measure the engine, a server, the start or kernels")
    add_commands(bench, _add_engine_options)
    for command in (serve, record, chat):
        command.add_argument("positional_model", nargs="?", metavar="MODEL", help=MODEL_HELP)
    for command in (chat, generate):
        _add_flags(command, "sampling", SAMPLING_FLAGS)
    for command in (serve, chat, generate):
        _add_engine_options(command)
    _add_engine_options(record, [flag for flag in ENGINE_FLAGS if flag.name != "record"])
    return parser


def _add_flags(parser: argparse.ArgumentParser, title: str, flags: Sequence[Flag]) -> None:
    group = parser.add_argument_group(title)
    for flag in flags:
        flag.add_to(group)


def _add_engine_options(parser: argparse.ArgumentParser, flags: Sequence[Flag] = ENGINE_FLAGS) -> None:
    parser.add_argument("--model", help=MODEL_HELP)
    _add_flags(parser, "engine", flags)


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


def _items(name: str, text: str) -> list[str]:
    """What one option of a repeatable flag says: itself, or what is in it where it is a JSON list (vLLM's way)."""
    if not text.startswith("["):
        return [text]
    try:
        items = json.loads(text)
    except ValueError:
        raise ConfigError(f"{name}: {text!r} begins like a JSON list and is none") from None
    if not all(isinstance(item, str) for item in items):
        raise ConfigError(f"{name}: {text!r} must be a list of strings")
    return items


def run_serve(args: argparse.Namespace, start: float) -> int:
    missing = [name for name in _SERVER_PACKAGES if find_spec(name) is None]
    if missing:
        raise ConfigError(f"serving needs {', '.join(missing)}: pip install 'mini-infer[serve]'")
    from mini_infer.engine.sim import SimConfig
    from mini_infer.server.launch import ENV_API_KEY, ServeOptions, serve

    values = _given(args, SERVE_FLAGS)
    dry_run = values.pop("dry_run", False)
    dry = {name.removeprefix("dry_"): values.pop(name) for name in ("dry_gpu", "dry_output_len") if name in values}
    if dry and not dry_run:
        raise ConfigError(f"dry_{next(iter(dry))} has a meaning with --dry-run only")
    for name in ("served_model_name", "api_key", "allowed_origins", "allowed_methods", "allowed_headers"):
        if name in values:
            values[name] = tuple(item for text in values[name] for item in _items(name, text))
    if "api_key" not in values and os.environ.get(ENV_API_KEY):
        values["api_key"] = (os.environ[ENV_API_KEY],)
    if values.pop("enable_auto_tool_choice", False) and values.get("tool_call_parser") == "none":
        raise ConfigError("enable_auto_tool_choice needs a tool_call_parser other than none")
    sim = SimConfig(**dry) if dry_run else None
    return serve(ServeOptions(engine_config(args), sim, **values), start)


def run_generate(args: argparse.Namespace, start: float) -> int:
    from mini_infer.terminal.generate import generate

    params = SamplingParams(**{"max_tokens": 200, **_given(args, SAMPLING_FLAGS)})
    return generate(engine_config(args), sys.stdin.read() if args.prompt == "-" else args.prompt, params)


def run_chat(args: argparse.Namespace, start: float) -> int:
    from mini_infer.terminal.chat import chat
    from mini_infer.terminal.conversation import Conversation
    from mini_infer.terminal.models import ChatModel, LocalModel, RemoteModel

    sampling = _given(args, SAMPLING_FLAGS)
    SamplingParams(**{"max_tokens": None, **sampling})  # raises now for what is out of range
    model: ChatModel
    if args.url is None:
        if args.api_key is not None:
            raise ConfigError("api_key is for a server: give its --url too")
        model = LocalModel(engine_config(args))
    else:
        if given := sorted(_given(args, ENGINE_FLAGS)):
            raise ConfigError(f"{given[0]} belongs to the server behind --url; it cannot be set from here")
        api_key = args.api_key or os.environ.get("MINI_INFER_API_KEY")
        model = RemoteModel(args.url, args.model or args.positional_model, api_key)
    return chat(model, Conversation(args.system, sampling))


def run_bench(args: argparse.Namespace, start: float) -> int:
    from mini_infer.bench import commands

    return commands.run_bench(args, engine_config)


def run_replay(args: argparse.Namespace, start: float) -> int:
    if find_spec("msgspec") is None:
        raise ConfigError("replay needs msgspec: pip install 'mini-infer[serve]'")
    from mini_infer.terminal.replay import replay

    return replay(args.recording, args.dump, args.plugin)


RUN = {"serve": run_serve, "chat": run_chat, "generate": run_generate, "record": run_serve, "replay": run_replay,
       "bench": run_bench}


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
    except BrokenPipeError:  # whoever read the output has left, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the last flush would fail as well
        return 141


def serve_main() -> int:
    """`mini-infer-serve`: the same as `mini-infer serve`."""
    return main(["serve", *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main())

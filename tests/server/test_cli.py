"""The command line, from the flag table to a server that stops when told to."""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from mini_infer.cli import ENGINE_FLAGS, RUN, engine_config, main, make_parser, size
from mini_infer.config import ConfigError, EngineConfig
from tests.server.running import REPO, Running
from tests.tiny import write_chat_model


def run(*args: str, stdin: str = "") -> tuple[int, str, str]:
    done = subprocess.run([sys.executable, "-m", "mini_infer.cli", *args], cwd=REPO, capture_output=True, text=True,
                          input=stdin, timeout=60)
    return done.returncode, done.stdout, done.stderr


class TestFlags:
    def test_every_field_of_the_engine_has_a_flag(self) -> None:
        fields = set(EngineConfig.__dataclass_fields__) - {"model", "plugins", "skip_tokenizer_init"}
        assert fields == {flag.name for flag in ENGINE_FLAGS} - {"plugin"}

    def test_flags_become_the_configuration(self) -> None:
        args = make_parser().parse_args([
            "serve", "some/model", "--max-model-len", "256", "--max-num-seqs=8", "--max-num-batched-tokens", "512",
            "--block-size", "32", "--gpu-memory-utilization", "0.5", "--num-kv-blocks", "64",
            "--dtype", "float16", "--device", "cpu", "--load-format", "dummy",
            "--enforce-eager", "--plugin", "a",
            "--no-enable-prefix-caching", "--scheduling-policy", "priority", "--pipeline-depth", "1", "--seed", "3",
            "--plugin", "b", "--tokenizer", "t"])
        assert engine_config(args) == EngineConfig(
            model="some/model", max_model_len=256, max_num_seqs=8, max_num_batched_tokens=512, block_size=32,
            gpu_memory_utilization=0.5, num_kv_blocks=64, dtype="float16", device="cpu",
            load_format="dummy", enforce_eager=True, enable_prefix_caching=False, scheduling_policy="priority",
            pipeline_depth=1, seed=3, plugins=("a", "b"), tokenizer="t")

    def test_record_is_serve_with_a_recording(self) -> None:
        options = ["m", "--block-size", "32", "--port", "1", "--dry-run", "--max-queue", "7"]
        record, serve = (vars(make_parser().parse_args(args)) for args in (
            ["record", "run", *options], ["serve", *options, "--record", "run"]))
        assert record.pop("command") == "record" and serve.pop("command") == "serve"
        assert record == serve and RUN["record"] is RUN["serve"]

    def test_the_kv_cache_by_its_memory(self) -> None:
        args = make_parser().parse_args(["serve", "--kv-cache-memory", "2GiB"])
        assert engine_config(args) == EngineConfig(kv_cache_memory=2**31)

    def test_defaults_are_the_configuration_s_own(self) -> None:
        assert engine_config(make_parser().parse_args(["serve"])) == EngineConfig()
        assert engine_config(make_parser().parse_args(["serve", "--model", "m"])) == EngineConfig(model="m")
        with pytest.raises(ConfigError, match="twice"):
            engine_config(make_parser().parse_args(["serve", "a", "--model", "b"]))

    @pytest.mark.parametrize("text, expected", [("5", 5), ("4GB", 4 * 10**9), ("1.5 MiB", 3 * 2**19), ("2kb", 2000)])
    def test_sizes(self, text: str, expected: int) -> None:
        assert size(text) == expected
        with pytest.raises(argparse.ArgumentTypeError):
            size("many")

    @pytest.mark.parametrize("args, says", [
        (["serve", "--bogus"], "--bogus"),
        (["serve", "--max-num", "5"], "--max-num"),  # no guessing from the beginning of a name
        (["serve", "--port", "x"], "--port"),
        (["serve", "--port", "70000"], "port"),
        (["serve", "--block-size", "17"], "block_size"),
        (["serve", "--dtype", "int3"], "dtype"),
        (["serve", "--tensor-parallel-size", "2"], "tensor_parallel_size"),
        (["serve", "--dry-gpu", "H100"], "--dry-run"),
        (["serve", "--dry-run", "--port", "0", "--load-format", "dummy"], "load_format"),
        (["serve", "--dry-run", "--dry-gpu", "GTX"], "H200"),
        (["serve", "--host", "256.0.0.1", "--dry-run"], "host"),
        (["serve", "/nowhere", "--dry-run"], "/nowhere"),
        (["generate", "hi", "--temperature", "-1"], "temperature"),
        (["record"], "FILE"),
        (["record", "run", "--record", "other"], "--record"),
        (["record", "run", "--dry-gpu", "H100"], "--dry-run"),
        (["chat", "--url", "nothing"], "url"),
        (["chat", "--url", "http://127.0.0.1:9", "--seed", "5"], "seed"),
        (["frobnicate"], "frobnicate"),
        ([], "command"),
    ], ids=str)
    def test_what_cannot_be_is_one_line_and_exit_2(self, capfd: pytest.CaptureFixture[str], args: list[str],
                                                   says: str) -> None:
        try:
            code = main(args)
        except SystemExit as error:  # argparse's own
            code = error.code  # type: ignore[assignment]
        err = capfd.readouterr().err
        assert code == 2 and says in err and "Traceback" not in err
        assert err.strip().splitlines()[-1].startswith("mini-infer")


def test_imports_are_light() -> None:
    code = ("import sys, mini_infer.cli, mini_infer.server.run; "
            "sys.exit(', '.join({'torch', 'transformers', 'numpy', 'openai'} & set(sys.modules)) or 0)")
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


class TestServe:
    def test_dry_run_from_start_to_end(self, small_model: Path) -> None:
        running = Running("--model", small_model, "--dry-run", "--served-model-name", "alias", "--max-num-seqs", "4")
        with running as server:
            status, body = server.get("/healthz")
            assert status == 200 and body["status"] == "ok" and body["model"] == "dry"
            assert server.get("/v1/models")[1]["data"][0]["id"] == "alias"
            assert server.get("/version")[1]["version"]
            assert "/v1/chat/completions" in server.get("/openapi.json")[1]["paths"]
            body = server.post("/v1/completions", {"prompt": "a", "max_tokens": 3, "model": "alias"})[1]
            assert body["usage"]["completion_tokens"] == 3
            engine = server.engine_pid
        assert running.process.returncode == 0
        assert not Path(f"/proc/{engine}").exists()
        assert any("engine: dry run: " in line for line in running.log)
        assert any("ready in" in line for line in running.log)

    def test_the_start_is_a_line_for_each_phase_and_no_bars(self, tmp_path: Path) -> None:
        model = write_chat_model(tmp_path / "tiny")
        with Running(model, "--device", "cpu", "--num-kv-blocks", "64") as server:
            assert server.post("/v1/completions", {"prompt": "a", "max_tokens": 3})[0] == 200
        assert all(line.startswith("mini-infer") for line in server.log), server.log
        phases = [re.fullmatch(r"mini-infer engine: (.*): \d+\.\d\d s\n", line) for line in server.log]
        assert [match[1] for match in phases if match] == ["imports", "config", "weights", "kv pool"]
        assert sum("ready in" in line for line in server.log) == 1

    def test_record_and_replay_are_a_pair(self, small_model: Path, tmp_path: Path) -> None:
        path = tmp_path / "run"
        options = ("--dry-run", "--dry-gpu", "free", "--max-num-seqs", "2")
        with Running(path, small_model, *options, command="record") as server:
            assert server.post("/v1/completions", {"prompt": [[5], [6], [7]], "max_tokens": 4})[0] == 200
        code, out, _ = run("replay", str(path))
        assert code == 0 and "all as recorded" in out and "no end" not in out

    def test_port_in_use_is_said_before_anything_loads(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            code, _, err = run("serve", "/no/such/model", "--port", str(port))
        assert code == 2 and f"127.0.0.1:{port} is in use" in err and len(err.splitlines()) == 1

    def test_a_model_that_is_not_there(self, tmp_path: Path) -> None:
        code, _, err = run("serve", str(tmp_path), "--dry-run", "--port", "0")
        assert code == 2 and "config.json" in err and "Traceback" not in err

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_running_requests_finish_after_a_signal(self, slow_model: Path, number: int) -> None:
        with Running(slow_model, "--dry-run", "--dry-gpu", "L4") as server:
            answers: list[tuple[int, dict]] = []
            ask = threading.Thread(target=lambda: answers.append(
                server.post("/v1/completions", {"prompt": "a", "max_tokens": 12})))
            ask.start()
            server.eventually("num_requests_running", 1)
            assert server.stop(number) == 0
            ask.join()
            assert answers[0][0] == 200 and answers[0][1]["usage"]["completion_tokens"] == 12

    def test_requests_that_take_too_long_are_cut(self, slow_model: Path) -> None:
        with Running(slow_model, "--dry-run", "--dry-gpu", "L4", "--shutdown-timeout", "1") as server:
            with socket.create_connection(("127.0.0.1", server.port)) as sock:
                data = json.dumps({"prompt": "a", "max_tokens": 400}).encode()
                sock.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                             b"Content-Length: %d\r\n\r\n%b" % (len(data), data))
                server.eventually("num_requests_running", 1)
                engine, start = server.engine_pid, time.monotonic()
                assert server.stop() == 0
                assert time.monotonic() - start < 4
            with pytest.raises(ProcessLookupError):
                os.kill(engine, 0)

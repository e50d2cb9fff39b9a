"""`mini-infer bench` as a user runs it: against a server, and on the engine alone."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from mini_infer.bench.dataset import PrefixRepetitionDataset, RandomDataset, as_text, ordinary_tokens
from mini_infer.cli import main
from mini_infer.config import BUNDLED_MODEL_DIR, ConfigError
from mini_infer.text.tokenizer import Tokenizer
from tests.server.running import Running
from tests.tiny import write_checkpoint


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_checkpoint(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    pytest.importorskip("httptools")
    with Running("--dry-run") as running:
        yield running


class TestDatasets:
    def test_random_lengths_stay_within_their_range(self) -> None:
        samples = RandomDataset(100, 20, 7, 0.25).samples(300, range(50), random.Random(0))
        lengths = [len(sample.prompt_token_ids) - 7 for sample in samples]
        assert min(lengths) == 75 and max(lengths) == 125
        assert {sample.output_len for sample in samples} == set(range(15, 26))
        assert len({tuple(sample.prompt_token_ids[:7]) for sample in samples}) == 1
        assert samples == RandomDataset(100, 20, 7, 0.25).samples(300, range(50), random.Random(0))

    def test_prefixes_are_shared_evenly(self) -> None:
        samples = PrefixRepetitionDataset(8, 4, 3, 5).samples(30, range(50), random.Random(0))
        prefixes = [tuple(sample.prompt_token_ids[:8]) for sample in samples]
        assert sorted(prefixes.count(prefix) for prefix in set(prefixes)) == [10, 10, 10]
        assert all(len(sample.prompt_token_ids) == 12 and sample.output_len == 5 for sample in samples)

    @pytest.mark.parametrize("wrong", [dict(input_len=0), dict(output_len=0), dict(prefix_len=-1),
                                       dict(range_ratio=1.0), dict(range_ratio=-0.1)])
    def test_lengths_that_cannot_be(self, wrong: dict[str, float]) -> None:
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            RandomDataset(**wrong)  # type: ignore[arg-type]

    def test_texts_have_the_wanted_number_of_tokens(self) -> None:
        tokenizer, rng = Tokenizer.load(BUNDLED_MODEL_DIR), random.Random(0)
        vocabulary = ordinary_tokens(tokenizer)
        assert all(tokenizer.decode([token]) for token in vocabulary)
        for length in (1, 7, 100):
            text = as_text(rng.choices(vocabulary, k=length), tokenizer, vocabulary, rng)
            assert len(tokenizer.encode(text, add_special_tokens=False)) == length


class TestServe:
    @pytest.mark.parametrize("backend", ["openai", "openai-chat"])
    def test_a_run(self, server: Running, tmp_path: Path, backend: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["bench", "serve", "--base-url", server.url, "--backend", backend, "--tokenizer",
                     str(BUNDLED_MODEL_DIR), "--num-prompts", "12", "--num-warmups", "2", "--random-input-len", "30",
                     "--random-output-len", "9", "--request-rate", "200", "--max-concurrency", "4", "--ignore-eos",
                     "--goodput", "ttft:60000", "e2el:60000", "--metric-percentiles", "50,90", "--percentile-metrics",
                     "ttft,itl", "--disable-tqdm", "--save-detailed", "--result-dir", str(tmp_path),
                     "--result-filename", "run.json"]) == 0
        shown = capsys.readouterr().out
        result = json.loads((tmp_path / "run.json").read_text())
        assert "Successful requests:                     12" in shown and "P90 TTFT (ms):" in shown
        assert (result["completed"], result["failed"], result["total_output_tokens"]) == (12, 0, 12 * 9)
        assert result["max_concurrent_requests"] <= 4 and result["request_goodput"] == result["request_throughput"]
        assert set(result["output_lens"]) == {9} and len(result["itls"]) == len(result["ttfts"]) == 12
        if backend == "openai":
            assert result["total_input_tokens"] == 12 * 30

    def test_shared_prefixes_are_found_in_the_cache(self, server: Running) -> None:
        before = server.metric("prefix_cache_hits_total")
        assert main(["bench", "serve", "--base-url", server.url, "--tokenizer", str(BUNDLED_MODEL_DIR), "--num-prompts",
                     "8", "--dataset-name", "prefix_repetition", "--prefix-repetition-prefix-len", "256",
                     "--prefix-repetition-suffix-len", "8", "--prefix-repetition-num-prefixes", "1",
                     "--prefix-repetition-output-len", "2", "--max-concurrency", "1", "--disable-tqdm"]) == 0
        assert server.metric("prefix_cache_hits_total") - before >= 7 * 192

    @pytest.mark.parametrize("args, says", [
        (["--base-url", "http://127.0.0.1:9", "--num-prompts", "1"], "base_url"),
        (["--goodput", "ttft"], "goodput"),
        (["--percentile-metrics", "ttft,speed"], "speed"),
        (["--metric-percentiles", "x"], "metric_percentiles"),
        (["--request-rate", "0"], "request_rate"),
        (["--num-prompts", "0"], "num_prompts"),
        (["--random-range-ratio", "1"], "range_ratio"),
        (["--model", "no/such"], "tokenizer"),
    ])
    def test_what_cannot_be_is_refused(self, args: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
        pytest.importorskip("httptools")
        assert main(["bench", "serve", "--disable-tqdm", *args]) == 2
        assert says in capsys.readouterr().err

    def test_a_server_that_refuses_everything(self, server: Running, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["bench", "serve", "--base-url", server.url, "--model", "another", "--tokenizer",
                     str(BUNDLED_MODEL_DIR), "--num-prompts", "2", "--disable-tqdm"]) == 2
        assert "HTTP 404" in capsys.readouterr().err


class TestEngine:
    def test_throughput(self, checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        out = tmp_path / "throughput.json"
        assert main(["bench", "throughput", "--model", checkpoint, "--skip-tokenizer-init", "--num-prompts", "5",
                     "--random-input-len", "6", "--random-output-len", "4", "--disable-tqdm", "--device", "cpu",
                     "--output-json", str(out)]) == 0
        result = json.loads(out.read_text())
        assert (result["num_requests"], result["total_input_tokens"], result["total_output_tokens"]) == (5, 30, 20)
        assert "requests/s" in capsys.readouterr().out

    def test_latency(self, checkpoint: str, tmp_path: Path) -> None:
        out = tmp_path / "latency.json"
        assert main(["bench", "latency", "--model", checkpoint, "--skip-tokenizer-init", "--input-len", "4",
                     "--output-len", "3", "--batch-size", "2", "--num-iters-warmup", "1", "--num-iters", "3",
                     "--disable-tqdm", "--device", "cpu", "--output-json", str(out)]) == 0
        result = json.loads(out.read_text())
        assert len(result["latencies"]) == 3 and set(result["percentiles"]) >= {"50", "99"}

    def test_startup(self, checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        out = tmp_path / "startup.json"
        assert main(["bench", "startup", "--model", checkpoint, "--skip-tokenizer-init", "--num-iters-warm", "0",
                     "--disable-tqdm", "--device", "cpu", "--output-json", str(out)]) == 0
        cold = json.loads(out.read_text())["cold"]
        assert cold["total"] == pytest.approx(sum(cold["phases"].values()))
        assert {"python", "imports", "weights", "kv pool", "first token"} <= set(cold["phases"])
        assert "weights" in capsys.readouterr().out

    @pytest.mark.parametrize("args, says", [
        (["kernels"], "CUDA GPU"),
        (["kernels", "--only", "nothing"], "nothing"),
        (["startup", "--num-iters-cold", "0"], "num_iters_cold"),
        (["startup", "--model", "/nowhere", "--disable-tqdm"], "/nowhere"),
        (["latency", "--batch-size", "0"], "batch_size"),
        (["throughput", "--model", "/nowhere", "--device", "cpu"], "/nowhere"),
    ])
    def test_what_cannot_be_is_refused(self, args: list[str], says: str, capsys: pytest.CaptureFixture[str],
                                       monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("torch.cuda.is_available", lambda: False)
        assert main(["bench", *args]) == 2
        assert says in capsys.readouterr().err

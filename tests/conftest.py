"""Shared fixtures, and the loud skip of what this machine cannot run."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from hypothesis import settings

if not torch.cuda.is_available():  # before any op is imported: Triton decides when a kernel is defined
    os.environ.setdefault("TRITON_INTERPRET", "1")

from mini_infer.config import BUNDLED_MODEL_DIR
from mini_infer.ops.native import HAS_NATIVE

# The same examples in every run, so that a red test is the change's doing; HYPOTHESIS_PROFILE=explore looks for others.
settings.register_profile("same", derandomize=True)
settings.register_profile("explore", derandomize=False)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))

torch.set_num_threads(1)  # tests run side by side: threads that wait for each other's cores cost more than they bring

# A machine for the engine alone (`make test-gpu` from a plain checkout) has no server packages.
if any(find_spec(name) is None for name in ("fastapi", "msgspec", "openai", "uvicorn")):
    collect_ignore_glob = ["server/*", "terminal/*", "bench/*", "engine/test_record.py", "engine/test_async_llm.py",
                           "engine/test_sim.py", "test_config.py", "test_deploy.py", "test_docs.py"]


# Left out of `make test-fast`: these start servers, draw many samples, or interpret kernels on many shapes.
SLOW = ("server/", "terminal/", "bench/", "engine/test_async_llm.py", "engine/test_structured.py",
        "engine/test_view.py", "ops/test_attention.py", "ops/test_kv_write.py", "ops/test_qkv_attention.py",
        "ops/test_sampling.py", "runtime/test_compile_ahead.py", "runtime/test_compile_helpers.py",
        "text/test_detokenizer.py", "test_benchmarks.py", "test_demo_model_data.py")


@pytest.hookimpl(tryfirst=True)  # before -m selects
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    no_gpu = pytest.mark.skip(reason="needs a CUDA GPU: run `make test-gpu` on one")
    no_weights = pytest.mark.skip(reason="the bundled model's weights are not in this checkout")
    has_weights = (BUNDLED_MODEL_DIR / "model.safetensors").is_file()
    for item in items:
        if item.path.relative_to(Path(__file__).parent).as_posix().startswith(SLOW):
            item.add_marker(pytest.mark.slow)
        if "gpu" in item.keywords and not torch.cuda.is_available():
            item.add_marker(no_gpu)
        if "weights" in item.keywords and not has_weights:
            item.add_marker(no_weights)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not HAS_NATIVE:
        terminalreporter.write_line("NO CPU KERNELS HERE: their tests were skipped and the references ran; "
                                    "`pip install -e .` builds them with a C++ compiler", yellow=True, bold=True)
    skipped = [report for report in terminalreporter.stats.get("skipped", []) if "CUDA GPU" in str(report.longrepr)]
    if skipped or not torch.cuda.is_available():
        terminalreporter.write_line(f"NO GPU HERE: {len(skipped)} GPU tests were skipped (or deselected); "
                                    "run `make test-gpu` on a machine with one", yellow=True, bold=True)
    skipped = [report for report in terminalreporter.stats.get("skipped", []) if "Chromium" in str(report.longrepr)]
    if skipped:
        terminalreporter.write_line(f"NO CHROMIUM HERE: {len(skipped)} tests of the page were skipped; "
                                    "`apt-get install chromium` lets them run", yellow=True, bold=True)


@pytest.fixture(scope="session")
def repo() -> Path:
    return Path(__file__).parents[1]

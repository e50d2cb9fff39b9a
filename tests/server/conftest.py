"""Servers that all tests of this folder share: dry runs, so no weights are needed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.server.model_dir import SEVEN_B, SMALL, write_model_dir
from tests.server.running import Running


@pytest.fixture(scope="session")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model_dir(tmp_path_factory.mktemp("server") / "small", SMALL)


@pytest.fixture(scope="session")
def slow_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model_dir(tmp_path_factory.mktemp("server") / "slow", SEVEN_B)


@pytest.fixture(scope="session")
def server(small_model: Path) -> Iterator[Running]:
    """Steps cost nothing: answers come at once."""
    with Running(small_model, "--dry-run", "--dry-gpu", "free") as running:
        yield running


@pytest.fixture
def slow_server(slow_model: Path) -> Iterator[Running]:
    """A token takes 55 ms; each test has its own, to break."""
    with Running(slow_model, "--dry-run", "--dry-gpu", "L4") as running:
        yield running

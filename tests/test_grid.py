"""A part of the equivalence grid that holds every pair of settings; `make grid` runs the whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.grid import LOGPROB_TOLERANCE, Cell, Grid, pairwise_cells
from tests.tiny import write_checkpoint


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def cpu_grid(checkpoint: Path) -> Grid:
    return Grid(checkpoint, "cpu")


@pytest.fixture(scope="module")
def gpu_grid(checkpoint: Path) -> Grid:
    return Grid(checkpoint, "cuda")


@pytest.mark.parametrize("cell", pairwise_cells("cpu"), ids=str)
def test_cpu(cpu_grid: Grid, cell: Cell) -> None:
    same, worst = cpu_grid.check(cell)
    assert same
    assert worst < LOGPROB_TOLERANCE


@pytest.mark.gpu
@pytest.mark.parametrize("cell", pairwise_cells("cuda"), ids=str)
def test_gpu(gpu_grid: Grid, cell: Cell) -> None:
    same, worst = gpu_grid.check(cell)
    assert same
    assert worst < LOGPROB_TOLERANCE

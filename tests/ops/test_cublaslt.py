"""Products by a chosen algorithm of cuBLASLt."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from mini_infer.ops import cublaslt, cuda_few, skinny
from mini_infer.ops.cublaslt import TABLES, Algorithm, Product, table_path, tuned_plan
from mini_infer.ops.linear import _skinny as linear_takes_few_rows
from mini_infer.ops.linear import linear, linear_add
from mini_infer.ops.stream import Stream


@pytest.mark.parametrize("path", sorted({*TABLES.glob("*.json")} - {cuda_few.TABLE, skinny.TABLE}),
                         ids=lambda path: path.stem)
def test_tables_are_well_formed(path: Path) -> None:
    table = json.loads(path.read_text())
    assert table_path(table["gpu"]) == path
    shapes = [tuple(entry[:5]) for entry in table["products"]]
    assert len(set(shapes)) == len(shapes)
    for _, k, dtype, bias, adds, best in table["products"]:
        assert dtype == "bfloat16" and not (bias and adds)
        rows = [row for row, _, _ in best]
        assert rows == sorted(set(rows)) and min(rows, default=9) > 8
        assert all(Algorithm.from_hex(algorithm).hex() == algorithm for _, algorithm, _ in best)
        assert all(parts == 1 or (adds and k % (8 * parts) == 0) for _, _, parts in best)


def test_a_library_that_cannot_be_asked_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(device: torch.device) -> cublaslt.CublasLt:
        raise OSError("no such library")

    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    monkeypatch.setattr(cublaslt, "library", missing)
    assert cublaslt._table.__wrapped__(torch.device("cuda", 0)) == {}


@pytest.mark.gpu
class TestPlans:
    def table(self) -> dict[Product, tuple[Product, Algorithm]]:
        table = cublaslt._table(torch.device("cuda", 0))
        if not table:
            pytest.skip(f"no table for {torch.cuda.get_device_name()} and this version of cuBLASLt")
        return table

    def test_every_entry_multiplies(self) -> None:
        done = 0
        for product in self.table():
            if product.features > 1 << 16 or product.rows not in (16, 48, 64, 144, 192, 256, 384, 896):
                continue
            torch.manual_seed(product.rows)
            x = torch.randn(product.rows, product.k, device="cuda", dtype=product.dtype)
            weight = torch.randn(product.features, product.k, device="cuda", dtype=product.dtype) / product.k**0.5
            bias = torch.randn(product.features, device="cuda", dtype=product.dtype) if product.bias else None
            before = torch.randn(product.rows, product.features, device="cuda", dtype=product.dtype)
            expected = x.float() @ weight.float().t()
            plan = tuned_plan(x, weight, product.bias, product.adds)
            assert plan is not None
            if product.adds:
                expected += before.float()
                stream = Stream(before)
                linear_add(stream, x, weight, None)
                assert stream.in_parts == (plan.product.parts > 1 and not linear_takes_few_rows(x, weight))
                got = stream.value
                assert got.data_ptr() == before.data_ptr()
            else:
                expected += 0 if bias is None else bias.float()
                out = before.fill_(float("nan")) if bias is None else None
                got = linear(x, weight, bias, out)
            torch.testing.assert_close(got.float(), expected, atol=0.06, rtol=0.02)
            done += 1
        assert done > 20

    def test_others_are_torch_s(self) -> None:
        product = next(iter(self.table()))
        weight = torch.randn(product.features, product.k, device="cuda", dtype=product.dtype)
        x = torch.randn(2 * product.rows, product.k, device="cuda", dtype=product.dtype)
        assert tuned_plan(x[:17], weight, product.bias, product.adds) is None  # not on the ladder
        assert tuned_plan(x[::2], weight, product.bias, product.adds) is None  # rows apart from one another
        assert tuned_plan(x[: product.rows].float(), weight.float(), product.bias, product.adds) is None

    def test_another_version_reads_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        device = torch.device("cuda", 0)
        self.table()
        monkeypatch.setattr(cublaslt.library(device), "version", -1)
        assert cublaslt._table.__wrapped__(device) == {}

"""Matrix products by a chosen algorithm of cuBLASLt.

The library picks one of its kernels for each shape by a model of its own. For the rows of a decode step that choice is
often a few per cent slower than another of its kernels, now and then a fifth. benchmarks/cublaslt.py times them, and
tuned/<GPU>.json keeps those that won. An algorithm is the library's own 64 opaque bytes, which mean something to the
version that wrote them alone: with another version, on another GPU and for shapes that are not in the table, torch
multiplies.

What is added to the residual stream may also be left in parts, a batch of products over pieces of K, for the norm that
follows to add up (ops/stream.py): the library's own split of K has a kernel for that which does nothing else.
"""

from __future__ import annotations

import ctypes
import json
from collections.abc import Iterator
from ctypes import POINTER, byref, c_float, c_int, c_int64, c_size_t, c_uint64, c_void_p
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Any

import torch

TABLES = Path(__file__).parent / "tuned"
MOST_WORKSPACE = 16 << 20  # bytes an algorithm may ask for

_DATA_TYPES = {torch.bfloat16: 14, torch.float16: 2}
_FLOAT32, _COMPUTE_FLOAT32 = 0, 68
_TRANSPOSE_A, _EPILOGUE, _BIAS_POINTER, _EPILOGUE_BIAS = 3, 7, 8, 4  # of a product's description
_NUM_PARTS, _NEXT_PART = 5, 6  # of a layout: a batch of matrices
_MOST_WORKSPACE = 1  # of a preference


class Algorithm(ctypes.Structure):
    """The library's own description of one, as it can be stored: `hex` and `from_hex`."""

    _fields_ = [("words", c_uint64 * 8)]

    def hex(self) -> str:
        return bytes(self).hex()

    @classmethod
    def from_hex(cls, text: str) -> Algorithm:
        return cls.from_buffer_copy(bytes.fromhex(text))


class _Candidate(ctypes.Structure):
    _fields_ = [("algorithm", Algorithm), ("workspace", c_size_t), ("status", c_int), ("waves", c_float),
                ("reserved", c_int * 4)]


@dataclass(frozen=True)
class Product:
    """x [rows, k] times weight [features, k] transposed, plus a bias, or added to what is in the result's place; or in
    parts, of K in as many pieces, [parts, rows, features] in float32."""

    rows: int
    features: int
    k: int
    dtype: torch.dtype
    bias: bool = False
    adds: bool = False
    parts: int = 1

    def in_parts(self, parts: int) -> Product:
        """This product, left in so many parts for another kernel to add."""
        return self if parts == 1 else replace(self, adds=False, parts=parts)


class CublasLt:
    """The library on one device, for one stream at a time: there is one workspace. Raises OSError where it cannot be
    loaded. What describes a product is kept as long as the process lives."""

    def __init__(self, device: torch.device):
        assert torch.version.cuda is not None
        self._lib = lib = ctypes.CDLL(f"libcublasLt.so.{torch.version.cuda.split('.')[0]}")  # torch has loaded it
        lib.cublasLtGetVersion.restype = c_size_t
        lib.cublasLtMatmul.argtypes = [c_void_p] * 14 + [c_size_t, c_void_p]
        lib.cublasLtMatrixLayoutCreate.argtypes = [c_void_p, c_int, c_uint64, c_uint64, c_int64]
        lib.cublasLtMatrixLayoutSetAttribute.argtypes = [c_void_p, c_int, c_void_p, c_size_t]
        lib.cublasLtMatmulDescSetAttribute.argtypes = [c_void_p, c_int, c_void_p, c_size_t]
        lib.cublasLtMatmulPreferenceSetAttribute.argtypes = [c_void_p, c_int, c_void_p, c_size_t]
        lib.cublasLtMatmulAlgoGetHeuristic.argtypes = [c_void_p] * 7 + [c_int, c_void_p, POINTER(c_int)]
        lib.cublasLtMatmulAlgoCheck.argtypes = [c_void_p] * 8
        self._handle = self._made(lib.cublasLtCreate)
        self._workspace = torch.empty(MOST_WORKSPACE, dtype=torch.uint8, device=device)
        self._lock = Lock()
        self.version = int(lib.cublasLtGetVersion())

    def plan(self, product: Product, algorithm: Algorithm) -> Plan | None:
        """The product by this algorithm; None if it cannot do it."""
        description, layouts = self._describe(product)
        found = _Candidate()
        status = self._lib.cublasLtMatmulAlgoCheck(self._handle, description, *layouts, layouts[-1], byref(algorithm),
                                                   byref(found))
        if status or found.status or found.workspace > MOST_WORKSPACE:
            return None
        return Plan(self, product, description, layouts, algorithm)

    def candidates(self, product: Product, workspace: int, count: int = 16) -> Iterator[Algorithm]:
        """What the library would take for this product with so many bytes of workspace, its first choice first."""
        description, layouts = self._describe(product)
        preference = self._made(self._lib.cublasLtMatmulPreferenceCreate)
        self._ok(self._lib.cublasLtMatmulPreferenceSetAttribute(preference, _MOST_WORKSPACE,
                                                                byref(c_size_t(workspace)), 8))
        results, num = (_Candidate * count)(), c_int()
        status = self._lib.cublasLtMatmulAlgoGetHeuristic(self._handle, description, *layouts, layouts[-1], preference,
                                                          count, results, byref(num))
        if status == 0:
            yield from (result.algorithm for result in results[: num.value] if result.status == 0)

    def multiply(self, plan: Plan, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None,
                 out: torch.Tensor) -> None:
        """Launch the plan; see Plan.__call__."""
        a, b, c = plan.layouts
        with self._lock:  # the bias is part of the description, which another thread may use as well
            if bias is not None:
                self._ok(self._lib.cublasLtMatmulDescSetAttribute(plan.description, _BIAS_POINTER,
                                                                  byref(c_void_p(bias.data_ptr())), 8))
            self._ok(self._lib.cublasLtMatmul(
                self._handle, plan.description, byref(c_float(1.0)), weight.data_ptr(), a, x.data_ptr(), b,
                byref(c_float(plan.product.adds)), out.data_ptr(), c, out.data_ptr(), c, byref(plan.algorithm),
                self._workspace.data_ptr(), MOST_WORKSPACE, torch.cuda.current_stream(x.device).cuda_stream))

    def _describe(self, product: Product) -> tuple[c_void_p, tuple[c_void_p, c_void_p, c_void_p]]:
        """The library counts in columns: a row-major weight is its transpose, and so is the result."""
        lib, kind = self._lib, _DATA_TYPES[product.dtype]
        description = self._made(lib.cublasLtMatmulDescCreate, _COMPUTE_FLOAT32, _FLOAT32)
        self._ok(lib.cublasLtMatmulDescSetAttribute(description, _TRANSPOSE_A, byref(c_int(1)), 4))
        if product.bias:
            self._ok(lib.cublasLtMatmulDescSetAttribute(description, _EPILOGUE, byref(c_int(_EPILOGUE_BIAS)), 4))
        rows, features, k, parts = product.rows, product.features, product.k // product.parts, product.parts
        return description, (self._layout(kind, k, features, product.k, parts, k),
                             self._layout(kind, k, rows, product.k, parts, k),
                             self._layout(kind if parts == 1 else _FLOAT32, features, rows, features, parts,
                                          rows * features))

    def _layout(self, kind: int, rows: int, columns: int, stride: int, parts: int, next_part: int) -> c_void_p:
        """Of a matrix with so many elements from column to column, or of several, so many elements apart."""
        layout = self._made(self._lib.cublasLtMatrixLayoutCreate, kind, rows, columns, stride)
        if parts > 1:
            self._ok(self._lib.cublasLtMatrixLayoutSetAttribute(layout, _NUM_PARTS, byref(c_int(parts)), 4))
            self._ok(self._lib.cublasLtMatrixLayoutSetAttribute(layout, _NEXT_PART, byref(c_int64(next_part)), 8))
        return layout

    def _made(self, create: Any, *args: Any) -> c_void_p:
        made = c_void_p()
        self._ok(create(byref(made), *args))
        return made

    @staticmethod
    def _ok(status: int) -> None:
        if status:
            raise RuntimeError(f"cuBLASLt: status {status}")


@dataclass(frozen=True)
class Plan:
    """A product, ready to be launched."""

    library: CublasLt
    product: Product
    description: c_void_p
    layouts: tuple[c_void_p, c_void_p, c_void_p]
    algorithm: Algorithm

    def __call__(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None,
                 out: torch.Tensor | None = None) -> torch.Tensor:
        """x [rows, k] and weight [features, k], rows dense, as the product says -> `out` [rows, features], or its
        parts."""
        product = self.product
        shape: tuple[int, ...] = (product.rows, product.features)
        dtype = x.dtype
        if product.parts > 1:
            assert bias is None, "parts have no bias"
            shape, dtype = (product.parts, *shape), torch.float32
        if out is None:
            out = x.new_empty(shape, dtype=dtype)
        assert weight.is_contiguous() and out.is_contiguous() and weight.dtype == x.dtype and out.dtype == dtype
        self.library.multiply(self, x, weight, bias, out)
        return out


def tuned_plan(x: torch.Tensor, weight: torch.Tensor, bias: bool = False, adds: bool = False) -> Plan | None:
    """How to multiply x [T, in] with weight [out, in] on a GPU if the table knows better than the library. What is to
    be added may be left in parts for another kernel to add."""
    if not x.is_contiguous():
        return None
    product = Product(x.shape[0], weight.shape[0], weight.shape[1], x.dtype, bias, adds)
    return _plan(x.device, product) if product in _table(x.device) else None


@cache
def library(device: torch.device) -> CublasLt:
    """The one of a device. Raises OSError where it cannot be loaded."""
    return CublasLt(device)


def table_path(gpu: str) -> Path:
    """Where the table of a GPU of this name is, if there is one."""
    return TABLES / f"{gpu.replace(' ', '_')}.json"


@cache
def _plan(device: torch.device, product: Product) -> Plan | None:
    return library(device).plan(*_table(device)[product])


@cache
def _table(device: torch.device) -> dict[Product, tuple[Product, Algorithm]]:
    """What is asked for: what is done, in parts perhaps, and how."""
    path = table_path(torch.cuda.get_device_name(device))
    if torch.version.hip is not None or not path.exists():
        return {}
    table = json.loads(path.read_text())
    try:
        version = library(device).version
    except OSError:  # torch may have it inside, where it cannot be asked
        return {}
    if table["cublaslt_version"] != version:
        return {}
    found = {}
    for features, k, dtype, bias, adds, best in table["products"]:
        for rows, algorithm, parts in best:
            product = Product(rows, features, k, getattr(torch, dtype), bias, adds)
            found[product] = product.in_parts(parts), Algorithm.from_hex(algorithm)
    return found

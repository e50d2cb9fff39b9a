"""Where the CUDA kernel is used, how it is found, and that it compiles. What it computes: test_skinny.py, on a GPU."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mini_infer.ops import build_cuda, cuda_library, cuda_skinny, linear
from mini_infer.ops.cuda_library import source_path
from mini_infer.ops.cuda_skinny import TILES, CudaTile, tile_for
from mini_infer.ops.epilogue import Epilogue
from mini_infer.ops.stream import Stream

BF16 = torch.bfloat16
# [N, K]: a model of 0.6 billion parameters, and what one of 7 billion has it for.
SMALL = {"qkv": (4096, 1024), "o": (1024, 2048), "down": (1024, 3072), "lm_head": (151936, 1024)}
LARGE = {"qkv": (4608, 3584), "o": (3584, 3584), "down": (3584, 18944), "lm_head": (152064, 3584)}


def taken(products: dict[str, tuple[int, int]], rows: int) -> set[str]:
    return {name for name, product in products.items() if tile_for(rows, *product, False, BF16)}


@pytest.mark.parametrize("rows", [9, 16])
def test_nine_to_sixteen_rows(rows):
    """A small model's step is then this kernel's alone."""
    assert taken(SMALL, rows) == set(SMALL)
    assert not taken(LARGE, rows)
    assert tile_for(rows, 3072, 1024, True, BF16) == CudaTile(2, 8, 2)
    assert tile_for(rows, 18944, 3584, True, BF16) is None


@pytest.mark.parametrize("rows", [1, 2, 8, 17, 64])
def test_other_numbers_of_rows_are_left_to_others(rows):
    assert not taken(SMALL, rows) and not taken(LARGE, rows)
    assert tile_for(rows, 3072, 1024, True, BF16) is None


def test_what_the_kernel_cannot_do_is_not_chosen():
    for features in (1, 16, 1000, 1152, 4096, 9000, 200_000):
        for k in (32, 896, 1000, 1024, 2048, 2880, 4096, 5120):
            for rows in range(1, 18):
                assert tile_for(rows, features, k, False, torch.float16) is None
                assert tile_for(rows, features, k, False, torch.float32) is None
                plain, gated = (tile_for(rows, features, k, gated, BF16) for gated in (False, True))
                assert {plain, gated} <= {None, *TILES}
                assert gated is None or gated.can_gate
                assert k % 32 == 0 or plain is gated is None


def test_nothing_is_used_that_is_not_built(monkeypatch, tmp_path):
    monkeypatch.setattr(cuda_skinny, "is_hopper", lambda device_index: True)
    monkeypatch.setattr(cuda_skinny, "LIBRARY", tmp_path / "none.so")
    x, weight = torch.zeros(16, 1024, dtype=BF16), torch.zeros(4096, 1024, dtype=BF16)
    assert cuda_skinny.choose_tile(x, weight, False) is None
    with pytest.raises(RuntimeError, match="make build-ext"):
        cuda_skinny.cuda_skinny_matmul(x, weight, Epilogue())


def test_a_library_of_something_else_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(cuda_skinny, "is_hopper", lambda device_index: True)
    monkeypatch.setattr(cuda_skinny, "LIBRARY", tmp_path / "broken.so")
    cuda_skinny.LIBRARY.write_bytes(b"not a library")
    with pytest.raises(RuntimeError, match="make build-ext"):
        cuda_skinny.choose_tile(torch.zeros(16, 1024, dtype=BF16), torch.zeros(4096, 1024, dtype=BF16), False)


def test_dispatch_takes_it_where_it_is_built_and_wins(monkeypatch):
    called = []

    def multiply(x, weight, epilogue, out=None, tile=None):
        called.append((len(x), epilogue.gated, tile))
        return x

    monkeypatch.setattr(linear, "use_triton", lambda tensor: True)
    monkeypatch.setattr(cuda_skinny, "is_hopper", lambda device_index: True)
    monkeypatch.setattr(cuda_skinny, "load", lambda *_: multiply)
    monkeypatch.setattr(cuda_skinny, "cuda_skinny_matmul", multiply)
    monkeypatch.setattr(linear, "skinny_matmul", multiply)
    weight, gate_up = torch.zeros(1024, 3072, dtype=BF16), torch.zeros(6144, 1024, dtype=BF16)
    for rows in (1, 8, 16):
        linear.linear(torch.zeros(rows, 3072, dtype=BF16), weight)
    for rows in (8, 16):
        linear.norm_swiglu(Stream(torch.zeros(rows, 1024, dtype=BF16)), torch.ones(1024, dtype=BF16), 1e-6, gate_up,
                           None)
    assert called == [(1, False, None), (8, False, None), (16, False, CudaTile(2, 16, 2)),
                      (8, True, None), (16, True, CudaTile(2, 8, 2))]


def test_all_are_built_or_not(monkeypatch, tmp_path):
    monkeypatch.setattr(cuda_library, "BUILD", tmp_path)
    names = sorted(source.stem for source in cuda_library.SOURCES.glob("*.cu"))
    assert names == ["attention", "skinny", "swiglu"]
    for name in names:
        assert not cuda_library.is_built()
        cuda_library.library_path(name).touch()
    assert cuda_library.is_built()


def test_a_library_appears_whole_in_place_of_older_ones(monkeypatch, tmp_path):
    from torch.utils import cpp_extension

    older, other = tmp_path / "mini_infer_skinny_0.so", tmp_path / "mini_infer_swiglu_0.so"
    older.touch()
    other.touch()
    monkeypatch.setattr(cuda_library, "BUILD", tmp_path)
    monkeypatch.setattr(build_cuda, "BUILD", tmp_path)
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "")
    library = cuda_library.library_path("skinny")

    def fail(*_, **__):
        raise ValueError("no such architecture")

    monkeypatch.setattr(cpp_extension, "load", fail)
    with pytest.raises(SystemExit, match="build-ext: no such architecture"):
        build_cuda.build("skinny", "sm_90", tmp_path)
    assert set(tmp_path.iterdir()) == {older, other}

    def load(name, sources, *, build_directory, **_):
        assert sources == [str(cuda_library.source_path("skinny"))] and not library.exists()
        Path(build_directory, f"{name}.so").write_text("built")

    monkeypatch.setattr(cpp_extension, "load", load)
    build_cuda.build("skinny", "9.0", tmp_path)
    assert library.read_text() == "built" and set(tmp_path.iterdir()) == {library, other}


@pytest.mark.parametrize("missing, said", [("cuda", "has no CUDA"), ("nvcc", "CUDA_HOME"), ("ninja", "ninja"),
                                           ("gpu", "no GPU")])
def test_the_build_says_what_is_missing(monkeypatch, tmp_path, missing, said):
    home = tmp_path / "cuda"
    for name in ("bin/nvcc", "include/cuda_runtime.h"):
        (home / name).parent.mkdir(parents=True)
        (home / name).touch()
    monkeypatch.setenv("CUDA_HOME", str(tmp_path if missing == "nvcc" else home))
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)
    monkeypatch.setattr(torch.version, "cuda", None if missing == "cuda" else "13.0")
    monkeypatch.setattr(shutil, "which", lambda name: None if missing == name else name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match=f"^build-ext: .*{said}"):
        build_cuda.main()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc")
@pytest.mark.parametrize("name, architecture", [("skinny", "90"), ("swiglu", "90a"), ("attention", "90a")])
def test_it_compiles_for_hopper(tmp_path, name, architecture):
    """With what torch's extension tools forbid; no GPU is needed. Nothing is spilled, no product waits for another."""
    flags = ["-D__CUDA_NO_HALF_CONVERSIONS__", "-D__CUDA_NO_BFLOAT16_CONVERSIONS__", "-std=c++17", "-Xptxas", "-v"]
    target = f"arch=compute_{architecture},code=sm_{architecture}"
    done = subprocess.run(["nvcc", "-O3", "-gencode", target, *flags, "-cubin", "-o", tmp_path / "cubin",
                           source_path(name)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    spills = [line for line in done.stderr.splitlines() if "spill" in line]
    assert spills and all(", 0 bytes spill stores" in line for line in spills)
    assert "serialized" not in done.stderr


def test_the_build_is_a_program_of_its_own():
    """From a plain checkout, where it may well find something missing, but not fail otherwise."""
    if torch.version.cuda is not None:
        pytest.skip("make build-ext would build here")
    done = subprocess.run([sys.executable, "-m", "mini_infer.ops.build_cuda"], capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.startswith("build-ext: torch") and done.stderr.count("\n") == 1

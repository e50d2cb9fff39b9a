"""How the CUDA kernels are built, found and loaded, and that they compile. What they compute is tested on a GPU."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mini_infer.ops import build_cuda, cuda_few, cuda_library
from mini_infer.ops.cuda_library import NAMES, source_path
from mini_infer.ops.epilogue import Epilogue

BF16 = torch.bfloat16


def test_nothing_is_used_that_is_not_built(monkeypatch, tmp_path):
    monkeypatch.setattr(cuda_few, "hopper_multiprocessors", lambda device_index: 132)
    monkeypatch.setattr(cuda_few, "LIBRARY", tmp_path / "none.so")
    x, weight = torch.zeros(16, 1024, dtype=BF16), torch.zeros(4096, 1024, dtype=BF16)
    assert cuda_few.choose_blocks(16, weight) is None
    with pytest.raises(RuntimeError, match="make build-ext"):
        cuda_few.cuda_few_matmul(x, weight, Epilogue(), blocks=1)


def test_a_library_of_something_else_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(cuda_few, "LIBRARY", tmp_path / "broken.so")
    cuda_few.LIBRARY.write_bytes(b"not a library")
    with pytest.raises(RuntimeError, match="make build-ext"):
        cuda_few.choose_blocks(16, torch.zeros(4096, 1024, dtype=BF16))


def test_kernels_are_loaded_once_for_each_gpu(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(cuda_library, "load", lambda library, name, argtypes: lambda: asked.append(name))
    for device_index in (0, 1, 0):
        cuda_library.prepare(tmp_path / "fine.so", "few", device_index)
    assert asked == ["few_prepare"] * 2
    monkeypatch.setattr(cuda_library, "load", lambda library, name, argtypes: lambda: b"no such image")
    with pytest.raises(RuntimeError, match="no such image"):
        cuda_library.prepare(tmp_path / "broken.so", "few", 0)


def test_all_are_built_or_not(monkeypatch, tmp_path):
    monkeypatch.setattr(cuda_library, "BUILD", tmp_path)
    assert sorted(source.stem for source in cuda_library.SOURCES.glob("*.cu")) == sorted(NAMES)
    for name in NAMES:
        assert not cuda_library.is_built()
        cuda_library.library_path(name).touch()
    assert cuda_library.is_built()


def test_a_library_appears_whole_in_place_of_older_ones(monkeypatch, tmp_path):
    from torch.utils import cpp_extension

    older, other = tmp_path / "mini_infer_few_0.so", tmp_path / "mini_infer_swiglu_0.so"
    older.touch()
    other.touch()
    monkeypatch.setattr(cuda_library, "BUILD", tmp_path)
    monkeypatch.setattr(build_cuda, "BUILD", tmp_path)
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "")
    library = cuda_library.library_path("few")

    def fail(*_, **__):
        raise ValueError("no such architecture")

    monkeypatch.setattr(cpp_extension, "load", fail)
    with pytest.raises(SystemExit, match="build-ext: no such architecture"):
        build_cuda.build("few", "sm_90", tmp_path)
    assert set(tmp_path.iterdir()) == {older, other}

    def load(name, sources, *, build_directory, **_):
        assert sources == [str(cuda_library.source_path("few"))] and not library.exists()
        Path(build_directory, f"{name}.so").write_text("built")

    monkeypatch.setattr(cpp_extension, "load", load)
    build_cuda.build("few", "9.0a", tmp_path)
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


def test_the_build_is_for_hopper_alone(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(build_cuda, "toolkit", lambda: tmp_path)
    monkeypatch.setattr(shutil, "which", lambda name: name)
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.0;10.0")
    with pytest.raises(SystemExit, match="for Hopper"):
        build_cuda.main()
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (10, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Another")
    with pytest.raises(SystemExit, match="Another cannot run these kernels"):
        build_cuda.main()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc")
@pytest.mark.parametrize("name", NAMES)
def test_it_compiles_for_hopper(tmp_path, name):
    """With what torch's extension tools forbid; no GPU is needed. Nothing is spilled, no product waits for another."""
    flags = ["-D__CUDA_NO_HALF_CONVERSIONS__", "-D__CUDA_NO_BFLOAT16_CONVERSIONS__", "-std=c++17", "-Xptxas", "-v"]
    target = "arch=compute_90a,code=sm_90a"
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

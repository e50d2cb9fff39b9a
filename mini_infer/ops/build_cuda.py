"""`make build-ext`: compiles the CUDA kernels that are optional (ops/cuda) for the GPU that is here.

Needs a torch with CUDA, the CUDA toolkit (CUDA_HOME, or where nvcc is), ninja and a C++ compiler. TORCH_CUDA_ARCH_LIST
says that it is for another GPU than the one that is here; they are for Hopper alone ("9.0") and need a toolkit of 12.5
or later. To do without the kernels again, delete ops/cuda/build.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

import torch

from mini_infer.ops.cuda_library import BUILD, NAMES, library_path, source_path


def toolkit() -> Path | None:
    """The folder of the CUDA toolkit: what CUDA_HOME says; if it says nothing, where nvcc is, or the usual place."""
    nvcc = shutil.which("nvcc")
    named = os.environ.get("CUDA_HOME")
    homes = [Path(named)] if named else [*([Path(nvcc).resolve().parents[1]] if nvcc else []), Path("/usr/local/cuda")]
    return next((home for home in homes if (home / "bin/nvcc").exists() and (home / "include/cuda_runtime.h").exists()),
                None)


def main() -> None:
    """Build, or exit with one line that says what is missing."""
    if torch.version.cuda is None:
        sys.exit(f"build-ext: torch {torch.__version__} has no CUDA")
    home = toolkit()
    if home is None:
        sys.exit("build-ext: no CUDA toolkit: nvcc is not on the path, and CUDA_HOME names none")
    if shutil.which("ninja") is None:
        sys.exit("build-ext: ninja is not on the path: pip install ninja")
    architectures = os.environ.get("TORCH_CUDA_ARCH_LIST")
    if not architectures:
        if not torch.cuda.is_available():
            sys.exit("build-ext: no GPU here; TORCH_CUDA_ARCH_LIST=9.0 builds for one elsewhere")
        if torch.cuda.get_device_capability() != (9, 0):
            sys.exit(f"build-ext: {torch.cuda.get_device_name()} cannot run these kernels: they are for Hopper")
    elif not any(name in architectures for name in ("9.0", "Hopper", "native")):
        sys.exit(f"build-ext: these kernels are for Hopper (9.0), not for TORCH_CUDA_ARCH_LIST={architectures}")
    os.environ["CUDA_HOME"] = str(home)  # torch reads it when cpp_extension is imported
    BUILD.mkdir(exist_ok=True)
    for name in NAMES:
        build(name, "9.0a", home)  # with instructions that only Hopper has


def build(name: str, architecture: str, home: Path) -> None:
    """Compile one of ops/cuda, or exit with what was wrong. The library is whole when it appears, and replaces those of
    older sources; until then what there was stays."""
    from torch.utils import cpp_extension  # here, since it looks for the toolkit when imported

    source, library = source_path(name), library_path(name)
    print(f"build-ext: {source} for {architecture}, with {home}/bin/nvcc", flush=True)
    os.environ["TORCH_CUDA_ARCH_LIST"] = architecture
    begin = time.monotonic()
    try:
        with tempfile.TemporaryDirectory(dir=BUILD) as folder:
            cpp_extension.load(library.stem, [str(source)], extra_cuda_cflags=["-O3"], build_directory=folder,
                               verbose=True, is_python_module=False)
            os.replace(Path(folder) / library.name, library)
    except (RuntimeError, OSError, ValueError) as error:
        sys.exit(f"build-ext: {error}")
    for older in set(BUILD.glob(f"mini_infer_{name}_*.so")) - {library}:
        older.unlink(missing_ok=True)
    print(f"build-ext: {library} in {time.monotonic() - begin:.0f} s")


if __name__ == "__main__":
    main()

"""The optional CUDA C++ kernels (ops/cuda): where a source is, what `make build-ext` makes of it, how it is loaded."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch

SOURCES = Path(__file__).parent / "cuda"
BUILD = SOURCES / "build"
NAMES = ("few", "swiglu", "attention")


def source_path(name: str) -> Path:
    return SOURCES / f"{name}.cu"


def library_path(name: str) -> Path:
    """Where the library is, if it is built. It is named after its sources' text: what others became is not loaded."""
    text = b"".join(path.read_bytes() for path in (source_path(name), *sorted(SOURCES.glob("*.cuh"))))
    return BUILD / f"mini_infer_{name}_{blake2b(text, digest_size=4).hexdigest()}.so"


@cache
def load(library: Path, name: str, argtypes: tuple[Any, ...]) -> Callable[..., bytes | None] | None:
    """The library's function, which returns what went wrong, or None where it is not built.

    Raises RuntimeError where it is and cannot be loaded.
    """
    if not library.exists():
        return None
    try:
        function = ctypes.CDLL(str(library))[f"mini_infer_{name}"]
    except (OSError, AttributeError) as error:
        raise RuntimeError(f"{library}: {error}; make build-ext again, or delete it") from error
    function.argtypes = argtypes
    function.restype = ctypes.c_char_p
    return function


@cache
def prepare(library: Path, name: str, device_index: int) -> None:
    """Load a library's kernels on a GPU, the current one, by its function mini_infer_<name>_prepare: once, and not when
    a graph is captured. Raises RuntimeError where that fails."""
    function = load(library, f"{name}_prepare", ())
    assert function is not None, "asked only where it is built"
    if (error := function()) is not None:
        raise RuntimeError(f"{name}.cu: {error.decode()}")


def is_built() -> bool:
    """Whether all of them are."""
    return all(library_path(name).exists() for name in NAMES)


@cache
def hopper_multiprocessors(device_index: int) -> int:
    """How many this GPU has; 0 if it is not a Hopper, whose instructions (sm_90a) no later one has."""
    properties = torch.cuda.get_device_properties(device_index)
    is_hopper = torch.version.hip is None and (properties.major, properties.minor) == (9, 0)
    return properties.multi_processor_count if is_hopper else 0

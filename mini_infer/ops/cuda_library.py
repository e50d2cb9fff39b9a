"""The optional CUDA C++ kernels (ops/cuda): where a source is, what `make build-ext` makes of it, how it is loaded."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from functools import cache
from hashlib import blake2b
from pathlib import Path
from typing import Any

SOURCES = Path(__file__).parent / "cuda"
BUILD = SOURCES / "build"


def source_path(name: str) -> Path:
    return SOURCES / f"{name}.cu"


def library_path(name: str) -> Path:
    """Where the library is, if it is built. It is named after the source's text: what another became is not loaded."""
    return BUILD / f"mini_infer_{name}_{blake2b(source_path(name).read_bytes(), digest_size=4).hexdigest()}.so"


@cache
def load(library: Path, name: str, argtypes: Sequence[Any]) -> Callable[..., bytes | None] | None:
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

"""Every kernel compiles for a Hopper GPU, within its shared memory. No GPU is needed: Triton brings its assembler.

The interpreter accepts more than the compiler does, so interpreted tests alone would not show that a kernel is Triton.
The compiler runs in a process of its own because this one interprets.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

HOPPER_SHARED_MEMORY = 227 * 1024


@pytest.mark.slow
def test_kernels_compile_for_hopper():
    pytest.importorskip("triton")
    root = Path(__file__).parents[2]
    environment = os.environ | {"TRITON_INTERPRET": "0", "PYTHONPATH": str(root)}
    done = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True, timeout=280)
    if "no assembler" in done.stderr:
        pytest.skip("this Triton has no ptxas")
    assert done.returncode == 0, done.stderr[-3000:]
    shared = json.loads(done.stdout.splitlines()[-1])
    assert len(shared) == len(list(configurations()))
    assert max(shared.values()) <= HOPPER_SHARED_MEMORY, shared


def configurations() -> Iterator[tuple[Any, dict[str, Any], dict[str, int]]]:
    """(kernel, constexprs, launch options); pointers to the model's dtype are said as `dtype`."""
    from mini_infer.ops import activation, attention_ragged, attention_split, kv_write, logit_bias, norm, rope, skinny
    from mini_infer.ops.dispatch import triton

    pdl = {"PDL": True}
    half = {"HALF": 40, "BLOCK_HALF": 64}
    for parts in ({"PARTS": 0}, {"PARTS": 4}):
        yield norm._rms_norm_kernel, {"DIM": 3584, "BLOCK_DIM": 4096, "ROWS": 1, **parts, **pdl}, {"num_warps": 8}
        yield norm._rms_norm_kernel, {"DIM": 80, "BLOCK_DIM": 128, "ROWS": 8, **parts, **pdl}, {"num_warps": 2}
    yield activation._silu_and_mul_kernel, {"DIM": 1000, "BLOCK": 1024, **pdl}, {}
    yield logit_bias._keep_allowed_kernel, {"BLOCK": 1024, "dtype": "fp32"}, {}
    yield rope._apply_rope_kernel, {**half, "HEADS": 8}, {"num_warps": 2}
    for qk_norm in (False, True):
        heads = {"HEADS": 7, "KV_HEADS": 2, "TILE_HEADS": 4, "BLOCK_SIZE": 64, "NORM": qk_norm, **pdl}
        yield kv_write._qkv_to_cache_kernel, {**heads, **half}, {"num_warps": 2}
    for element, head_dim, block_size, group, window in ((2, 128, 64, 4, 0), (2, 80, 16, 7, 100), (2, 256, 64, 1, 0),
                                                         (4, 128, 16, 3, 0), (4, 256, 64, 8, 100)):
        block_dim = triton.next_power_of_2(head_dim)
        shape = {"GROUP": group, "KV_HEADS": 2, "DIM": head_dim, "BLOCK_DIM": block_dim, "BLOCK_SIZE": block_size,
                 "WINDOW": window, "dtype": {2: "bf16", 4: "fp32"}[element]}
        block_group = triton.next_power_of_2(group)
        tiles = [attention_split.SPLIT_TILES[element, block_dim]]
        for tile in [*tiles, attention_split.SMALL_TILE] if element == 2 and block_dim <= 128 else tiles:
            split = {**shape, "BLOCK_GROUP": block_group, "REPEAT": 16 // block_group, "KEYS": tile.keys,
                     "ONE_TILE": False, "FROM_QKV": True, "NORM": True, **pdl}
            yield attention_split._split_kernel, split, {"num_warps": tile.warps, "num_stages": tile.stages}
        for ragged in attention_ragged.RAGGED_TILES[element, block_dim]:
            ragged_shape = {**shape, "ROWS": ragged.rows, "KEYS": ragged.keys, "STAGES": ragged.stages,
                            "WAIT": ragged.registers is not None}
            if block_size % ragged.keys:
                ragged_shape |= {"k_pages": None, "v_pages": None}
            yield attention_ragged._ragged_kernel, ragged_shape, ragged.options()
    shape = {"HEADS": 8, "DIM": 80, "BLOCK_DIM": 128}
    merge = {**shape, "WINDOW": 0, "SPLITS": attention_split.MERGE_SPLITS, **pdl}
    yield attention_split._merge_kernel, merge, {"num_warps": 2}
    tile = attention_split.ONE_TILE
    split = {"GROUP": 7, "KV_HEADS": 2, "DIM": 128, "BLOCK_DIM": 128, "BLOCK_SIZE": 64, "WINDOW": 0, "BLOCK_GROUP": 8,
             "REPEAT": 2, "KEYS": tile.keys, "ONE_TILE": True, "FROM_QKV": True, "NORM": False, **pdl}
    yield attention_split._split_kernel, split, {"num_warps": tile.warps, "num_stages": tile.stages}
    for rows, features, k, gated in ((1, 3072, 1024, True), (1, 3584, 18944, False), (8, 3072, 1024, True),
                                     (8, 1024, 3072, False), (16, 18944, 3584, True), (8, 152064, 3584, False)):
        chosen = skinny.choose_tile(rows, features, k, gated)
        shape = {"K": k, "FEATURES": chosen.features, "HAS_BIAS": True, "GATED": gated, "HAS_RESIDUAL": not gated,
                 "HAS_NORM": gated and (not chosen.dot or k <= chosen.k), "SHORT": True, **pdl}
        options = {"num_warps": chosen.warps, "num_stages": chosen.stages}
        if not chosen.dot:
            yield skinny._one_row_kernel, {**shape, "BLOCK_K": chosen.k}, options
        else:
            shape |= {"PARTS": chosen.warps, "BLOCK_K": chosen.k // chosen.warps, "ROWS": 8 if rows <= 8 else 16}
            yield skinny._few_rows_kernel, shape, options


def argument_type(name: str, dtype: str, constants: dict[str, Any]) -> str:
    if name.endswith("_pages"):
        return f"tensordesc<{dtype}[{constants['KEYS']},{constants['BLOCK_DIM']}]>"
    if not name.endswith("_ptr"):
        return "fp32" if name in ("eps", "scale_log2") else "i32"
    if name.removesuffix("_ptr") in ("positions", "slot_mapping", "cu_seqlens_q", "seq_lens", "slots", "block_table",
                                    "allowed"):
        return "*i32"
    in_float32 = ("table", "rope_table", "partial", "partial_lse", "parts")
    return "*fp32" if name.removesuffix("_ptr") in in_float32 else f"*{dtype}"


def main() -> None:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    if not list((Path(triton.__file__).parent / "backends/nvidia/bin").glob("ptxas*")):
        sys.exit("no assembler")
    shared = {}
    for kernel, constants, options in configurations():
        constants = dict(constants)
        dtype = constants.pop("dtype", "bf16")
        signature = {name: "constexpr" if name in constants else argument_type(name, dtype, constants)
                     for name in kernel.arg_names}
        aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(kernel.arg_names)
                   if name.endswith(("_ptr", "_stride"))}
        compiled = triton.compile(ASTSource(kernel, signature, constants, aligned), GPUTarget("cuda", 90, 32), options)
        shared[f"{kernel.__name__} {dtype} {constants} {options}"] = compiled.metadata.shared
    print(json.dumps(shared))


if __name__ == "__main__":
    main()

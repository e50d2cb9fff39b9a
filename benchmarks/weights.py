"""How fast weights come from the page cache onto the device: a synthetic checkpoint in shards, read as any other.

    python -m benchmarks.weights [--gigabytes 4]

The files are written first and so are in the page cache when they are read. The tensors have the shapes of a 7B model's
layers; each goes through pinned memory (mini_infer/models/upload.py).
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter

import torch
from safetensors.torch import save_file

from benchmarks.common import Figure, spread, write_result
from benchmarks.gpu import device_of, parser
from mini_infer.models.checkpoint import INDEX_FILE, Checkpoint
from mini_infer.models.upload import Uploader

LAYER: dict[str, tuple[int, ...]] = {
    "q_proj": (3584, 3584), "k_proj": (512, 3584), "v_proj": (512, 3584), "o_proj": (3584, 3584),
    "gate_proj": (18944, 3584), "up_proj": (18944, 3584), "down_proj": (3584, 18944), "norm": (3584,)}
LAYERS_A_SHARD = 3


def write_checkpoint(directory: Path, num_bytes: int, layer: dict[str, tuple[int, ...]]) -> None:
    """At least one shard."""
    weight_map: dict[str, str] = {}
    layer_bytes = 2 * sum(torch.Size(shape).numel() for shape in layer.values())
    for first in range(0, max(1, -(-num_bytes // layer_bytes)), LAYERS_A_SHARD):
        name = f"model-{first:05}.safetensors"
        tensors = {f"layers.{number}.{part}.weight": torch.randint(-9, 9, shape, dtype=torch.int16).view(torch.bfloat16)
                   for number in range(first, first + LAYERS_A_SHARD) for part, shape in layer.items()}
        save_file(tensors, directory / name)
        weight_map |= dict.fromkeys(tensors, name)
    (directory / INDEX_FILE).write_text(json.dumps({"weight_map": weight_map}), encoding="utf-8")


def load_seconds(checkpoint: Checkpoint, targets: dict[str, torch.Tensor], device: torch.device) -> float:
    begin = perf_counter()
    uploader = Uploader(device)
    for info, tensor in checkpoint.stream():
        uploader.copy(tensor, targets[info.name], lambda num_bytes: None)
    uploader.finish()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return perf_counter() - begin


def main(argv: Sequence[str] | None = None) -> None:
    options = parser(__doc__)
    options.add_argument("--gigabytes", type=float, default=4)
    options.add_argument("--repeats", type=int, default=3)
    args = options.parse_args(argv)
    device = torch.device(device_of(args.quick))
    with tempfile.TemporaryDirectory() as directory:
        scale = 64 if args.quick else 1
        layer = {name: tuple(-(-size // scale) for size in shape) for name, shape in LAYER.items()}
        write_checkpoint(Path(directory), int(1e9 * args.gigabytes), layer)
        checkpoint = Checkpoint(directory)
        targets = {info.name: torch.empty(info.shape, dtype=info.dtype, device=device) for info in checkpoint.tensors}
        seconds = [load_seconds(checkpoint, targets, device) for _ in range(args.repeats)]
        size = checkpoint.num_bytes
    rates = spread([size / 1e9 / sample for sample in seconds], digits=2)
    figure = Figure("weights from the page cache to the device", rates["median"], " GB/s", 4)
    print(f"{size / 1e9:.2f} GB in shards: {rates['min']} to {rates['max']} GB/s")
    print(figure)
    path = write_result("weights", {"figures": [figure.record()], "gigabytes": round(size / 1e9, 2),
                                    "gigabytes_per_s": rates, "device": str(device)}, args.out)
    print(f"written to {path}")


if __name__ == "__main__":
    main()

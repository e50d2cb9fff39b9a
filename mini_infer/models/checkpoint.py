"""A checkpoint on disk: safetensors in one file, or in shards listed by an index. Pickles are never opened."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from mini_infer.config import ConfigError, read_json_object

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
_DTYPES = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


@dataclass(frozen=True)
class TensorInfo:
    """A tensor as its file's header describes it."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    file: Path

    @property
    def num_bytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize


class Checkpoint:
    """The tensors of a model directory, each in exactly one file.

    Opening reads only the headers. Raises ConfigError naming the file when the checkpoint is not whole: no weights, a
    shard that is missing, damaged or not where the index says, a tensor twice or of a type that is no plain float.
    """

    def __init__(self, model_dir: str | Path):
        self._files = _files(Path(model_dir))
        self.tensors: list[TensorInfo] = []
        homes: dict[str, Path] = {}
        for path, expected in self._files.items():
            infos = list(_read_header(path))
            for info in infos:
                if info.name in homes:
                    raise ConfigError(f"model: weight {info.name} is in {homes[info.name].name} and in {path.name}")
                homes[info.name] = path
            if expected is not None:
                _check_shard(path, {info.name for info in infos}, expected)
            self.tensors += infos

    @property
    def num_bytes(self) -> int:
        return sum(info.num_bytes for info in self.tensors)

    def stream(self) -> Iterator[tuple[TensorInfo, torch.Tensor]]:
        """Each tensor in turn, mapped into memory (read when it is first touched), file by file in their order."""
        by_file: dict[Path, list[TensorInfo]] = {path: [] for path in self._files}
        for info in self.tensors:
            by_file[info.file].append(info)
        for path, infos in by_file.items():
            with safe_open(path, framework="pt", device="cpu") as file:
                for info in infos:
                    yield info, file.get_tensor(info.name)


def _files(model_dir: Path) -> dict[Path, set[str] | None]:
    """The files, in order, each with the names an index puts there."""
    if (model_dir / SINGLE_FILE).is_file():
        return {model_dir / SINGLE_FILE: None}
    index_path = model_dir / INDEX_FILE
    if index_path.is_file():
        return _read_index(index_path)
    found = sorted(path.name for path in model_dir.glob("*.safetensors"))
    if found:
        raise ConfigError(f"model: {model_dir} has {', '.join(found[:3])} but neither {SINGLE_FILE} nor {INDEX_FILE}")
    pickles = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in model_dir.glob(pattern))
    if pickles:
        raise ConfigError(
            f"model: {model_dir} has its weights in {pickles[0]}, a pickle, which could run code and is not loaded; "
            "convert it: AutoModelForCausalLM.from_pretrained(dir).save_pretrained(dir) of transformers")
    raise ConfigError(f"model: {model_dir} has no weights ({SINGLE_FILE} or {INDEX_FILE}); "
                      'load_format="dummy" makes random ones')


def _read_index(index_path: Path) -> dict[Path, set[str] | None]:
    weight_map = read_json_object(index_path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ConfigError(f"model: {index_path} must have a weight_map from weight names to file names")
    files: dict[Path, set[str]] = {}
    for name, file_name in weight_map.items():
        # Only plain names: an index must not lead out of its directory.
        if not isinstance(file_name, str) or Path(file_name).name != file_name or "\\" in file_name \
                or not file_name.endswith(".safetensors"):
            raise ConfigError(f"model: {index_path} puts {name} into {file_name!r}, which is no name of a "
                              "*.safetensors file in the same directory")
        files.setdefault(index_path.parent / file_name, set()).add(name)
    for path in files:
        if not path.is_file():
            raise ConfigError(f"model: {path} is missing, though {index_path.name} names it; the download is not whole")
    return dict(sorted(files.items()))


def _read_header(path: Path) -> Iterator[TensorInfo]:
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            for name in file.offset_keys():
                header = file.get_slice(name)
                if header.get_dtype() not in _DTYPES:
                    raise ConfigError(f"model: weight {name} in {path} has dtype {header.get_dtype()}; "
                                      f"supported: {', '.join(_DTYPES)}")
                yield TensorInfo(name, tuple(header.get_shape()), _DTYPES[header.get_dtype()], path)
    except (SafetensorError, OSError) as error:
        raise ConfigError(f"model: {path} is no whole safetensors file ({error}); download it again") from None


def _check_shard(path: Path, found: set[str], expected: set[str]) -> None:
    for names, problem in ((expected - found, "is not in it"), (found - expected, "is in it")):
        if names:
            says = "puts it there" if problem == "is not in it" else "does not list it there"
            raise ConfigError(f"model: {path}: weight {min(names)} {problem}, though {INDEX_FILE} {says}")

"""From what a user calls a model, a directory or a hub id, to the directory that holds it."""

from __future__ import annotations

import os
import re
from pathlib import Path

from mini_infer.config import ConfigError

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
# Weights only as safetensors: the other formats are pickles, or of other programs.
_WANTED = ["*.safetensors", "*.json", "*.jinja", "*.txt", "*.model"]
_UNWANTED = ["*/*", "consolidated*"]


def resolve(model: str) -> str:
    """The local directory of `model`, downloaded (with a progress bar) where it is a hub id and not in the cache yet.

    Raises ConfigError when it is neither a directory nor an id that the hub serves to this user.
    """
    path = Path(os.path.expanduser(model))
    if model and path.is_dir():
        return str(path)
    if path.is_file():
        raise ConfigError(f"model: {model} is a file; give the directory that holds config.json and the weights")
    if not _HUB_ID.fullmatch(model):
        raise ConfigError(f"model: {model!r} is neither a directory nor a hub id such as Qwen/Qwen3-0.6B")
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise ConfigError(f"model: {model!r} is not a directory, and downloading it needs huggingface_hub: "
                          "pip install huggingface_hub") from None
    try:
        return snapshot_download(model, allow_patterns=_WANTED, ignore_patterns=_UNWANTED)
    except Exception as error:  # its failures have many types, and they change with the version of its HTTP client
        reason = str(error).strip().partition("\n")[0]
        raise ConfigError(f"model: {model!r} is neither a directory nor could it be had from the hub: "
                          f"{type(error).__name__}: {reason}") from error

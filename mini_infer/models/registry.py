"""From an architecture's name to the adapter that serves it. Families from outside register here."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from mini_infer.config import ConfigError, ModelConfig, read_generation_config, read_hf_config, token_id_list
from mini_infer.models.adapter import ModelAdapter
from mini_infer.models.families import FAMILIES

AdapterClass = TypeVar("AdapterClass", bound=type[ModelAdapter])

_ADAPTERS: dict[str, ModelAdapter] = {}


def register_model(adapter: AdapterClass) -> AdapterClass:
    """Serve the adapter's architectures from now on, also those that another adapter served. Works as a decorator.

    Raises ConfigError when it names no architecture.
    """
    if not adapter.architectures or isinstance(adapter.architectures, str):
        raise ConfigError(f"{adapter.__name__}.architectures must be a tuple of names as in config.json, "
                          f"got {adapter.architectures!r}")
    instance = adapter()
    _ADAPTERS.update((name, instance) for name in adapter.architectures)
    return adapter


def supported_architectures() -> list[str]:
    return sorted(_ADAPTERS)


def adapter_for(raw: dict[str, Any]) -> ModelAdapter:
    """The adapter of a raw config.json. Raises ConfigError with what is supported when there is none."""
    names = raw.get("architectures")
    if not isinstance(names, list) or not names or not isinstance(names[0], str):
        raise ConfigError(f"config.json: architectures must name the model's class, got {names!r}")
    if names[0] not in _ADAPTERS:
        raise ConfigError(f"config.json: architecture {names[0]!r} is not supported; supported: "
                          f"{', '.join(supported_architectures())}. mini_infer.register_model adds others "
                          "(examples/custom_model.py)")
    return _ADAPTERS[names[0]]


def load_config(model_dir: str | Path) -> tuple[ModelAdapter, ModelConfig]:
    """Adapter and shape of a model directory; generation_config.json may add end-of-sequence tokens."""
    raw = read_hf_config(model_dir)
    adapter = adapter_for(raw)
    config = adapter.config(raw)
    more = token_id_list(read_generation_config(model_dir).get("eos_token_id"), "eos_token_id")
    return adapter, replace(config, eos_token_ids=tuple(dict.fromkeys(config.eos_token_ids + more)))


def load_plugins(plugins: Iterable[str]) -> None:
    """Import modules that register adapters or policies: each a module's name or the path of a .py file.

    Raises ConfigError when one cannot be imported. A module that is imported already is not run again.
    """
    for plugin in plugins:
        try:
            if plugin.endswith(".py"):
                _import_file(Path(plugin))
            else:
                importlib.import_module(plugin)
        except Exception as error:  # whatever a user's module raises
            raise ConfigError(f"plugins: cannot import {plugin!r}: {type(error).__name__}: {error}") from error


def _import_file(path: Path) -> None:
    name = f"mini_infer_plugin_{path.stem}"
    if name in sys.modules and sys.modules[name].__file__ == str(path.resolve()):
        return
    spec = importlib.util.spec_from_file_location(name, path.resolve())
    assert spec is not None and spec.loader is not None  # the name ends in .py
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise


for family in FAMILIES:
    register_model(family)

__all__ = ["ModelAdapter", "adapter_for", "load_config", "load_plugins", "register_model", "supported_architectures"]

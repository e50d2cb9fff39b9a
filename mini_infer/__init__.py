"""mini-infer: a small, fast LLM inference engine.

    from mini_infer import LLM, SamplingParams
    print(LLM().generate("Hello!", max_tokens=40)[0].text)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from mini_infer.protocol import RequestError, SamplingParams, StructuredOutputs

if TYPE_CHECKING:
    from mini_infer.config import ConfigError, EngineConfig
    from mini_infer.engine.async_llm import AsyncLLM
    from mini_infer.engine.llm import LLM, LLMEngine
    from mini_infer.models.registry import ModelAdapter, register_model
    from mini_infer.text.output import CompletionOutput, RequestOutput

__version__ = "0.1.0"

# Heavy imports wait until a name is used, so that `import mini_infer` costs nothing.
_LAZY = {
    "LLM": "mini_infer.engine.llm",
    "LLMEngine": "mini_infer.engine.llm",
    "AsyncLLM": "mini_infer.engine.async_llm",
    "EngineConfig": "mini_infer.config",
    "ConfigError": "mini_infer.config",
    "ModelAdapter": "mini_infer.models.registry",
    "register_model": "mini_infer.models.registry",
    "CompletionOutput": "mini_infer.text.output",
    "RequestOutput": "mini_infer.text.output",
}


def __getattr__(name: str) -> object:
    if name not in _LAZY:
        raise AttributeError(f"module 'mini_infer' has no attribute {name!r}")
    return getattr(import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)


__all__ = ["LLM", "AsyncLLM", "CompletionOutput", "ConfigError", "EngineConfig", "LLMEngine", "ModelAdapter",
           "RequestError", "RequestOutput", "SamplingParams", "StructuredOutputs", "__version__", "register_model"]

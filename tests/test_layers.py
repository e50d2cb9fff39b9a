"""The folders import only what stands below them, and the light parts stay light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import mini_infer

PACKAGE = Path(__file__).parents[1] / "mini_infer"

# A folder (or top-level file) and what it may import of the package besides itself.
ALLOWED = {
    "protocol": set(),
    "config": {"protocol"},
    "core": {"protocol", "config"},
    "text": {"protocol", "config"},
    "ops": {"config"},
    "nn": {"config", "ops"},
    "models": {"config", "ops", "nn"},
    "runtime": {"protocol", "config", "ops", "nn", "models", "core.plan"},
    "engine": {"protocol", "config", "core", "text", "ops", "nn", "models", "runtime", "__init__"},
    "server": {"protocol", "config", "text", "engine", "__init__"},
    "bench": {"protocol", "config", "text", "ops", "engine", "__init__"},
    "terminal": {"protocol", "config", "text", "engine", "__init__"},
    "cli": {"protocol", "config", "text", "engine", "server", "bench", "terminal", "__init__"},
}
HEAVY = {"torch", "transformers", "triton", "fastapi", "pydantic", "uvicorn", "msgspec", "numpy"}


def modules_imported(path: Path) -> list[str]:
    """Dotted names of the package's own modules that a file imports, inside functions as well."""
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.append(node.module)
        assert not (isinstance(node, ast.ImportFrom) and node.level), f"{path}: relative import"
    ours = [name for name in names if name.split(".")[0] == "mini_infer"]
    return [name.removeprefix("mini_infer").lstrip(".") or "__init__" for name in ours]


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_import_order(path: Path) -> None:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    layer = parts[0]
    if layer in ("__init__", "__main__"):
        return
    for name in modules_imported(path):
        top = name.split(".")[0]
        assert top == layer or top in ALLOWED[layer] or name in ALLOWED[layer], f"{path.name} imports mini_infer.{name}"


def loaded_after(statement: str) -> set[str]:
    code = f"import sys\n{statement}\nprint(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PACKAGE.parent)
    return set(run.stdout.split())


@pytest.mark.parametrize("module", ["mini_infer", "mini_infer.config", "mini_infer.core.scheduler"])
def test_the_light_parts_import_nothing_heavy(module: str) -> None:
    assert not loaded_after(f"import {module}") & HEAVY


def test_the_package_says_what_it_offers_without_loading_it() -> None:
    assert not loaded_after("import mini_infer; assert 'LLM' in dir(mini_infer)") & HEAVY
    assert dir(mini_infer) == sorted(mini_infer.__all__)
    assert all(getattr(mini_infer, name) is not None for name in dir(mini_infer))


def test_the_front_does_not_import_torch() -> None:
    assert not loaded_after("import mini_infer.server.launch, mini_infer.cli") & {"torch", "transformers", "triton"}


def test_benchmarks_of_the_engine_need_no_server_package() -> None:
    modules = ("commands", "offline", "startup", "kernels", "first_token")
    loaded = loaded_after("import mini_infer.cli, " + ", ".join(f"mini_infer.bench.{name}" for name in modules))
    assert not loaded & {"fastapi", "pydantic", "uvicorn", "msgspec", "starlette", "prometheus_client", "httptools"}


def test_the_engine_needs_no_server_package() -> None:
    loaded = loaded_after("from mini_infer import LLM; import mini_infer.engine.llm")
    assert not loaded & {"fastapi", "pydantic", "uvicorn", "msgspec", "starlette", "prometheus_client"}

"""The documents say what is there: links, code, flags, fields, file and function names, and both languages alike."""

from __future__ import annotations

import argparse
import ast
import re
from dataclasses import fields
from pathlib import Path

import pytest

from mini_infer.cli import ENGINE_FLAGS, SAMPLING_FLAGS, SERVE_FLAGS, make_parser
from mini_infer.config import EngineConfig
from mini_infer.protocol import EngineStats, SamplingParams

ROOT = Path(__file__).parents[1]
DOCS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
LANGUAGES = ("docs", "docs/zh")
TRANSLATED = [("README.md", "README.zh.md"),
              *((f"docs/{name}.md", f"docs/zh/{name}.md")
                for name in ("architecture", "serving", "python_api", "development"))]

every_document = pytest.mark.parametrize("path", DOCS, ids=lambda path: str(path.relative_to(ROOT)))
both_languages = pytest.mark.parametrize("folder", LANGUAGES)


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def fences(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def prose(text: str) -> str:
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def headings(text: str) -> list[tuple[int, str]]:
    return [(len(marks), title) for marks, title in re.findall(r"^(#+) (.*)$", prose(text), re.MULTILINE)]


def anchor(title: str) -> str:
    """As GitHub makes one of a heading."""
    return re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", "-")


@every_document
def test_relative_links_resolve(path: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(path.read_text(encoding="utf-8"))):
        if "://" in target or target.startswith("mailto:"):
            continue
        name, _, section = target.partition("#")
        file = (path.parent / name).resolve() if name else path
        assert file.exists(), f"{target} leads nowhere"
        if section:
            assert section in [anchor(title) for _, title in headings(file.read_text(encoding="utf-8"))], target


@every_document
def test_python_compiles(path: Path) -> None:
    for code in fences(path.read_text(encoding="utf-8"), "python"):
        compile(code, str(path), "exec")


@every_document
def test_make_targets_exist(path: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", read("Makefile"), re.MULTILINE))
    text = path.read_text(encoding="utf-8")
    code = [*re.findall(r"`([^`\n]+)`", prose(text)), *fences(text, "bash")]
    named = {target for piece in code for target in re.findall(r"(?:^|[\s;&])make ([a-z-]+)", piece)}
    assert named <= targets


@every_document
def test_named_code_exists(path: Path) -> None:
    """`core/scheduler.py::Scheduler.schedule` is a file of the package (or of the repository) and what is in it."""
    for file, name in re.findall(r"`([\w/]+\.py)(?:::([\w.]+))?`", prose(path.read_text(encoding="utf-8"))):
        homes = [home for home in (ROOT / "mini_infer" / file, ROOT / file, ROOT / "examples" / file) if home.is_file()]
        assert homes, f"{file} does not exist"
        scope: ast.AST = ast.parse(homes[0].read_text(encoding="utf-8"))
        for part in name.split(".") if name else ():
            found = [node for node in ast.iter_child_nodes(scope) if part in names_of(node)]
            assert found, f"{file} has no {name}"
            scope = found[0]


def names_of(node: ast.AST) -> set[str]:
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return {node.name}
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return {target.id for target in targets if isinstance(target, ast.Name)}


@pytest.mark.parametrize("english, chinese", TRANSLATED)
def test_languages_are_in_step(english: str, chinese: str) -> None:
    """The same sections, the same number of snippets and of table rows."""
    def shape(text: str) -> tuple[list[int], int, int]:
        return [level for level, _ in headings(text)], text.count("\n```"), text.count("\n|")

    assert shape(read(english)) == shape(read(chinese))


@both_languages
def test_every_flag_is_documented(folder: str) -> None:
    text = read(f"{folder}/serving.md")
    (commands,) = (action for action in make_parser()._actions if isinstance(action, argparse._SubParsersAction))
    for parser in (make_parser(), *commands.choices.values()):
        for action in parser._actions:
            for flag in action.option_strings:
                assert flag in ("-h", "--help") or f"`{flag}`" in text, f"{flag} is missing"


def test_the_flags_tables_say_what_help_says() -> None:
    rows = read("docs/serving.md").splitlines()
    for flag in (*SERVE_FLAGS, *ENGINE_FLAGS, *SAMPLING_FLAGS):
        name = "--" + flag.name.replace("_", "-")
        assert any(row.startswith(f"| `{name}`") and row.endswith(f"| {flag.help} |") for row in rows), name


@both_languages
def test_every_parameter_of_python_is_documented(folder: str) -> None:
    text = read(f"{folder}/python_api.md")
    for cls in (EngineConfig, SamplingParams, EngineStats):
        for field in fields(cls):
            assert f"`{field.name}`" in text, f"{cls.__name__}.{field.name} is missing"


@both_languages
def test_every_field_route_and_metric_of_http_is_documented(folder: str) -> None:
    metrics = pytest.importorskip("mini_infer.server.metrics")
    schemas = pytest.importorskip("mini_infer.server.schemas")
    text = read(f"{folder}/serving.md")
    names = {*schemas.ChatCompletionRequest.model_fields, *schemas.CompletionRequest.model_fields,
             *schemas.ChatMessage.model_fields, *schemas.StreamOptions.model_fields, *schemas.UNSUPPORTED}
    names -= {"role", "content"}  # said in words
    source = Path(metrics.__file__).read_text(encoding="utf-8")
    names.update(re.findall(r'(?:gauge|counter|Histogram)\("(\w+)"', source))
    names.update(re.findall(r'MetricFamily\("mini_infer:(\w+)"', source))
    for name in sorted(names):
        assert f"`{name}`" in text, f"{name} is missing"
    for file in ("app.py", "chat.py", "completions.py"):
        for route in re.findall(r'@\w+\.(?:get|post)\("([^"{]+)', (ROOT / "mini_infer/server" / file).read_text()):
            assert route in text, f"{route} is missing"

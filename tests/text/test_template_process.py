"""Templates of requests, in a process that the operating system holds back; and what a template says it reads."""

from __future__ import annotations

import os

import pytest

from mini_infer.protocol import RequestError
from mini_infer.text import chat_template
from mini_infer.text.chat_template import ChatTemplate
from mini_infer.text.template_process import AT_A_TIME, MAX_SOURCE_CHARS, RequestTemplates

HI = [{"role": "user", "content": "hello"}]


async def render(source: str, **options: object) -> str:
    return await RequestTemplates({"eos_token": "</s>"}).render(source, HI, {"add_generation_prompt": True, **options})


async def test_it_is_the_sandbox_s_rendering() -> None:
    source = "{% for m in messages %}{{ m.content }}{{ eos_token }}{{ x }}{% endfor %}{{ add_generation_prompt }}"
    options = {"chat_template_kwargs": {"x": "\U0001f600"}}
    assert await render(source, **options) == ChatTemplate(source, {"eos_token": "</s>"}).render(
        HI, **options) == "hello</s>\U0001f600True"  # type: ignore[arg-type]


@pytest.mark.parametrize("source, says", [
    ("{% for", "does not compile"),
    ("{{ raise_exception('because') }}", "because"),
    ("{{ '%999999999d'|format(1) }}", "chat template|too much memory"),
    ("{% for i in range(9999) %}{% for j in range(9999) %}{% endfor %}{% endfor %}", "loop steps"),
    ("x" * (MAX_SOURCE_CHARS + 1), "characters"),
])
async def test_whatever_it_does_is_the_request_s_fault(source: str, says: str) -> None:
    with pytest.raises(RequestError, match=says):
        await render(source)


async def test_it_sees_nothing_of_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINI_INFER_API_KEY", "hidden")
    assert "hidden" in os.environ.values()
    assert await render("{{ environ }}{{ self }}{{ config }}{{ messages.__class__ }}".replace("{{ self }}", "")) == ""


async def test_many_wait_for_each_other() -> None:
    import asyncio

    templates = RequestTemplates({})
    texts = await asyncio.gather(*[templates.render(f"{i}", HI, {}) for i in range(2 * AT_A_TIME)])
    assert texts == ["0", "1", "2", "3"]


def test_time_is_part_of_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    template = ChatTemplate("{% for i in range(1000) %}{{ i }}{% endfor %}")
    monkeypatch.setattr(chat_template, "MAX_SECONDS", 0.0)
    with pytest.raises(RequestError, match="takes over"):
        template.render(HI)


def test_what_a_template_reads() -> None:
    template = ChatTemplate({"default": "{% set y = 1 %}{{ y }}{% if enable_thinking %}a{% endif %}",
                             "tool_use": "{{ reasoning_effort }}"})
    assert template.reads("enable_thinking") and not template.reads("y") and not template.reads("reasoning_effort")
    assert template.reads("reasoning_effort", [{"name": "f"}])

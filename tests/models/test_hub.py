"""From what the user calls a model to a directory, without a network."""

from __future__ import annotations

import sys

import pytest

from mini_infer.config import ConfigError
from mini_infer.models.hub import resolve


def test_a_directory_is_used_as_it_is(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert resolve(str(tmp_path)) == str(tmp_path)
    (tmp_path / "org").mkdir()
    monkeypatch.chdir(tmp_path)
    assert resolve("org") == "org"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve("~/org") == str(tmp_path / "org")


@pytest.mark.parametrize("model", ["/no/such/dir", "./missing", "../x", "a/b/c", "", "org/", "~no-such-user/x",
                                   "org/na me", "a\\b"])
def test_neither_directory_nor_id(model):
    with pytest.raises(ConfigError, match="neither a directory nor a hub id"):
        resolve(model)


def test_a_file_is_no_model(tmp_path):
    path = tmp_path / "model.safetensors"
    path.touch()
    with pytest.raises(ConfigError, match="is a file; give the directory"):
        resolve(str(path))


def test_without_the_hub_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ConfigError, match="pip install huggingface_hub"):
        resolve("Qwen/Qwen3-0.6B")


def test_download_asks_for_what_is_needed(monkeypatch, tmp_path):
    hub = pytest.importorskip("huggingface_hub")
    asked = {}
    monkeypatch.setattr(hub, "snapshot_download", lambda model, **options: asked.update(options) or str(tmp_path))
    assert resolve("Qwen/Qwen3-0.6B") == str(tmp_path)
    names = ["model-00001-of-00002.safetensors", "model.safetensors.index.json", "config.json", "tokenizer.json",
             "chat_template.jinja", "merges.txt", "tokenizer.model", "pytorch_model.bin", "model.gguf", "modeling_x.py",
             "original/params.json", "consolidated.safetensors", "onnx/model.onnx"]
    kept = list(hub.utils.filter_repo_objects(names, allow_patterns=asked["allow_patterns"],
                                              ignore_patterns=asked["ignore_patterns"]))
    assert kept == names[:7]


def test_offline_and_not_cached(monkeypatch, tmp_path):
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ConfigError, match="'Qwen/no-such-model' is neither a directory nor could it be had"):
        resolve("Qwen/no-such-model")

"""Every option of `from_pretrained` has its effect or is refused by name, in DMoERM and in the auto class."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, BitsAndBytesConfig

from dmoerm.errors import ConfigError
from dmoerm.model import DMoERM, DMoERMConfig, loading

LOADERS: list[Any] = [DMoERM.from_pretrained, AutoModelForSequenceClassification.from_pretrained]
each_loader = pytest.mark.parametrize("load", LOADERS, ids=["DMoERM", "auto"])


@pytest.fixture(scope="module")
def folder(trained_run: Any) -> str:
    return str(trained_run.folder / "model")


def dtypes(model: Any) -> set[torch.dtype]:
    """Return the precision of the trunk."""
    return {parameter.dtype for parameter in model.trunk.parameters()}


@each_loader
@pytest.mark.parametrize("name", ["dtype", "torch_dtype"])
@pytest.mark.parametrize(
    ("value", "expected"),
    [(torch.bfloat16, torch.bfloat16), ("float64", torch.float64), ("auto", torch.float32), (None, torch.float32)],
)
def test_dtype_is_honored(load: Callable[..., Any], folder: str, name: str, value: Any, expected: torch.dtype) -> None:
    assert dtypes(load(folder, **{name: value})) == {expected}


def test_a_given_configuration_may_name_the_precision(folder: str) -> None:
    """Some versions of the auto classes pass the precision on in the configuration only."""
    config = DMoERMConfig.from_pretrained(folder)
    config.dtype = torch.bfloat16
    assert dtypes(DMoERM.from_pretrained(folder, config=config)) == {torch.bfloat16}
    assert dtypes(DMoERM.from_pretrained(folder, config=config, dtype=torch.float32)) == {torch.float32}


@each_loader
@pytest.mark.parametrize("device", ["cpu", "auto", {"": "cpu"}, torch.device("cpu"), None])
def test_a_device_map_of_one_device_is_honored(load: Callable[..., Any], folder: str, device: Any) -> None:
    model = load(folder, device_map=device)
    expected = "cuda" if device == "auto" and torch.cuda.is_available() else "cpu"
    assert {parameter.device.type for parameter in model.parameters()} == {expected}


def test_a_device_map_moves_the_model(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    moved: list[Any] = []
    monkeypatch.setattr(DMoERM, "to", lambda self, device: moved.append(device) or self)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    for device in ("auto", 0, {"": 0}, "cuda:0"):
        DMoERM.from_pretrained(folder, device_map=device)
    assert [device.type for device in moved] == ["cuda"] * 4
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ConfigError, match=r"device_map='cuda:1' is not available here: PyTorch finds 1 GPUs$"):
        DMoERM.from_pretrained(folder, device_map="cuda:1")


def test_the_folder_of_a_run_is_that_of_its_model(folder: str, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "run" / "model")
    model = DMoERM.from_pretrained(tmp_path / "run")
    assert model.config.name_or_path == str(tmp_path / "run" / "model"), "trainers load the tokenizer from there"


@each_loader
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quantization_config": BitsAndBytesConfig(load_in_8bit=True)}, "quantization_config=.*use quantization="),
        ({"load_in_8bit": True}, "load_in_8bit=True is not supported: use quantization.*--not_quantized"),
        ({"attn_implementation": "eager"}, "attn_implementation='eager' is not supported: packed tokens run only on"),
        ({"device_map": {"trunk": 0, "general": "cpu"}}, "device_map=.* is not supported: a model is on one device"),
        ({"device_map": "meta"}, "device_map='meta' is not available"),
        ({"dtype": "int8"}, "dtype='int8' is not supported: use float32, bfloat16, float16, float64 or auto"),
        ({"ignore_mismatched_sizes": True}, "ignore_mismatched_sizes=True is not supported"),
        ({"num_labels": 2}, r"num_labels=2 is not supported|num_labels|id2label"),
        ({"threshold": 0.9}, "threshold"),
        ({"batch_tokens": 5}, "batch_tokens=5 is not supported: the options are dtype,"),
        ({"batch_tokens": 5, "load_in_8bit": True}, "batch_tokens=.*load_in_8bit|load_in_8bit.*batch_tokens="),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, dict) else "",
)
def test_unsupported_options_are_named(
    load: Callable[..., Any], folder: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=f"from_pretrained: .*({message})"):
        load(folder, **options)


@each_loader
def test_options_that_request_the_default_change_nothing(load: Callable[..., Any], folder: str) -> None:
    always = {"trust_remote_code": False, "use_safetensors": True, "low_cpu_mem_usage": True, "num_labels": 1}
    off = {"load_in_8bit": False, "quantization_config": None, "revision": None, "token": None, "subfolder": ""}
    model, expected = load(folder, attn_implementation="sdpa", **always, **off), DMoERM.from_pretrained(folder)
    assert model.score("Hi", ["Yes.", "No."]) == expected.score("Hi", ["Yes.", "No."])


def test_two_precisions_and_positional_options_are_refused(folder: str) -> None:
    """Older auto classes merge the two options before they call the model."""
    with pytest.raises(ConfigError, match="give only dtype"):
        DMoERM.from_pretrained(folder, dtype=torch.bfloat16, torch_dtype=torch.float16)
    with pytest.raises(ConfigError, match="by name only"):
        DMoERM.from_pretrained(folder, torch.bfloat16)


def test_a_configuration_may_be_given_but_not_changed(folder: str) -> None:
    config = DMoERMConfig.from_pretrained(folder)
    assert DMoERM.from_pretrained(folder, config=config).config.tasks == config.tasks
    assert DMoERM.from_pretrained(folder, config=DMoERM.from_pretrained(folder).config).config.tasks == config.tasks
    config.threshold = 0.99
    with pytest.raises(ConfigError, match=r"threshold: cannot be changed on loading; edit .*config\.json"):
        DMoERM.from_pretrained(folder, config=config)


@each_loader
def test_the_configuration_has_path_and_padding_token(load: Callable[..., Any], folder: str, tmp_path: Path) -> None:
    """This includes a folder that was saved without these fields."""
    old = Path(shutil.copytree(folder, tmp_path / "old"))
    (old / "SHA256SUMS").unlink()
    settings = json.loads((old / "config.json").read_text())
    assert settings.pop("pad_token_id") is not None
    (old / "config.json").write_text(json.dumps(settings))
    for path in (folder, str(old)):
        model = load(path)
        assert model.config.pad_token_id == model.tokenizer.pad_token_id
        assert model.config.name_or_path == path


@pytest.mark.skipif(sys.platform != "linux", reason="glibc is the C library of Linux")
@pytest.mark.parametrize("variable", [None, "MALLOC_TRIM_THRESHOLD_", "MALLOC_ARENA_MAX"])
def test_glibc_keeps_freed_memory_unless_the_user_sets_it_up(
    monkeypatch: pytest.MonkeyPatch, variable: str | None
) -> None:
    given: dict[int, int] = {}
    for name in [name for name in os.environ if name.startswith("MALLOC_")]:
        monkeypatch.delenv(name)
    if variable:
        monkeypatch.setenv(variable, "1")
    monkeypatch.setattr(loading.ctypes, "CDLL", lambda name: SimpleNamespace(mallopt=given.__setitem__))
    loading.prepare_process()
    assert given == ({} if variable else {-1: 2**29, -3: 2**28})
    monkeypatch.setattr(loading.ctypes, "CDLL", lambda name: SimpleNamespace())  # musl
    loading.prepare_process()

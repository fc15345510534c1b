"""A model on the hub and back, against a small hub on loopback; a hostile repository does no harm."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_hub import Hub, running_hub
from sample_results import example
from typer.testing import CliRunner

from dmoerm.cli import app
from dmoerm.errors import CheckpointError
from dmoerm.model import DMoERM
from dmoerm.model.checkpoint import rename_card
from dmoerm.report.card import card

CARD = card(example(), {"chitchat": ["empathy"]})


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A local hub in place of the real one, with an empty cache."""
    with running_hub() as hub, monkeypatch.context() as patched:
        patched.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
        template = f"{hub.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        patched.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        patched.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
        patched.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
        patched.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        patched.setenv("HF_TOKEN", "secret")
        yield hub


@pytest.fixture
def model(tiny_model: Any, tmp_path: Path) -> DMoERM:
    tiny_model().save_pretrained(tmp_path / "model", card=CARD, run_config="seed: 0\n")
    return DMoERM.from_pretrained(tmp_path / "model")


def rewards(model: DMoERM) -> list[float]:
    return [score.reward for score in model.score("How are you?", ["Fine.", "No."])]


def test_an_uploaded_model_can_be_downloaded(hub: Hub, model: DMoERM) -> None:
    url = model.push_to_hub("me/rm", private=True, commit_message="The first.")
    repository = hub.repositories["me/rm"]
    assert url.startswith(hub.url)
    assert repository.private
    assert repository.messages == ["The first."]
    kinds = {Path(name).suffix or name for name in repository.files["main"]}
    assert kinds <= {".safetensors", ".json", ".md", ".yaml", ".jinja", "SHA256SUMS"}
    text = repository.files["main"]["README.md"].decode()
    assert 'from_pretrained("me/rm")' in text
    assert "dmoerm serve me/rm" in text
    again = DMoERM.from_pretrained("me/rm")
    assert rewards(again) == pytest.approx(rewards(model), abs=1e-5)
    assert again.texts["run.yaml"] == model.texts["run.yaml"]
    assert "Bearer secret" in hub.keys


def test_a_revision_loads_the_model_of_that_commit(hub: Hub, model: DMoERM, tiny_model: Any) -> None:
    model.push_to_hub("me/rm")
    first = hub.repositories["me/rm"].sha("main")
    other = tiny_model(base="frozen", phase2={"lora": {"rank": 0}})
    other.push_to_hub("me/rm", commit_message="Frozen heads.")
    files = hub.repositories["me/rm"].files["main"]
    assert not any("experts" in name for name in files)  # the earlier model's files are deleted
    assert rewards(DMoERM.from_pretrained("me/rm")) == pytest.approx(rewards(other), abs=1e-5)
    assert rewards(DMoERM.from_pretrained("me/rm", revision=first)) == pytest.approx(rewards(model), abs=1e-5)
    with pytest.raises(CheckpointError, match="me/rm: is neither a local model folder nor a model on the hub"):
        DMoERM.from_pretrained("me/rm", revision="none")


def test_a_name_that_is_nowhere_is_one_clear_line(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CheckpointError) as absent:
        DMoERM.from_pretrained("runs/nothere")
    assert str(absent.value) == (
        "runs/nothere: there is no such folder, and no such model on the hub; give the folder that `train` wrote, "
        "or for a private model log in with `hf auth login`, or set HF_TOKEN"
    )
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")  # nothing listens there
    for options, cause in (
        ({}, "the hub cannot be reached"),
        ({"local_files_only": True}, "no such model in the hub's"),
    ):
        with pytest.raises(CheckpointError, match=f"^runs/nothere: there is no such folder, and {cause}") as error:
            DMoERM.from_pretrained("runs/nothere", **options)
        assert "rror" not in str(error.value), "no message of the hub's client"
    with pytest.raises(CheckpointError, match=r"^nothere: there is no such folder; give the folder that"):
        DMoERM.from_pretrained("nothere")


def test_nothing_of_a_hostile_repository_is_run(hub: Hub, model: DMoERM, tmp_path: Path) -> None:
    """Code and pickles are not downloaded; a tokenizer that names code is refused."""
    model.push_to_hub("me/rm")
    repository = hub.repositories["me/rm"]
    trap = pickle.dumps(Trap(str(tmp_path / "sprung")))
    code = f"open({str(tmp_path / 'sprung')!r}, 'w')".encode()
    traps = {"pytorch_model.bin": trap, "model.pt": trap, "modeling_dmoerm.py": code, "tasks/x/adapter_model.bin": trap}
    config = json.loads(repository.files["main"]["config.json"])
    config["auto_map"] = {
        "AutoConfig": "modeling_dmoerm.Config",
        "AutoModelForSequenceClassification": "modeling_dmoerm.M",
    }
    repository.files["main"].pop("SHA256SUMS")  # a file and its sum can be changed together
    files = repository.files["main"] | traps | {"config.json": json.dumps(config).encode()}
    repository.commit("main", files)
    hub.downloaded.clear()
    assert rewards(DMoERM.from_pretrained("me/rm")) == pytest.approx(rewards(model), abs=1e-5)
    assert not set(hub.downloaded) & set(traps)

    settings = json.loads(files["tokenizer_config.json"])
    settings |= {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["modeling_dmoerm.Own", None]}}
    repository.commit("main", files | {"tokenizer_config.json": json.dumps(settings).encode()})
    with pytest.raises(CheckpointError, match="tokenizer"):
        DMoERM.from_pretrained("me/rm")

    weightless = {name: content for name, content in files.items() if not name.endswith(".safetensors")}
    repository.commit("main", weightless)
    with pytest.raises(CheckpointError, match=r"\.safetensors: is missing"):
        DMoERM.from_pretrained("me/rm")
    assert not (tmp_path / "sprung").exists()


class Trap:
    """Unpickled, it writes a file."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return open, (self.path, "w")


def test_dmoerm_push(hub: Hub, model: DMoERM, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["push", str(tmp_path / "model"), "me/rm", "--private", "--message", "Mine."])
    assert result.exit_code == 0, result.output
    assert hub.url in result.output
    assert hub.repositories["me/rm"].private
    assert hub.repositories["me/rm"].messages == ["Mine."]


def test_a_failed_upload_is_an_error(hub: Hub, model: DMoERM, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CheckpointError, match="a//b: the model cannot be uploaded"):
        model.push_to_hub("a//b")
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(CheckpointError, match="hf auth login"):
        model.push_to_hub("me/rm")


def test_an_uploaded_card_has_the_name_on_the_hub() -> None:
    text = rename_card(CARD, "me/rm")
    assert text.count("me/rm") == 2
    assert "path/to" not in text
    assert rename_card(text, "me/other") == rename_card(CARD, "me/other")

"""A model on the hub and back; a hostile repository does no harm. The hub's client is replaced by one in memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from httpx2 import Request, Response
from huggingface_hub import constants
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import filter_repo_objects, validate_repo_id
from sample_results import example
from typer.testing import CliRunner

from dmoerm.cli import app
from dmoerm.errors import CheckpointError
from dmoerm.model import DMoERM, checkpoint
from dmoerm.report.card import card

ABSENT = Response(404, request=Request("GET", "https://hub"))
CARD = card(example(), {"chitchat": ["empathy"]})


class Hub:
    """The part of `HfApi` and `snapshot_download` that dmoerm uses, for one repository.

    Attributes:
        commits: path → content after each commit; the revisions are their numbers, and None is the last one.
        downloaded: the paths that were downloaded.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.commits, self.downloaded = folder, [{}], set()
        self.private: bool | None = None
        self.message = ""
        self.error: Exception | None = None

    def api(self, token: str | None = None) -> Hub:
        return self

    def create_repo(self, name: str, private: bool | None, exist_ok: bool) -> None:
        if self.error:
            raise self.error
        validate_repo_id(name)
        self.private = private

    def upload_folder(self, *, folder_path: Path, allow_patterns: Any, delete_patterns: Any, **options: Any) -> Any:
        before, paths = self.commits[-1], [p for p in folder_path.rglob("*") if p.is_file()]
        kept = {name: before[name] for name in filter_repo_objects(before, ignore_patterns=delete_patterns)}
        new = {str(path.relative_to(folder_path)): path.read_bytes() for path in paths}
        self.commits.append(
            kept | {name: new[name] for name in filter_repo_objects(new, allow_patterns=allow_patterns)}
        )
        self.message = options["commit_message"]
        return type("Commit", (), {"commit_url": f"https://hub/{options['repo_id']}/commit/1"})

    def download(self, name: str, *, allow_patterns: Any, revision: int | None = None, **_: Any) -> str:
        if self.error:
            raise self.error
        if name != "me/rm":
            raise RepositoryNotFoundError("404", response=ABSENT)
        if revision is not None and revision >= len(self.commits):
            raise RevisionNotFoundError("404", response=ABSENT)
        files = self.commits[-1 if revision is None else revision]
        folder = self.folder / str(len(self.downloaded)) / "snapshots" / "sha"
        for path in filter_repo_objects(files, allow_patterns=allow_patterns):
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(files[path])
            self.downloaded.add(path)
        return str(folder)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    hub = Hub(tmp_path / "cache")
    monkeypatch.setattr(checkpoint, "HfApi", hub.api)
    monkeypatch.setattr(checkpoint, "snapshot_download", hub.download)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    return hub


@pytest.fixture
def model(tiny_model: Any, tmp_path: Path) -> DMoERM:
    tiny_model().save_pretrained(tmp_path / "model", card=CARD, run_config="seed: 0\n", backbone=True)
    return DMoERM.from_pretrained(tmp_path / "model")


def rewards(model: DMoERM) -> list[float]:
    return [score.reward for score in model.score("How are you?", ["Fine.", "No."])]


def test_a_pushed_model_can_be_downloaded(hub: Hub, model: DMoERM, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["push", str(tmp_path / "model"), "me/rm", "--private"])
    assert result.exit_code == 0, result.output
    assert "https://hub/me/rm/commit/1" in result.output
    assert hub.private is True
    kinds = {Path(name).suffix or name for name in hub.commits[-1]}
    assert kinds <= {".safetensors", ".json", ".md", ".yaml", ".jinja", "SHA256SUMS"}
    text = hub.commits[-1]["README.md"].decode()
    assert 'from_pretrained("me/rm")' in text
    assert "dmoerm serve me/rm" in text
    again = DMoERM.from_pretrained("me/rm")
    assert rewards(again) == pytest.approx(rewards(model), abs=1e-5)
    assert again.texts["run.yaml"] == model.texts["run.yaml"]


def test_a_pushed_model_names_its_backbone_unless_only_this_machine_has_it(
    hub: Hub, model: DMoERM, tiny_model: Any, tiny_backbone: str, tmp_path: Path
) -> None:
    thin = tiny_model()
    thin.save_pretrained(tmp_path / "thin")
    result = CliRunner().invoke(app, ["push", str(tmp_path / "thin"), "me/rm"])
    assert result.exit_code == 1
    assert result.stderr == (
        f"error: me/rm: the model's backbone is a folder of this machine, {tiny_backbone}; "
        "upload its weights too, with --full (in Python backbone=True)\n"
    )
    thin.config.backbone_source["name"] = "me/backbone"
    thin.push_to_hub("me/rm")
    assert "trunk.safetensors" not in hub.commits[-1]
    assert rewards(DMoERM.from_pretrained("me/rm", backbone=tiny_backbone)) == pytest.approx(rewards(model), abs=1e-5)
    result = CliRunner().invoke(app, ["push", str(tmp_path / "thin"), "me/rm", "--full"])
    assert result.exit_code == 0, result.output
    assert "trunk.safetensors" in hub.commits[-1]
    assert tiny_backbone.encode() not in hub.commits[-1]["config.json"]
    assert rewards(DMoERM.from_pretrained("me/rm")) == pytest.approx(rewards(model), abs=1e-5)


def test_a_revision_loads_the_model_of_that_commit(hub: Hub, model: DMoERM, tiny_model: Any) -> None:
    model.push_to_hub("me/rm")
    other = tiny_model(base="frozen", phase2={"fit": "exact"})
    other.push_to_hub("me/rm", commit_message="Frozen heads.", backbone=True)
    assert not any("experts" in name for name in hub.commits[-1])  # the earlier model's files are deleted
    assert rewards(DMoERM.from_pretrained("me/rm")) == pytest.approx(rewards(other), abs=1e-5)
    assert rewards(DMoERM.from_pretrained("me/rm", revision=1)) == pytest.approx(rewards(model), abs=1e-5)
    with pytest.raises(CheckpointError, match="me/rm: is neither a local model folder nor a model on the hub"):
        DMoERM.from_pretrained("me/rm", revision=3)


def test_a_name_that_is_nowhere_is_one_clear_line(hub: Hub) -> None:
    with pytest.raises(CheckpointError) as absent:
        DMoERM.from_pretrained("runs/nothere")
    assert str(absent.value) == (
        "runs/nothere: there is no such folder, and no such model on the hub; give the folder that `train` wrote, "
        "or for a private model log in with `hf auth login`, or set HF_TOKEN"
    )
    hub.error = LocalEntryNotFoundError("none")
    for options, cause in (({}, "the hub cannot"), ({"local_files_only": True}, "no such model in the hub's")):
        with pytest.raises(CheckpointError, match=f"^runs/nothere: there is no such folder, and {cause}"):
            DMoERM.from_pretrained("runs/nothere", **options)
    hub.error = GatedRepoError("403", response=ABSENT)
    with pytest.raises(CheckpointError, match="access to this model must be requested on the hub; log in with"):
        DMoERM.from_pretrained("me/rm")
    with pytest.raises(CheckpointError, match=r"^nothere: there is no such folder; give the folder that"):
        DMoERM.from_pretrained("nothere")


def test_nothing_of_a_hostile_repository_is_run(hub: Hub, model: DMoERM, tmp_path: Path) -> None:
    """Code and pickles are not downloaded; a tokenizer that names code is refused."""
    model.push_to_hub("me/rm")
    files = hub.commits[-1]
    code = f"open({str(tmp_path / 'sprung')!r}, 'w')".encode()
    names = ("pytorch_model.bin", "model.pt", "modeling_dmoerm.py", "tasks/x/adapter_model.bin")
    traps = dict.fromkeys(names, code)
    auto = {"AutoConfig": "modeling_dmoerm.Config", "AutoModelForSequenceClassification": "modeling_dmoerm.M"}
    files.pop("SHA256SUMS")  # a file and its sum can be changed together
    files |= traps | {"config.json": json.dumps(json.loads(files["config.json"]) | {"auto_map": auto}).encode()}
    assert rewards(DMoERM.from_pretrained("me/rm")) == pytest.approx(rewards(model), abs=1e-5)
    assert not hub.downloaded & set(traps)

    settings = json.loads(files["tokenizer_config.json"])
    settings |= {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["modeling_dmoerm.Own", None]}}
    hub.commits.append(files | {"tokenizer_config.json": json.dumps(settings).encode()})
    hub.folder /= "tokenizer"
    with pytest.raises(CheckpointError, match="tokenizer"):
        DMoERM.from_pretrained("me/rm")

    hub.commits.append({name: content for name, content in files.items() if not name.endswith(".safetensors")})
    hub.folder /= "weightless"
    with pytest.raises(CheckpointError, match=r"\.safetensors: is missing"):
        DMoERM.from_pretrained("me/rm")
    assert not (tmp_path / "sprung").exists()


def test_a_failed_upload_is_an_error(hub: Hub, model: DMoERM) -> None:
    with pytest.raises(CheckpointError, match="a//b: the model cannot be uploaded"):
        model.push_to_hub("a//b")
    hub.error = HFValidationError("no token")
    with pytest.raises(CheckpointError, match=r"no token; log in with `hf auth login`"):
        model.push_to_hub("me/rm")

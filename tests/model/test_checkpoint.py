"""The checkpoint folder: the same scores after loading, standard PEFT adapters, complete or absent, no pickles."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from tiny import HEADS

from dmoerm.errors import CheckpointError
from dmoerm.model import DMoERM, integrity, task_backbone
from dmoerm.model.packing import pack_ids
from dmoerm.schema import Query

QUERY = Query(prompt="How are you?", responses=("Fine, and you?", "No.", "x " * 20))


def rewards(model: DMoERM) -> list[float]:
    return [score.reward for score in model.score(QUERY.prompt, QUERY.responses)]


@pytest.mark.parametrize("form", ["copied", "complete"])
def test_a_saved_model_has_the_documented_files_and_comes_back_bit_for_bit(
    saved: tuple[DMoERM, Path], tmp_path: Path, form: str, request: pytest.FixtureRequest
) -> None:
    model, folder = saved[0], request.getfixturevalue(form)
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    names = [f"{task}/experts/{name}" for task, capabilities in model.config.tasks.items() for name in capabilities]
    parts = {f"tasks/{name}/adapter_{kind}" for name in names for kind in ("model.safetensors", "config.json")}
    parts |= {f"tasks/{task}/branch.safetensors" for task in model.config.tasks} | {"general/branch.safetensors"}
    parts |= {"SHA256SUMS", "README.md", "run.yaml", "config.json", "model.safetensors"}
    parts |= {"trunk.safetensors"} if form == "complete" else set()
    assert files == parts | {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
    assert (folder / "README.md").read_text() == "# A card"
    loaded = DMoERM.from_pretrained(folder)
    assert loaded.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(loaded.state_dict()[name], tensor) for name, tensor in model.state_dict().items())
    loaded.save_pretrained(tmp_path / "again")
    for name in files:
        assert (folder / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_a_bfloat16_export_is_smaller_and_scores_as_its_rounded_weights(
    tiny_model: Callable[..., DMoERM], tmp_path: Path
) -> None:
    model = tiny_model()
    model.save_pretrained(tmp_path / "half", dtype="bfloat16")
    half = DMoERM.from_pretrained(tmp_path / "half")
    assert {p.dtype for part in (half.trunk, half.general.branch) for p in part.parameters()} == {torch.bfloat16}
    assert half.config.backbone["dtype"] == "bfloat16"
    assert model.config.backbone["dtype"] == "float32"
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    rounded = DMoERM.from_pretrained(tmp_path / "half", dtype="float32")
    assert torch.equal(rounded.general.branch.norm.weight, model.general.branch.norm.weight.bfloat16().float())
    assert rewards(half) != rewards(rounded)
    assert rewards(half) == pytest.approx(rewards(rounded), abs=0.5)
    rounded.save_pretrained(tmp_path / "whole")
    assert rewards(DMoERM.from_pretrained(tmp_path / "whole")) == rewards(rounded)


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640)])
def test_every_file_has_the_permissions_of_the_umask(
    saved: tuple[DMoERM, Path], tmp_path: Path, umask: int, mode: int
) -> None:
    """A server that runs as another user reads the model; safetensors writes for the owner only."""
    before = os.umask(umask)
    try:
        saved[0].save_pretrained(tmp_path / "model")
    finally:
        os.umask(before)
    files = {path.relative_to(tmp_path): path.stat().st_mode & 0o777 for path in tmp_path.rglob("*") if path.is_file()}
    assert any(path.name == "adapter_model.safetensors" for path in files)
    assert set(files.values()) == {mode}, files


# --- PEFT ----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def assert_peft_gives_the_same_embeddings(model: DMoERM, folder: Path) -> None:
    encoded = model.encoder.encode(QUERY)
    hidden = model.hidden(pack_ids([encoded]))
    for task in model.config.tasks:
        task_model = model.task_model(task)
        base = task_model.base.embed(hidden)
        z = task_model.experts.embed(hidden, base)
        for i, capability in enumerate(task_model.experts.capabilities):
            adapter = folder / "tasks" / task / "experts" / capability
            peft = PeftModel.from_pretrained(task_backbone(model, task), str(adapter)).eval()
            for n, response in enumerate(encoded.responses):
                states = peft(input_ids=torch.tensor([[*encoded.prompt, *response]])).last_hidden_state[0]
                actual = torch.cat([states[-1], states[len(encoded.prompt) :].mean(0)])
                torch.testing.assert_close(actual, z[i, n], atol=1e-4, rtol=1e-4)
                assert (actual - base[n]).abs().max() > 1e-2  # the adapter does something


@torch.no_grad()
def test_an_adapter_that_peft_wrote_becomes_an_expert(saved: tuple[DMoERM, Path], tmp_path: Path) -> None:
    """As after training it with other tools: PEFT's files in place of the expert's."""
    model, folder = DMoERM.from_pretrained(saved[1]), tmp_path / "model"
    assert_peft_gives_the_same_embeddings(model, saved[1])
    shutil.copytree(saved[1], folder)
    task = next(iter(model.config.tasks))
    expert = folder / "tasks" / task / "experts" / model.config.tasks[task][0]
    peft = PeftModel.from_pretrained(task_backbone(model, task), str(expert))
    for name, parameter in peft.named_parameters():
        if "lora_B" in name:
            parameter.mul_(-2)
    peft.save_pretrained(str(expert))
    with pytest.raises(CheckpointError, match="SHA256SUMS"):
        DMoERM.from_pretrained(folder)
    changed = DMoERM.from_pretrained(folder, check=False)
    assert_peft_gives_the_same_embeddings(changed, folder)
    hidden = model.hidden(pack_ids([model.encoder.encode(QUERY)]))
    before, after = (m.task_model(task).experts.embed(hidden, None) for m in (model, changed))
    assert (before[0] - after[0]).abs().max() > 1e-2
    torch.testing.assert_close(before[1:], after[1:])


@pytest.mark.parametrize(
    "changes",
    [
        {"backbone": {"branch_layer": 0}, "router": {"kind": "own"}},
        {"base": "frozen"},
        {"phase2": {"lora": {"targets": ["q_proj", "up_proj", "down_proj"], "alpha": 3.0}}},
    ],
)
@pytest.mark.parametrize(
    "kind", ["qwen3", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("llama", "mistral"))]
)
def test_peft_loads_the_adapters_of_other_configurations(
    tiny_model: Callable[..., DMoERM], backbones: Callable[[str], str], tmp_path: Path, kind: str, changes: Any
) -> None:
    backbone = {"path": backbones(kind)} | changes.get("backbone", {})
    model = tiny_model(**changes | {"backbone": backbone})
    model.save_pretrained(tmp_path / "model")
    assert_peft_gives_the_same_embeddings(model, tmp_path / "model")


# --- what cannot be read -------------------------------------------------------------------------------------------


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def drop_tensor(file: Path) -> None:
    state = load_file(file)
    state.pop(sorted(state)[0])
    save_file(state, file)


def reshape(file: Path) -> None:
    save_file({name: torch.zeros(*t.shape, 2) for name, t in load_file(file).items()}, file)


FILES = [
    "model.safetensors",
    "trunk.safetensors",
    "general/branch.safetensors",
    "tasks/chitchat/branch.safetensors",
    "tasks/objective_qa/experts/logic/adapter_model.safetensors",
]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", [Path.unlink, truncate, drop_tensor, reshape])
@pytest.mark.parametrize("checked", [True, False])
def test_a_damaged_file_is_named(complete: Path, name: str, damage: Callable[[Path], None], checked: bool) -> None:
    """Its checksum, or without checksums its content, shows the damage."""
    damage(complete / name)
    if not checked:
        (complete / "SHA256SUMS").unlink()
    with pytest.raises(CheckpointError) as caught:
        DMoERM.from_pretrained(complete)
    assert str(complete / name) in str(caught.value)


class Bomb:
    """Unpickling it creates a file."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.trace,)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth", "model.pkl"])
def test_a_pickle_is_never_read(copied: Path, tmp_path: Path, name: str) -> None:
    trace = tmp_path / "unpickled"
    torch.save(Bomb(trace), copied / name)
    (copied / "model.safetensors").unlink()
    for fault in (f"is missing; {name} is a pickle, which is never read", "is not a safetensors file"):
        with pytest.raises(CheckpointError, match=f"model.safetensors: {fault}"):
            DMoERM.from_pretrained(copied)
        torch.save(Bomb(trace), copied / "model.safetensors")
        (copied / "SHA256SUMS").unlink(missing_ok=True)
    assert not trace.exists()


@pytest.mark.parametrize("missing", [False, True])
def test_a_missing_or_broken_tokenizer_is_named(copied: Path, missing: bool) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (copied / name).unlink() if missing else (copied / name).write_text("{")
    (copied / "SHA256SUMS").unlink()
    with pytest.raises(CheckpointError, match=f"{copied}.*tokenizer"):
        DMoERM.from_pretrained(copied)


KNOWN = {"model_type": "dmoerm", "format_version": 2}
FOREIGN = KNOWN | {"branch_layer": 2, "tasks": {}, "backbone": {"model_type": "no-such-kind"}}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read"),
        ("[]", "cannot be read"),
        ('{"model_type": "llama"}', "model_type is 'llama', not 'dmoerm'"),
        ("{}", "model_type is None"),
        (json.dumps(KNOWN), "is not a valid configuration"),
        (json.dumps(KNOWN | {"tasks": ["a"]}), "is not a valid configuration"),
        (json.dumps(FOREIGN), "is not a valid configuration.*no-such-kind"),
        ({"format_version": 1}, "format_version is 1, and this release reads 2; install the release"),
        ({"format_version": "2"}, "format_version is '2'"),
        ({"treshold": 0.9}, r"treshold: unknown field; did you mean threshold\?"),
        ({"experts": 4}, "experts: unknown field; remove it"),
        *(({"tasks": {name: []}}, "configuration: tasks") for name in ("", " a", "a\0b", "a\nb", "x" * 257)),
        *(({"tasks": {"chitchat": [name]}}, "configuration: tasks") for name in ("", " a", "a\0b", "x" * 257)),
    ],
)
def test_a_foreign_or_invalid_config_is_named(copied: Path, content: Any, message: str) -> None:
    if isinstance(content, dict):
        edited(copied, **content)
    else:
        (copied / "config.json").write_text(content)
    (copied / "SHA256SUMS").unlink(missing_ok=True)
    with pytest.raises(CheckpointError, match=message) as caught:
        DMoERM.from_pretrained(copied)
    assert str(copied / "config.json") in str(caught.value)


def edited(folder: Path, **settings: Any) -> Path:
    config = json.loads((folder / "config.json").read_text())
    (folder / "SHA256SUMS").unlink(missing_ok=True)
    (folder / "config.json").write_text(json.dumps(config | settings))
    return folder


def test_what_a_library_sets_in_the_configuration_is_not_saved(copied: Path, tmp_path: Path) -> None:
    model = DMoERM.from_pretrained(copied)
    model.config.use_cache = False  # trainers do so
    model.save_pretrained(tmp_path / "again")
    assert DMoERM.from_pretrained(tmp_path / "again").config.tasks == model.config.tasks
    assert (tmp_path / "again" / "config.json").read_text() == (copied / "config.json").read_text()


@pytest.mark.parametrize("name", ["../../etc", "a/b", "..", ".", "/etc", "a\\b"])
def test_no_name_leads_out_of_the_folder(copied: Path, name: str) -> None:
    for tasks in ({name: []}, {"chitchat": [name]}):
        with pytest.raises(CheckpointError) as caught:
            DMoERM.from_pretrained(edited(copied, tasks=tasks))
        file = Path(str(caught.value).partition(": ")[0])
        assert file.is_relative_to(copied)
        assert ".." not in file.parts


def test_a_config_that_does_not_fit_the_weights_is_named(copied: Path) -> None:
    with pytest.raises(CheckpointError, match=r"model.safetensors.*do(es)? not fit config.json"):
        DMoERM.from_pretrained(edited(copied, tasks={"chitchat": ["empathy"]}))


@pytest.mark.parametrize("value", [-2, 10**12])
@pytest.mark.parametrize("name", ["num_hidden_layers", "num_attention_heads", "head_dim", "vocab_size", "num_experts"])
def test_a_size_that_no_model_has_is_refused_by_name(copied: Path, name: str, value: int) -> None:
    backbone = json.loads((copied / "config.json").read_text())["backbone"]
    for settings in ({name: value}, {"nested": {name: value}}):
        with pytest.raises(CheckpointError, match=rf"backbone\.{name}: {value} is out of range"):
            DMoERM.from_pretrained(edited(copied, backbone=backbone | settings))


@pytest.mark.parametrize(
    ("backbone", "layer", "message"),
    [
        ({"num_hidden_layers": 2}, 2, "backbone.num_hidden_layers: 2 layers, split at layer 2"),
        ({"num_hidden_layers": None}, 0, "None layers, split at layer 0"),
        ({"num_hidden_layers": "4"}, 2, "'4' layers, split at layer 2"),
        # building them would take long before the missing weights are noticed
        ({"num_hidden_layers": 4000}, 2, r"4000 layers, but only \d+ tensors are stored"),
        ({"model_type": "t5", "is_encoder_decoder": True}, 2, "this model cannot score: .*'t5' is not supported"),
        ({"model_type": "qwen3"}, 2, r"do not fit config.json \(first difference: .*k_norm.weight"),
    ],
)
def test_a_backbone_that_does_not_fit_is_refused(complete: Path, backbone: Any, layer: int, message: str) -> None:
    stored = json.loads((complete / "config.json").read_text())["backbone"]
    with pytest.raises(CheckpointError, match=message):
        DMoERM.from_pretrained(edited(complete, backbone=stored | backbone, branch_layer=layer))


@pytest.mark.parametrize("name", ["", "no/such/folder", "file"])
def test_a_path_without_a_model_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("x")
    cause = "is not a dmoerm model" if (tmp_path / name).exists() else "there is no such folder"
    with pytest.raises(CheckpointError, match=f"{tmp_path / name}: {cause}"):
        DMoERM.from_pretrained(tmp_path / name)


# --- what cannot be written ----------------------------------------------------------------------------------------


def full_disk_after(files: int) -> Callable[..., None]:
    """Return a `save_file` for a disk with space for that number of files."""
    left = iter(range(files))

    def save(state: dict[str, torch.Tensor], file: Path, **options: Any) -> None:
        if next(left, None) is None:
            file.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device", str(file))
        save_file(state, file, **options)

    return save


def test_card_and_settings_survive_a_round_trip(tiny_model: Callable[..., DMoERM], tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path / "first", card="# A card", run_config="seed: 7")
    DMoERM.from_pretrained(tmp_path / "first").save_pretrained(tmp_path / "second", run_config="seed: 8")
    texts = [(tmp_path / "second" / name).read_text() for name in ("README.md", "run.yaml")]
    assert texts == ["# A card", "seed: 8"]


@pytest.mark.parametrize("files", [0, 1, 5])
def test_a_full_disk_leaves_the_old_model_and_nothing_else(
    copied: Path, tiny_model: Callable[..., DMoERM], monkeypatch: pytest.MonkeyPatch, files: int
) -> None:
    before, new = rewards(DMoERM.from_pretrained(copied)), tiny_model(phase3={"hidden": 3})
    beside = sorted(copied.parent.iterdir())
    monkeypatch.setattr(integrity, "save_file", full_disk_after(files))
    message = f"{copied}: the model cannot be written.*No space left.*nothing was changed"
    with pytest.raises(CheckpointError, match=message):
        new.save_pretrained(copied)
    assert sorted(copied.parent.iterdir()) == beside
    assert rewards(DMoERM.from_pretrained(copied)) == before


def test_a_new_model_replaces_the_old_model(copied: Path, tiny_model: Callable[..., DMoERM]) -> None:
    new = tiny_model(**HEADS)
    new.save_pretrained(copied)
    assert not (copied / "tasks").exists()  # nothing of the old one is left
    assert rewards(DMoERM.from_pretrained(copied)) == pytest.approx(rewards(new))
    assert [path.name for path in copied.parent.iterdir() if path.name.startswith(".")] == []


def test_a_path_that_cannot_be_written_is_named(saved: tuple[DMoERM, Path], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(CheckpointError, match=f"{tmp_path / 'file' / 'model'}: the model cannot be written"):
        saved[0].save_pretrained(tmp_path / "file" / "model")

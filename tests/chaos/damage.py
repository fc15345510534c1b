"""Damaged and hostile checkpoints. Each must be refused with its reason or load without effect on the result."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from chaos.workspace import Workspace, run_forked
from dmoerm.model.integrity import SUMS, TEXTS

DAMAGES = ("missing", "empty", "truncated", "bit-flipped")


def damage_file(workspace: Workspace, model: Path, name: str, damage: str, folder: Path, rng: random.Random) -> str:
    """Damage one file of a copy; the error must name it. Texts and the checksums may be missing or changed."""
    copy = Path(shutil.copytree(model, folder / "model"))
    content = bytearray((copy / name).read_bytes())
    if damage == "bit-flipped":
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    (copy / name).write_bytes(content[: {"empty": 0, "truncated": rng.randrange(len(content))}.get(damage)])
    if damage == "missing":
        (copy / name).unlink()
    result = run_forked(workspace.score(copy))
    if result.succeeded:
        return "" if name in (*TEXTS, SUMS) else f"{name}: loads without an error"
    named = result.failed_cleanly and str(copy) in result.output and name in result.output
    return "" if named else f"{name}: it ended with {result.code}: {result.output[-300:]}"


def edit(**changes: Any) -> Callable[[Path], None]:
    """Return a function that changes settings in config.json; `a__b` names field b of a."""

    def changed(folder: Path) -> None:
        settings = json.loads((folder / "config.json").read_text())
        for name, value in changes.items():
            part, _, last = name.rpartition("__")
            (settings[part] if part else settings)[last] = value
        (folder / "config.json").write_text(json.dumps(settings))

    return changed


def put(name: str, content: bytes | str) -> Callable[[Path], None]:
    """Return a function that replaces the content of a file."""

    def written(folder: Path) -> None:
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())

    return written


def link(name: str, target: str) -> Callable[[Path], None]:
    """Return a function that replaces a file by a link."""

    def linked(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(target)

    return linked


def pipe(folder: Path) -> None:
    (folder / "README.md").unlink(missing_ok=True)
    os.mkfifo(folder / "README.md")


def huge(name: str, size: int = 1 << 33) -> Callable[[Path], None]:
    """Return a function that extends a file to eight gigabytes without using disk space."""

    def grown(folder: Path) -> None:
        (folder / name).touch()
        os.truncate(folder / name, size)

    return grown


_DEEP = '{"model_type": "dmoerm", "tasks": {}, "branch_layer": 1, "backbone": ' + '{"a":' * 900 + "1" + "}" * 901
_OWN = '{"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["code.Own", null]}}'

HOSTILE: dict[str, Callable[[Path], None]] = {
    "a task outside": edit(tasks={"../../../tmp/x": []}),
    "an absolute capability": edit(tasks={"chitchat": ["/etc"]}),
    "sums that name a file outside": put(SUMS, f"{'0' * 64}  ../../../etc/passwd\n"),
    "sums that name an absolute file": put(SUMS, f"{'0' * 64}  /etc/passwd\n"),
    "weights linked outside": link("model.safetensors", "/etc/passwd"),
    "a card linked outside": link("README.md", "/etc/passwd"),
    "settings linked to a device": link("config.json", "/dev/zero"),
    "a link to itself": link("general/branch.safetensors", "branch.safetensors"),
    "a card that is a pipe": pipe,
    "a header of an exabyte": put("model.safetensors", (1 << 60).to_bytes(8, "little") + b'{"x":'),
    "a header of a gigabyte": put("general/branch.safetensors", (1 << 30).to_bytes(8, "little") + b'{"x":'),
    "settings of gigabytes": huge("config.json"),
    "a tokenizer of gigabytes": huge("tokenizer.json"),
    "sums of gigabytes": lambda folder: put(SUMS, "x")(folder) or huge(SUMS)(folder),
    "a card of gigabytes": huge("README.md"),
    "10¹² wide": edit(backbone__hidden_size=10**12),
    "10¹² layers": edit(backbone__num_hidden_layers=10**12),
    "4,000 layers": edit(backbone__num_hidden_layers=4000),
    "10¹² words": edit(backbone__vocab_size=10**12),
    "10¹² heads": edit(backbone__num_attention_heads=10**12),
    "no heads": edit(backbone__num_attention_heads=0),
    "a negative width": edit(backbone__hidden_size=-32),
    "LoRA of rank 10¹²": edit(lora__rank=10**12),
    "LoRA of rank 10⁷": edit(lora__rank=10**7),
    "an aggregator 10¹² wide": edit(aggregator__hidden=10**12),
    "40,000 capabilities": edit(tasks={"chitchat": [f"c{i}" for i in range(40_000)]}),
    "settings nested deeply": put("config.json", "[" * 200_000),
    "a backbone nested deeply": put("config.json", _DEEP),
    "a tokenizer nested deeply": put("tokenizer.json", '{"a":' * 100_000),
    "tasks that are a text": edit(tasks="chitchat"),
    "a threshold that is a text": edit(threshold="high"),
    "a threshold that is NaN": put("config.json", '{"model_type": "dmoerm", "threshold": NaN}'),
    "a backbone that is a list": edit(backbone=[1, 2]),
    "a backbone of another kind": edit(backbone__model_type="timm_wrapper"),
    "a backbone in a folder of devices": edit(backbone_source__name="/dev"),
    "a backbone with a name of two lines": edit(backbone_source__name="me\n/model\0"),
    "a backbone with other weights": edit(backbone_source__digest="0" * 64),
    "an attention from the hub": edit(attn_implementation="me/kernel", backbone__attn_implementation="me/kernel"),
    "code for its classes": edit(auto_map={"AutoConfig": "code.C"}, backbone__auto_map={"AutoModel": "code.M"}),
    "a tokenizer class of its own": put("tokenizer_config.json", _OWN),
}  # fmt: skip
HARMLESS = {"an attention from the hub", "code for its classes"}  # ignored: the model loads unchanged


def load_hostile(workspace: Workspace, model: Path, name: str, folder: Path) -> str:
    """Load a hostile folder: it must be refused in one line, within the limits, and nothing outside it may change."""
    copy = Path(shutil.copytree(model, folder / "model"))
    (copy / SUMS).unlink()
    (copy / "code.py").write_text(f"open({str(folder / 'executed')!r}, 'w')")
    HOSTILE[name](copy)
    result = run_forked(workspace.score(copy))
    if sorted(file.name for file in folder.iterdir()) != ["model"]:
        return f"{name}: something was written outside the folder"
    if result.succeeded:
        return "" if name in HARMLESS else f"{name}: it loads"
    refused = result.failed_cleanly and "\n" not in result.output.strip() and str(copy) in result.output
    return "" if refused else f"{name}: it ended with {result.code}: {result.output[-300:]}"

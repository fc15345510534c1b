"""A model's folder on the Hugging Face hub: only the files that a model has go up, and only those come down."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import CheckpointError
from .integrity import FILES, SUMS
from .training_prompts import FILE as TRAINING_PROMPTS

if TYPE_CHECKING:
    from .dmoerm import DMoERM

_OWN_ALONE = [
    "*.safetensors",
    "*.json",
    SUMS,
    TRAINING_PROMPTS,
]  # what a former model left there is deleted; people's texts are not
_PLACES = re.compile(r'(?<=dmoerm\.DMoERM\.from_pretrained\(")[^"]+|(?<=dmoerm serve )\S+')
_LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"


def download(name: str, **options: Any) -> Path:
    """The local folder of a model on the hub; code and pickles in its repository are not downloaded.

    Args:
        options: `revision` (a branch, tag or commit; the main branch if it is not given), `token`, `cache_dir`,
            `force_download`, `local_files_only`, as `huggingface_hub.snapshot_download` takes them.

    Raises:
        CheckpointError: no such name or revision, no rights, no network.
    """
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=list(FILES), **options))
    except Exception as error:  # network, rights, no such name: the hub's client raises many kinds
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(f"{name}: neither a folder here nor a model on the hub: {reason}; {_LOG_IN}") from None


def push(
    model: DMoERM,
    name: str,
    *,
    private: bool | None = None,
    message: str | None = None,
    revision: str | None = None,
    token: str | None = None,
) -> str:
    """Uploads a model as one commit, its card's examples under its name there; returns the commit's URL.

    Args:
        name: `me/name`; the repository is created if there is none.
        private: of a repository that is created; None: as the account's setting is.
        revision: the branch; None: the main one.
        token: None: the one that the hub's client finds.

    Raises:
        CheckpointError: no rights, no network, a name that is none.
    """
    from huggingface_hub import HfApi

    hub = HfApi(token=token)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "model"
        card = model.texts.get("README.md")
        model.save_pretrained(folder, card=card and named(card, name))
        try:
            hub.create_repo(name, private=private, exist_ok=True)
            commit = hub.upload_folder(
                repo_id=name,
                folder_path=folder,
                commit_message=message or "Upload a DMoERM",
                revision=revision,
                allow_patterns=list(FILES),
                delete_patterns=_OWN_ALONE,
            )
        except Exception as error:  # as many kinds as above
            reason = " ".join(str(error).split())[:300]
            raise CheckpointError(f"{name}: the model cannot be uploaded: {reason}; {_LOG_IN}") from None
    return commit.commit_url


def named(card: str, name: str) -> str:
    """A card whose examples load the model by this name."""
    return _PLACES.sub(name, card)

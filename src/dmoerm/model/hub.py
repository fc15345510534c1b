"""Checkpoints on the Hugging Face hub: only the kinds of files that a checkpoint has are uploaded and downloaded."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from .integrity import FILES, SUMS
from .training_prompts import FILE as TRAINING_PROMPTS

# Files of an earlier checkpoint that an upload deletes; texts that people wrote stay.
_REPLACED = ["*.safetensors", "*.json", SUMS, TRAINING_PROMPTS]
_NAMES_IN_CARD = re.compile(r'(?<=dmoerm\.DMoERM\.from_pretrained\(")[^"]+|(?<=dmoerm serve )\S+')
_FOLDER = "give the folder that `train` wrote"
_LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"


def download(name: str, files: Sequence[str] = FILES, **options: Any) -> Path:
    """Download a checkpoint and return its local folder; code and pickles in the repository are not downloaded.

    Args:
        files: patterns of the files to download.
        options: `revision` (a branch, tag or commit; default: the main branch), `token`, `cache_dir`,
            `force_download`, `local_files_only`, as for `huggingface_hub.snapshot_download`.

    Raises:
        CheckpointError: the name or revision does not exist, no permission, or no network.
    """
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=list(files), **options))
    except LocalEntryNotFoundError:
        offline = constants.HF_HUB_OFFLINE or options.get("local_files_only")
        cause = "no such model in the hub's cache" if offline else "the hub cannot be reached"
        raise CheckpointError(f"{name}: there is no such folder, and {cause}; {_FOLDER}") from None
    except GatedRepoError:
        raise CheckpointError(f"{name}: access to this model must be requested on the hub; {_LOG_IN}") from None
    except RepositoryNotFoundError:
        message = f"{name}: there is no such folder, and no such model on the hub; {_FOLDER}, or for a private model"
        raise CheckpointError(f"{message} {_LOG_IN}") from None
    except Exception as error:  # the hub's client raises many kinds
        message = f"{name}: is neither a local model folder nor a model on the hub: {_reason(error)}; {_LOG_IN}"
        raise CheckpointError(message) from None


def upload(
    folder: Path,
    name: str,
    *,
    private: bool | None = None,
    message: str | None = None,
    revision: str | None = None,
    token: str | None = None,
) -> str:
    """Upload a checkpoint folder as one commit and return the commit's URL.

    Args:
        name: `me/name`; the repository is created if it does not exist.
        private: visibility of a repository that is created; None: the account's default.
        message: the commit message; None: a default one.
        revision: the branch; None: the main branch.
        token: None: the token that the hub's client has stored.

    Raises:
        CheckpointError: no permission, no network, or an invalid name.
    """
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    try:
        api.create_repo(name, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=name,
            folder_path=folder,
            commit_message=message or "Upload a DMoERM",
            revision=revision,
            allow_patterns=list(FILES),
            delete_patterns=_REPLACED,
        )
    except Exception as error:  # the hub's client raises many kinds
        raise CheckpointError(f"{name}: the model cannot be uploaded: {_reason(error)}; {_LOG_IN}") from None
    return commit.commit_url


def rename_card(card: str, name: str) -> str:
    """Return the model card with the model's path in its examples replaced by a name on the hub."""
    return _NAMES_IN_CARD.sub(name, card)


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:300]

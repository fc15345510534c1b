"""`dmoerm push`: upload a trained model to the Hugging Face hub."""

from __future__ import annotations

from typing import Annotated

import typer


def command(
    model: Annotated[str, typer.Argument(help="The folder of a model or a run.")],
    repo: Annotated[str, typer.Argument(help="Repository on the hub, such as me/name; created if it does not exist.")],
    private: Annotated[bool, typer.Option("--private", help="Create the repository as private.")] = False,
    message: Annotated[str | None, typer.Option(help="Commit message.")] = None,
    revision: Annotated[str | None, typer.Option(help="Branch. Default: main.")] = None,
) -> None:
    """Upload a model to the Hugging Face hub: weights as safetensors, settings, tokenizer and card.

    Log in with `hf auth login` first, or set HF_TOKEN. run.yaml is uploaded too; check the paths in it.
    """
    from .models import load_model

    rm = load_model(model)
    url = rm.push_to_hub(repo, private=private or None, commit_message=message, revision=revision)
    print(url)

"""`dmoerm push`: a trained model to the Hugging Face hub."""

from __future__ import annotations

from typing import Annotated

import typer


def command(
    model: Annotated[str, typer.Argument(help="A model's or a run's folder.")],
    repo: Annotated[str, typer.Argument(help="Its name on the hub, such as me/name; created if there is none.")],
    private: Annotated[bool, typer.Option("--private", help="A repository that is created is private.")] = False,
    message: Annotated[str | None, typer.Option(help="The commit's message.")] = None,
    revision: Annotated[str | None, typer.Option(help="The branch; the main one unless given.")] = None,
) -> None:
    """Upload a model to the Hugging Face hub: weights as safetensors, settings, tokenizer and card.

    Log in with `hf auth login` first, or set HF_TOKEN. run.yaml goes along; look at the paths in it.
    """
    from .models import load_model

    rm = load_model(model)
    url = rm.push_to_hub(repo, private=private or None, commit_message=message, revision=revision)
    print(url)

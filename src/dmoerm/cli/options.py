"""Options that several commands share, so that they are named and explained alike."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="A.B=VALUE", help="Change a setting; may be given several times.")
]
JsonFile = Annotated[
    Path | None, typer.Option("--json", metavar="FILE", help="Also write the machine-readable result to this file.")
]
Engine = Annotated[
    Literal["local", "ray"],
    typer.Option(help="local: in this process; ray: on the cluster of RAY_ADDRESS, or one that starts here."),
]
Dtype = Annotated[
    Literal["float32", "bfloat16"] | None, typer.Option(help="Precision of the computation; as saved unless given.")
]
Deterministic = Annotated[
    bool,
    typer.Option("--deterministic", help="Score each response in a pass of its own, so that batches change no bit."),
]
BatchTokens = Annotated[int, typer.Option(min=1, help="Most tokens of one pass; a token counts once for each expert.")]

IncludeTrained = Annotated[
    bool,
    typer.Option("--include-trained", help="Keep prompts that a model was trained on."),
]

# What the experiments share: compare, bon, rl.
Seeds = Annotated[
    list[int] | None, typer.Option("--seed", help="Of the runs; may be repeated; 0, 1 and 2 unless given.")
]
Members = Annotated[int, typer.Option(min=2, help="Models in an ensemble.")]
Noise = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=SCORES,CAPABILITIES",
        help="A condition: shares of the training part's overall and capability pairs that are reversed. "
        "May be repeated; clean=0,0 and noisy=0.25,0.15 unless given (rl: noisy alone).",
    ),
]
ExperimentFolder = Annotated[
    Path | None, typer.Option(help="The folder, which experiments share; the config's `output`-compare, unless given.")
]

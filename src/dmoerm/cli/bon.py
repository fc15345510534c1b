"""`dmoerm bon`: measure the gold reward of the best of n samples by each method's reward."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .experiments import ConfigName, ExperimentOptions, command_line, open_engine, scoring_of, write_results
from .models import quieten
from .options import grouped

Source = Annotated[
    str,
    typer.Option(
        "--from",
        help="testbed: its generator and gold reward; graded: held-out groups graded by people; a file of groups; "
        "policy:PATH: a causal language model that answers testbed prompts.",
    ),
]
SampleCount = Annotated[int, typer.Option(min=2, help="Samples per prompt; of graded groups, the fewest responses.")]
PromptCount = Annotated[int, typer.Option(min=1, help="Testbed prompts per task; none is a training prompt.")]
Ns = Annotated[list[int] | None, typer.Option("--n", help="A value of n; may be repeated. Default: powers of two.")]


@grouped
def command(
    config: ConfigName,
    options: ExperimentOptions,
    source: Source = "testbed",
    samples: SampleCount = 12_500,
    prompts: PromptCount = 2,
    ns: Ns = None,
) -> None:
    """Measure best-of-n by every method, gold against KL. Runs of `dmoerm compare` in the same folder are reused."""
    from ..experiments.best_of_n import measure_best_of_n
    from ..experiments.samples import open_source
    from .tables import print_best_of_n

    quieten()
    settings = options.config(config)
    with open_engine(options.engine, settings) as engine:
        opened = open_source(source, settings, options.run_seeds, samples, prompts, options.include_trained)
        results = measure_best_of_n(
            settings,
            opened.samples,
            options.conditions,
            members=options.members,
            source=opened.description,
            overlap=opened.overlap,
            ns=ns,
            command=command_line(),
            engine=engine,
            scoring=scoring_of(options.engine),
            methods=options.methods,
            ablations=options.ablations,
        )
    path = Path(settings.output) / "best_of_n.json"
    write_results(results, path, options.json_file, lambda console: print_best_of_n(console, results))

"""How far the estimates were off where they were measured: on two CPU cores, with packed backbones (docs/scale.md)."""

from __future__ import annotations

ESTIMATED_BY_MEASURED: dict[str, tuple[float, float]] = {
    "scoring_seconds": (0.94, 1.07),
    "scoring_seconds_in_another_run": (0.82, 1.07),
    "scoring_ratio": (0.94, 1.05),
    "training_seconds": (1.03, 1.03),
    "checkpoint_bytes": (0.96, 0.98),
}
"""The lowest and the highest quotient of an estimate and its measurement. Training was measured once."""


def measured_line(packed: bool = True) -> str:
    """Return a sentence with the quotients.

    Args:
        packed: false: it says that backbones which run by their own forward were not measured.
    """
    ranges = {
        name: " to ".join(f"{value:.2f}" for value in dict.fromkeys(quotients))
        for name, quotients in ESTIMATED_BY_MEASURED.items()
    }
    missing = "no GPU was measured" if packed else "no GPU and no such backbone was measured"
    return (
        f"estimate / measurement on two cores: time of scoring {ranges['scoring_seconds']}, in another run "
        f"{ranges['scoring_seconds_in_another_run']}; its operations relative to a plain model "
        f"{ranges['scoring_ratio']}; time of training {ranges['training_seconds']} (once); size on disk "
        f"{ranges['checkpoint_bytes']}; {missing} (docs/scale.md)"
    )

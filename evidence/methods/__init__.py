"""Baselines and ablations beside the product's four methods, one file each; importing this package registers them."""

from evidence.methods import (  # noqa: F401
    ablations,
    all_labels_general,
    ensembles,
    gated,
    human_grades,
    laplace,
    umm_rm,
)

"""Baselines and ablations besides the product's methods; importing this package registers them."""

from evidence.methods import ablations, ensembles, gated, singles, umm_rm

__all__ = ["ablations", "ensembles", "gated", "singles", "umm_rm"]

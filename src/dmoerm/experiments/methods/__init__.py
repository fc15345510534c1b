"""The methods of a comparison, one file each, and their registry."""

from .method import Method, MethodContext, QueryScorer, TrainedMethod
from .registry import ablation_methods, choose_methods, color_of, default_methods, family_of, register, registered

__all__ = [
    "Method",
    "MethodContext",
    "QueryScorer",
    "TrainedMethod",
    "ablation_methods",
    "choose_methods",
    "color_of",
    "default_methods",
    "family_of",
    "register",
    "registered",
]

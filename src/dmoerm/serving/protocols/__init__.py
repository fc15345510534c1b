"""One file a protocol: what a client of its kind sends, and what it reads in the answer."""

from . import native, openrlhf, tei, vllm

ROUTERS = (native.router, vllm.router, openrlhf.router, tei.router)

__all__ = ["ROUTERS"]

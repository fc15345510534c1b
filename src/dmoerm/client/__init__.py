"""Asking a reward server (`dmoerm serve`) for scores."""

from .clients import AsyncClient, Client

__all__ = ["AsyncClient", "Client"]

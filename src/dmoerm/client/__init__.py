"""Clients of a reward server (`dmoerm serve`)."""

from .clients import AsyncClient, Client

__all__ = ["AsyncClient", "Client"]

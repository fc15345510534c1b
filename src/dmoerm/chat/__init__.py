"""Conversations: chat templates, token ids, and texts that a template has rendered."""

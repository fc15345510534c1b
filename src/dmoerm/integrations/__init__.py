"""Reward functions for other trainers, one module per trainer."""

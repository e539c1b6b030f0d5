"""Backbones that transformers does not have, made of its building blocks."""

"""The tiny model of the local stack."""

from pipelines.local.tiny_model import build_tiny_model

__all__ = ["build_tiny_model"]

"""Objectives, one module each."""

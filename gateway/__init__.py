"""Async streaming gateway between browsers or mobile apps and Hyperleap AI."""

__version__ = "0.1.0"

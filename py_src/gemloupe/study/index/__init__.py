"""An index of examples: for every feature of a scope, where it fires in a text."""

from .store import About, Index

__all__ = ["About", "Index"]

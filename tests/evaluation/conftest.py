"""The network that is attacked."""

from tests.attacks.victim import victim

__all__ = ["victim"]

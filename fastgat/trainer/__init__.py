"""Trainer: from a configuration to a finished run folder."""

from fastgat.trainer.trainer import History, Trainer

__all__ = ["History", "Trainer"]

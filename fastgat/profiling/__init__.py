"""What a training step costs on this machine: the textbook against fastgat, against the hardware, phase by phase."""

from fastgat.profiling.profile import Settings, profile

__all__ = ["Settings", "profile"]

"""Errors that a user can cause. Each carries one line for the person and the exit code of the command."""

import re


class FastgatError(Exception):
    """Base of every error that fastgat raises on purpose; its text is one line: what, where, what to do."""

    exit_code = 1


class ConfigError(FastgatError, ValueError):
    """A setting that makes no sense: unknown, out of range, or in conflict with another."""

    exit_code = 2


class DataError(FastgatError, ValueError):
    """Data that are missing, damaged, or not what the settings say."""


class CheckpointError(FastgatError, ValueError):
    """A checkpoint that is damaged, of another version, or of another model."""


class DeviceError(FastgatError, RuntimeError):
    """A device that was asked for and is not there."""


class OutputError(FastgatError, OSError):
    """An output folder that cannot be written."""


class NonFiniteError(FastgatError, ArithmeticError):
    """A loss that became NaN or infinite."""


class RankError(FastgatError, RuntimeError):
    """Ranks that do not find each other or do not agree, or one that has `lost` another."""

    def __init__(self, message: str, *, lost: bool = False) -> None:
        super().__init__(message)
        self.lost = lost


class CompileError(FastgatError, RuntimeError):
    """A step that was to be compiled and cannot be."""


class CaptureError(CompileError):
    """A compiled step that cannot be captured as a CUDA graph."""


def first_line(error: BaseException) -> str:
    """The first line of an error's text, without colours, or the name of its class where it has none."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error))
    lines = [" ".join(line.split()) for line in text.splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: torch's own error on a GPU, a RuntimeError of its allocator on a CPU, or Python's."""
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return named or "can't allocate memory" in str(error) or "not enough memory" in str(error)

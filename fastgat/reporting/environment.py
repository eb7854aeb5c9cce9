"""What a run ran on: versions, hardware, threads."""

import importlib.metadata
import os
import platform
import sys
from typing import Any

import torch

PACKAGES = (
    "fastgat-trainer",
    "torch",
    "triton",
    "numpy",
    "nvidia-dali-cuda120",
    "nvidia-dali-cuda130",
    "timm",
    "torchattacks",
)


def environment() -> dict[str, Any]:
    """Versions, hardware and settings that decide how fast a run is, as plain values."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "packages": {
            **{name: number for name in PACKAGES if (number := version(name))},
            "torch": torch.__version__,  # with the build that it is, which the package's metadata may leave out
        },
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cuda": torch.version.cuda,
        "gpus": gpus,
        "command": sys.argv,
    }


def version(package: str) -> str | None:
    """The version of an installed package, else None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None

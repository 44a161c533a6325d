"""What something ran on: figures of time and memory mean nothing without it."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from searchr3.version import __version__

LIBRARIES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets")


def machine(libraries: Sequence[str] = LIBRARIES) -> dict[str, str]:
    """Processor, GPU if there is one, platform and versions."""
    import torch

    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()
    here = {"processor": processor(), "cores": str(cores)}
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(place) for place in range(torch.cuda.device_count())]
        here["gpu"] = ", ".join(f"{names.count(name)} × {name}" for name in dict.fromkeys(names))
    here |= {"platform": platform.platform(), "python": platform.python_version(), "searchr3": __version__}
    return here | {name: version(name) for name in libraries}


def processor() -> str:
    """The processor's name, as far as the system tells it."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine()

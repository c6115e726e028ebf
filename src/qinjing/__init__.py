"""Qinjing turns a hospital's annotated scans into a deployed imaging model, with evidence.

The public names live in the rooms; each is fetched at its first use, so that `import qinjing`
costs nothing.
"""

import os
from importlib import import_module
from typing import Any

# How long a thread of GNU OpenMP spins for the others before it gives its core back, read when
# torch is loaded. Its own 300,000 turns steal the core from the thread that is waited for wherever
# something else runs: a training step then took ten times as long, with these twice.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")

__all__ = [
    "Case",
    "Dataset",
    "InputError",
    "QinjingError",
    "TrainConfig",
    "Volume",
    "__version__",
    "check_dataset",
    "compare_files",
    "evaluate_files",
    "open_dataset",
    "plan_dataset",
    "predict_folder",
    "read_volume",
    "train",
    "verify",
    "write_report",
]
__version__ = "0.1.0"

_ROOM = {
    "Case": "data.case",
    "Dataset": "data.case",
    "InputError": "errors",
    "QinjingError": "errors",
    "TrainConfig": "tasks.train",
    "Volume": "volume",
    "check_dataset": "data.check",
    "compare_files": "report.compare",
    "evaluate_files": "tasks.evaluate",
    "open_dataset": "data.layouts",
    "plan_dataset": "tasks.planning",
    "predict_folder": "tasks.predict",
    "read_volume": "data.readers",
    "train": "tasks.train",
    "verify": "evidence",
    "write_report": "report.html",
}


def __getattr__(name: str) -> Any:
    if name not in _ROOM:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_ROOM[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

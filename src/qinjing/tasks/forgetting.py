"""What a run is being made to forget, written down beside it until nothing of it is left."""

from __future__ import annotations

from pathlib import Path

from qinjing.config import read_json
from qinjing.errors import ConfigError


def journal_of(run: Path) -> Path:
    """Return where what is being forgotten is kept: beside the run, since no model made it.

    Args:
        run: the run folder, by whatever path.
    """
    run = run.resolve()
    return run.with_name(f".{run.name}.unlearning.json")


def refuse_half_forgotten(run: Path) -> None:
    """Refuse to train a run that was killed while it forgot: it may learn the case once more.

    The journal of a run that is gone is removed, since a new run of its name has forgotten nothing.

    Args:
        run: where a training writes.

    Raises:
        ConfigError: an `unlearn` of the run was begun and not finished.
    """
    journal = journal_of(run)
    if not (run / "run.json").exists():
        journal.unlink(missing_ok=True)
    elif journal.exists():
        case_id = read_json(journal)["case_id"]
        raise ConfigError(
            "run", "done with forgetting a case", f"one half-way through {case_id}", where=run,
            advice=f"repeat `qinjing unlearn {run} {case_id}`, which goes on",
        )  # fmt: skip

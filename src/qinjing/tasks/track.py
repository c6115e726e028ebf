"""Hand a training's figures to TensorBoard or MLflow, offline and only where asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from qinjing import registry
from qinjing.errors import ConfigError

Log = Callable[..., Any]  # (name, value, step)
Tell = Callable[[str, dict[str, Any]], None]


@contextmanager
def _tensorboard(folder: Path) -> Iterator[Log]:
    """Event files in ``RUN/tensorboard``, for `tensorboard --logdir`."""
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder / "tensorboard")) as writer:
        yield writer.add_scalar


@contextmanager
def _mlflow(folder: Path) -> Iterator[Log]:
    """An MLflow database, ``RUN/mlflow.db``, for `mlflow ui --backend-store-uri`."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{(folder / 'mlflow.db').resolve()}")
    run = client.create_run(client.create_experiment(f"qinjing {folder.name}"))
    try:
        yield lambda name, value, step: client.log_metric(run.info.run_id, name, value, step=step)
    except BaseException:
        client.set_terminated(run.info.run_id, "FAILED")
        raise
    client.set_terminated(run.info.run_id)


TRACKERS: Mapping[str, Callable[..., Any]] = {"tensorboard": _tensorboard, "mlflow": _mlflow}


@contextmanager
def track(names: Sequence[str], folder: Path) -> Iterator[Tell]:
    """Yield what `train` tells its events, so that they reach the named trackers.

    Args:
        names: out of `TRACKERS`; none of them is fine.
        folder: the run folder, which takes the trackers' files.

    Raises:
        ConfigError: no such tracker, or its package is not installed.
    """
    with ExitStack() as stack:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            logs = [
                stack.enter_context(registry.build(TRACKERS, "tracker", name, folder=folder))
                for name in names
            ]
        except ImportError as error:
            raise ConfigError(
                "tracker", "installed", error.name, advice="pip install 'qinjing[track]'"
            ) from None

        def tell(kind: str, fields: dict[str, Any]) -> None:
            if kind in ("step", "validation"):
                for name, value in fields.items():
                    if name not in ("kind", "step", "steps", "fold"):
                        for log in logs:
                            log(f"fold_{fields['fold']}/{kind}/{name}", value, fields["step"])

        yield tell

"""TensorBoard events, for those who ask for them."""

from __future__ import annotations

from typing import Any

from jaxgen.errors import UsageError
from jaxgen.store import RunDirectory


def require_tensorboard() -> Any:
    """The optional package. Raises ``UsageError`` when it is not installed."""
    try:
        import tensorboardX
    except ImportError:
        raise UsageError(
            'TensorBoard events need the package tensorboardX: pip install "jaxgen[tb]", or leave out --tensorboard.'
        ) from None
    return tensorboardX


def open_events(run: RunDirectory, step: int) -> Any:
    """A writer of events into the run's folder ``tensorboard/``; those beyond ``step`` are no longer shown."""
    return require_tensorboard().SummaryWriter(str(run.path / "tensorboard"), purge_step=step + 1 if step else None)

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


def open_events(run: RunDirectory) -> Any:
    """A writer of events into the run's folder ``tensorboard/``."""
    return require_tensorboard().SummaryWriter(str(run.path / "tensorboard"))

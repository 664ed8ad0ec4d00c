"""What the tasks' ``build`` functions share."""

from __future__ import annotations

from functools import partial
from typing import Any

from jaxgen.cells import CELLS
from jaxgen.errors import check_options, choose


def cell_maker(cell: str, cell_options: dict[str, Any]) -> Any:
    """What makes the cell of this name in ``CELLS`` with these options of its own, called with ``features``.

    Raises ``UsageError`` for a name or an option that does not exist.
    """
    kind = CELLS[choose(cell, CELLS, "cell")]
    reserved = ("features", "parent", "name", "param_dtype", "precision")
    check_options(kind, cell_options, f"cell {cell!r}", reserved=reserved)
    return partial(kind, **cell_options) if cell_options else kind

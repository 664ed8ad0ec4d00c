"""Recurrent cells and the one registry that names them. A new cell is one file and one line here."""

from jaxgen.cells.base import Affine, Cell, Weights
from jaxgen.cells.elman import Elman, ElmanReLU
from jaxgen.cells.gru import GRU
from jaxgen.cells.lstm import LSTM
from jaxgen.cells.precision import PRECISIONS
from jaxgen.cells.scan import run
from jaxgen.cells.unroll import FORMS, choose_form, unroll, unroll_projected

CELLS: dict[str, type[Cell]] = {
    "elman": Elman,
    "elman-relu": ElmanReLU,
    "gru": GRU,
    "lstm": LSTM,
}

__all__ = [
    "CELLS",
    "FORMS",
    "GRU",
    "LSTM",
    "PRECISIONS",
    "Affine",
    "Cell",
    "Elman",
    "ElmanReLU",
    "Weights",
    "choose_form",
    "run",
    "unroll",
    "unroll_projected",
]

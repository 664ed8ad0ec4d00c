"""Recurrent cells and their registry. To add a cell, add a file and a line in ``CELLS``."""

from jaxgen.cells.attention import Attention
from jaxgen.cells.base import Affine as Affine
from jaxgen.cells.base import Cell as Cell
from jaxgen.cells.base import Form as Form
from jaxgen.cells.base import Weights as Weights
from jaxgen.cells.capped_lstm import CappedLSTM
from jaxgen.cells.elman import Elman, ElmanReLU
from jaxgen.cells.gla import GLA
from jaxgen.cells.gru import GRU
from jaxgen.cells.layernorm_lstm import LayerNormLSTM
from jaxgen.cells.linear import LinearCell as LinearCell
from jaxgen.cells.lru import LRU
from jaxgen.cells.lstm import LSTM
from jaxgen.cells.mingru import MinGRU
from jaxgen.cells.minlstm import MinLSTM
from jaxgen.cells.mogrifier import Mogrifier
from jaxgen.cells.precision import PRECISIONS as PRECISIONS
from jaxgen.cells.qrnn import QRNN
from jaxgen.cells.rglru import RGLRU
from jaxgen.cells.scan import run as run
from jaxgen.cells.slstm import SLSTM
from jaxgen.cells.sru import SRU
from jaxgen.cells.unroll import FORMS as FORMS
from jaxgen.cells.unroll import choose_form as choose_form
from jaxgen.cells.unroll import forms_of as forms_of
from jaxgen.cells.unroll import unroll as unroll
from jaxgen.cells.unroll import unroll_projected as unroll_projected

CELLS: dict[str, type[Cell]] = {
    "attention": Attention,
    "capped-lstm": CappedLSTM,
    "elman": Elman,
    "elman-relu": ElmanReLU,
    "gla": GLA,
    "gru": GRU,
    "layernorm-lstm": LayerNormLSTM,
    "lru": LRU,
    "lstm": LSTM,
    "mingru": MinGRU,
    "minlstm": MinLSTM,
    "mogrifier": Mogrifier,
    "qrnn": QRNN,
    "rglru": RGLRU,
    "slstm": SLSTM,
    "sru": SRU,
}

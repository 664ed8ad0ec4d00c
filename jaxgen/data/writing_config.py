"""What the settings of all tasks have in common that write a text for each input: translation and captions."""

from __future__ import annotations

from jaxgen.data.rows_config import RowsConfig
from jaxgen.store.config import Beam, Fraction


class WritingConfig(RowsConfig):
    """Settings of what writes a text for each input."""

    attention: str = "general"
    """How the decoder looks back at the input: not at all (it has a summary of it alone), by additive scores
    (Bahdanau) or by general ones (Luong, the fastest)."""
    token_dropout: Fraction = 0.0
    """Share of the tokens written before that training reads as <unk>, so that more has to come from the input."""
    label_smoothing: Fraction = 0.0
    """Share of each training target that is spread evenly over the vocabulary."""
    beam: Beam = 5
    """Beams of the final evaluation; 0: greedy, as during training."""

"""Models without a recurrence, to compare with: counted in one pass, evaluated and sampled like the others."""

from jaxgen.baselines.kneser_ney import fit
from jaxgen.baselines.ngram import NGram

__all__ = ["NGram", "fit"]

"""Joins the two halves: training runs that can stop and go on, and sampling from what they leave."""

from jaxgen.run.beams import Hypothesis, beam
from jaxgen.run.continuations import Continuation, continuations
from jaxgen.run.conversation import Conversation
from jaxgen.run.sampler import Sampler
from jaxgen.run.scorer import Scorer
from jaxgen.run.settings import Settings
from jaxgen.run.start import resume, start
from jaxgen.run.state import State, interpolate
from jaxgen.run.texts import Piece, Sample
from jaxgen.run.trainer import Interrupted, Trainer

__all__ = [
    "Continuation",
    "Conversation",
    "Hypothesis",
    "Interrupted",
    "Piece",
    "Sample",
    "Sampler",
    "Scorer",
    "Settings",
    "State",
    "Trainer",
    "beam",
    "continuations",
    "interpolate",
    "resume",
    "start",
]

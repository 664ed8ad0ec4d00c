"""Joins the two halves: training runs that can stop and go on, and sampling from what they leave."""

from jaxgen.run.beams import Hypothesis, beam
from jaxgen.run.sampler import Piece, Sample, Sampler
from jaxgen.run.settings import Settings
from jaxgen.run.start import resume, start
from jaxgen.run.state import State, interpolate
from jaxgen.run.trainer import Interrupted, Trainer

__all__ = [
    "Hypothesis",
    "Interrupted",
    "Piece",
    "Sample",
    "Sampler",
    "Settings",
    "State",
    "Trainer",
    "beam",
    "interpolate",
    "resume",
    "start",
]

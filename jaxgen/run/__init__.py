"""Joins the two halves: training runs that can stop and go on, and sampling from what they leave."""

from jaxgen.run.sampler import Piece, Sampler, Settings
from jaxgen.run.start import resume, start
from jaxgen.run.trainer import Interrupted, Trainer

__all__ = ["Interrupted", "Piece", "Sampler", "Settings", "Trainer", "resume", "start"]

"""Models: cells put together, still pure functions of parameters and arrays."""

from jaxgen.models.classifier import POOLINGS, Classifier
from jaxgen.models.encoder import Encoded, Encoder
from jaxgen.models.language_model import LanguageModel
from jaxgen.models.stack import Stack

__all__ = ["POOLINGS", "Classifier", "Encoded", "Encoder", "LanguageModel", "Stack"]

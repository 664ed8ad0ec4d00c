"""Models: cells put together, still pure functions of parameters and arrays."""

from jaxgen.models.attention import ATTENTIONS, Attention, Memory
from jaxgen.models.classifier import POOLINGS, Classifier
from jaxgen.models.decoder import Decoder, DecoderOutput, EncoderDecoder
from jaxgen.models.encoder import DecoderInput, Encoded, Encoder
from jaxgen.models.image_encoder import FeatureEncoder, ImageEncoder, ImageEncoderAdapter, ImageFeatures
from jaxgen.models.language_model import LanguageModel
from jaxgen.models.layers import Stack

__all__ = [
    "ATTENTIONS",
    "POOLINGS",
    "Attention",
    "Classifier",
    "Decoder",
    "DecoderInput",
    "DecoderOutput",
    "Encoded",
    "Encoder",
    "EncoderDecoder",
    "FeatureEncoder",
    "ImageEncoder",
    "ImageEncoderAdapter",
    "ImageFeatures",
    "LanguageModel",
    "Memory",
    "Stack",
]

"""Models built from cells: Linen modules, pure functions of parameters and arrays."""

from jaxgen.models.attention import ATTENTIONS as ATTENTIONS
from jaxgen.models.attention import Attention as Attention
from jaxgen.models.attention import Memory as Memory
from jaxgen.models.blocks import BLOCKS as BLOCKS
from jaxgen.models.blocks import Block as Block
from jaxgen.models.blocks import CausalConv as CausalConv
from jaxgen.models.blocks import GriffinBlock as GriffinBlock
from jaxgen.models.blocks import ResidualBlock as ResidualBlock
from jaxgen.models.classifier import POOLINGS as POOLINGS
from jaxgen.models.classifier import Classifier as Classifier
from jaxgen.models.decoder import Decoder as Decoder
from jaxgen.models.decoder import DecoderOutput as DecoderOutput
from jaxgen.models.decoder import EncoderDecoder as EncoderDecoder
from jaxgen.models.encoder import DecoderInput as DecoderInput
from jaxgen.models.encoder import Encoder as Encoder
from jaxgen.models.encoder import EncoderOutput as EncoderOutput
from jaxgen.models.image_encoder import FeatureEncoder as FeatureEncoder
from jaxgen.models.image_encoder import ImageEncoder as ImageEncoder
from jaxgen.models.image_encoder import ImageEncoderAdapter as ImageEncoderAdapter
from jaxgen.models.image_encoder import ImageFeatures as ImageFeatures
from jaxgen.models.language_model import LanguageModel as LanguageModel
from jaxgen.models.layers import Stack as Stack

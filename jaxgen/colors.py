"""The colours of probabilities and of signed values: backgrounds with a legible text, on light and dark pages."""

from __future__ import annotations

import math

#: Red, green and blue, 0 to 255.
Color = tuple[int, int, int]

#: The scale, from improbable to certain. Its lightness only rises, and its hue goes from blue to yellow, so that it
#: keeps its order for readers who do not tell red from green, and in grey.
SCALE: tuple[Color, ...] = ((38, 36, 92), (44, 92, 156), (52, 148, 168), (140, 202, 166), (252, 244, 190))
#: The ends and the middle of the scale of signed values, which colour-blind people tell apart.
NEGATIVE, NEUTRAL, POSITIVE = (58, 126, 194), (246, 246, 248), (217, 95, 14)
#: The smallest probability that has a colour of its own, as a power of 10.
LOWEST = -3
#: Of a token without a probability.
UNKNOWN: Color = (150, 150, 150)
BLACK, WHITE = (0, 0, 0), (255, 255, 255)


def probability_color(probability: float) -> Color:
    """The background colour of a probability, on a logarithmic scale from 0.001 (dark blue) to 1 (pale yellow).

    Smaller ones have the colour of 0.001, and NaN is grey.
    """
    if math.isnan(probability):
        return UNKNOWN
    share = 1 - math.log10(min(max(probability, 10**LOWEST), 1)) / LOWEST
    place = share * (len(SCALE) - 1)
    first = min(int(place), len(SCALE) - 2)
    red, green, blue = (
        round(low + (high - low) * (place - first)) for low, high in zip(SCALE[first], SCALE[first + 1])
    )
    return red, green, blue


def signed_color(value: float) -> Color:
    """The background colour of a value from -1 (blue) through 0 (almost white) to 1 (orange); NaN is grey."""
    if math.isnan(value):
        return UNKNOWN
    share = min(abs(value), 1.0)
    end = POSITIVE if value > 0 else NEGATIVE
    red, green, blue = (round(low + (high - low) * share) for low, high in zip(NEUTRAL, end))
    return red, green, blue


def ink_on(background: Color) -> Color:
    """The colour of text on ``background``: black or white, whichever has more contrast."""
    return BLACK if luminance(background) > 0.179 else WHITE  # where both contrasts are equal


def to_hex(color: Color) -> str:
    """A colour as HTML and Matplotlib write it, such as ``#fcf4be``."""
    return "#{:02x}{:02x}{:02x}".format(*color)


def luminance(color: Color) -> float:
    """The relative luminance of a colour in sRGB, from 0 to 1, as WCAG 2 defines it."""
    shares = [channel / 255 for channel in color]
    linear = [share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

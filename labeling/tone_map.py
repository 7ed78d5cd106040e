"""High dynamic range to what an ordinary screen, and every model, expects (ITU-R BT.2100, BT.2408, BT.709)."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import numpy.typing as npt

from labeling.decoding import RGB

Values = npt.NDArray[np.float32]
Deep = npt.NDArray[np.uint16]
"""A color image, uint16, shape (height, width, 3)."""

# Luminance in cd/m² of a white page under BT.2408; what is brighter is a highlight.
WHITE = 203.0
# The screen for which HLG is graded, and its system gamma (BT.2100, table 5).
HLG_PEAK, HLG_GAMMA = 1000.0, 1.2
# Share of white from which on values are compressed, so that highlights keep some detail.
KNEE = 0.75
# From BT.2020 to BT.709 primaries (BT.2407, section 2).
TO_BT709 = np.array([[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]], np.float32)
BT2020_LUMINANCE = np.array([0.2627, 0.6780, 0.0593], np.float32)


def from_pq(image: Deep) -> RGB:
    """Return an image of the perceptual quantizer (SMPTE ST 2084) in BT.709, uint8."""
    return _shown(_table(_pq)[image] / WHITE)


def from_hlg(image: Deep) -> RGB:
    """Return an image of hybrid log-gamma (ARIB STD-B67) in BT.709, uint8."""
    scene = _table(_hlg)[image]
    # The screen's part, the OOTF, goes by the luminance of the scene.
    luminance = (scene @ BT2020_LUMINANCE)[..., None]
    return _shown(scene * np.power(luminance, HLG_GAMMA - 1) * (HLG_PEAK / WHITE))


def _shown(light: Values) -> RGB:
    """Light in BT.2020, 1 is white, as an image in BT.709."""
    light = np.maximum(light @ TO_BT709.T, 0)
    room = 1 - KNEE
    light = np.where(light <= KNEE, light, KNEE + room * -np.expm1(-(light - KNEE) / room))
    shown: RGB = _table(_bt709)[(light * 65535 + 0.5).astype(np.uint16)].astype(np.uint8)
    return shown


@cache
def _table(curve: Callable[[Values], Values]) -> Values:
    return curve(np.linspace(0, 1, 65536, dtype=np.float64)).astype(np.float32)


def _pq(signal: Values) -> Values:
    """Luminance in cd/m² (the EOTF of BT.2100, table 4)."""
    m1, m2 = 2610 / 16384, 2523 / 4096 * 128
    c1, c2, c3 = 3424 / 4096, 2413 / 4096 * 32, 2392 / 4096 * 32
    power = signal ** (1 / m2)
    result: Values = 10000 * (np.maximum(power - c1, 0) / (c2 - c3 * power)) ** (1 / m1)
    return result


def _hlg(signal: Values) -> Values:
    """Light of the scene, 0 to 1 (the inverse OETF of BT.2100, table 5)."""
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    return np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - c) / a) + b) / 12)


def _bt709(light: Values) -> Values:
    """Signal, 0 to 255: the inverse of a screen's gamma of 2.4 (BT.1886), with which BT.709 is shown."""
    result: Values = np.rint(255 * light ** (1 / 2.4))
    return result

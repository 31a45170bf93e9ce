"""Pixels: which positions of a map are computed, over their impact or over an image."""

import base64
import io

import numpy as np

# About the side of a drawn map in pixels; whole pixels per position keep the dots round.
MAP_PIXELS = 480
DOT = (18, 53, 91)
# From white to a warm orange: dots stay readable on every shade.
IMPACT_COLOURS = ((255, 255, 255), (253, 219, 165), (244, 140, 66))
NO_IMPACT = (238, 241, 244)
# Of a dot, and of the white ring around it, in cells.
_RADIUS, _RING = 0.28, 0.4


def draw_map(
    positions: np.ndarray, size: tuple[int, int], impact: np.ndarray | None = None
) -> np.ndarray:
    """An output map as a picture: impact as colour, a dot where a position is computed.

    Args:
        positions: flattened computed positions.
        size: height and width of the map.
        impact: [height, width], or None for plain grey.

    Returns:
        uint8 [height * cell, width * cell, 3] with whole cells of pixels.
    """
    cell = _cell(size)
    colours = np.broadcast_to(np.array(NO_IMPACT, float), (*size, 3))
    if impact is not None:
        # Impacts spread over decades: their ranks show the order in which positions are kept.
        ranks = np.argsort(np.argsort(impact, axis=None)).reshape(size) / max(impact.size - 1, 1)
        stops = np.linspace(0, 1, len(IMPACT_COLOURS))
        colours = np.stack(
            [np.interp(ranks, stops, channel) for channel in zip(*IMPACT_COLOURS, strict=True)], -1
        )
    picture = np.repeat(np.repeat(colours, cell, 0), cell, 1)
    picture[_dots(positions, size, cell)] = DOT
    return picture.round().astype(np.uint8)


def draw_dots(positions: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The computed positions of a map as dots on nothing, to be laid over an image.

    Args:
        positions: flattened computed positions.
        size: height and width of the map.

    Returns:
        uint8 [height * cell, width * cell, 4] with whole cells of pixels.
    """
    cell = _cell(size)
    dots = _dots(positions, size, cell)[..., None]
    ring = _dots(positions, size, cell, _RING)[..., None]
    return np.where(dots, (*DOT, 255), np.where(ring, (255, 255, 255, 255), 0)).astype(np.uint8)


def _cell(size: tuple[int, int]) -> int:
    return max(3, MAP_PIXELS // max(size))


def _dots(
    positions: np.ndarray, size: tuple[int, int], cell: int, radius: float = _RADIUS
) -> np.ndarray:
    """Which pixels belong to dots, [height * cell, width * cell]."""
    offsets = np.arange(cell) - (cell - 1) / 2
    dot = np.hypot(*np.meshgrid(offsets, offsets)) <= max(radius * cell, 0.5)
    kept = np.zeros(size, bool)
    kept.reshape(-1)[positions] = True
    return np.kron(kept, dot).astype(bool)


def png_uri(pixels: np.ndarray) -> str:
    """A picture as a data URI."""
    from matplotlib.image import imsave

    buffer = io.BytesIO()
    imsave(buffer, pixels, format="png", metadata={"Software": None})
    return data_uri("png", buffer.getvalue())


def data_uri(kind: str, content: bytes) -> str:
    """An image of this kind, inside a page."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"

"""Small pictures of slices for labels and tables, made of arrays without another package."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import qt

NOTHING = (64, 74, 102)
"""Color of pixels without a value."""
GAP = 2


def side_by_side(pictures, spacings, side: int):
    """A QPixmap of ``pictures``, (rows, columns) each between its own 1st and 99th hundredth, one beside the other, each ``side`` pixels along its longer
    edge; ``spacings`` (between columns, between rows)."""
    made = [thumbnail(array, spacing, side) for array, spacing in zip(pictures, spacings)]
    whole = qt.QPixmap(len(made) * (side + GAP) - GAP, side)
    whole.fill(qt.QColor(*NOTHING))
    painter = qt.QPainter(whole)
    for k, each in enumerate(made):
        painter.drawPixmap(k * (side + GAP) + (side - each.width()) // 2, (side - each.height()) // 2, each)
    painter.end()
    return whole


def thumbnail(array: np.ndarray, spacing, side: int):
    """A QPixmap of (rows, columns) in gray, NaN in ``NOTHING``."""
    pixmap = qt.QPixmap()
    pixmap.loadFromData(qt.QByteArray(png(colored(np.asarray(array, float)))))
    wide, high = array.shape[1] * spacing[0], array.shape[0] * spacing[1]
    size = [max(1, round(side * length / max(wide, high))) for length in (wide, high)]
    return pixmap.scaled(*size, qt.Qt.IgnoreAspectRatio, qt.Qt.SmoothTransformation)


def colored(values: np.ndarray) -> np.ndarray:
    """(rows, columns) -> (rows, columns, 3) bytes."""
    known = np.isfinite(values)
    low, high = np.percentile(values[known], (1, 99)) if known.any() else (0.0, 1.0)
    gray = np.clip((np.where(known, values, low) - low) / max(high - low, 1e-12), 0, 1)
    return np.where(known[..., None], np.round(255 * gray)[..., None], NOTHING).astype(np.uint8)


def png(pixels: np.ndarray) -> bytes:
    """A PNG file of (rows, columns, 3) bytes."""
    rows, columns = pixels.shape[:2]
    lines = np.concatenate([np.zeros((rows, 1), np.uint8), pixels.reshape(rows, -1)], 1)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", columns, rows, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(lines.tobytes())) + chunk(b"IEND", b"")

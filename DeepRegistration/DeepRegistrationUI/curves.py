"""Curves drawn as a picture for a label, without another package: the cost of training and the score of validation over the steps."""

from __future__ import annotations

import math

import qt

from .live_records import COLORS

MARGIN, LINE, DOT = 6, 15, 7


def drawn(width: int, height: int, curves, texts, together: bool = False):
    """A QPixmap of ``curves``, lists of (step, value), each between its own smallest and largest value or, ``together``, all between those of all and with
    a line at 0; ``texts`` are shown in their colors."""
    pixmap = qt.QPixmap(width, height)
    pixmap.fill(qt.QColor(255, 255, 255))
    painter = qt.QPainter(pixmap)
    last, top = max([point[0] for points in curves for point in points] or [1.0]), LINE * len(texts) + MARGIN
    zero = [(0.0, 0.0), (last, 0.0)]
    among = [*zero, *(point for points in curves for point in points)] if together else None
    if together:
        painter.setPen(qt.QColor(190, 190, 190))
        (x, y), (u, v) = places(zero, last, width, height, top, among)
        painter.drawLine(x, y, u, v)
    for k, (points, text) in enumerate(zip(curves, texts)):
        color = qt.QColor(*(round(255 * part) for part in COLORS[k]))
        pen = qt.QPen(color)
        pen.setWidth(2)
        painter.setPen(pen)
        painter.drawText(MARGIN, LINE * (k + 1), text)
        placed = places(points, last, width, height, top, among)
        for (x, y), (u, v) in zip(placed, placed[1:]):
            painter.drawLine(x, y, u, v)
    painter.end()
    return pixmap


def scattered(width: int, height: int, points, groups, names):
    """A QPixmap of ``points`` (x, y), a color a group (from 0), groups listed below each other by ``names``."""
    pixmap = qt.QPixmap(width, height)
    pixmap.fill(qt.QColor(255, 255, 255))
    painter = qt.QPainter(pixmap)
    for k, name in enumerate(names):
        painter.setPen(qt.QColor(*(round(255 * part) for part in COLORS[k % len(COLORS)])))
        painter.drawText(MARGIN, LINE * (k + 1), name)
    top = LINE * len(names) + 2 * MARGIN
    (left, right), (low, high) = ((min(values), max(values)) for values in zip(*points))
    for (x, y), group in zip(points, groups):
        color = qt.QColor(*(round(255 * part) for part in COLORS[group % len(COLORS)]))
        painter.setPen(color)
        painter.setBrush(color)
        u = (x - left) / (right - left) if right > left else 0.5
        v = (y - low) / (high - low) if high > low else 0.5
        painter.drawEllipse(round(MARGIN + (width - 2 * MARGIN - DOT) * u), round(height - MARGIN - DOT - (height - top - MARGIN - DOT) * v), DOT, DOT)
    painter.end()
    return pixmap


def places(points, last: float, width: int, height: int, top: int, among=None) -> list[tuple[int, int]]:
    """Pixels of points (step, value) below ``top``: steps from 0 to ``last``, values between their 2nd and 98th hundredth and never beyond, or between the
    smallest and largest value ``among`` points."""
    kept = [point for point in points if math.isfinite(point[1])]
    if not kept:
        return []
    values = sorted(value for _, value in among or kept if math.isfinite(value))
    margin = 0 if among else len(values) // 50
    low, high = values[margin], values[-1 - margin]
    room, tall = width - 2 * MARGIN, height - top - MARGIN
    shares = [min(max((value - low) / (high - low), 0.0), 1.0) if high > low else 0.5 for _, value in kept]
    return [(round(MARGIN + room * step / max(last, 1e-9)), round(height - MARGIN - tall * share)) for (step, _), share in zip(kept, shares)]

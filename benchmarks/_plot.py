"""Plots as SVG, written by hand: curves on logarithmic axes, and how many times each peer's figure ours is.

Must not know: what was measured.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from ._report import RESULTS, Curve, figure

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 640, 320, 80, 24, 40, 52
COLOURS = "#3465a4", "#cc6600", "#4e9a06", "#75507b"
_FONT = 'font-family="system-ui, sans-serif" font-size="12" fill="#333"'


def save_plots(curves: Sequence[Curve], rows: Sequence[dict[str, Any]], directory: Path = RESULTS) -> None:
    """One file for each plot of curves, and one of all rows that have a peer."""
    directory.mkdir(exist_ok=True)
    for name in dict.fromkeys(curve.plot for curve in curves):
        of_plot = [curve for curve in curves if curve.plot == name]
        (directory / f"{name}.svg").write_text(_curves(of_plot))
    compared = [row for row in rows if row["ratio"]]
    if compared:
        (directory / "ratios.svg").write_text(_ratios(compared))


def _curves(curves: Sequence[Curve]) -> str:
    points = [point for curve in curves for point in curve.points]
    x_axis = _Axis([x for x, _ in points], LEFT, WIDTH - RIGHT)
    y_axis = _Axis([y for _, y in points], HEIGHT - BOTTOM, TOP)
    parts = [_text(WIDTH / 2, HEIGHT - 10, curves[0].x, "middle"), _text(8, 20, curves[0].y, "start")]
    for at in x_axis.ticks():
        parts.append(_line(x_axis.at(at), TOP, x_axis.at(at), HEIGHT - BOTTOM))
        parts.append(_text(x_axis.at(at), HEIGHT - BOTTOM + 18, figure(at), "middle"))
    for at in y_axis.ticks():
        parts.append(_line(LEFT, y_axis.at(at), WIDTH - RIGHT, y_axis.at(at)))
        parts.append(_text(LEFT - 8, y_axis.at(at) + 4, figure(at), "end"))
    for number, curve in enumerate(curves):
        colour = COLOURS[number % len(COLOURS)]
        places = [(x_axis.at(x), y_axis.at(y)) for x, y in curve.points]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts.extend(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in places)
        if len(curves) > 1:
            parts.append(_text(WIDTH - RIGHT - 4, TOP + 16 + 16 * number, curve.label, "end", colour))
    return _svg(parts, HEIGHT)


class _Axis:
    """A logarithmic one, over whole decades."""

    def __init__(self, values: Sequence[float], begins: float, ends: float) -> None:
        self._low = math.floor(math.log10(min(values)))
        self._high = max(self._low + 1, math.ceil(math.log10(max(values))))
        self._begins, self._ends = begins, ends

    def at(self, value: float) -> float:
        share = (math.log10(value) - self._low) / (self._high - self._low)
        return self._begins + share * (self._ends - self._begins)

    def ticks(self) -> list[float]:
        return [10.0**power for power in range(self._low, self._high + 1)]


def _ratios(rows: Sequence[dict[str, Any]]) -> str:
    bars = [
        (f"{row['name']} / {peer}", ratio["median"], ratio["low"], ratio["high"])
        for row in rows
        for peer, ratio in row["ratio"].items()
    ]
    label_width, step = 24 + 6.5 * max((len(label) for label, *_ in bars), default=0), 22
    axis = _Axis([value for _, *values in bars for value in (*values, 1.0)], label_width, label_width + 420)
    height = TOP + step * len(bars) + 30
    parts = [_text(8, 20, "ours divided by the peer's: median, and the rounds' spread", "start")]
    for at in axis.ticks():
        parts.append(_line(axis.at(at), TOP - 6, axis.at(at), height - 26, "#333" if at == 1 else "#ddd"))
        parts.append(_text(axis.at(at), height - 10, figure(at), "middle"))
    for number, (label, median, low, high) in enumerate(bars):
        y = TOP + step * number + 6
        parts.append(_text(label_width - 8, y + 4, label, "end"))
        parts.append(_line(axis.at(low), y, axis.at(high), y, COLOURS[0]))
        parts.append(f'<circle cx="{axis.at(median):.1f}" cy="{y}" r="4" fill="{COLOURS[0]}"/>')
    return _svg(parts, height, label_width + 440)


def _line(x1: float, y1: float, x2: float, y2: float, colour: str = "#ddd") -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}"/>'


def _text(x: float, y: float, text: str, anchor: str, colour: str = "#333") -> str:
    font = _FONT.replace("#333", colour)
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" {font}>{escape(text)}</text>'


def _svg(parts: Sequence[str], height: float, width: float = WIDTH) -> str:
    size = f'width="{width:g}" height="{height:g}" viewBox="0 0 {width:g} {height:g}"'
    body = "\n".join(['<rect width="100%" height="100%" fill="#fff"/>', *parts])
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}>\n{body}\n</svg>\n'

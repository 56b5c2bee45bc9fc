"""Draws the growth of time and memory as an SVG plot, which is also readable on a dark page.

This module does not write any file.
"""

import math
from collections.abc import Mapping
from typing import Final

_WIDTH, _HEIGHT = 640, 360
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 30, 60, 50
_COLOURS: Final = ("#2563eb", "#b45309", "#047857")
_STYLE: Final = (
    "text{font:13px sans-serif;fill:#1f2937}.grid{stroke:#d1d5db}"
    ".one{stroke:#6b7280;stroke-dasharray:4 4}"
    "@media(prefers-color-scheme:dark){text{fill:#e5e7eb}.grid{stroke:#4b5563}}"
)


def draw(lines: Mapping[str, Mapping[int, float]]) -> str:
    """Draw each line on logarithmic axes, with a dashed line for linear growth.

    Args:
        lines: the values by number of profiles, for each name.

    Returns:
        The text of the SVG file.
    """
    sizes = sorted({size for line in lines.values() for size in line})
    values = [value for line in lines.values() for value in line.values()]
    low = 10.0 ** math.floor(math.log10(min(values)))
    high = 10.0 ** math.ceil(math.log10(max(values)))

    def x(size: float) -> float:
        part = math.log(size / sizes[0]) / math.log(sizes[-1] / sizes[0])
        return _LEFT + part * (_WIDTH - _LEFT - _RIGHT)

    def y(value: float) -> float:
        part = math.log(value / low) / math.log(high / low)
        return _HEIGHT - _BOTTOM - part * (_HEIGHT - _TOP - _BOTTOM)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img">',
        "<title>Growth with the number of profiles, both axes logarithmic</title>",
        f"<style>{_STYLE}</style>",
    ]
    tick = low
    while tick <= high * 1.001:
        at = f"{y(tick):.1f}"
        parts.append(
            f'<line class="grid" x1="{_LEFT}" y1="{at}" x2="{_WIDTH - _RIGHT}" y2="{at}"/>'
            f'<text x="{_LEFT - 8}" y="{at}" dy="4" text-anchor="end">{tick:,g}</text>'
        )
        tick *= 10
    parts += [
        f'<text x="{x(size):.1f}" y="{_HEIGHT - _BOTTOM + 20}" text-anchor="middle">{size:,}</text>'
        for size in sizes
    ]
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{_HEIGHT - 8}" text-anchor="middle">profiles</text>')
    for number, (name, line) in enumerate(lines.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        path = " ".join(f"{x(size):.1f},{y(value):.1f}" for size, value in sorted(line.items()))
        parts.append(
            f'<polyline fill="none" stroke="{colour}" stroke-width="2" points="{path}"/>'
            + "".join(
                f'<circle cx="{x(size):.1f}" cy="{y(value):.1f}" r="4" fill="{colour}"/>'
                for size, value in line.items()
            )
        )
        left = _LEFT + number * 200
        parts.append(
            f'<circle cx="{left}" cy="20" r="5" fill="{colour}"/>'
            f'<text x="{left + 10}" y="24">{name}</text>'
        )
        last = line[sizes[-1]]
        first = max(low, last * sizes[0] / sizes[-1])
        start = sizes[-1] * first / last
        parts.append(
            f'<line class="one" x1="{x(start):.1f}" y1="{y(first):.1f}" '
            f'x2="{x(sizes[-1]):.1f}" y2="{y(last):.1f}"/>'
        )
    parts.append(f'<text x="{_LEFT}" y="44">dashed: linear</text>')
    parts.append("</svg>\n")
    return "\n".join(parts)

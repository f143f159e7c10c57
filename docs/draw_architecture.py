"""Draws ``architecture.svg`` from the imports in the code: ``python -m docs.draw_architecture``.

A box is a room, its height its floor, an arrow the imports of one room from another: the more, the
thicker, with their number at its head. Rooms of the ground floors are used by nearly all, so they
have no arrows but the number of imports.
"""

from __future__ import annotations

from collections import Counter
from html import escape
from pathlib import Path

from tests.test_architecture import FILES, FLOORS, IMPORTS, room

PICTURE = Path(__file__).with_name("architecture.svg")

GROUND = 2
"""Rooms of floors below this one have no arrows."""
WIDTH, TOP, STEP, BOX = 1100, 70, 104, (150, 44)
MIDDLES = {
    "cli": 460,
    "report": 650,
    "evaluate": 210,
    "inspection": 420,
    "interventions": 660,
    "localize": 820,
    "datasets": 180,
    "figures": 410,
    "model": 640,
    "results": 860,
    "storage": 440,
}
"""Where a room stands on its floor, so that few arrows pass behind a box."""
COLOURS = {
    "cli": "#000000",
    "report": "#CC79A7",
    "evaluate": "#0072B2",
    "inspection": "#D55E00",
    "interventions": "#009E73",
    "localize": "#8A6D00",
    "datasets": "#56B4E9",
    "figures": "#7B4FA3",
    "model": "#A23B3B",
}
"""Of a room and the arrows that leave it."""


def counted() -> Counter[tuple[str, str]]:
    """How often a room's files import from another room."""
    pairs = ((room(module), room(name)) for module in IMPORTS for name in IMPORTS[module])
    return Counter(
        (name_of(source), name_of(target))
        for source, target in pairs
        if source != target and "tracelab" not in (source, target)  # the front door
    )


def name_of(room: str) -> str:
    """A room's name without the package's."""
    return room.removeprefix("tracelab.")


def draw() -> str:
    """The picture as the text of an SVG file."""
    floors = {name_of(room): floor for room, floor in FLOORS.items()}
    upper = {name: floor for name, floor in floors.items() if floor >= GROUND}
    ground = sorted(floors.keys() - upper.keys(), key=lambda name: (-floors[name], name))
    imports = counted()
    rows = sorted(set(upper.values()), reverse=True)
    top = {name: TOP + rows.index(floor) * STEP for name, floor in upper.items()}
    arrows = {pair: n for pair, n in imports.items() if set(pair) <= upper.keys()}
    sizes = Counter(name_of(room(module)) for module in FILES)
    height = TOP + len(rows) * STEP + 150
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        f'width="{WIDTH}" height="{height}" font-family="sans-serif">',
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
        _text(20, 30, "The floors of tracelab: a room imports from lower floors only", 18),
        _text(20, 50, "arrow: imports, their number at its head; box: room and its files", 12),
        *(_floor(floor, TOP + k * STEP) for k, floor in enumerate(rows)),
    ]
    leaves, enters = _ports(arrows, leaving=True), _ports(arrows, leaving=False)
    labels = []
    for (source, target), n in sorted(arrows.items()):
        start = (leaves[source, target], top[source] + BOX[1])
        end = (enters[source, target], top[target] - 7)
        arrow, label = _arrow(start, end, n, COLOURS.get(source, "#555"), f"{source} to {target}")
        parts.append(arrow)
        labels.append(label)
    for name in upper:
        parts.append(_box(MIDDLES.get(name, WIDTH // 2), top[name], name, sizes[name]))
    parts += labels
    parts.append(_band(TOP + len(rows) * STEP, ground, imports))
    return "\n".join([*parts, "</svg>", ""])


def _ports(arrows: dict[tuple[str, str], int], *, leaving: bool) -> dict[tuple[str, str], float]:
    """Where along its box each arrow begins or ends: in the order of where it comes from."""
    found = {}
    here, there = (0, 1) if leaving else (1, 0)
    for name in {pair[here] for pair in arrows}:
        pairs = [pair for pair in arrows if pair[here] == name]
        pairs.sort(key=lambda pair: (MIDDLES.get(pair[there], WIDTH // 2), pair))
        left, space = MIDDLES.get(name, WIDTH // 2) - BOX[0] / 2, BOX[0] / len(pairs)
        found |= {pair: left + space * (k + 0.5) for k, pair in enumerate(pairs)}
    return found


def _text(x: float, y: float, text: str, size: int, more: str = "") -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}" font-size="{size}" {more}>{escape(text)}</text>'


def _floor(floor: float, y: int) -> str:
    line = y + BOX[1] + 8
    return f'<line x1="20" x2="{WIDTH - 20}" y1="{line}" y2="{line}" stroke="#ddd"/>' + _text(
        20, line - 6, f"floor {floor:g}", 12, 'fill="#767676"'
    )


def _arrow(
    start: tuple[float, float], end: tuple[float, float], n: int, colour: str, title: str
) -> tuple[str, str]:
    (x0, y0), (x1, y1) = start, end
    width, bend = 0.8 + n**0.5 * 0.7, min((y1 - y0) * 0.5, 150)
    path = (
        f"M{x0:.0f},{y0:.0f} C{x0:.0f},{y0 + bend:.0f} {x1:.0f},{y1 - bend:.0f} {x1:.0f},{y1:.0f}"
    )
    head = f"{x1 - 4:.0f},{y1:.0f} {x1 + 4:.0f},{y1:.0f} {x1:.0f},{y1 + 7:.0f}"
    drawn = (
        f'<g fill="none" stroke="{colour}" stroke-opacity="0.75"><title>{title}: {n}</title>'
        f'<path d="{path}" stroke-width="{width:.1f}"/>'
        f'<polygon points="{head}" fill="{colour}" stroke="none"/></g>'
    )
    halo = 'text-anchor="middle" stroke="white" stroke-width="3" paint-order="stroke"'
    return drawn, _text(x1, y1 - 4, str(n), 10, f'{halo} fill="{colour}"')


def _box(middle: float, y: float, name: str, files: int) -> str:
    left, colour = middle - BOX[0] / 2, COLOURS.get(name, "#555")
    return (
        f'<rect x="{left:.0f}" y="{y:.0f}" width="{BOX[0]}" height="{BOX[1]}" rx="5" '
        f'fill="white" stroke="{colour}" stroke-width="2"/>'
        + _text(middle, y + 20, name, 15, f'text-anchor="middle" fill="{colour}"')
        + _text(
            middle,
            y + 36,
            f"{files} files" if files > 1 else "1 file",
            11,
            'text-anchor="middle" fill="#555"',
        )
    )


def _band(y: int, names: list[str], imports: Counter[tuple[str, str]]) -> str:
    """The ground floors: a box a room with the number of imports from it."""
    width = (WIDTH - 40) / len(names)
    parts = [
        _text(
            20,
            y + 4,
            "ground floors: imported from everywhere, so drawn without arrows "
            "(number of imports below each)",
            12,
            'fill="#767676"',
        )
    ]
    for k, name in enumerate(names):
        x, used = 20 + k * width, sum(n for (_, target), n in imports.items() if target == name)
        parts.append(
            f'<rect x="{x + 3:.0f}" y="{y + 16}" width="{width - 6:.0f}" height="{BOX[1]}" rx="5" '
            'fill="#f4f4f4" stroke="#767676"/>'
            + _text(x + width / 2, y + 36, name, 13, 'text-anchor="middle"')
            + _text(x + width / 2, y + 52, str(used), 11, 'text-anchor="middle" fill="#555"')
        )
    return "\n".join(parts)


if __name__ == "__main__":
    PICTURE.write_text(draw(), encoding="utf-8")

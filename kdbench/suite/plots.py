"""The drawings of the leaderboard, as SVG text: the interval of a claim, and scores against size or speed.

They are drawn when the page is made, take their colours from the page's style sheet, and need no script.
"""

import base64
import math
import struct
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from kdbench.metrics.pictures import HeatMap, Images, Picture, Shown
from kdbench.suite.statistics import Interval

WIDE, HIGH = 180, 30
DOTS = 40  # more pairs than this are left to their interval


def interval(margins: Sequence[float], found: Interval | None, told: str, judged: bool = True) -> str:
    """Return margins as dots around the line of zero, the threshold of a claim, with the interval of their mean.

    Args:
        margins: by how much the claim holds in each pair; those that are not finite are left out.
        found: the interval, None for a claim that counts pairs.
        told: the same in words.
        judged: whether a value below zero speaks against something.
    """
    dots = [margin for margin in margins if math.isfinite(margin)]
    ends = [found.low, found.high] if found and math.isfinite(found.low) and math.isfinite(found.high) else []
    low, high = min([0.0, *dots, *ends]), max([0.0, *dots, *ends])
    room = (high - low or 1.0) * 0.08

    def x(value: float) -> float:
        return round(3 + (WIDE - 6) * (value - low + room) / (high - low + 2 * room), 1)

    parts = [f'<path class="axis" d="M0 20H{WIDE}"/>', f'<path class="zero" d="M{x(0)} 2V28"/>']
    if ends:
        parts.append(f'<path class="bar" d="M{x(ends[0])} 10H{x(ends[1])}M{x(ends[0])} 6v8M{x(ends[1])} 6v8"/>')
    if found:
        parts.append(f'<circle class="mean" cx="{x(found.mean)}" cy="10" r="3.5"/>')
    sides = [(margin, "wrong" if judged and margin < 0 else "right") for margin in dots] if len(dots) <= DOTS else []
    parts += [f'<circle class="{side}" cx="{x(margin)}" cy="20" r="2.5"/>' for margin, side in sides]
    return (
        f'<svg class="interval" viewBox="0 0 {WIDE} {HIGH}" width="{WIDE}" height="{HIGH}" role="img" '
        f'aria-label="{escape(told)}">{"".join(parts)}</svg>'
    )


@dataclass(frozen=True)
class Point:
    """An arm in a plot: where it stands, its spread either way, and whether it is a teacher of others."""

    label: str
    x: float
    x_sd: float
    y: float
    y_sd: float
    teacher: bool


@dataclass(frozen=True)
class _Box:
    left: float
    top: float
    right: float
    bottom: float

    def towards(self, x: float) -> tuple[str, float]:
        """Return the end of a text that keeps its place whatever the width of its letters: the one next to ``x``."""
        if self.left >= x:
            return "start", self.left
        return ("end", self.right) if self.right <= x else ("middle", (self.left + self.right) / 2)

    def meets(self, other: "_Box") -> bool:
        return (
            self.left < other.right and other.left < self.right and self.top < other.bottom and other.top < self.bottom
        )


WIDTH, HEIGHT = 360, 270
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 12, 44
# A picture that stands in a file of its own brings its colours, for a light page and for a dark one.
STYLE = (
    ".lines text{font:12px system-ui,sans-serif;fill:#444}.lines .grid{stroke:#8884;fill:none}"
    ".lines .axis{stroke:#888;fill:none}.lines .line{fill:none;stroke-width:2}"
    + "".join(
        f".lines .line.l{place}{{stroke:{colour}}}.lines .name.l{place}{{fill:{colour}}}"
        for place, colour in enumerate(("#2f6fb7", "#c2541b", "#3c8a43", "#9a4fb0", "#b3892b", "#4f8f99"))
    )
    + "@media(prefers-color-scheme:dark){.lines text{fill:#bbb}}"
)
CELLS = ".lines .cell{fill:#2f6fb7;stroke:#8884}.lines text.dark{fill:#fff}"
LETTER, LINE = 7.3, 14.0  # room that a letter and a line of a label take, at the size that the style sheet gives them


def scatter(points: Sequence[Point], x_title: str, y_title: str) -> str:
    """Return the arms as points with whiskers of one standard deviation, each with its name beside it."""
    x_ticks = ticks([v for each in points for v in (each.x - each.x_sd, each.x + each.x_sd)])
    y_ticks = ticks([v for each in points for v in (each.y - each.y_sd, each.y + each.y_sd)])

    def x(value: float) -> float:
        return round(LEFT + (WIDTH - LEFT - RIGHT) * (value - x_ticks[0]) / (x_ticks[-1] - x_ticks[0]), 1)

    def y(value: float) -> float:
        return round(HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (value - y_ticks[0]) / (y_ticks[-1] - y_ticks[0]), 1)

    floor = HEIGHT - BOTTOM
    grid = "".join(f"M{x(tick)} {TOP}V{floor}" for tick in x_ticks)
    grid += "".join(f"M{LEFT} {y(tick)}H{WIDTH - RIGHT}" for tick in y_ticks)
    parts = [f'<path class="grid" d="{grid}"/>', f'<path class="axis" d="M{LEFT} {TOP}V{floor}H{WIDTH - RIGHT}"/>']
    parts += [f'<text x="{x(t)}" y="{floor + 16}" text-anchor="middle">{_number(t, x_ticks)}</text>' for t in x_ticks]
    parts += [f'<text x="{LEFT - 7}" y="{y(t) + 4}" text-anchor="end">{_number(t, y_ticks)}</text>' for t in y_ticks]
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text class="title" x="{middle}" y="{HEIGHT - 8}" text-anchor="middle">{escape(x_title)}</text>')
    taken = [_Box(x(each.x) - 6, y(each.y) - 6, x(each.x) + 6, y(each.y) + 6) for each in points]
    for each in points:
        left, right, low, high = (
            x(each.x - each.x_sd),
            x(each.x + each.x_sd),
            y(each.y - each.y_sd),
            y(each.y + each.y_sd),
        )
        parts.append(f'<path class="whisker" d="M{left} {y(each.y)}H{right}M{x(each.x)} {low}V{high}"/>')
        taken += [_Box(left, y(each.y) - 1, right, y(each.y) + 1), _Box(x(each.x) - 1, high, x(each.x) + 1, low)]
    for each in sorted(points, key=lambda point: (point.y, point.label)):
        place = _place(x(each.x), y(each.y), len(each.label) * LETTER, taken)
        taken.append(place)
        near = min(max(x(each.x), place.left), place.right), min(max(y(each.y), place.top), place.bottom)
        if math.dist(near, (x(each.x), y(each.y))) > 12:
            parts.append(f'<path class="leader" d="M{x(each.x)} {y(each.y)}L{near[0]:.1f} {near[1]:.1f}"/>')
        parts.append(_mark(each, x(each.x), y(each.y), y_title))
        side, edge = place.towards(x(each.x))
        at = f'x="{edge:.1f}" y="{place.bottom - 3:.1f}" text-anchor="{side}"'
        parts.append(f'<text class="label" {at}>{escape(each.label)}</text>')
    told = "; ".join(f"{each.label} {each.y:.4g} at {each.x:.4g}" for each in points)
    return (
        f'<svg class="scatter" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(f"{y_title} against {x_title}: {told}")}">{"".join(parts)}</svg>'
    )


def picture(shown: Shown) -> str:
    """Return a picture of a record, whatever its kind, as an SVG that carries its own colours."""
    if isinstance(shown, Images):
        return images(shown)
    return heat_map(shown) if isinstance(shown, HeatMap) else lines(shown)


def images(shown: Images) -> str:
    """Return a table of small images as an SVG that holds them as one PNG."""
    height, width = shown.size
    columns, rows = len(shown.x), len(shown.y)
    pixels = np.frombuffer(base64.b64decode(shown.pixels), np.uint8).reshape(rows, columns, height, width)
    data = base64.b64encode(_png(pixels.swapaxes(1, 2).reshape(rows * height, columns * width))).decode()
    left = LEFT + round(LETTER * max(map(len, shown.y)))
    scale = min((WIDTH - RIGHT - left) / (columns * width), (HEIGHT - BOTTOM - TOP) / (rows * height))
    wide, high = scale * width, scale * height
    right, floor = left + columns * wide, TOP + rows * high
    grid = "".join(f"M{left + wide * each:.1f} {TOP}V{floor:.1f}" for each in range(columns + 1))
    parts = [
        f'<image href="data:image/png;base64,{data}" x="{left}" y="{TOP}" width="{columns * wide:.1f}" '
        f'height="{rows * high:.1f}" style="image-rendering:pixelated"/><path class="grid" d="{grid}"/>'
    ]
    for row, name in enumerate(shown.y):
        place = f'x="{left - 7}" y="{TOP + high * (row + 0.5) + 4:.1f}"'
        parts.append(f'<text {place} text-anchor="end">{escape(name)}</text>')
    every = math.ceil(columns * LETTER * max(map(len, shown.x)) / (right - left))
    for column, name in list(enumerate(shown.x))[::every]:
        place = f'x="{left + wide * (column + 0.5):.1f}" y="{floor + 16:.1f}"'
        parts.append(f'<text {place} text-anchor="middle">{escape(name)}</text>')
    titles = (
        f'<text x="{(left + right) / 2:.1f}" y="{floor + 36:.1f}" text-anchor="middle">{escape(shown.x_title)}</text>'
        f'<text transform="translate(14 {(TOP + floor) / 2:.1f}) rotate(-90)" text-anchor="middle">{escape(shown.y_title)}</text>'
    )
    return _svg(shown, "".join(parts) + titles)


def _png(grey: np.ndarray) -> bytes:
    """Return a PNG of a grey image ``[H, W]`` of bytes (ISO/IEC 15948): header, compressed lines, end."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = grey.shape
    lines = b"".join(b"\0" + line.tobytes() for line in grey)
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        chunk(kind, data) for kind, data in ((b"IHDR", header), (b"IDAT", zlib.compress(lines)), (b"IEND", b""))
    )


def heat_map(shown: HeatMap) -> str:
    """Return a table of values, each on a ground as dark as it is high, as an SVG that carries its own colours."""
    left = LEFT + round(LETTER * max(map(len, shown.y)))
    wide, high = (WIDTH - RIGHT - left) / len(shown.x), (HEIGHT - BOTTOM - TOP) / len(shown.y)
    floor = HEIGHT - BOTTOM
    parts = []
    for row, (name, values) in enumerate(zip(shown.y, shown.cells, strict=True)):
        middle = floor - high * (row + 0.5)  # the first row is the lowest, as of an axis
        parts.append(f'<text x="{left - 7}" y="{middle + 4:.1f}" text-anchor="end">{escape(name)}</text>')
        for column, value in enumerate(values):
            share = min(1.0, max(0.0, (value - shown.low) / (shown.high - shown.low)))
            place = f'x="{left + wide * column:.1f}" y="{middle - high / 2:.1f}" width="{wide:.1f}" height="{high:.1f}"'
            parts.append(f'<rect class="cell" {place} fill-opacity="{0.9 * share:.3f}"/>')
            told = f'x="{left + wide * (column + 0.5):.1f}" y="{middle + 4:.1f}" text-anchor="middle"'
            parts.append(f'<text class="{"dark" if share > 0.65 else "value"}" {told}>{value:.2f}</text>')
    for column, name in enumerate(shown.x):
        parts.append(
            f'<text x="{left + wide * (column + 0.5):.1f}" y="{floor + 16}" text-anchor="middle">{escape(name)}</text>'
        )
    titles = (
        f'<text x="{(left + WIDTH - RIGHT) / 2:.1f}" y="{HEIGHT - 8}" text-anchor="middle">{escape(shown.x_title)}</text>'
        f'<text transform="translate(14 {(TOP + floor) / 2:.1f}) rotate(-90)" text-anchor="middle">{escape(shown.y_title)}</text>'
    )
    return _svg(shown, "".join(parts) + titles, STYLE + CELLS)


def lines(picture: Picture) -> str:
    """Return lines over one axis, each with its name at its end, as an SVG that carries its own colours."""
    heights = [value for line in picture.lines.values() for value in line]
    y_ticks = [tick for tick in ticks(heights) if tick >= 0 or min(heights) < 0]
    ends = picture.x[0], picture.x[-1]
    x_ticks = list(picture.x) if len(picture.x) < 9 else [t for t in ticks(picture.x) if ends[0] <= t <= ends[1]]
    floor, right = HEIGHT - BOTTOM, WIDTH - RIGHT - round(LETTER * max(map(len, picture.lines)))

    def x(value: float) -> float:
        return round(LEFT + (right - LEFT) * (value - ends[0]) / (ends[1] - ends[0] or 1.0), 1)

    def y(value: float) -> float:
        return round(floor - (floor - TOP) * (value - y_ticks[0]) / (y_ticks[-1] - y_ticks[0]), 1)

    grid = "".join(f"M{LEFT} {y(tick)}H{right}" for tick in y_ticks)
    parts = [f'<path class="grid" d="{grid}"/>', f'<path class="axis" d="M{LEFT} {TOP}V{floor}H{right}"/>']
    parts += [f'<text x="{x(t)}" y="{floor + 16}" text-anchor="middle">{t:g}</text>' for t in x_ticks]
    parts += [f'<text x="{LEFT - 7}" y="{y(t) + 4}" text-anchor="end">{_number(t, y_ticks)}</text>' for t in y_ticks]
    parts.append(
        f'<text class="title" x="{(LEFT + right) / 2}" y="{HEIGHT - 8}" text-anchor="middle">{escape(picture.x_title)}</text>'
    )
    last = sorted((y(line[-1]), name) for name, line in picture.lines.items())
    places = {name: place for (_, name), place in zip(last, _apart([end for end, _ in last], floor), strict=True)}
    for number, (name, line) in enumerate(sorted(picture.lines.items())):
        points = " ".join(f"{x(each)},{y(value)}" for each, value in zip(picture.x, line, strict=True))
        parts.append(f'<polyline class="line l{number % 6}" points="{points}"/>')
        parts.append(
            f'<text class="name l{number % 6}" x="{right + 6}" y="{places[name] + 4:.1f}">{escape(name)}</text>'
        )
    return _svg(picture, "".join(parts))


def _svg(shown: Shown, content: str, style: str = STYLE) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="lines" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(f"{shown.title}: {shown.y_title} against {shown.x_title}")}"><style>{style}</style>'
        f"{content}</svg>\n"
    )


def _apart(places: Sequence[float], floor: float) -> list[float]:
    """Return ascending places, moved so that lines of text there do not meet, none of them below the floor."""
    found = list(places)
    for each in range(1, len(found)):
        found[each] = max(found[each], found[each - 1] + LINE)
    over = max(0.0, found[-1] - floor)
    found[-1] -= over
    for each in range(len(found) - 2, -1, -1):
        found[each] = min(found[each], found[each + 1] - LINE)
    return found


def ticks(values: Iterable[float], about: int = 5) -> list[float]:
    """Return round numbers, evenly apart, from below the lowest value to above the highest."""
    values = list(values)
    low, high = min(values), max(values)
    reach = (high - low) or abs(high) * 0.2 or 1.0
    low, high = low - 0.06 * reach, high + 0.06 * reach
    rough = (high - low) / about
    ten = 10.0 ** math.floor(math.log10(rough))
    step = next(each * ten for each in (1, 2, 2.5, 5, 10) if each * ten >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{place * step:.10g}") for place in range(first, last + 1)]


def _number(tick: float, all_ticks: Sequence[float]) -> str:
    step = all_ticks[1] - all_ticks[0]
    places = next(n for n in range(12) if abs(round(step, n) - step) < step * 1e-6)
    return f"{tick:.{places}f}"


def _mark(point: Point, x: float, y: float, of: str) -> str:
    title = f"<title>{escape(f'{point.label}: {of} {point.y:.4g} ± {point.y_sd:.2g}')}</title>"
    if point.teacher:
        return f'<rect class="teacher" x="{x - 4.5:.1f}" y="{y - 4.5:.1f}" width="9" height="9">{title}</rect>'
    return f'<circle class="student" cx="{x}" cy="{y}" r="5">{title}</circle>'


def _place(x: float, y: float, width: float, taken: Sequence[_Box]) -> _Box:
    """Return where a label stands: the nearest free place around its point, within the plot."""
    best, cost = None, math.inf
    for away in (9, 14, 20, 27, 35, 44, 54, 66, 80, 96):
        for turn in range(24):
            angle = math.tau * turn / 24
            middle_x, middle_y = x + away * math.cos(angle), y + away * math.sin(angle)
            left = (
                middle_x - width * (1 - math.cos(angle)) / 2
            )  # on the right it begins there, on the left it ends there
            box = _Box(left, middle_y - LINE / 2, left + width, middle_y + LINE / 2)
            outside = box.left < LEFT + 2 or box.right > WIDTH or box.top < 2 or box.bottom > HEIGHT - BOTTOM - 1
            met = sum(box.meets(each) for each in taken)
            worse = 1000 * met + 5000 * outside + away + 4 * abs(math.sin(angle)) + 3 * (math.cos(angle) < 0)
            if worse < cost - 1e-9:
                best, cost = box, worse
    return best

"""Natural against worst-case R@1 with intervals, as SVG that takes its colours from the page."""

from collections.abc import Mapping, Sequence
from html import escape
from itertools import groupby

from dml.api.leaderboard.entry import Entry, Share

WIDTH, HEIGHT = 640, 440
LEFT, RIGHT, TOP, BOTTOM = 72, 16, 14, 68  # margins, wide enough for the larger letters of a narrow screen
APART, NEAR = 21, 40  # two numbers that are nearer, in height and aside, would overlap on a narrow screen
COLOURS = 6
SHAPES = (
    "M-6 0a6 6 0 1 0 12 0a6 6 0 1 0 -12 0z",
    "M-5.5 -5.5h11v11h-11z",
    "M0 -7.5l7 12.5h-14z",
    "M0 -8l8 8l-8 8l-8 -8z",
    "M0 7.5l7 -12.5h-14z",
    "M-3 -7h6l4 4v6l-4 4h-6l-4 -4v-6z",
)


def plot(entries: Sequence[Entry], ranks: Mapping[str, int]) -> str:
    """Return the plot and its key.

    Args:
        entries: in the order of the page.
        ranks: file name -> number beside a mark.
    """
    datasets = list(dict.fromkeys(entry.dataset for entry in entries))
    marks = [
        mark
        for _, group in groupby(entries, lambda entry: (entry.dataset, entry.eps))
        for mark in _group(list(group), ranks, datasets)
    ]
    label = "Natural R@1 against R@1 left under attack, with 95% intervals; the table has the same numbers"
    return (
        f'<figure><svg class="plot" viewBox="0 0 {WIDTH} {HEIGHT}" role="group" aria-label="{label}">'
        f"{_axes()}{''.join(marks)}</svg>{_key(datasets)}</figure>"
    )


def _x(share: float) -> float:
    return round(LEFT + share * (WIDTH - LEFT - RIGHT), 1)


def _y(share: float) -> float:
    return round(HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM), 1)


def _axes() -> str:
    parts = []
    for tenth in range(0, 11, 2):
        share = tenth / 10
        x, y = _x(share), _y(share)
        parts.append(
            f'<path class="grid" d="M{x} {_y(0)}V{_y(1)}M{_x(0)} {y}H{_x(1)}"/>'
            f'<text class="axis" x="{x}" y="{_y(0) + 22}" text-anchor="{"end" if tenth == 10 else "middle"}">'
            f'{share:.1f}</text><text class="axis" x="{LEFT - 8}" y="{y + 5}" text-anchor="end">{share:.1f}</text>'
        )
    parts.append(f'<path class="whole" d="M{_x(0)} {_y(0)}L{_x(1)} {_y(1)}"/>')
    x, y = _x(0.3), _y(0.3)
    parts.append(f'<text class="axis" transform="translate({x} {y}) rotate(-33)" dy="-11">no query lost</text>')
    parts.append(f'<text x="{_x(0.5)}" y="{HEIGHT - 12}" text-anchor="middle">natural R@1</text>')
    turned = f'transform="translate(20 {_y(0.5)}) rotate(-90)" text-anchor="middle"'
    parts.append(f"<text {turned}>R@1 left under attack</text>")
    return "".join(parts)


def _group(entries: list[Entry], ranks: Mapping[str, int], datasets: list[str]) -> list[str]:
    """The marks of entries that stand beside each other: their numbers do not overlap."""
    found = []
    for entry, roomy in zip(entries, _roomy(entries), strict=True):
        natural, left = entry.natural.r1, entry.worst_case.r1
        beside, anchor = _beside(entry)
        rank = ranks[entry.file_name]
        words = (
            f"{rank}. {entry.name}, {entry.dataset} at {entry.radius}: natural R@1 {_text(natural)}, left {_text(left)}"
        )
        shape = SHAPES[datasets.index(entry.dataset) % len(SHAPES)]
        hollow = "" if entry.gates.word == "hold" else " hollow"
        place = f'x="{beside:.1f}" y="{_y(left.value) + 5:.1f}" text-anchor="{anchor}"'
        number = f'<text class="number" {place}>{rank}</text>'
        found.append(
            f'<g class="{_colour(entry, datasets)}" data-dataset="{escape(entry.dataset)}" data-eps="{entry.radius}">'
            f'<a href="#{escape(entry.file_name)}" aria-label="{escape(words)}"><title>{escape(words)}</title>'
            f'<path class="bar" d="M{_x(natural.low)} {_y(left.value)}H{_x(natural.high)}'
            f'M{_x(natural.value)} {_y(left.low)}V{_y(left.high)}"/>'
            f'<path class="mark{hollow}" transform="translate({_x(natural.value)} {_y(left.value)})" d="{shape}"/>'
            f"{number if roomy else ''}</a></g>"
        )
    return found


def _beside(entry: Entry) -> tuple[float, str]:
    """Where the number of an entry stands, and whether that is its start or its end."""
    natural = entry.natural.r1
    if natural.low < 0.1:  # on the other side, a number would cover the axis
        return _x(natural.high) + 6, "start"
    return _x(natural.low) - 6, "end"


def _roomy(entries: Sequence[Entry]) -> list[bool]:
    """Which entries have room for a number: the best of those whose numbers would overlap."""
    places: list[tuple[float, float]] = []
    found = []
    for entry in entries:
        (beside, _), y = _beside(entry), _y(entry.worst_case.r1.value)
        found.append(all(abs(other - beside) >= NEAR or abs(taken - y) >= APART for other, taken in places))
        if found[-1]:
            places.append((beside, y))
    return found


def _text(share: Share) -> str:
    return f"{share.value:.3f} ({share.low:.3f} to {share.high:.3f})"


def _colour(entry: Entry, datasets: list[str]) -> str:
    return "grey" if entry.control else f"d{datasets.index(entry.dataset) % COLOURS}"


def _key(datasets: list[str]) -> str:
    items = [(f"d{place % COLOURS}", SHAPES[place % len(SHAPES)], name) for place, name in enumerate(datasets)]
    items += [("grey", SHAPES[0], "untrained control")]
    marks = [(kind, "mark", shape, name) for kind, shape, name in items]
    marks.append(("grey", "mark hollow", SHAPES[0], "hollow: gates fail or were not run"))
    return (
        '<ul class="key">'
        + "".join(
            f'<li class="{kind}"><svg viewBox="-9 -9 18 18" aria-hidden="true"><path class="{mark}" d="{shape}"/></svg>'
            f"{escape(name)}</li>"
            for kind, mark, shape, name in marks
        )
        + "</ul>"
    )

"""The leaderboard to read: Markdown, and one HTML page that asks no other file or address for anything."""

import re
from collections.abc import Sequence
from html import escape
from itertools import groupby
from pathlib import Path

from dml.api.leaderboard.browser import SCRIPT, STYLE
from dml.api.leaderboard.entry import Entry, Share
from dml.api.leaderboard.plot import plot
from dml.common.files import write_text
from dml.reporting.spelling import count, interval, table

TOP = "../../"  # of the repository, seen from the page
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"
HEADS = (  # words, whether they are text, the direction of the first sort
    ("rank", False, "ascending"),
    ("model", True, "ascending"),
    ("dataset", True, "ascending"),
    ("eps", False, "ascending"),
    ("natural R@1", False, "descending"),
    ("R@1 left", False, "descending"),
    ("natural MAP@R", False, "descending"),
    ("MAP@R left", False, "descending"),
    ("gates", True, "descending"),
    ("suite", True, "ascending"),
)
TOLD = (
    "R@1 is the share of queries whose nearest other image is of the same class. R@1 left counts a query only if it "
    "survives the worst image that the suite's attacks or a claim found in the l-inf ball of radius eps. Brackets hold "
    "95% intervals. Entries of one dataset have the same queries and gallery.",
    "Gates look for signs of a failed attack: where one fails or none was run, R@1 left may be too high. An attack "
    "gives an upper bound on robustness. Entries are measured by those who add them; anybody can lower one with images "
    "that break it.",
)


def write(entries: Sequence[Entry], folder: Path) -> Path:
    """Write README.md and index.html.

    Args:
        entries: in the order of :func:`dml.api.leaderboard.entry.read_all`.
        folder: of the leaderboard.

    Returns:
        The HTML page.
    """
    write_text(folder / "README.md", markdown(entries))
    write_text(folder / "index.html", html(entries))
    return folder / "index.html"


def _ranks(entries: Sequence[Entry]) -> dict[str, int]:
    """File name -> place among the entries of its dataset and radius; equals share one."""
    ranks = {}
    for _, group in groupby(entries, lambda entry: (entry.dataset, entry.eps)):
        values = [(entry.file_name, entry.worst_case.r1.value) for entry in group]
        ranks |= {name: 1 + sum(other > value for _, other in values) for name, value in values}
    return ranks


def markdown(entries: Sequence[Entry]) -> str:
    """Return the page for GitHub: one table per dataset and radius."""
    lines = ["# Leaderboard", "", f"{TOLD[0]} [index.html](index.html), opened in a browser, sorts and filters."]
    for (dataset, _), group in groupby(entries, lambda entry: (entry.dataset, entry.eps)):
        some = list(group)
        first = some[0]
        lines += ["", f"## {_marked(dataset)} at {first.radius}", ""]
        lines.append(
            f"{count(first.queries, 'query', 'queries')}, gallery of {first.gallery:,} images in {first.classes:,} "
            f"classes, {first.shape[0]} x {first.shape[1]} pixels."
        )
        head = ("model", "architecture", "natural R@1", "R@1 left", "MAP@R left", "gates", "suite")
        lines += table((*head, "entry"), map(_line, some))
        lines += [f"\n- {_marked(entry.name)}: {_marked(text)}" for entry in some for text in _claims(entry)]
    lines += [
        "",
        TOLD[1],
        "",
        f"[CONTRIBUTING.md]({TOP}CONTRIBUTING.md) says how to add a model, and how to break one.",
    ]
    return "\n".join(lines) + "\n"


def _line(entry: Entry) -> list[str]:
    return [
        f"[{_marked(entry.name)}]({_link(entry)})",
        _marked(_kind(entry)),
        f"{entry.natural.r1.value:.3f}",
        f"**{entry.worst_case.r1.value:.3f}** {interval(entry.worst_case.r1.low, entry.worst_case.r1.high)}",
        f"{entry.worst_case.map_r.value:.3f}",
        _marked("; ".join([entry.gates.word, *entry.gates.failed])),
        _marked(entry.suite),
        f"[JSON]({entry.file_name})",
    ]


def _kind(entry: Entry) -> str:
    return entry.architecture if entry.control else f"{entry.architecture}; trained on {entry.training_data}"


def _marked(text: str) -> str:
    """Text that Markdown shows as it is."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", text)


def _link(entry: Entry) -> str:
    return entry.link if "://" in entry.link else TOP + entry.link


def _claims(entry: Entry) -> list[str]:
    return [
        f"lowered from {claim.before:.3f} by {claim.by} ({count(claim.queries, 'query', 'queries')})"
        for claim in entry.lowered
    ]


def html(entries: Sequence[Entry]) -> str:
    """Return the page for a browser."""
    ranks = _ranks(entries)
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}"><link rel="icon" href="data:,">'
        f"<title>Leaderboard of robust image retrieval</title><style>{STYLE}</style>"
    )
    parts = [
        "<h1>Leaderboard of robust image retrieval</h1>",
        "<p>" + TOLD[0].replace("l-inf", "l\u2011inf") + "</p>",  # a hyphen that no line ends at
        _filters(entries),
        _table(entries, ranks),
        "<h2>Natural against worst-case R@1</h2>",
        '<p class="small">Numbers are ranks among the entries of a dataset and radius; where '
        "marks crowd, only the best has one.</p>",
        plot(entries, ranks),
        f'<h2>Join</h2><p>{TOLD[1]} <a href="{TOP}CONTRIBUTING.md">CONTRIBUTING.md</a> says how to add a model, '
        "and how to break one.</p>",
        f"<script>{SCRIPT}</script>",
    ]
    body = "\n".join(parts)
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>{body}</body></html>\n'


def _filters(entries: Sequence[Entry]) -> str:
    """Choices of dataset and radius, at first the dataset with most entries and its largest radius."""
    datasets = sorted({entry.dataset for entry in entries})
    first = max(datasets, key=lambda name: sum(entry.dataset == name for entry in entries))
    radii = {entry.eps: entry.radius for entry in sorted(entries, key=lambda entry: entry.eps)}
    largest = radii[max(entry.eps for entry in entries if entry.dataset == first)]
    return (
        '<div class="filters" hidden>'
        + _select("dataset", "dataset", datasets, first)
        + _select("radius (eps)", "eps", list(dict.fromkeys(radii.values())), largest)
        + '<p role="status"></p></div>'
    )


def _select(label: str, name: str, words: list[str], chosen: str) -> str:
    options = "".join(
        f'<option value="{escape(word)}"{" selected" if word == chosen else ""}>{escape(word)}</option>'
        for word in words
    )
    options = f'<option value="">all</option>{options}'
    return f'<label>{label}<select name="{name}" autocomplete="off">{options}</select></label>'


def _table(entries: Sequence[Entry], ranks: dict[str, int]) -> str:
    heads = "".join(
        f'<th role="columnheader" scope="col"{" class=words" if is_text else ""} data-first="{first}" aria-sort="none">'
        f'<button type="button">{words.replace(" ", " <br>")}</button></th>'
        for words, is_text, first in HEADS
    )
    heads += '<th role="columnheader" scope="col" class="words">entry</th>'
    body = "\n".join(_row(entry, ranks[entry.file_name]) for entry in entries)
    return (
        f'<table role="table" aria-label="Entries"><thead role="rowgroup"><tr role="row">{heads}</tr></thead>\n'
        f'<tbody role="rowgroup">{body}</tbody></table>'
    )


def _row(entry: Entry, rank: int) -> str:
    file = escape(entry.file_name)
    gates = escape("; ".join(entry.gates.failed))
    cells = [
        _cell("rank", rank, str(rank)),
        _name(entry),
        _cell("dataset", entry.dataset, escape(entry.dataset), "words"),
        _cell("eps", entry.eps, entry.radius),
        *(
            _cell(label, share.value, _share(share))
            for label, share in (
                ("natural R@1", entry.natural.r1),
                ("R@1 left", entry.worst_case.r1),
                ("natural MAP@R", entry.natural.map_r),
                ("MAP@R left", entry.worst_case.map_r),
            )
        ),
        _cell(
            "gates",
            entry.gates.word,
            entry.gates.word + (f'<span class="small warns">{gates}</span>' if gates else ""),
            "words gates" if entry.gates.word == "hold" else "words gates warns",
        ),
        _cell(
            "suite", entry.suite, f'{escape(entry.suite)}<span class="small"> {entry.queries:,} queries</span>', "words"
        ),
        _cell("entry", file, f'<a href="{file}">JSON</a>', "words"),
    ]
    return (
        f'<tr role="row" id="{file}" data-dataset="{escape(entry.dataset)}" data-eps="{entry.radius}"'
        f"{' class=control' if entry.control else ''}>{''.join(cells)}</tr>"
    )


def _cell(label: str, value: object, inner: str, kind: str = "") -> str:
    word = f' class="{kind}"' if kind else ""
    return f'<td role="cell"{word} data-label="{label}" data-value="{escape(str(value))}">{inner}</td>'


def _share(share: Share) -> str:
    return f'{share.value:.3f}<span class="small"> {interval(share.low, share.high)}</span>'


def _name(entry: Entry) -> str:
    notes = f'<span class="small">{escape(_kind(entry))}; {escape(entry.authors)}</span>'
    notes += "".join(f'<span class="small warns">{escape(text)}</span>' for text in _claims(entry))
    return (
        f'<th role="rowheader" scope="row" class="words" data-value="{escape(entry.name)}">'
        f'<a href="{escape(_link(entry))}">{escape(entry.name)}</a>{notes}</th>'
    )

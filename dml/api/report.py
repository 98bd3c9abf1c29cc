"""The report of an evaluation: one HTML page that asks no other file or address for anything, and its curve."""

import base64
import io
from collections.abc import Iterable, Sequence
from html import escape

import numpy as np
import seaborn as sns
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from dml.api.attack import NAMES
from dml.api.printed import by_attack, name_text, natural_text
from dml.api.result import Fooled, Result, Sentence
from dml.api.summary import MODEL, ranks_of
from dml.reporting.spelling import interval, number, settings_text
from dml.reporting.style import COLORS, GREY_MARKERS, GREYS

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; max-width: 62rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.5rem; margin-bottom: .2rem } h2 { font-size: 1.15rem; margin: 2rem 0 .5rem }
.wide { overflow-x: auto } table { border-collapse: collapse; font-size: .9rem; width: 100% }
th, td { padding: .35rem .6rem; text-align: right; border-bottom: 1px solid #ddd; white-space: pre;
  vertical-align: top } th { vertical-align: bottom }
th:first-child, td:first-child { text-align: left; white-space: normal; min-width: 6.5rem }
tr.own td { font-weight: 600 }
.say { background: #f3f6fa; border-left: 4px solid #0072B2; padding: .6rem 1rem; margin: 1rem 0 }
.bad { border-color: #D55E00; background: #fdf4ee } .small { color: #555; font-size: .85rem }
img.curve { width: 36rem; max-width: 100%; height: auto }
.searches { display: grid; grid-template-columns: repeat(auto-fill, minmax(19rem, 1fr)); gap: 1rem }
.search { border: 1px solid #ddd; border-radius: 6px; padding: .6rem; display: grid; gap: .3rem .5rem;
  grid-template-columns: repeat(3, 1fr) }
figure { margin: 0 } figure img { width: 100%; display: block } .pixels { image-rendering: pixelated }
figcaption { font-size: .75rem; line-height: 1.25; overflow-wrap: anywhere; margin-top: .15rem }
.right img, .wrong img { outline: 3px solid #009E73; outline-offset: -3px } .wrong img { outline-color: #D55E00 }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1rem; font-size: .85rem }
dt { color: #555 } dd { margin: 0; overflow-wrap: anywhere }
@media (max-width: 30rem) { th, td { padding: .3rem; font-size: .8rem } dl { grid-template-columns: 1fr } }
"""


def page(result: Result) -> str:
    """Return the page."""
    about = result.about
    kind = "" if about["gradients"] else ", black box: the model gives no gradients"
    parts = [
        "<h1>How easily is this search fooled?</h1>",
        f'<p class="small">{about["queries"]:,} of {about["all_queries"]:,} queries, which the tables are of; gallery '
        f"of {about['gallery']:,} images in {about['classes']:,} classes, {about['shape'][0]} × "
        f"{about['shape'][1]} pixels; suite {escape(about['suite'])}{kind}; {NAMES[about['norm']]} ball; "
        f"{about['similarity']} similarity; "
        f"{natural_text(about['natural'])}.</p>",
        *(_said(sentence) for sentence in result.sentences()),
        _summary(result),
        _ranks(result),
        f'<h2>R@1 by radius</h2><img class="curve" alt="R@1 by radius" src="{_uri(curve(result))}">'
        '<p class="small">Marks are measured, with the 95% interval of your model; lines only join them.</p>',
        _searches(result),
        _gates(result),
        _settings(result),
    ]
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    title = "<title>Attack on a retrieval model</title>"
    body = "\n".join(part for part in parts if part)
    head = f"<head>{head}{title}<style>{STYLE}</style></head>"
    return f'<!doctype html>\n<html lang="en">{head}\n<body>{body}</body></html>\n'


def curve(result: Result) -> bytes:
    """Return R@1 by radius with 95% intervals as a PNG: the model in colour, controls in grey."""
    with sns.axes_style("whitegrid"):
        figure = Figure(figsize=(5.2, 4.2), layout="constrained")
        axes = figure.subplots()
    FigureCanvasAgg(figure)
    summary, grey, norm = result.summary, 0, result.about["norm"]
    scale, unit = (255, " (1/255)") if norm == "linf" else (1, "")
    for model, rows in summary.groupby("model", sort=False):
        own = model == MODEL
        x = [0, *rows["eps"] * scale]
        y = [rows["natural_r1"].iloc[0], *rows["r1"]]
        color, mark = (COLORS[0], "o") if own else (GREYS[grey % len(GREYS)], GREY_MARKERS[grey % len(GREY_MARKERS)])
        grey += not own
        label = name_text(str(model))
        axes.plot(x, y, color=color, marker=mark, linestyle="-" if own else "--", linewidth=1 + own, label=label)
        if own:
            low, high = rows["r1"] - rows["r1_low"], rows["r1_high"] - rows["r1"]
            axes.errorbar(rows["eps"] * scale, rows["r1"], [low, high], fmt="none", ecolor=color, capsize=3)
    axes.set(xlabel=f"eps of the {NAMES[norm]} ball{unit}; 0 is natural", ylabel="R@1", ylim=(-0.03, 1.03))
    axes.set_xlim(left=0 - 0.02 * max(summary["eps"].max() * scale, 1e-3))
    figure.legend(loc="outside upper left", ncols=2, frameon=False)  # beside the plot, a telephone would shrink both
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150, metadata={"Software": None})
    return buffer.getvalue()


def _said(sentence: Sentence) -> str:
    return f'<p class="say{" bad" if sentence.warns else ""}">{escape(sentence.text)}</p>'


def _summary(result: Result) -> str:
    head = ("", "eps", "natural\nR@1", "R@1 left", "natural\nMAP@R", "MAP@R left")
    rows = [
        (
            name_text(row["model"]),
            result.radius(row["eps"]),
            number(row["natural_r1"]),
            f"{number(row['r1'])}\n{interval(row['r1_low'], row['r1_high'])}",
            number(row["natural_map_r"]),
            f"{number(row['map_r'])}\n{interval(row['map_r_low'], row['map_r_high'])}",
        )
        for row in result.summary.to_dict("records")
    ]
    scores = [(name, f"{value:.4g}") for name, value in result.scores.items()]
    table = _table(head, rows, own=MODEL)
    told = (
        '<p class="small">R@1: share of queries whose nearest image is of the same class. "Left": the worst image that '
        "any attack found for each query; brackets hold 95% intervals.</p>"
    )
    apart = by_attack(result)
    tables = [_table(("score", "value"), scores)] if scores else []
    tables += [_table(apart[0], apart[1:])] if apart else []
    return f"<h2>What is left</h2>{table}{told}{''.join(tables)}"


def _ranks(result: Result) -> str:
    """R@k beyond R@1, natural and of the images that attack R@1."""
    summary = result.summary
    names = [name for name in ranks_of(summary) if summary[name].notna().any()]
    if not names:
        return ""
    rows = [
        (
            name_text(row["model"]),
            result.radius(row["eps"]),
            *(
                f"{row[f'natural_{name}']:.3f} → {row[name]:.3f}\n{interval(row[f'{name}_low'], row[f'{name}_high'])}"
                for name in names
            ),
        )
        for row in summary.to_dict("records")
    ]
    told = (
        '<p class="small">One of the k nearest images is right; attacked by the images that attack R@1. '
        "Brackets hold the 95% interval of what is left.</p>"
    )
    return "<h2>R@k, natural → attacked</h2>" + _table(("", "eps", *(f"R@{k[1:]}" for k in names)), rows, MODEL) + told


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], own: str = "") -> str:
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join(
        f"<tr{' class=own' if row[0] == own else ''}>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>"
        for row in rows
    )
    return f'<div class="wide"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def _searches(result: Result) -> str:
    if not result.fooled or result.images is None:
        return ""
    eps = result.images.eps
    changes = [np.abs(search.adversarial - search.query).max() for search in result.fooled]
    reach = eps if result.about["norm"] == "linf" else max(1e-9, *changes)  # what is shown as black or white
    cards = "".join(_search(search, reach) for search in result.fooled)
    return (
        f"<h2>Fooled searches at {result.radius(eps)}</h2>"
        f'<p class="small">Top row: a query, and what it finds. Bottom row: the attacked query, the change to it '
        f"(×{0.5 / reach:.0f}, grey is none), and what it finds now.</p>"
        f'<div class="searches">{cards}</div>'
    )


def _search(search: Fooled, reach: float) -> str:
    change = np.clip((search.adversarial - search.query) / (2 * reach) + 0.5, 0, 1)
    return (
        '<div class="search">'
        + _figure(search.query, f"query {search.row}: {search.label}")
        + "<span></span>"
        + _figure(search.found, f"finds {search.found_label}", "right")
        + _figure(search.adversarial, "attacked query")
        + _figure(change, "change")
        + _figure(search.fooled, f"finds {search.fooled_label}", "wrong")
        + "</div>"
    )


def _figure(image: np.ndarray, caption: str, kind: str = "") -> str:
    buffer = io.BytesIO()
    Image.fromarray((image * 255).round().astype(np.uint8)).save(buffer, "PNG")
    pixels = ' class="pixels"' if image.shape[1] < 100 else ""
    words = escape(caption, quote=True)
    return (
        f'<figure class="{kind}"><img{pixels} alt="{words}" src="{_uri(buffer.getvalue())}">'
        f"<figcaption>{words}</figcaption></figure>"
    )


def _gates(result: Result) -> str:
    if result.gates.empty:
        return ""
    rows = [
        (gate.gate, result.radius(gate.eps), number(gate.measured), number(gate.limit), "yes" if gate.passed else "NO")
        for gate in result.gates.itertuples()
    ]
    told = (
        '<p class="small">A failed attack says nothing about a model. Each gate looks for a sign of that; most run '
        "something else on the queries that survive, and count how many break. One compares gradients with finite "
        "differences.</p>"
    )
    return f"<h2>Gates</h2>{told}" + _table(("gate", "eps", "measured", "at most", "holds"), rows)


def _settings(result: Result) -> str:
    cost, about = result.cost, result.about
    lines = {
        "cost": f"{cost['forward']:,} images forward, {cost['backward']:,} backward, {cost['seconds']:.0f} s "
        f"({cost['seconds with controls']:.0f} s with controls) on {about['device']}"
        + (", in the last call, which continued" if cost["continued"] else ""),
        "suite": settings_text(about["settings"]),
        "seed": str(about["seed"]),
        "queries": "apart from the gallery" if about["apart"] else "each image is a query to all others",
        "SHA-256 of the attacked images": about["images_sha256"],
        "SHA-256 of the gallery's embeddings": about["embeddings_sha256"],
        "versions": ", ".join(f"{name} {value}" for name, value in about["versions"].items()),
    }
    rows = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in lines.items())
    return f"<h2>Settings</h2><dl>{rows}</dl>"


def _uri(data: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"

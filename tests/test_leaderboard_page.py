"""The page of the leaderboard: same bytes for the same entries, no outside request, and what it does in a browser."""

import base64
import json
import random
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from dml.api.leaderboard import entry, page
from dml.api.leaderboard.entry import Entry
from tests.made_entries import made

BROWSER = shutil.which("chromium")
CLAIM = {"by": "B. Breaker", "queries": 1, "before": 0.5, "file_sha256": "d" * 64}
ENTRIES = [
    made("alpha", kept=4),
    made("beta", kept=7, right=9, lowered=[CLAIM], gates={"run": 9, "failed": ["random noise"]}),
    made("gamma", kept=0, control=True, gates={"run": 0, "failed": []}, link="dml/evaluation/controls.py"),
    made("alpha", kept=5, eps=0.01),
    made("delta", kept=8, dataset="birds & <bees>", images_sha256="c" * 64),
]


@pytest.fixture
def ordered(tmp_path: Path) -> list[Entry]:
    entry.join(ENTRIES, tmp_path / "board")
    return entry.read_all(tmp_path / "board")


def test_the_same_entries_give_the_same_bytes(tmp_path: Path) -> None:
    shuffled = random.Random(0).sample(ENTRIES, len(ENTRIES))
    written = []
    for name, given in (("one", ENTRIES), ("other", shuffled)):
        entry.join(given, tmp_path / name)
        page.write(entry.read_all(tmp_path / name), tmp_path / name)
        written.append({file.name: file.read_bytes() for file in sorted((tmp_path / name).iterdir())})
    assert written[0] == written[1]
    assert {"README.md", "index.html", "alpha-shapes-8_255.json"} < set(written[0])


class Page(HTMLParser):
    """Collects attributes that could ask for something, and whether tags are balanced."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.others: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """See html.parser."""
        for name, value in attrs:
            if name == "href" and tag == "a":
                self.links.append(value or "")
            elif name in ("href", "src", "srcset", "data", "action", "poster", "background"):
                self.others.append(value or "")
        if tag not in ("meta", "link", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Tags of SVG that close themselves."""

    def handle_endtag(self, tag: str) -> None:
        """See html.parser."""
        assert self.open.pop() == tag


def test_the_page_asks_nothing_of_the_network(ordered: list[Entry]) -> None:
    text = page.html(ordered)
    found = Page(text)
    assert found.open == []
    assert found.others == ["data:,"], "an empty icon, so that none is asked for"
    assert "default-src 'none'" in text
    assert not re.search(r"url\(|@import|fetch\(|XMLHttpRequest|import\(|<script src|<iframe|<img", text)
    for item in ordered:
        assert item.file_name in found.links
        assert f"#{item.file_name}" in found.links, "from the plot to the table"
    assert "../../dml/evaluation/controls.py" in found.links


def test_names_are_shown_as_they_are() -> None:
    bad = made("<script>alert(1)</script> | *x*", authors='"><b>', training_data="a & b")
    text = page.html([bad])
    assert text.count("<script") == 1
    assert '"><b>' not in text
    assert "| [\\<script\\>alert(1)\\</script\\> \\| \\*x\\*](https://example.org/mine) |" in page.markdown([bad])


def test_claims_and_gates_are_shown(ordered: list[Entry]) -> None:
    for text in (page.html(ordered), page.markdown(ordered)):
        assert "lowered from 0.500 by B. Breaker (1 query)" in text
        assert "random noise" in text
        assert "not run" in text
    assert page.html(ordered).count('class="mark hollow"') == 2 + 1, "failed, not run, and the key"
    assert "**0.700** (0.397 to 0.892)" in page.markdown(ordered)


LOOK = """<script>
{
  const seen = () => [...document.querySelectorAll("tbody tr")].filter(row => row.getClientRects().length)
    .map(row => row.querySelector("th a").textContent);
  const points = () => [...document.querySelectorAll("svg.plot g")].filter(item => item.style.display === "").length;
  const button = words => [...document.querySelectorAll("thead button")].find(item => item.textContent === words);
  const state = words => button(words).closest("th").getAttribute("aria-sort");
  const choose = (name, value) => {
    const select = document.querySelector(`select[name=${name}]`);
    select.value = value;
    select.dispatchEvent(new Event("change"));
  };
  const found = {wide: [document.documentElement.scrollWidth, innerWidth], first: seen(), before: state("R@1 left")};
  found.points = points();
  found.status = document.querySelector("[role=status]").textContent;
  choose("dataset", ""); choose("eps", "");
  found.all = seen(); found.allPoints = points();
  const boxes = [...document.querySelectorAll(".number")].map(item => item.getBoundingClientRect());
  const meet = (a, b) => a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom;
  found.numbers = boxes.length;
  found.overlaps = boxes.some((box, place) => boxes.slice(place + 1).some(other => meet(box, other)));
  button("natural R@1").click(); found.natural = seen();
  found.down = state("natural R@1"); found.other = state("R@1 left");
  button("natural R@1").click(); found.up = state("natural R@1");
  button("model").click(); found.byName = seen(); found.name = state("model");
  button("eps").focus(); found.focus = document.activeElement === button("eps"); found.tab = button("eps").tabIndex;
  choose("eps", "0.01"); found.small = seen();
  choose("dataset", "birds & <bees>"); found.none = seen();
  choose("eps", ""); found.birds = seen();
  document.title = btoa(JSON.stringify(found));
}
</script></body>"""


@pytest.mark.skipif(BROWSER is None, reason="needs a browser")
@pytest.mark.parametrize("width", [400, 1200])
def test_a_browser_sorts_and_filters(ordered: list[Entry], tmp_path: Path, width: int) -> None:
    (tmp_path / "page.html").write_text(page.html(ordered).replace("</body>", LOOK), encoding="utf-8")
    found = browsed(tmp_path / "page.html", width)
    assert found["wide"][0] <= found["wide"][1], "nothing is wider than the window"
    assert found["first"] == ["beta", "alpha", "gamma"], "the dataset with most entries, R@1 left first"
    assert (found["before"], found["points"], found["status"]) == ("descending", 3, "3 of 5 entries shown")
    assert found["all"] == ["delta", "beta", "alpha", "alpha", "gamma"]
    assert found["allPoints"] == 5
    assert found["natural"][0] == "beta"
    assert (found["down"], found["other"], found["up"]) == ("descending", "none", "ascending")
    assert (found["byName"], found["name"]) == (["alpha", "alpha", "beta", "delta", "gamma"], "ascending")
    assert (found["focus"], found["tab"]) == (True, 0)
    assert (found["small"], found["none"], found["birds"]) == (["alpha"], [], ["delta"])


@pytest.mark.skipif(BROWSER is None, reason="needs a browser")
@pytest.mark.parametrize("width", [400, 1200])
def test_numbers_of_crowded_marks_do_not_overlap(tmp_path: Path, width: int) -> None:
    some = [made(f"model {place}", kept=9 - place // 2, right=9) for place in range(12)]
    entry.join(some, tmp_path)
    (tmp_path / "page.html").write_text(page.html(entry.read_all(tmp_path)).replace("</body>", LOOK), encoding="utf-8")
    found = browsed(tmp_path / "page.html", width)
    assert found["points"] == 12
    assert 1 < found["numbers"] < 12
    assert not found["overlaps"]


def browsed(file: Path, width: int) -> dict[str, Any]:
    """What the script wrote into the title."""
    words = [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", f"--window-size={width},800", "--dump-dom"]
    done = subprocess.run([*words, f"file://{file}"], capture_output=True, text=True, timeout=120, check=True)
    (title,) = re.findall(r"<title>(.*?)</title>", done.stdout)[:1]
    return json.loads(base64.b64decode(title))

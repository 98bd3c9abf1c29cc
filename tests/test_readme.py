"""The README shows what is there: its table and links are true, and no photograph is shown."""

import io
import re
import subprocess
import tarfile
from pathlib import Path

import pytest

from dml import params, report
from dml.paths import RECORDS, ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture
def committed(tmp_path: Path) -> Path:
    """The records that the README was written from: `make repro` on another machine may have changed those here."""
    command = ["git", "archive", "HEAD", "--", str(RECORDS)]
    packed = subprocess.run(command, cwd=ROOT, capture_output=True, check=False)
    if packed.returncode:  # a downloaded copy without git
        return ROOT / RECORDS
    with tarfile.open(fileobj=io.BytesIO(packed.stdout)) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path / RECORDS


def test_the_headline_table_is_the_measured_one(committed: Path) -> None:
    table = re.search(r"<!-- table: .*? -->\n(.*?)\n<!-- end -->", README, re.DOTALL)
    records = [r for r in report.read_records(committed) if (r["dataset"], r["suite"]) == ("glyphs", "quick")]
    measured = report.comparison(report.metrics(records), records, params.load().figures.eps)
    assert table[1] == report.comparison_markdown(measured)


def test_committed_results_are_those_of_the_committed_records() -> None:
    records = report.read_records(ROOT / RECORDS)
    expected = report.metrics(records).to_csv(index=False, float_format="%.6f", lineterminator="\n")
    assert (ROOT / "results" / "metrics.csv").read_text() == expected


def test_links_lead_somewhere() -> None:
    for file in (ROOT / "README.md", ROOT / "results" / "README.md"):
        links = re.findall(r"\]\((?!http)([^)#]+)\)", file.read_text(encoding="utf-8"))
        assert links
        for link in links:
            assert (file.parent / link).exists(), f"{file.name}: {link}"


def test_no_photograph_is_shown() -> None:
    """Only datasets whose recipe allows it have figures with pictures in results/."""
    allowed = {name for name, recipe in params.load().recipes.items() if recipe.data.show_images}
    for figure in (ROOT / "results" / "figures").rglob("search_*"):
        assert figure.parent.name in allowed

"""The README shows what is there: its table and links are true, and no photograph is shown."""

import io
import re
import subprocess
import tarfile
from pathlib import Path

import pytest

from dml.attacks.balls import radius_text
from dml.common.files import ROOT
from dml.config import params
from dml.pipeline.paths import RECORDS
from dml.reporting import report

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


def test_the_tables_are_the_measured_ones(committed: Path) -> None:
    """Each says above it of which dataset, suite and radius it is."""
    tables = re.findall(r"<!-- table: \S+ (\w+), suite (\w+), eps (\S+) -->\n(.*?)\n<!-- end -->", README, re.DOTALL)
    assert {dataset for dataset, *_ in tables} == {"glyphs", "flowers"}
    figures = params.load().figures
    for dataset, suite, eps, table in tables:
        records = [r for r in report.read_records(committed) if (r["dataset"], r["suite"]) == (dataset, suite)]
        (radius,) = (value for value in (figures.eps, figures.paper_eps) if radius_text(value) == eps)
        assert table == report.comparison_markdown(report.comparison(report.metrics(records), records, radius))


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

"""The README shows what is there: its tables and links are true, its code runs, and no photograph is shown."""

import ast
import copy
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn

import dml
from dml.attacks import ATTACKS
from dml.attacks.balls import radius_text
from dml.common.files import ROOT
from dml.common.randomness import torch_generator
from dml.config.build import training
from dml.config.load import fractions, load
from dml.config.schema import Data
from dml.data.base import Split
from dml.data.transforms import to_float
from dml.defenses import DEFENSES
from dml.defenses.joint import Joint
from dml.defenses.nearest import Nearest
from dml.defenses.robust import Robust
from dml.losses.pml import PML
from dml.models.embedder import build
from dml.reporting import records, sections
from dml.reporting.claims import judged
from dml.reporting.paired import in_r1, same_queries
from dml.reporting.records import eps_key
from dml.reporting.spelling import number, table
from dml.reporting.tables import comparison, leaderboard, main_records

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_it_is_short() -> None:
    assert len(README.splitlines()) <= 150
    assert len(README.split()) <= 1200


def test_links_lead_somewhere() -> None:
    for file in (ROOT / "README.md", ROOT / "ADDING.md", *(ROOT / "results").rglob("*.md")):
        for link in re.findall(r"\]\((?!http)([^)#]+)\)", file.read_text(encoding="utf-8")):
            assert (file.parent / link).exists(), f"{file.name}: {link}"


def test_the_list_of_defences_has_them_all() -> None:
    folder = ROOT / "dml" / "defenses"
    text = (folder / "README.md").read_text()
    linked = re.findall(r"^\| \[(\w+)\]\((\w+\.py)\)", text, re.MULTILINE)
    assert linked == [(name, f"{path.partition(':')[0].rpartition('.')[2]}.py") for name, path in DEFENSES.items()]
    assert all((folder / target).exists() for target in re.findall(r"\]\(([^)h][^)]*)\)", text))


def test_no_photograph_is_shown() -> None:
    """Only datasets whose recipe allows it have figures with images in results/."""
    allowed = {name for name, recipe in load().recipes.items() if recipe.data.show_images}
    for figure in (ROOT / "results" / "figures").rglob("search_*"):
        assert figure.parent.name in allowed


def test_no_figure_is_typed_by_hand() -> None:
    """Outside tables that code wrote and the two outputs shown, the README names no measured share."""
    prose = re.sub(r"<!-- (?:table|photographs):.*?<!-- end -->|```.*?```", "", README, flags=re.DOTALL)
    prose = re.sub(r"`[^`]*`", "", prose)
    assert not re.findall(r"(?<![\w/.])0?\.\d{2,}", prose)


@pytest.mark.parametrize("page", ["README.md", "ADDING.md"])
def test_the_defence_of_a_page_trains(page: str, tmp_path: Path) -> None:
    """The code as it is printed, put where the page says, trains for two steps under the name that it gets."""
    text = (ROOT / page).read_text(encoding="utf-8")
    ((place, code),) = re.findall(r"<!-- file: (dml/\S+) -->\n```python\n(.*?)```", text, re.DOTALL)
    assert sum(bool(line.strip()) for line in code.splitlines()) <= (20 if page == "README.md" else 40)
    (printed,) = (node for node in ast.parse(code).body if isinstance(node, ast.ClassDef))
    methods = [node for node in printed.body if isinstance(node, ast.FunctionDef) and node.name[0] != "_"]
    assert all(map(ast.get_docstring, methods)), "`make test` asks for them"
    name, entry = re.findall(r'"(\w+)": "([\w.]+:\w+)"', text)[-1]
    assert entry.split(":")[0] == place.removesuffix(".py").replace("/", ".")
    given = yaml.safe_load(re.findall(rf"`{name}: ({{.*?}})`", text)[-1])
    package = tmp_path / "extra"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / f"{name}.py").write_text(code, encoding="utf-8")
    script = TRAIN.format(name=name, entry=f"extra.{name}:{entry.split(':')[1]}", given=fractions(given))
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=tmp_path, env=environment(tmp_path), capture_output=True, text=True, check=False)
    assert done.stdout.strip().endswith("trained"), done.stderr


def test_the_training_loop_of_a_page_trains_a_plain_module() -> None:
    text = (ROOT / "ADDING.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"<!-- run: own loop -->\n```python\n(.*?)```", text, re.DOTALL)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 512), Unit())
    before, optimizer = copy.deepcopy(model), torch.optim.SGD(model.parameters(), lr=0.1)
    loader = [(torch.rand(12, 3, 8, 8), torch.arange(12) % 4) for _ in range(3)]
    exec(code, {"model": model, "optimizer": optimizer, "loader": loader})
    assert not torch.equal(before[1].weight, model[1].weight)
    for defense in (Robust(target="query"), Joint(), Nearest()):  # what the text says of other losses
        loss = PML(4, 512, name="MultiSimilarityLoss")
        costs = defense(model, *loader[0], loss, torch.Generator().manual_seed(0))
        assert costs.isfinite().all()
        assert costs.mean().requires_grad


def test_the_attack_and_the_scores_of_a_page_run(
    toy_split: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (ROOT / "ADDING.md").read_text(encoding="utf-8")
    (written,) = re.findall(r"<!-- file: my_attack.py -->\n```python\n(.*?)```", text, re.DOTALL)
    (tmp_path / "my_attack.py").write_text(written, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(ATTACKS, "mine", "")  # comes off again
    model = build("conv4", 8, seed=0, statistics=toy_split.statistics()).eval()
    evaluate = partial(dml.evaluate, labels=toy_split.labels, controls=(), report=lambda line: None)
    monkeypatch.setattr(dml, "evaluate", evaluate, raising=False)
    monkeypatch.setattr(dml, "embed", partial(dml.embed, labels=toy_split.labels), raising=False)
    given: dict[str, Any] = {"model": model, "images": toy_split.images, "dml": dml}
    for name in ("own attack", "other scores"):
        (code,) = re.findall(rf"<!-- run: {name} -->\n```python\n(.*?)```", text, re.DOTALL)
        exec(code, given)
    left = given["result"].by_attack.set_index("attack")["r1"]
    assert left["mine"] < given["result"].about["natural"]["r1"]
    assert "broken by twice the steps" in set(given["result"].gates["gate"])
    with torch.no_grad():
        wanted = nn.functional.normalize(model(to_float(toy_split.images)), dim=1)
    torch.testing.assert_close(given["embeddings"], wanted)
    assert given["labels"].tolist() == [str(label) for label in toy_split.labels]
    assert re.search(r"NMI [01]\.\d", capsys.readouterr().out)


class Unit(nn.Module):
    def forward(self, embeddings: Tensor) -> Tensor:
        return nn.functional.normalize(embeddings, dim=1)


def test_the_recipe_for_your_own_images_is_one(tmp_path: Path) -> None:
    ((line, name),) = re.findall(r"`((\w+): \{<<: \*\w+, data: .*\})`", README)
    text = (ROOT / "params.yaml").read_text(encoding="utf-8").replace("\nrecipes:", f"\nrecipes:\n  {line}\n", 1)
    run = {"datasets": name, "defenses": "robust, single_step", "attacked": "standard, robust, single_step"}
    for key, value in run.items():  # the pipeline may have been given further defences of glyphs
        text = re.sub(rf"(?m)^  {key}: \[.*?\]", f"  {key}: [{value}]", text, count=1)
    file = tmp_path / "params.yaml"
    file.write_text(text, encoding="utf-8")
    params = load(file=file)
    assert params.run.datasets == [name]
    assert params.recipes[name].data.path == f"data/{name}"
    assert {"standard", "robust", "single_step"} <= set(params.recipes[name].defenses)


def environment(extra: Path) -> dict[str, str]:
    """Of this process, with the project and a folder of further packages on the path."""
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(extra)]), "OMP_NUM_THREADS": "1"}


TRAIN = """
import numpy as np, torch
from dml.config.build import training
from dml.data.base import Split
from dml.defenses import DEFENSES
from dml.defenses.joint import Joint
from dml.defenses.nearest import Nearest
from dml.defenses.robust import Robust
from dml.models.embedder import build
from dml.training.loop import fit
from dml.training.schedule import Schedule
DEFENSES["{name}"] = "{entry}"
defense = training.defense("{name}", {given})
images = np.random.default_rng(0).integers(0, 255, (24, 16, 16, 3), np.uint8)
split = Split(images, np.repeat(np.arange(4), 6), list("abcd"))
model = build("conv4", 8, seed=0)
before = torch.cat([p.detach().flatten().clone() for p in model.parameters()])
loss = training.loss("triplet", {{"miner": "random"}}, classes=4, dimension=8)
schedule = Schedule(epochs=1, batches=2, classes=3, images_per_class=2)
scores = {{"natural": 0.5, "adversarial": 0.1}}
fit(model, split, loss, defense, schedule, seed=0, validate=lambda _: scores, checkpoint=None)
after = torch.cat([p.detach().flatten() for p in model.parameters()])
print("trained" if not torch.equal(before, after) else "unchanged")
"""


def test_the_outputs_shown_are_the_measured_ones(committed: Path) -> None:
    """What `make repro` prints after its first hundred queries, and what the example finds on the first 200."""
    (robust,), (pixels,) = (
        [r for r in records.read(committed) if (r["dataset"], r["loss"], r["defense"], r["seed"]) == wanted]
        for wanted in (("glyphs", "triplet", "robust", 0), ("glyphs", "none", "pixels_linear", 0))
    )
    paper, left = (robust["survival"][key][:100].count("1") / 100 for key in ("0.010000", "0.031373"))
    assert f"attacked 100/300 queries, R@1 left: {paper:.3f} at 0.01, {left:.3f} at 8/255" in README
    assert "limit=200" in README
    left, control = (record["survival"]["0.031373"][:200].count("1") / 200 for record in (robust, pixels))
    assert f"At 8/255 your model keeps R@1 {left:.3f}, more than the {control:.3f} of fitted pixels_linear." in README


def test_the_table_of_photographs_is_the_measured_one(committed: Path) -> None:
    ((suites, written),) = re.findall(r"<!-- photographs: suites (.+?) -->\n(.*?)\n<!-- end -->", README, re.DOTALL)
    assert written == photographs_table(committed, suites.split(", "))


def photographs_table(runs: Path, suites: Sequence[str]) -> str:
    """The table that the README shows of photographs: the controls and the trained models, one row per dataset.

    Each is under the first of the suites that attacked its controls and the paper's defence. Of the controls each
    number is the best one's.
    """
    params, rows = load(), []
    figures = params.figures
    names = ["start", figures.baseline, figures.paper, "best"]
    everything = [record for record in records.read(runs) if "digests" in record and record["claims"]]
    datasets = {record["dataset"] for record in everything}
    for dataset in sorted(name for name in datasets if not params.recipes[name].data.show_images):
        own = [record for record in everything if record["dataset"] == dataset]
        attacked = [{record["suite"] for record in own if record["defense"] == name} for name in ("pixels_8", names[2])]
        suite = min(set.intersection(*attacked), key=suites.index)
        own = [record for record in own if record["suite"] == suite]
        found = leaderboard(own, figures)
        shown = [found[found["defense"] == name] for name in names]
        controls = [comparison(own, eps, figures).query("loss == 'none'") for eps in (figures.paper_eps, figures.eps)]
        best = (controls[0]["natural"].max(), *(part["r1"].max() for part in controls))
        cells = [", ".join(map(number, best))]
        for part in shown:
            scores = [
                score
                for row in part.itertuples()
                for score in ((row.natural, ""), (row.r1_paper, row.gates), (row.r1, row.gates))
            ]
            cells.append(", ".join(sections.flagged(*score) for score in scores) or "–")
        rows.append([f"[{dataset}](results/pages/{dataset}.md)", *cells])
    radii = ", ".join(["natural", *(radius_text(eps) for eps in (figures.paper_eps, figures.eps))])
    return "\n".join(table([f"R@1: {radii}", "best control", *names], rows)).strip()


def test_the_verdicts_beside_the_papers_claims_are_the_measured_ones(committed: Path) -> None:
    """Where a claim holds and where it does not, as the rows of the table say it."""
    figures = load().figures
    by_dataset: dict[str, list[records.Record]] = {}
    for record in records.read(committed):
        by_dataset.setdefault(record["dataset"], []).append(record)
    main = main_records(by_dataset, figures)
    found = {(row.claim, name): row.verdict for name, own in main.items() for row in judged(own, figures)}

    def where(claim: str, *words: str) -> set[str]:
        return {name for (told, name), word in found.items() if told == claim and word in words}

    glyphs, imagenet, random = {"glyphs", "glyphs_long"}, {"flowers_imagenet"}, {"gtsrb_random"}
    loses = "`standard` models lose more than half of their natural R@1 at eps {}"
    rows = re.findall(r"^\| (?!claim|-)(.+?) \| \*\*(.+?)\*\*", README.split("| claim | here |")[1], re.MULTILINE)
    told = dict(rows[:7])
    assert told.popitem()[1] == "goes beyond"  # on photographs: the next test
    assert told.popitem()[1] == "in part"  # `nearest`: claims.md and the page of glyphs_long
    assert list(told.values()) == ["reproduced", "in part", "in part", "in part", "not tested"]
    robust = {"flowers", "grocery", "cars196_half", "gtsrb"}  # training begins with robust weights: none is undefended
    assert where(loses.format("8/255"), "not tested here") == robust
    assert where(loses.format("8/255"), "holds") == set(main) - robust
    assert where(loses.format("0.01"), "holds") == imagenet | random
    gains = "`robust` models keep at least 5 times the R@1 of `standard` ones at eps {}"
    assert where(gains.format("8/255"), "holds", "holds in part") == glyphs
    assert where(gains.format("0.01"), "holds", "holds in part") == imagenet
    board = comparison(main["flowers_imagenet"], figures.paper_eps, figures)
    best = board.loc[(board["loss"] != "none") & (board["defense"] == "robust"), "r1"].max()
    assert (board.loc[board["loss"] == "none", "r1"] > best).all(), "every control keeps more"
    beats = "`robust` models beat `single_step` ones at eps {}"
    assert where(beats.format("8/255"), "holds") == glyphs | random
    assert where(beats.format("0.01"), "holds") == {"glyphs_long"} | imagenet | random
    joint = "`robust` models beat `joint` ones at eps {}"
    assert where(joint.format("8/255"), "not judged") == random
    classes = {r["defense"]: r["embedding"]["ratio"] for r in main["gtsrb_random"] if r["loss"] == "triplet"}
    assert classes["joint"] > 0.999 > 0.6 > classes["nearest"], "collapsed: no class lies closer together than all do"
    assert where(joint.format("8/255"), "fails") == {"glyphs_long"}
    assert where(joint.format("0.01"), "fails") == imagenet
    board = comparison(main["glyphs_long"], figures.eps, figures)
    large = board[board["defense"] == "joint_20"].set_index("loss")["r1"]
    assert large.drop("multi_similarity").max() < 0.1 < 0.7 < large["multi_similarity"], "they fail with tuples"
    left = board.set_index(["loss", "defense"])["r1"]
    assert left["triplet", "best"] > left["triplet", "robust_20"], "`nearest`, at the same radius and cost"
    key = eps_key(figures.eps)
    alike = same_queries(main["gtsrb_random"], ("triplet", "nearest"), ("triplet", "robust"), key)
    assert in_r1(alike, key).verdict == "holds"
    (costs,) = {tuple(record["embedded"] for record in both) for both in alike}
    assert costs[0] <= costs[1]
    assert left["multi_similarity", "robust_query_20"] >= left["multi_similarity", "best"]


def test_what_is_said_of_photographs_is_what_was_measured(committed: Path) -> None:
    """Against every control, natural and under attack, and against `start` query by query."""
    figures, pages = load().figures, {"flowers", "grocery", "gtsrb"}
    by_dataset: dict[str, list[records.Record]] = {}
    for record in records.read(committed):
        by_dataset.setdefault(record["dataset"], []).append(record)
    main = main_records(by_dataset, figures)
    for name in pages:
        for eps in (figures.paper_eps, figures.eps):
            board = comparison(main[name], eps, figures)
            controls = board.loc[board["loss"] == "none", "r1"]
            models = board[(board["loss"] == "triplet") & board["defense"].isin(["start", "robust", "best"])]
            assert len(models) == 3
            assert models["r1"].min() > controls.max(), f"{name} at {eps}"
    board = {name: comparison(main[name], figures.eps, figures).set_index("defense") for name in main}
    richer = {name for name in pages if board[name].loc["colour_histogram", "map_r"] > board[name].loc["best", "map_r"]}
    assert richer == {"grocery"}
    natural = {name: own["natural"] for name, own in board.items()}
    assert {name for name in pages if natural[name]["colour_histogram"] > natural[name]["best"]} == {"grocery"}
    key = eps_key(figures.eps)
    for model, ahead in (("best", {"gtsrb"}), ("robust", {"flowers", "gtsrb"})):
        pairs = {name: same_queries(main[name], ("triplet", model), ("triplet", "start"), key) for name in main}
        verdicts = {name: in_r1(found, key).verdict for name, found in pairs.items() if found}
        assert verdicts.keys() == {*pages, "cars196_half"}
        assert {name for name, verdict in verdicts.items() if verdict == "holds"} == ahead, model


def test_what_the_suite_paper_leaves_is_what_was_measured(committed: Path) -> None:
    """Of the queries that both suites attacked, the first of one order."""
    key, left = eps_key(load().figures.eps), {}
    for record in records.read(committed):
        if (record["dataset"], record["loss"], record["defense"]) == ("gtsrb_random", "triplet", "standard"):
            left[record["suite"]] = record["survival"][key]
    theirs, these = (left[suite][: len(left["paper"])].count("1") for suite in ("paper", "wide"))
    assert theirs > 10 * these > 0


def test_what_is_said_of_the_recipes_of_photographs_is_so(committed: Path) -> None:
    """Their size and start, which defence `best` is, and how often each was trained."""
    held = [r for r in records.read(committed) if r["suite"] == "wide" and r["loss"] != "none"]
    assert {r["settings"]["data"]["size"] for r in held} == {32}
    starts = {(r["dataset"], r["settings"]["model"]["weights"]) for r in held}
    others = {("flowers_imagenet", "imagenet"), ("gtsrb_random", "random")}
    assert others < starts
    grids = {(name, "pretrained/grids.safetensors") for name in ("flowers", "grocery", "gtsrb")}
    assert grids < starts
    assert {weights for _, weights in starts - others - grids} == {"pretrained/grid4.safetensors"}
    held = [record for record in held if record["dataset"] != "gtsrb_random"]  # of which the table alone tells
    best = {(r["dataset"], r["settings"]["defense"]["defense"]) for r in held if r["defense"] == "best"}
    kinds = {"cars196_half": "fare", "flowers": "fare", "grocery": "nearest", "gtsrb": "nearest"}
    assert best == set(kinds.items())
    seeds = Counter((r["dataset"], r["loss"], r["defense"]) for r in held)
    assert {(defense, count) for (_, _, defense), count in seeds.items() if count > 1 or defense == "best"} == {
        ("best", 3)
    }


def costs(text: str) -> tuple[dict[str, float], dict[str, float]]:
    """Cost of each defence by default and in glyphs_long, as the list of defences tells them."""
    joint = re.findall(r"that of `joint` is ([\d.]+) and ([\d.]+)\.", text)
    written = re.findall(r"^\| ([a-z_, ]+) \|[^|]*\|[^|]*\| ([\d., ]+) \|.* \| ([\d., ]+) \|$", text, re.MULTILINE)
    cells = [[cell.split(", ") for cell in line] for line in written]
    names = [("joint", *joint[0]), *(row for line in cells for row in zip(*line, strict=True))]
    by_default, long = ({name: float(row[place]) for name, *row in names} for place in (0, 1))
    return by_default, long


class Counting(nn.Module):
    """A small network that counts the images that it embeds."""

    def __init__(self) -> None:
        super().__init__()
        self.model, self.embedded = build("conv4", 16, seed=0), 0

    def forward(self, images: Tensor) -> Tensor:
        self.embedded += len(images)
        return self.model(images)


def test_your_own_images_are_as_many_as_a_recipe_needs() -> None:
    """Half of the classes is for training, less a fifth to select an epoch by; the other half has the queries."""
    ((classes, images),) = re.findall(r"It needs\s+(\d+) classes of (\d+) images", README)
    params, data = load(), Data(source="folder", path="data/products", size=32)
    training = int(classes) * data.train_fraction
    schedule = params.presets["photos_robust"]["schedule"]
    assert training * (1 - data.validation_fraction) == pytest.approx(schedule["classes"])
    assert int(images) >= schedule["images_per_class"]
    assert (int(classes) - training) * int(images) == pytest.approx(params.suites["quick"]["queries"])


def test_the_costs_of_the_defaults_are_counted() -> None:
    written, trained = costs((ROOT / "dml" / "defenses" / "README.md").read_text(encoding="utf-8"))
    assert set(written) == set(trained) >= {"robust", "joint", "nearest"}
    labels = torch.arange(8).repeat_interleave(4)
    for name, told in written.items():
        defense, model, generator = training.defense(name, {}).train(), Counting().train(), torch_generator(0, name)
        loss = training.loss("triplet", {"miner": "random", "margin": 0.2}, classes=8, dimension=16)
        for step in range(4):  # some do different things in turn, or in the second half
            defense(model, torch.rand(32, 3, 16, 16), labels, loss, generator, step / 4)
        assert model.embedded / 4 / 32 == told, name


def test_the_costs_beside_the_defences_are_those_of_glyphs_long(committed: Path) -> None:
    text = (ROOT / "dml" / "defenses" / "README.md").read_text(encoding="utf-8")
    pairs = costs(text)[1]
    found = {r["defense"]: r["embedded"] for r in records.read(committed) if r["dataset"] == "glyphs_long"}
    assert set(pairs) == (set(DEFENSES) & set(found)) - {"standard"}, "a new one has its cost when it was trained"
    assert pairs == {name: round(found[name] / found["standard"], 1) for name in pairs}


def test_the_table_is_the_measured_one(committed: Path) -> None:
    ((dataset, suite, eps, written),) = re.findall(
        r"<!-- table: (\w+), suite (\w+), eps (\S+) -->\n(.*?)\n<!-- end -->", README, re.DOTALL
    )
    assert written == readme_table(committed, dataset, suite, eps)


def readme_table(runs: Path, dataset: str, suite: str, eps: str) -> str:
    """The table that the README shows of a suite's trained models, in Markdown."""
    figures = load().figures
    own = [
        record
        for record in records.read(runs)
        if (record["dataset"], record["suite"]) == (dataset, suite) and "digests" in record and record["loss"] != "none"
    ]
    (radius,) = (value for value in (figures.eps, figures.paper_eps) if radius_text(value) == eps)
    return "\n".join(sections.comparison_table(comparison(own, radius, figures))).strip()

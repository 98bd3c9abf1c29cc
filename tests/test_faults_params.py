"""Whatever is done to params.yaml, it loads, or one sentence says which key or value is wrong."""

import copy
import math
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dml.config.load import PARAMS, load
from dml.config.schema import ParamsError

PYTHON = re.compile(r"object has no|object is not|unexpected keyword|NoneType|not supported|unhashable|recursion")
VALUES = [
    *(None, True, False, 0, 1, 2, -1, 0.5, -0.5, 10**30, -(10**30), 2**63, 1e300, math.nan, math.inf),
    *("", "x", "standard", "8/255", "8/0", "nan", "1e5", "é\n", "../x"),
    *([], [1, 2], ["standard"], [[]], [None], {}, {"a": 1}, {1: 2}, {None: None}),
]


def real() -> dict[str, Any]:
    """The committed settings with one recipe and one preset, so that five hundred variants take seconds."""
    raw = yaml.safe_load(PARAMS.read_text())
    recipe = raw["recipes"]["glyphs_long"]
    recipe["data"] |= {"path": "data/glyphs_long/glyphs.json"}
    kept = {"presets": {"photos": raw["presets"]["photos"]}, "recipes": {"glyphs_long": recipe}}
    study = {name: block for name, block in raw["study"].items() if block["datasets"] == ["glyphs_long"]}
    return raw | kept | {"run": raw["run"] | {"datasets": ["glyphs_long"]}, "study": study}


def places(value: Any, place: tuple = ()) -> list[tuple]:
    """The keys that lead to every value within nested settings."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place, *(found for key, inner in pairs for found in places(inner, (*place, key)))]


REAL = real()
PLACES = places(REAL)[1:]


@st.composite
def mutated(draw: st.DrawFn) -> tuple[Any, set[str]]:
    """Settings with one value replaced, removed, renamed, emptied, negated or blown up, and words that name it."""
    raw, place = copy.deepcopy(REAL), draw(st.sampled_from(PLACES))
    parent, last = raw, place[-1]
    for key in place[:-1]:
        parent = parent[key]
    old, kind = parent[last], draw(st.sampled_from(["replace", "replace", "remove", "rename", "empty", "change"]))
    new = draw(st.sampled_from(VALUES))
    if kind == "remove":
        del parent[last]
    elif kind == "rename" and isinstance(parent, dict):
        new = draw(st.sampled_from([f"{last}s", "", 3, None, True, "a b", "schedule"]))
        parent[new] = parent.pop(last)
    elif kind == "empty" and not isinstance(old, float | int):
        parent[last] = new = type(old)()
    elif kind == "change" and isinstance(old, float | int):
        parent[last] = new = draw(st.sampled_from([-old, old * 10**12]))
    else:
        parent[last] = new
    return raw, {str(key) for key in place} | {str(new), repr(new)} - {""}


@settings(
    max_examples=500,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(mutated())
def test_mutated_settings_load_or_are_one_sentence(given: tuple[Any, set[str]]) -> None:
    raw, words = given
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(yaml, "safe_load", lambda text: raw)
        try:
            load()
        except ParamsError as error:
            told = str(error)
            assert "\n" not in told
            assert not PYTHON.search(told), told
            assert any(word in told for word in words), (told, words)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("presets", "photos", "presets is 'photos'; it must hold keys and values"),
        ("presets.photos", 3, "presets.photos is 3; it must hold keys and values"),
        ("recipes.glyphs.losses", "", "recipes.glyphs.losses is ''; it must hold keys and values"),
        ("recipes.glyphs.defenses.robust", 0, "recipes.glyphs.defenses.robust is 0; it must hold keys and values"),
        ("recipes.glyphs.defenses.a/b", {}, "defenses has the name 'a/b'; it must consist of letters, digits"),
        ("recipes...", {}, "no key 'recipes...' to change"),
        ("recipes", {None: {}}, "recipes has the name None; it must consist of letters"),
        ("suites", {3: {}}, "suites has the name 3; it must"),
        ("figures.loss", "tripet", "'tripet' is unknown; did you mean 'triplet'"),
        ("recipes.glyphs.data.path", "data/../secret", r"path is 'data/\.\./secret'; it must lie in data/"),
    ],
)
def test_what_loaded_and_failed_later_is_one_sentence(key: str, value: Any, words: str) -> None:
    with pytest.raises(ParamsError, match=words) as caught:
        load({key: value})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"run: \xff\xfe", "is not valid YAML: 'utf-8' codec can't decode"),
        (b"run: 2024-13-45", "is not valid YAML: month must be in 1..12"),
        (b"run: !!timestamp x", "is not valid YAML"),
        (b"run: !!bool maybe", "is not valid YAML"),
        (b"run: " + b"9" * 5000, "is not valid YAML"),
        (b"[" * 5000, "is not valid YAML"),
        (b"run: &run {losses: *run}", r"has an alias \(\*name\) inside what it stands for"),
        (b"? {a: 1}\n: 2", "is not valid YAML"),
        (b"run: !!python/object/apply:os.system [true]", "is not valid YAML"),
        (b"", "it must hold the keys"),
        (b"\0", "is not valid YAML"),
    ],
)
def test_text_that_is_no_yaml_is_one_sentence(text: bytes, words: str, tmp_path: Path) -> None:
    file = tmp_path / "params.yaml"
    file.write_bytes(text)
    with pytest.raises(ParamsError, match=words) as caught:
        load(file=file)
    assert "\n" not in str(caught.value)

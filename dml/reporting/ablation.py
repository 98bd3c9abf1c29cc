"""What each part of a defence is worth: its best run beside runs that differ from it in one setting."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from dml.attacks.balls import radius_text
from dml.config.run import Figures
from dml.reporting.paired import Model, Pairs, in_r1, same_queries
from dml.reporting.records import Record, eps_key
from dml.reporting.spelling import MARK, interval, settings_text, spell, table
from dml.reporting.tables import comparison, gates_of
from dml.reporting.variants import BEST, KIND, OWN, RADIUS, Leaves, leaves, one_difference, trained

STEPPING = ("defense.steps", "defense.step_size", "defense.noise")  # of an adversary, which go together
ADVERSARY = "adversary"  # the name that these have here, as one setting


class Change(NamedTuple):
    """Two models that differ in one setting, in the stepping of the adversary, or in the class of the defence.

    Attributes:
        loss: of both.
        other, best: names of their defences.
        setting: dotted name of what differs; ``KIND`` for the class, :data:`ADVERSARY` for the stepping.
        before, after: its values.
    """

    loss: str
    other: str
    best: str
    setting: str
    before: Any
    after: Any


def changes(records: Sequence[Record], eps: float, figures: Figures) -> list[Change]:
    """Return the best model of each loss and class of defence beside each that differs from it in one setting.

    The project's own defence comes first: what differs from ``best`` is one of its parts. Where a variant of it keeps
    more R@1, the variant follows, beside those that only it differs from in one setting. Of those that differ in the
    training radius only the closest is kept.

    Args:
        records: of one dataset and suite.
        eps: radius at which the best is the one that keeps the most R@1.
        figures: gives the order of equals.
    """
    settings = {(record["loss"], record["defense"]): leaves(record) for record in trained(records)}
    found = comparison(records, eps, figures).sort_values("r1", ascending=False, kind="stable")
    models = [model for model in zip(found["loss"], found["defense"], strict=True) if model in settings]
    leaders: dict[tuple[str, str], list[Model]] = {}
    for model in models:
        leading = leaders.setdefault((model[0], settings[model][KIND]), [model])
        if model[1] == BEST and model not in leading:
            leading.insert(0, model)
    return [change for leading in leaders.values() for change in _of_class(leading, models, settings)]


def _of_class(leading: Sequence[Model], models: Sequence[Model], settings: Mapping[Model, Leaves]) -> list[Change]:
    """The changes of one loss and class: to the first of those that lead it, then to the second from all others."""
    listed: list[Change] = []
    for place, best in enumerate(leading):
        near = []
        for other in (model for model in models if model not in leading[:place]):
            if found := _difference(settings[other], settings[best], best[1] in OWN):
                near.append(Change(best[0], other[1], best[1], *found))
        radii = sorted((change for change in near if change.setting == RADIUS), key=lambda c: abs(c.after - c.before))
        classes = [change for change in near if change.setting == KIND]
        listed += [change for change in near if change.setting not in (RADIUS, KIND)] + radii[:1] + classes
    return listed


def _difference(other: Leaves, best: Leaves, classes: bool) -> tuple[str, Any, Any] | None:
    """Name of what differs, and its two values, if that is one thing.

    Args:
        other, best: settings of the two.
        classes: whether the class of the defence may be what differs, with the settings that only one class has.
    """
    name = one_difference(other, best)
    if name and name.startswith(("defense.", "schedule.")) and name != KIND:
        return name, other.get(name), best.get(name)
    names = {name for name in other.keys() | best.keys() if other.get(name) != best.get(name)}
    if names and names <= set(STEPPING):
        stepping = [
            {name.split(".")[-1]: own[name] for name in STEPPING if name in names and own.get(name) is not None}
            for own in (other, best)
        ]
        return ADVERSARY, *stepping
    shared = names & other.keys() & best.keys()
    return (KIND, other[KIND], best[KIND]) if classes and shared == {KIND} and RADIUS in other else None


def section(records: Sequence[Record], eps: float, figures: Figures) -> list[str]:
    """Show what :func:`changes` finds, with natural R@1 and R@1 under attack.

    Args:
        records: of one dataset and suite.
        eps: the radius.
        figures: gives the order.
    """
    key = eps_key(eps)
    own = [record for record in trained(records) if record["claims"] and key in record["survival"]]
    rows = []
    for change in changes(own, eps, figures) if own else []:
        pairs = same_queries(own, (change.loss, change.best), (change.loss, change.other), key)
        if pairs:
            best, other = (_name(side) for side in zip(*pairs, strict=True))
            names = [other, best]
            rows.append([spell(change.loss), *names, _setting(change), *_worth(pairs, key)])
    if not rows:
        return []
    chosen = [f"`{name}`" for name in OWN if any(record["defense"] == name for record in own)]
    text = (
        f"*To* is `{BEST}`, or the model of each loss and defence that keeps the most R@1 at eps {radius_text(eps)} "
        f"under suite `{own[0]['suite']}`; *from* are those that differ from it in one setting, of other training "
        "radii only the closest. From another class of defence comes what has the same schedule, radius and steps as "
        "this project's. Intervals are 95%, paired over the same queries (Bonett and Price 2012). "
        f"{_were_chosen(chosen)} was chosen by these queries, which favours it. Only [later trials]"
        "(../tuning.md) on held-out classes were kept."
    )
    header = ["loss", "from", "to", "setting", "change of natural R@1", f"of R@1 at {radius_text(eps)}"]
    return ["", text, *table(header, rows)]


def _were_chosen(names: Sequence[str]) -> str:
    if not names:
        return "Each *to*"
    listed = " and ".join([*filter(None, [", ".join(names[:-1])]), names[-1]])
    return f"{listed} {'was' if len(names) == 1 else 'were'} chosen on held-out classes; every other *to*"


def _name(records: Sequence[Record]) -> str:
    """The defence of some trainings, marked where a gate does not hold."""
    return spell(records[0]["defense"]) + (MARK if any(gates_of(record) == "fail" for record in records) else "")


def _setting(change: Change) -> str:
    name = change.setting.split(".")[-1]
    before, after = (settings_text(value, name) for value in (change.before, change.after))
    return f"`{name}`: {before} → {after}"


def _worth(pairs: Pairs, key: str) -> tuple[str, str]:
    """By how much natural R@1 and R@1 under attack are higher for the best, the latter with its paired interval."""
    natural = np.mean([best["natural"]["r1"] - other["natural"]["r1"] for best, other in pairs])
    found = in_r1(pairs, key)
    return f"{natural:+.3f}", f"**{found.value:+.3f}** {interval(found.low, found.high)}"

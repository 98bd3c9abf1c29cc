"""Every defence with every loss: two steps that change the model, or one sentence that says what to take instead."""

import copy

import numpy as np
import pytest
import torch

from dml.common.randomness import seeded_global, torch_generator
from dml.config.build import training
from dml.defenses import DEFENSES
from dml.losses import LOSSES
from dml.models.embedder import build

SETTINGS = {
    "contrastive": {"miner": "random", "positive_margin": 0.0, "negative_margin": 1.0},
    "triplet": {"miner": "random", "margin": 0.2},
    "margin": {"miner": "random", "margin": 0.2, "beta": 1.2},
    "multi_similarity": {"alpha": 2.0, "beta": 50.0, "base": 0.5},
    "proxy_anchor": {"margin": 0.1, "alpha": 32.0},
    "normalized_softmax": {"temperature": 0.05},
    "pml": {"name": "CircleLoss"},
}
ON_TUPLES = {"contrastive", "triplet", "margin"}
TUPLES_ONLY = {"visual_phish_net", "amd", "act", "hardness", "ca_tride"}  # need roles, of which other losses have none
LABELS = torch.arange(6).repeat_interleave(4)


def test_the_settings_are_those_of_all_losses() -> None:
    assert set(SETTINGS) == set(LOSSES)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("defense", DEFENSES)
def test_a_pair_trains_or_says_why_not(defense: str, loss: str) -> None:
    query = defense == "robust" and loss not in ON_TUPLES
    made = training.defense(defense, {"target": "query"} if query else {}).train()
    model = build("conv4", 16, seed=0).train()
    with seeded_global(0, "loss"):
        costs = training.loss(loss, SETTINGS[loss], classes=6, dimension=16).train()
    generator = torch_generator(0, "batch")
    images = torch.rand(24, 3, 16, 16, generator=generator)
    optimizer = torch.optim.SGD([*model.parameters(), *costs.parameters()], lr=0.1)
    before = copy.deepcopy(model.state_dict())
    if defense in TUPLES_ONLY and loss not in ON_TUPLES:
        with pytest.raises(ValueError, match=r"\w+ costs whole queries: use \w+"):
            made(model, images, LABELS, costs, generator, 0.0)
        return
    for step in range(2):
        values = made(model, images, LABELS, costs, generator, step / 2)
        assert values.dim() == 1
        assert np.isfinite(values.detach().numpy()).all()
        optimizer.zero_grad()
        values.mean().backward()
        optimizer.step()
    assert any(not torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("loss", sorted(set(LOSSES) - ON_TUPLES))
def test_a_role_of_tuples_is_refused_by_what_costs_queries(loss: str) -> None:
    costs = training.loss(loss, SETTINGS[loss], classes=6, dimension=16)
    model, images = build("conv4", 16, seed=0), torch.rand(24, 3, 16, 16)
    with pytest.raises(ValueError, match=r"target is 'positive'; \w+ costs whole queries, so it must be 'query'"):
        training.defense("robust", {})(model, images, LABELS, costs, torch_generator(0, "batch"))

"""RegMix (arXiv 2407.01492): the published tables and draws to their digits, and the way from proxies to a large run."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import yaml

from kdbench.compression.mixture_draws import draw_mixtures
from kdbench.compression.mixture_regression import (
    Tried,
    agreement,
    choose_mixture,
    fit_linear,
    fit_trees,
    rank_correlation,
)
from kdbench.data import registry
from kdbench.suite import chain, experiment, fit

ROOT = Path(__file__).parent.parent.parent
PRIOR = yaml.safe_load((ROOT / "experiments/regmix/tables.yaml").read_text())["study"]["init_args"]["prior"]
real = pytest.mark.skipif("KDBENCH_DATA" not in os.environ, reason="KDBENCH_DATA is not set: no published tables")


def tried(split, target, size="1m", first=None):
    rows = [row for row in registry.load("mixtures/pile", "local", split) if row["size"] == size][:first]
    mixtures = [list(row["mixture"].values()) for row in rows]
    return Tried(np.array(mixtures), np.array([row["losses"][target] for row in rows]))


def test_mixtures_are_drawn_as_published():
    found = draw_mixtures(np.array([0.5, 0.3, 0.15, 0.05]), 4, seed=42)
    published = [
        [0.3568, 0.451, 0.1204, 0.072],
        [0.0514, 0.7446, 0.2012, 0.0028],
        [0.1642, 0.797, 0, 0.0388],
        [0.2792, 0.1106, 0.3834, 0.2268],
    ]
    np.testing.assert_allclose(found, published, atol=1e-12)


@real
@pytest.mark.parametrize(("size", "ranks"), [("1m", 0.902144), ("60m", 0.893289), ("1b", 0.876557)])
def test_the_linear_model_ranks_each_size_as_published(size, ranks):
    found, error = agreement(fit_linear(tried("train", "pile_cc")), tried("test", "pile_cc", size))
    assert found == pytest.approx(ranks, abs=1e-6)
    if size == "1m":
        assert error == pytest.approx(0.0234542, abs=1e-7)
    else:
        assert error > 1, "losses of other sizes are others, whatever their ranks"


@real
@pytest.mark.parametrize(("first", "ranks"), [(32, 0.723165), (64, 0.856288), (128, 0.905641), (256, 0.906888)])
def test_the_linear_model_learns_from_few_proxies_as_published(first, ranks):
    found, _ = agreement(fit_linear(tried("train", "pile_cc", first=first)), tried("test", "pile_cc"))
    assert found == pytest.approx(ranks, abs=1e-6)


@real
def test_web_text_goes_with_a_low_loss_on_web_text():
    proxies = tried("train", "pile_cc")
    found = {
        name: rank_correlation(share, -proxies.losses) for name, share in zip(PRIOR, proxies.mixtures.T, strict=True)
    }
    published = {
        "pile_cc": 0.8435,
        "wikipedia_en": 0.2749,
        "ubuntu_irc": 0.1728,
        "github": -0.1589,
        "pubmed_central": -0.1962,
    }
    assert {name: found[name] for name in published} == pytest.approx(published, abs=5e-5)


@real
def test_the_prior_names_the_domains_of_the_tables():
    assert list(PRIOR) == list(registry.load("mixtures/pile", "local", "train")[0]["mixture"])


@real
@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "published"),
    [
        ("pile_cc", {"1m": 0.9892, "60m": 0.9849, "1b": 0.9651}),
        ("arxiv", {"1m": 0.99600}),
        ("github", {"1m": 0.99766}),
    ],
)
def test_trees_rank_as_the_published_ones(target, published):
    """Another boosting library, with the official stop: the test mixtures of the smallest size."""
    predict = fit_trees(tried("train", target), held_out=tried("test", target))
    for size, ranks in published.items():
        assert agreement(predict, tried("test", target, size))[0] == pytest.approx(ranks, abs=0.01)
    if target == "pile_cc":
        mixture = dict(zip(PRIOR, choose_mixture(predict, np.array(list(PRIOR.values()))), strict=True))
        published = {"arxiv": 0.0047, "freelaw": 0.0039, "pile_cc": 0.8909, "ubuntu_irc": 0.0614}
        assert {name: mixture[name] for name in published} == pytest.approx(published, abs=0.01)


@real
def test_the_linear_model_runs_away_to_a_domain_that_no_proxy_saw_much_of():
    proxies = tried("train", "pile_cc")
    found = choose_mixture(fit_linear(proxies), np.array(list(PRIOR.values())))
    place = list(PRIOR).index("enron_emails")
    assert found[place] == pytest.approx(0.68, abs=0.005)
    assert np.quantile(proxies.mixtures[:, place], 0.95) < 0.05


@pytest.mark.slow
def test_from_proxies_to_a_large_run(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("KDBENCH_RUNS", str(tmp_path))
    small = {"hidden_size": 8, "num_attention_heads": 1, "num_key_value_heads": 1}
    changes = {
        "trainer.max_steps": 3,
        "stages.proxy.trainer": {"max_steps": 3, "val_check_interval": 3},
        "stages.proxy.model.student.config": small,
        "stages.regression.study": {"proxies": {"over": {"data": {"weights": {"count": 14}}}}, "unseen": 4},
    }
    stage = chain.plan(experiment.read("experiments/regmix.yaml", overrides=list(changes.items())))
    record = fit.fit(stage, quiet=True)
    study = stage.parents["data.weights"]
    assert len(study.parents) == 14
    assert record["parents"] == {"data.weights": f"regmix/regression/{study.id}"}
    chosen = json.loads((study.folder / "trees.json").read_text())
    assert chosen == {name: study.record["metrics"][f"test/trees_{name}"] for name in chosen}
    assert study.record["metrics"]["test/proxy_steps"] == 14 * 3
    assert (study.folder / "unseen.svg").exists()

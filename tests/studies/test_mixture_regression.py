"""The studies of mixtures, and the fleets that they read, on records whose losses are known."""

import json

import numpy as np
import pytest

from kdbench.data import registry
from kdbench.data.readers.mixture_tables import local_mixtures
from kdbench.data.shares import read_mixture
from kdbench.errors import UserError
from kdbench.studies.fleet import FromRuns
from kdbench.studies.mixture_regression import MixtureRegression, ProxyRegression
from kdbench.studies.tempered_mixtures import TemperedMixtures

PRIOR = {"near": 0.1, "far": 0.3, "other": 0.6}
METRIC = "val/cross_entropy@student"


def loss(mixture):
    """A loss that is lowest for a mixture of near and far."""
    return 3 - np.log(0.1 + mixture["near"]) - 0.5 * np.log(0.1 + mixture["far"])


def fleet(folder, count=60):
    """Return a fleet whose runs have left records."""
    mixtures, made = TemperedMixtures(PRIOR, count).values(0), []
    for number, mixture in enumerate(mixtures):
        run = folder / str(number)
        run.mkdir(parents=True)
        curve = {METRIC: {"values": [9.0, loss(mixture)], "steps": [75, 150]}}
        record = {"metrics": {"test/accuracy": None}, "curves": curve, "steps": 150, "seconds": 2.0}
        (run / "record.json").write_text(json.dumps(record))
        made.append(str(run))
    return FromRuns("proxy.yaml", settings={"data.weights": mixtures}, runs=made)


@pytest.fixture(scope="module")
def proxies(tmp_path_factory):
    return fleet(tmp_path_factory.mktemp("fleet"))


def test_mixtures_are_drawn_by_the_seed():
    mixtures = TemperedMixtures(PRIOR, 5)
    assert mixtures.values(1) == mixtures.values(1) != mixtures.values(2)
    assert all(list(mixture) == list(PRIOR) for mixture in mixtures.values(1))


def test_the_study_learns_the_loss_and_leaves_mixtures(proxies, tmp_path):
    found = ProxyRegression(proxies, PRIOR, smallest_leaf=3)(0)
    assert found.numbers["spearman_trees"] > 0.9
    assert found.numbers["proxy_steps"] == 60 * 150
    assert found.numbers["proxy_seconds"] == 120
    left = {}
    for name, text in found.files.items():
        (tmp_path / name).write_text(text)
        left[name] = read_mixture(tmp_path / name)
    assert set(left) == {f"{name}.json" for name in ("linear", "trees", "best", "uniform", "prior")}
    for mixture in left.values():
        assert sum(mixture.values()) == pytest.approx(1, abs=1e-5)
    assert left["prior.json"] == PRIOR
    assert loss(left["trees.json"]) < min(
        loss(left["uniform.json"]), loss(left["prior.json"]), loss(left["linear.json"])
    )
    assert {name: found.numbers[f"trees_{name}"] for name in PRIOR} == left["trees.json"]
    seen = proxies.values("data.weights")[:44]
    best = min(seen, key=loss)
    assert left["best.json"] == pytest.approx(
        {name: share / sum(best.values()) for name, share in best.items()}, abs=1e-6
    )
    drawn = found.pictures["unseen"]
    assert drawn.x == list(range(1, 17)) and sorted(drawn.lines["measured"]) == drawn.lines["measured"]
    assert found == ProxyRegression(proxies, PRIOR, smallest_leaf=3)(0)


def test_what_is_unseen_is_not_learnt_from(tmp_path):
    one, other = fleet(tmp_path / "one"), fleet(tmp_path / "other")
    record = tmp_path / "other" / "59" / "record.json"
    record.write_text(record.read_text().replace("[9.0, ", "[9.0, 1"))
    found, changed = (ProxyRegression(each, PRIOR, smallest_leaf=3)(0) for each in (one, other))
    assert found.files == changed.files
    assert found.numbers["mse_trees"] != changed.numbers["mse_trees"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"unseen": 55}, "60 proxies, 55 of them unseen, are too few"),
        ({"metric": "val/cross_entropi@student"}, r"has no metric .* Did you mean 'val/cross_entropy@student'"),
        ({"metric": "test/accuracy"}, "The metric 'test/accuracy' of the run .* is not finite"),
        ({"prior": PRIOR | {"other": 0.9}}, "prior: the shares sum to 1.3"),
        ({"prior": {"near": 0.4, "far": 0.6}}, r"data\.weights: there is no domain 'other'"),
    ],
)
def test_mistakes_are_told_in_a_sentence(proxies, changes, message):
    with pytest.raises(UserError, match=message) as raised:
        ProxyRegression(**{"proxies": proxies, "prior": PRIOR} | changes)(0)
    assert "\n" not in str(raised.value)


def test_a_fleet_says_what_it_lacks(tmp_path):
    found = fleet(tmp_path, 4)
    with pytest.raises(UserError, match=r"does not go over 'data.weight', but over data.weights. Did you mean"):
        found.values("data.weight")
    (tmp_path / "2" / "record.json").unlink()
    with pytest.raises(
        UserError, match=r"1 of the 4 runs of 'proxy.yaml' have no record .*: the same command fits them"
    ):
        found.records()
    with pytest.raises(UserError, match="kdbench resolves the fleet"):
        FromRuns("proxy.yaml", over={"data.weights": []}).records()


# ---- tables ----


def test_tables_are_ranked(tmp_path, monkeypatch):
    """Losses of larger models are lower, and ordered alike."""
    mixtures = TemperedMixtures(PRIOR, 160).values(0)
    for split, size, part, shift in (
        ("train", "1m", mixtures[:120], 0),
        ("test", "1m", mixtures[120:], 0),
        ("test", "60m", mixtures[120:], -1),
        ("test", "1B", mixtures[120:140], -2),
    ):
        rows = [f"{number},{','.join(map(str, each.values()))}" for number, each in enumerate(part)]
        head = ",".join(f"train_the_pile_{name}" for name in PRIOR)
        (tmp_path / f"{split}_mixture_{size}.csv").write_text("\n".join([f"index,{head}", *rows]))
        rows = [f"{number},{loss(each) + shift},{each['far']}" for number, each in enumerate(part)]
        head = "index,metric/the_pile_near_val_loss,metric/the_pile_far_val_loss"
        (tmp_path / f"{split}_pile_loss_{size}.csv").write_text("\n".join([head, *rows]))
    monkeypatch.setattr(registry, "load", lambda name, source, split: local_mixtures(tmp_path, split))
    found = MixtureRegression("mixtures/pile", PRIOR, ["near", "far"], [60])(0)
    assert found.numbers["rank_near_1m_60m"] == pytest.approx(1)
    assert "rank_near_1m_1b" not in found.numbers
    assert found.numbers["spearman_trees_near_1b"] > 0.95
    assert found.numbers["spearman_linear_far_1m"] == pytest.approx(1, abs=1e-3)
    assert found.numbers["mse_linear_far"] == pytest.approx(0, abs=1e-9)
    assert found.numbers["share_near"] > 0 > found.numbers["share_other"]
    assert found.pictures["counts"].x == [60, 120]
    assert np.shape(found.pictures["shares"].cells) == (3, 2)
    with pytest.raises(UserError, match=r"There are no losses on 'nera', only on near, far\. Did you mean"):
        MixtureRegression("mixtures/pile", PRIOR, ["nera"])(0)

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdbench.data.cards import CARDS
from kdbench.data.generators.class_templates import as_values
from kdbench.data.generators.painted_scenes import GREY, PLACES, RED, TEXTURES, PaintedScenes
from kdbench.data.registry import load

SCENES = PaintedScenes()


def images_of(rows):
    return np.stack([row["image"] for row in rows])


@given(st.integers(0, 5), st.sampled_from(["train", "validation", "test"]), st.integers(1, 6))
def test_a_row_depends_on_seed_split_and_number_alone(seed, split, count):
    made = [PaintedScenes(seed=seed).rows(split, size) for size in (6, count)]
    for ours, theirs in zip(*made, strict=False):
        assert np.array_equal(ours.pop("image"), theirs.pop("image")) and ours == theirs


def test_classes_are_all_pairs_and_equally_frequent():
    rows = SCENES.rows("train", 4000)
    assert all(row["label"] == f"{row['texture']}, {row['place']}" for row in rows)
    labels, counts = np.unique([row["label"] for row in rows], return_counts=True)
    assert set(labels) == {f"{texture}, {place}" for texture, place in product(TEXTURES, PLACES)}
    assert counts.min() > 150 and counts.max() < 250


@pytest.mark.parametrize("size", [16, 48])
def test_textures_have_one_strength_and_their_directions(size):
    scenes = PaintedScenes(size=size, ground=0.3)
    for number, name in enumerate(TEXTURES):
        phases = np.linspace(0, 2 * np.pi, 12, endpoint=False)
        made = [scenes.texture(number, first, second) for first in phases for second in phases]
        assert np.square(made).mean() == pytest.approx(0.09, rel=0.02), name
    level, upright, falling, rising, checked = (scenes.texture(number, 0.4, 1.1) for number in range(5))
    np.testing.assert_allclose(level, level[:, :1].repeat(size, 1))
    np.testing.assert_allclose(upright, upright[:1].repeat(size, 0))
    np.testing.assert_allclose(falling[1:, :-1], falling[:-1, 1:])  # alike where row + column is
    np.testing.assert_allclose(rising[1:, 1:], rising[:-1, :-1])
    assert np.linalg.matrix_rank(checked) == 1 and np.linalg.matrix_rank(np.diff(checked, axis=0)) == 1


def test_the_disc_lies_in_its_quarter():
    half = SCENES.size // 2
    for place, (down, right) in product(range(4), product((-1, 0, 1), repeat=2)):
        rows, columns = np.nonzero(SCENES.disc(place, down, right))
        assert set(rows // half) == {place // 2} and set(columns // half) == {place % 2}
        assert len(rows) == SCENES.disc(0).sum() > 10
        assert rows.mean() + 0.5 == pytest.approx(half * (0.5 + place // 2) + down)


def test_scenes_without_noise_are_what_they_say():
    row, clean = PaintedScenes(noise=0.4).rows("test", 1)[0], PaintedScenes(noise=1e-9).rows("test", 1)[0]
    assert row["label"] == clean["label"]
    values, place = as_values(clean["image"]), PLACES.index(clean["place"])
    red = np.isclose(values, SCENES.strength * RED[:, None, None], atol=0.02).all(0)
    discs = [SCENES.disc(place, down, right) for down in (-1, 0, 1) for right in (-1, 0, 1)]
    (disc,) = [each for each in discs if red[each].all() and each.sum() <= red.sum() <= each.sum() + 5]
    grey = values[:, ~disc]
    assert np.ptp(grey, axis=0).max() == 0 and np.abs(grey).max() <= 2 * SCENES.ground + 0.02
    assert (as_values(row["image"]) - values).std() == pytest.approx(0.4, rel=0.1)


def test_the_posterior_against_sums_over_all_scenes():
    """The likelihood of every scene one by one, its phases on a finer grid."""
    scenes = PaintedScenes(size=16, noise=0.8)
    rows = scenes.rows("validation", 3)
    x = as_values(images_of(rows)).reshape(3, -1)
    phases = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    likelihood = np.zeros((3, 5, 4))
    for number, place in product(range(5), range(4)):
        seconds = phases if TEXTURES[number] == "checked" else phases[:1]
        grounds = [scenes.texture(number, first, second) for first in phases for second in seconds]
        for shift in product((-1, 0, 1), repeat=2):
            disc = scenes.disc(place, *shift)
            means = np.where(
                disc, scenes.strength * RED[:, None, None], GREY[:, None, None] * np.array(grounds)[:, None]
            ).reshape(len(grounds), -1)
            squares = np.square(x).sum(1)[:, None] - 2 * x @ means.T + np.square(means).sum(1)
            likelihood[:, number, place] += np.exp(-0.5 * (squares - 480) / 0.64).mean(1)
    expected = likelihood / likelihood.sum((1, 2), keepdims=True)
    np.testing.assert_allclose(np.exp(scenes.log_posterior(images_of(rows))), expected, rtol=1e-4, atol=1e-9)


def test_what_is_expected_of_bayes_rule_is_what_is_measured():
    rows = SCENES.rows("validation", 300)
    expected = np.exp(SCENES.log_posterior(images_of(rows))).max((1, 2)).mean()
    assert SCENES.best_accuracy(rows) == pytest.approx(expected, abs=0.02) and 0.95 < expected < 1


@pytest.mark.slow
def test_best_score():
    best = SCENES.best_accuracy(load("synthetic/painted_scenes", "embedded", "test"))
    assert f"tells {100 * best:.1f}% of the test classes" in CARDS["synthetic/painted_scenes"].embedded

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import multivariate_normal
from sklearn.neighbors import NearestCentroid

from kdbench.data.cards import CARDS
from kdbench.data.generators.class_templates import (
    SIZE,
    STEPS,
    ClassTemplates,
    as_pixels,
    as_values,
    resting_spots,
    shifted_waves,
    spots,
    waves,
)
from kdbench.data.registry import load


def images_of(rows):
    return np.stack([row["image"] for row in rows])


def classes_of(rows):
    return np.array([int(row["label"][1:]) for row in rows])


def test_templates_are_smooth_and_of_one_strength():
    templates = waves(contrast=0.3)
    assert templates.shape == (10, 3, SIZE, SIZE)
    np.testing.assert_allclose(np.square(templates).mean((1, 2, 3)), 0.09)
    np.testing.assert_allclose(templates.mean((2, 3)), 0, atol=1e-12)
    spectrum = np.abs(np.fft.fft2(templates))
    low = np.abs(np.fft.fftfreq(SIZE, 1 / SIZE)) <= 2
    np.testing.assert_allclose(spectrum[..., ~(low[:, None] & low)], 0, atol=1e-9)


def test_spots_are_three_gaussians():
    (template,) = spots(classes=1, height=1.0, seed=3)
    assert template.shape == (1, SIZE, SIZE) and template.min() >= 0 and 0.9 < template.max() <= 3
    np.testing.assert_allclose(spots(1, 0.5, 3)[0], template / 2)


@given(st.integers(0, 5), st.sampled_from(["train", "validation", "test"]), st.integers(1, 8))
def test_a_row_depends_on_seed_split_and_number_alone(seed, split, count):
    made = [ClassTemplates(waves(), 0.8, 3, seed).rows(split, size) for size in (8, count)]
    for ours, theirs in zip(*made, strict=False):
        assert np.array_equal(ours["image"], theirs["image"]) and ours["label"] == theirs["label"]
    assert len({row["image"].tobytes() for row in made[0]}) == 8


def test_rows_are_shifted_templates_under_noise():
    templates = ClassTemplates(waves(contrast=1.0), noise=0.1, shift=2)
    rows = templates.rows("train", 300)
    classes, values = classes_of(rows), as_values(images_of(rows))
    # the circular correlation with its own template is largest at the shift
    spectra = np.fft.fft2(values) * np.fft.fft2(templates.templates[classes]).conj()
    peaks = np.fft.ifft2(spectra).real.sum(1).reshape(len(rows), -1).argmax(1)
    shifts = (np.stack(np.divmod(peaks, SIZE), axis=1) + SIZE // 2) % SIZE - SIZE // 2
    assert {tuple(each) for each in shifts.tolist()} == {
        (down, right) for down in range(-2, 3) for right in range(-2, 3)
    }
    clean = [np.roll(templates.templates[each], by, (1, 2)) for each, by in zip(classes, shifts, strict=True)]
    assert (values - clean).std() == pytest.approx(0.1, rel=0.02)
    assert np.bincount(classes, minlength=10).min() > 15


def test_noise_has_its_standard_deviation():
    values = as_values(images_of(ClassTemplates(np.zeros((2, 1, SIZE, SIZE)), 0.8).rows("test", 500)))
    assert values.std() == pytest.approx(0.8, rel=0.01) and abs(values.mean()) < 0.01


@given(st.floats(-3.9, 3.9))
def test_pixels_tell_values_to_half_a_level(value):
    assert abs(float(as_values(as_pixels(np.array(value)))) - value) <= 0.5 / STEPS + 1e-12


def test_the_posterior_is_bayes_rule():
    templates = ClassTemplates(0.2 * np.arange(3.0)[:, None, None, None] * waves(3, 1, 1.0)[:, :, :4, :4], 0.5, shift=1)
    images = np.random.default_rng(0).integers(100, 156, size=(20, 1, 4, 4), dtype=np.uint8)
    densities = np.array(
        [
            np.mean(
                [
                    multivariate_normal(np.roll(each, (down, right), (1, 2)).ravel(), 0.25 * np.eye(16)).pdf(
                        as_values(images).reshape(20, -1)
                    )
                    for down in (-1, 0, 1)
                    for right in (-1, 0, 1)
                ],
                axis=0,
            )
            for each in templates.templates
        ]
    ).T
    posterior = np.exp(templates.log_posterior(images))
    np.testing.assert_allclose(posterior, densities / densities.sum(-1, keepdims=True), rtol=1e-8)


@pytest.mark.parametrize(
    ("name", "templates"),
    [("synthetic/class_templates", shifted_waves()), ("synthetic/class_templates_20", resting_spots())],
)
def test_best_scores(name, templates):
    rows = load(name, "embedded", "test")
    best = templates.best_accuracy(rows)
    assert f"tells {100 * best:.1f}% of the test classes" in CARDS[name].embedded
    # what is expected of Bayes' rule is what is measured
    expected = np.exp(templates.log_posterior(images_of(rows))).max(-1).mean()
    assert best == pytest.approx(expected, abs=0.015)
    # and a plain classifier that learns from the rows stays below it
    train = load(name, "embedded", "train")
    learnt = NearestCentroid().fit(images_of(train).reshape(len(train), -1).astype(float), classes_of(train))
    score = learnt.score(images_of(rows).reshape(len(rows), -1).astype(float), classes_of(rows))
    assert 1.5 / len(templates.templates) < score < best

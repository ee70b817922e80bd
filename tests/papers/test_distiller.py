"""Distiller (arXiv 2109.11105): the bounds on mutual information, the layer map, and the study of the estimators."""

import math

import pytest
import torch
from torch import nn

from kdbench.losses.contrastive import MutualInformation, mutual_information_bound
from kdbench.losses.hints import cosine_distance, mean_squared_error
from kdbench.losses.transport import earth_mover_distance, earth_mover_plan
from kdbench.methods.objective import Objective, Term
from kdbench.studies.estimators import mutual_information_study, optimal_critic


def g(shape, a, phase, scale=1.0):
    return (scale * torch.sin(a * torch.arange(math.prod(shape), dtype=torch.float64) + phase)).reshape(shape)


CRITIC = g((4, 4), 0.37, 0, 1.5)


@pytest.mark.parametrize(
    ("alpha", "leave_one_out", "all_pairs"),
    [
        (0, -0.867839682, -0.801106798),
        (0.1, -0.785231000, -0.756029465),
        (0.5, -0.615601864, -0.656049466),
        (0.9, -0.566681051, -0.627552149),
        (1, -0.563467304, -0.626637339),
    ],
)
def test_the_bounds(alpha, leave_one_out, all_pairs):
    assert float(mutual_information_bound(CRITIC, alpha)) == pytest.approx(leave_one_out, abs=1e-9)
    assert float(mutual_information_bound(CRITIC, alpha, variant="all_pairs")) == pytest.approx(all_pairs, abs=1e-9)


def test_at_alpha_one_all_pairs_is_info_nce():
    expected = (CRITIC.diagonal() - CRITIC.logsumexp(0)).mean() + math.log(4)
    torch.testing.assert_close(mutual_information_bound(CRITIC, 1, variant="all_pairs"), expected)


@pytest.mark.parametrize(
    ("alpha", "variant", "expected"),
    [
        (0.5, "leave_one_out", 2.079441542),
        (0.9, "leave_one_out", 1.491654877),
        (1, "leave_one_out", 1.386294361),
        (1, "all_pairs", math.log(5)),
    ],
)
def test_a_critic_that_knows_every_pair_reaches_the_cap(alpha, variant, expected):
    critic = 50 * torch.eye(5, dtype=torch.float64)
    assert float(mutual_information_bound(critic, alpha, variant=variant)) == pytest.approx(expected, abs=1e-9)
    if variant == "leave_one_out":
        assert expected == pytest.approx(math.log(4 / alpha))


@pytest.mark.parametrize("variant", ["leave_one_out", "all_pairs"])
@pytest.mark.parametrize("alpha", [0, 0.1, 0.5, 0.9, 1])
def test_the_axis_the_pairing_and_the_column_constants(alpha, variant):
    def bound(critic):
        return float(mutual_information_bound(critic, alpha, variant=variant))

    value, columns = bound(CRITIC), g((4,), 0.9, 1)
    assert (bound(CRITIC.T) == pytest.approx(value, abs=1e-3)) == (alpha == 0), "the mean runs over students"
    assert bound(CRITIC.flip(0)) != pytest.approx(value, abs=1e-3), "other pairs"
    assert (bound(CRITIC + columns) == pytest.approx(value, abs=1e-9)) == (alpha == 1)


def test_the_squared_error_is_a_gaussian_log_likelihood():
    """Barber-Agakov with ``q(t | s) = N(s, sigma^2)``: ``|t - s|^2 = -2 sigma^2 log q(t | s) + constant``."""
    sigma, width = 0.7, 6
    constant = -width * sigma**2 * math.log(2 * math.pi * sigma**2)
    for phase in (0.0, 1.0, 2.0):
        student, teacher = g((3, width), 0.37, phase), g((3, width), 0.53, 1)
        likelihood = torch.distributions.Normal(student, sigma).log_prob(teacher).sum(-1)
        expected = (-2 * sigma**2 * likelihood + constant) / width
        torch.testing.assert_close(mean_squared_error(student, teacher, reduction="none"), expected)


def test_the_cosine_is_a_von_mises_fisher_log_likelihood():
    """On the circle: ``kappa (1 - cos) = -log q(t | s) + constant``."""
    kappa, angles = torch.tensor(2.5).double(), g((5,), 0.9, 1, 3)
    student = torch.stack([angles.cos(), angles.sin()], 1)
    for turn in (0.0, 0.4, 2.0):
        teacher = 3 * torch.stack([(angles + turn).cos(), (angles + turn).sin()], 1)
        likelihood = torch.distributions.VonMises(angles, kappa).log_prob(angles + turn)
        constant = torch.distributions.VonMises(angles, kappa).log_prob(angles)
        expected = (constant - likelihood) / kappa
        torch.testing.assert_close(cosine_distance(student, teacher, "none"), expected, atol=1e-6, rtol=1e-6)


def test_layers_at_no_cost_to_their_own_place_are_mapped_there():
    cost = g((4, 4), 0.37, 1).abs() + 0.05
    cost.fill_diagonal_(0.0)
    torch.testing.assert_close(earth_mover_plan(cost), torch.eye(4, dtype=torch.float64) / 4)


def test_the_map_of_layers_weighs_their_losses():
    """A student of two layers that are the second and the last of its teacher's four."""
    teacher = [g((3, 5), 0.41, layer) for layer in range(4)]
    student = [nn.Parameter(teacher[1] + 1e-3), nn.Parameter(teacher[3] + 1e-3)]
    cost = torch.stack([torch.stack([mean_squared_error(ours, theirs) for ours in student]) for theirs in teacher])
    plan = earth_mover_plan(cost)
    assert float(plan[1, 0]) == float(plan[3, 1]) == 0.25, "each keeps its own"
    torch.testing.assert_close(plan.sum(0), torch.tensor([0.5, 0.5]).double())
    earth_mover_distance(cost).backward()
    assert all(each.grad.abs().sum() > 0 for each in student)


def test_a_term_of_sentence_vectors_trains_its_critic_and_no_teacher():
    torch.manual_seed(0)
    objective = Objective({"mi": Term(MutualInformation(0.5, dim=4, hidden=8), student="pooled", teacher="big.pooled")})
    student, teacher = g((6, 5), 0.37, 0).float().requires_grad_(), g((6, 9), 0.53, 1).float().requires_grad_()
    (value,) = objective({"pooled": student}, {"big": {"pooled": teacher}}, {}).values()
    value.backward()
    assert objective.compares_rows
    assert teacher.grad is None
    assert student.grad.abs().sum() > 0
    assert all(each.grad is not None for each in objective.parameters())


# -- the study of the estimators


ALPHAS = [0, 0.1, 0.5, 0.9, 1]
PILOTED = {
    6: ([5.9, 5.30, 4.59, 4.14, 3.74], [1.4, 0.25, 0.17, 0.14, 0.11]),
    10: ([9.8, 6.85, 5.56, 5.00, 4.11], [5.1, 0.17, 0.09, 0.07, 0.04]),
}


@pytest.mark.parametrize("information", [6, 10])
def test_mean_and_spread_fall_as_alpha_rises(information):
    batches = 40
    found = mutual_information_study(information, ALPHAS, batches)
    assert found["alpha"] == ALPHAS
    means, stds = PILOTED[information]
    for place, (mean, std) in enumerate(zip(means, stds, strict=True)):
        # the pilot had 150 batches, and its numbers are rounded
        error = 4 * std * math.sqrt(1 / batches + 1 / 150) + 0.005
        assert found["mean"][place] == pytest.approx(mean, abs=error)
        assert found["std"][place] == pytest.approx(std, rel=0.5)
    for name in ("mean", "std"):
        assert all(later < earlier for earlier, later in zip(found[name], found[name][1:], strict=False))
    assert found["mean"][-1] < math.log(63)


def test_the_study_is_a_function_of_its_seed():
    first = mutual_information_study(2.0, [0.5, 1], 3, size=8, seed=1)
    assert first == mutual_information_study(2.0, [0.5, 1], 3, size=8, seed=1)
    assert first["mean"] != mutual_information_study(2.0, [0.5, 1], 3, size=8, seed=2)["mean"]
    assert first["mean"][1] == mutual_information_study(2.0, [1], 3, size=8, seed=1)["mean"][0], "the same batches"


def test_the_optimal_critic_is_the_log_ratio_of_densities_and_has_the_information_as_its_mean():
    rho = 0.6
    generator = torch.Generator().manual_seed(0)
    x, noise = torch.randn(2, 4000, 3, generator=generator, dtype=torch.float64)
    y = rho * x + math.sqrt(1 - rho**2) * noise
    few = optimal_critic(x[:4], y[:4], rho)
    normal = torch.distributions.Normal
    given = normal(rho * x[:4, None], math.sqrt(1 - rho**2)).log_prob(y[None, :4]).sum(-1)
    torch.testing.assert_close(few, given - normal(0.0, 1.0).log_prob(y[:4]).sum(-1))
    pairs = torch.stack([optimal_critic(x[[i]], y[[i]], rho)[0, 0] for i in range(4000)])
    expected = -3 / 2 * math.log(1 - rho**2)
    assert float(pairs.mean()) == pytest.approx(expected, abs=4 * float(pairs.std()) / math.sqrt(4000))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0.0, [1], 3), "information must be positive and finite, in nats, got 0"),
        ((2.0, [1], 1), "needs 2 batches of 2 pairs or more, got 1 of 64"),
        ((2.0, [1], 3, 1), "got 3 of 1"),
        ((2.0, [2], 3), "alpha is a share"),
    ],
)
def test_a_study_that_says_nothing_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        mutual_information_study(*arguments)

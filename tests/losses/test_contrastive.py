"""Bounds on mutual information: against loops written from the equations, and what they obey."""

import copy
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from kdbench.losses.contrastive import MutualInformation, mutual_information_bound


def g(shape, a, phase, scale=1.0):
    return (scale * torch.sin(a * torch.arange(math.prod(shape), dtype=torch.float64) + phase)).reshape(shape)


CRITIC = g((4, 4), 0.37, 0, 1.5)
VARIANTS = ["leave_one_out", "all_pairs"]
seeds = st.integers(0, 10_000)
alphas = st.one_of(st.sampled_from([0.0, 1.0]), st.floats(0.01, 0.99))
sizes = st.integers(2, 6)


def drawn(seed, size, scale=2.0):
    return scale * torch.randn(size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def drawn_groups(seed, size):
    groups = torch.randint(size, (size,), generator=torch.Generator().manual_seed(seed))
    return groups[:, None] == groups


def slow(critic, alpha, log_q, variant, same):
    """The equations, one entry after another."""
    f, size, q = critic.tolist(), len(critic), math.exp(log_q)
    columns = []
    for j in range(size):
        negatives = [i for i in range(size) if i != j and not same[i][j]]

        def mean(rows, j=j):
            return sum(math.exp(f[i][j]) for i in rows) / len(rows)

        def mix(m):
            return alpha * m + (1 - alpha) * q

        if variant == "all_pairs":
            m = mean([j, *negatives])
            columns.append(1 + f[j][j] - math.log(mix(m)) - m / mix(m))
        elif negatives:
            m = mean(negatives)
            marginal = sum(math.exp(f[i][j]) / mix(m) for i in negatives) / len(negatives)
            left = [mean([j, *(i for i in negatives if i != out)]) for out in negatives]
            joint = sum(f[j][j] - math.log(mix(m)) for m in left) / len(negatives)
            columns.append(1 + joint - marginal)
        else:
            columns.append(0.0)
    return columns


@pytest.mark.parametrize("variant", VARIANTS)
@given(seed=seeds, size=sizes, alpha=alphas, log_q=st.floats(-2, 2), copies=st.booleans())
def test_the_bound_is_that_of_the_loop(variant, seed, size, alpha, log_q, copies):
    critic = drawn(seed, size)
    same = drawn_groups(seed, size) if copies else torch.zeros(size, size, dtype=torch.bool)
    expected = slow(critic, alpha, log_q, variant, same.tolist())
    found = mutual_information_bound(critic, alpha, log_q, variant, same if copies else None, "none")
    assert found.tolist() == pytest.approx(expected, rel=1e-9, abs=1e-9)
    mean = mutual_information_bound(critic, alpha, log_q, variant, same if copies else None)
    assert float(mean) == pytest.approx(sum(expected) / size, rel=1e-9, abs=1e-9)


@given(seeds, sizes)
def test_at_alpha_one_all_pairs_is_the_cross_entropy_over_students(seed, size):
    critic = drawn(seed, size)
    expected = math.log(size) - functional.cross_entropy(critic.T, torch.arange(size))
    torch.testing.assert_close(mutual_information_bound(critic, 1, variant="all_pairs"), expected)


@given(seeds, sizes, st.floats(0.1, 50.0), st.floats(0.01, 1.0))
def test_caps(seed, size, scale, alpha):
    critic = drawn(seed, size, scale)
    leave_one_out = mutual_information_bound(critic, 1, reduction="none")
    assert leave_one_out.max() <= math.log(size - 1) + 1e-9
    assert mutual_information_bound(critic, 1, variant="all_pairs", reduction="none").max() <= math.log(size) + 1e-9
    between = mutual_information_bound(critic, alpha, reduction="none")
    assert between.max() <= 1 + math.log((size - 1) / alpha) + 1e-9


@pytest.mark.parametrize("variant", VARIANTS)
@given(seed=seeds, size=st.integers(3, 6))
def test_only_at_alpha_one_a_number_added_to_a_column_changes_nothing(variant, seed, size):
    critic, column = drawn(seed, size), drawn(seed + 1, size)[0] + 3
    value = mutual_information_bound(critic, 1, variant=variant)
    torch.testing.assert_close(mutual_information_bound(critic + column, 1, variant=variant), value)
    row = mutual_information_bound(critic + column[:, None], 1, variant=variant)
    assert float(row) != pytest.approx(float(value), abs=1e-6), "the softmax runs over the student's rows"
    for alpha in (0, 0.5):
        moved = mutual_information_bound(CRITIC + 1, alpha, variant=variant)
        assert float(moved) != pytest.approx(float(mutual_information_bound(CRITIC, alpha, variant=variant)), abs=1e-3)


@given(seeds, sizes, alphas, st.floats(-3, 3))
def test_a_base_is_an_offset_of_the_critic(seed, size, alpha, log_q):
    """``f`` with base q and ``f - log q`` with base 1 are one; with a base of its own for each column likewise."""
    critic = drawn(seed, size)
    shifted = mutual_information_bound(critic - log_q, alpha)
    torch.testing.assert_close(mutual_information_bound(critic, alpha, log_q), shifted)
    columns = drawn(seed + 1, size)[0]
    shifted = mutual_information_bound(critic - columns, alpha)
    torch.testing.assert_close(mutual_information_bound(critic, alpha, columns), shifted)


@given(seeds, sizes)
def test_at_alpha_zero_it_is_the_nwj_bound(seed, size):
    """With NWJ's constant: ``E_joint[f] - E_marginal[exp(f)] / e``."""
    critic = drawn(seed, size)
    others = critic[~torch.eye(size, dtype=torch.bool)]
    expected = critic.diagonal().mean() - (others.exp() / math.e).mean()
    torch.testing.assert_close(mutual_information_bound(critic, 0, log_q=1.0), expected)


@given(seeds, sizes, alphas)
def test_the_diagonal_has_a_positive_gradient(seed, size, alpha):
    critic = drawn(seed, size).requires_grad_()
    (gradient,) = torch.autograd.grad(mutual_information_bound(critic, alpha), critic)
    if size > 2 or alpha < 1:  # two pairs at alpha 1: log 1 = 0, whatever the critic says
        assert (gradient.diagonal() > 0).all()
    critic = drawn(seed, size).requires_grad_()
    (gradient,) = torch.autograd.grad(mutual_information_bound(critic, 1, variant="all_pairs"), critic)
    assert (gradient.diagonal() > 0).all()


@pytest.mark.parametrize("variant", VARIANTS)
@given(seed=seeds, size=st.integers(3, 6), alpha=alphas)
def test_the_order_of_pairs_is_free_and_their_pairing_is_not(variant, seed, size, alpha):
    critic = drawn(seed, size, 0.2) + 2 * torch.eye(size, dtype=torch.float64)
    value = mutual_information_bound(critic, alpha, variant=variant)
    order = torch.randperm(size, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(mutual_information_bound(critic[order][:, order], alpha, variant=variant), value)
    assert float(mutual_information_bound(critic.roll(1, 0), alpha, variant=variant)) < float(value) - 0.1


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("alpha", [0, 0.3, 1])
def test_gradients_are_those_of_the_values(variant, alpha):
    critic, log_q = CRITIC.clone().requires_grad_(), torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    same = torch.tensor([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]).bool()
    for pairs in (None, same, torch.ones(4, 4).bool()):
        assert torch.autograd.gradcheck(
            lambda f, q, pairs=pairs: mutual_information_bound(f, alpha, q, variant, pairs), (critic, log_q)
        )


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("alpha", [0.1, 0.5, 1])
def test_large_critics_do_not_overflow(variant, alpha):
    for dtype in (torch.float32, torch.float64):
        critic = (1000 * CRITIC).to(dtype).requires_grad_()
        value = mutual_information_bound(critic, alpha, variant=variant)
        value.backward()
        assert value.isfinite()
        assert critic.grad.isfinite().all()
        assert value.dtype == dtype


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    value = mutual_information_bound(CRITIC.to(dtype), 0.5)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, mutual_information_bound(CRITIC.to(dtype).float(), 0.5))


# -- copies of one sentence


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("alpha", [0, 0.5, 1])
def test_what_the_critic_says_of_copies_is_irrelevant(variant, alpha):
    groups = torch.tensor([7, 1, 7, 2])
    same = groups[:, None] == groups
    critic = CRITIC.clone()
    critic[0, 2], critic[2, 0] = torch.nan, 1e30
    critic.requires_grad_()
    value = mutual_information_bound(critic, alpha, variant=variant, same=same)
    torch.testing.assert_close(value, mutual_information_bound(CRITIC, alpha, variant=variant, same=same))
    value.backward()
    assert float(critic.grad[0, 2]) == float(critic.grad[2, 0]) == 0
    assert critic.grad.isfinite().all()
    assert float(value.detach()) != pytest.approx(
        float(mutual_information_bound(CRITIC, alpha, variant=variant)), abs=1e-3
    )


@pytest.mark.parametrize("alpha", [0, 0.5, 1])
@pytest.mark.parametrize(
    ("critic", "same"), [(CRITIC, torch.ones(4, 4).bool()), (CRITIC[:1, :1], None), (CRITIC[:0, :0], None)]
)
def test_without_a_negative_nothing_is_said(critic, same, alpha):
    critic = critic.clone().requires_grad_()
    value = mutual_information_bound(critic, alpha, same=same)
    value.backward()
    assert float(value.detach()) == 0
    assert (critic.grad == 0).all()
    assert mutual_information_bound(critic, alpha, same=same, reduction="none").shape == critic.shape[:1]


# -- the module


def rows(seed=0, size=8, student=5, teacher=7):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(size, student, generator=generator), torch.randn(size, teacher, generator=generator)


@pytest.fixture
def loss():
    torch.manual_seed(0)
    return MutualInformation(0.5, dim=6, hidden=9)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_loss_is_minus_the_bound_of_a_cosine_critic(variant):
    loss, (student, teacher) = MutualInformation(0.3, variant, 6, 9, temperature=0.2), rows()
    critic = loss.critic(student, teacher)
    ours, theirs = loss.student_side(student), loss.teacher_side(teacher)
    expected = functional.cosine_similarity(ours[:, None], theirs[None], dim=-1) / 0.2
    torch.testing.assert_close(critic, expected)
    assert ours.shape == theirs.shape == (8, 6)
    assert loss.student_side[0].weight.shape == (9, 5)
    assert loss.teacher_side[0].weight.shape == (9, 7)
    torch.testing.assert_close(loss(student, teacher), -mutual_information_bound(critic, 0.3, variant=variant))


def test_the_teachers_side_is_trained_and_the_teacher_is_not(loss):
    student, teacher = (each.requires_grad_() for each in rows())
    loss(student, teacher).backward()
    assert teacher.grad is None
    assert student.grad.abs().sum() > 0
    assert all(parameter.grad.abs().sum() > 0 for parameter in loss.parameters())


def test_weights_load_before_the_first_rows_come_and_copies_are_independent(loss):
    fresh = copy.deepcopy(loss)
    expected = loss(*rows())
    other = MutualInformation(0.5, dim=6, hidden=9)
    other.load_state_dict(loss.state_dict())
    torch.testing.assert_close(other(*rows()), expected)
    twin = copy.deepcopy(loss)
    torch.testing.assert_close(twin(*rows()), expected)
    fresh(*rows(student=3))
    assert fresh.student_side[0].weight.shape == (9, 3)
    assert loss.student_side[0].weight.shape == (9, 5)


def test_a_base_is_learnt_only_when_asked(loss):
    assert not any("log_q" in name for name, _ in loss.named_parameters())
    learnt = MutualInformation(0.1, dim=6, hidden=9, baseline="learnt")
    learnt(*rows()).backward()
    assert float(learnt.log_q.detach()) == 0
    assert float(learnt.log_q.grad) != 0
    with pytest.raises(ValueError, match="at alpha 1 the bound has no base to learn"):
        MutualInformation(1.0, baseline="learnt")


def test_a_teacher_may_be_stored_in_half_precision(loss):
    student, teacher = rows()
    value = loss(student, teacher.half())
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, loss(student, teacher.half().float()))
    assert MutualInformation().to(torch.bfloat16)(student, teacher).dtype == torch.float32


def test_under_autocast_the_critic_is_no_half_precision(loss):
    student, teacher = rows()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        critic = loss.critic(student, teacher)
    assert critic.dtype == torch.float32
    torch.testing.assert_close(critic, loss.critic(student, teacher), atol=0.3, rtol=0)


def test_weights_count_the_pairs(loss):
    student, teacher = rows()
    values = -mutual_information_bound(loss.critic(student, teacher), 0.5, reduction="none")
    weights = torch.arange(8.0)
    torch.testing.assert_close(loss(student, teacher, weights), (weights * values).sum() / 28)
    torch.testing.assert_close(loss(student, teacher, torch.ones(8)), loss(student, teacher))


def test_groups_are_no_negatives_of_each_other(loss):
    (student, teacher), groups = rows(), torch.tensor([3, 3, 0, 1, 2, 0, 5, 6])
    critic = loss.critic(student, teacher)
    expected = -mutual_information_bound(critic, 0.5, same=groups[:, None] == groups)
    torch.testing.assert_close(loss(student, teacher, groups=groups), expected)
    assert not torch.allclose(expected, loss(student, teacher), atol=1e-4)
    torch.testing.assert_close(loss(student, teacher, groups=torch.arange(8)), loss(student, teacher))


@pytest.mark.parametrize("size", [0, 1])
def test_too_few_rows_cost_nothing(loss, size):
    student, teacher = rows(size=size)
    student.requires_grad_()
    value = loss(student, teacher)
    value.backward()
    assert float(value.detach()) == 0
    assert (student.grad == 0).all()
    assert all((parameter.grad == 0).all() for parameter in loss.parameters()), "data-parallel training waits for them"


def test_a_trained_critic_finds_what_the_rows_share():
    torch.manual_seed(0)
    loss = MutualInformation(0.9, dim=8, hidden=32)
    generator = torch.Generator().manual_seed(1)
    mix = torch.randn(4, 7, generator=generator)
    student = torch.randn(600, 4, generator=generator)
    teacher = student @ mix + 0.1 * torch.randn(600, 7, generator=generator)
    loss(student[:32], teacher[:32])
    optimizer = torch.optim.Adam(loss.parameters(), 3e-3)
    for step in range(150):
        chosen = slice(32 * (step % 15), 32 * (step % 15) + 32)
        optimizer.zero_grad()
        loss(student[chosen], teacher[chosen]).backward()
        optimizer.step()
    held_out = [slice(start, start + 32) for start in (480, 512, 544)]
    with torch.no_grad():
        found = -sum(float(loss(student[chosen], teacher[chosen])) for chosen in held_out) / 3
        foreign = -sum(float(loss(student[chosen], teacher[chosen].roll(1, 0))) for chosen in held_out) / 3
    assert 1.5 < found < 1 + math.log(31 / 0.9)
    assert foreign < 0.2, "pairs that share nothing"


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda: mutual_information_bound(CRITIC[:2], 0.5), r"all pairs, \[K, K\], got the shape \(2, 4\)"),
        (lambda: mutual_information_bound(CRITIC, 1.5), r"alpha is a share in \[0, 1\], got 1.5"),
        (lambda: mutual_information_bound(CRITIC, 0.5, variant="all"), "variant is 'leave_one_out' or 'all_pairs'"),
        (lambda: mutual_information_bound(CRITIC, 0.5, same=torch.ones(2, 2)), r"shape \(4, 4\), not \(2, 2\)"),
        (lambda: MutualInformation(-0.1), "alpha is a share"),
        (lambda: MutualInformation(variant="loo"), "variant is"),
        (lambda: MutualInformation(temperature=0), "temperature must be positive"),
        (lambda: MutualInformation(baseline="none"), "baseline is 'constant' or 'learnt', got 'none'"),
        (lambda: MutualInformation()(torch.ones(3, 2), torch.ones(4, 2)), r"pairs of rows, .* \(3, 2\) and \(4, 2\)"),
        (lambda: MutualInformation()(torch.ones(3, 2, 2), torch.ones(3, 2)), "pairs of rows"),
        (lambda: MutualInformation()(*rows(), torch.ones(3)), r"8 rows need as many weights, got the shape \(3,\)"),
        (lambda: MutualInformation()(*rows(), torch.zeros(8)), "the weights of the rows sum to nothing"),
        (lambda: MutualInformation()(*rows(), groups=torch.ones(3)), r"8 rows need as many groups"),
    ],
)
def test_settings_and_shapes_that_do_not_fit_are_refused(use, message):
    with pytest.raises(ValueError, match=message):
        use()


def test_it_takes_rows_and_compares_them():
    assert MutualInformation.takes_rows
    assert MutualInformation.compares_rows

"""Sinkhorn distances and exact layer maps: oracles, what they obey, and equality over processes."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist
from torch import distributed, multiprocessing, nn
from torch.nn.parallel import DistributedDataParallel

from kdbench.losses.transport import (
    EarthMoverLayers,
    SinkhornDistance,
    earth_mover_distance,
    earth_mover_plan,
    sinkhorn,
    sinkhorn_distance,
)


def g(shape, a, phase, scale=1.0):
    return (scale * torch.sin(a * torch.arange(math.prod(shape), dtype=torch.float64) + phase)).reshape(shape)


STUDENT, TEACHER = g((4, 3), 0.37, 0, 3), g((4, 3), 0.53, 1, 3)
seeds = st.integers(0, 10_000)


def logits(seed, rows=5, classes=7, scale=3.0):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(2, rows, classes, generator=generator, dtype=torch.float64)


# -- the plan


def test_a_plan_of_another_paper():
    """Learned permutations take the same iterations over the negative scores."""
    scores = g((4, 4), 0.77, 0.3, 0.5)
    expected = [0.15344648, 0.30207098, 0.32445651, 0.22002608]
    for log_domain in (True, False):
        plan = sinkhorn(-scores, 0.5, 20, log_domain)
        assert plan[0].tolist() == pytest.approx(expected, abs=1e-7), "they were computed in float32"


@pytest.mark.parametrize("log_domain", [True, False])
@given(seed=seeds, epsilon=st.floats(0.05, 10.0), iterations=st.integers(1, 30))
def test_the_plan_is_that_of_a_loop_over_entries(log_domain, seed, epsilon, iterations):
    cost = logits(seed, 4, 4)[0].abs()
    expected = [[math.exp(-value / epsilon) for value in row] for row in cost.tolist()]
    for _ in range(iterations):
        expected = [[value / sum(row) for value in row] for row in expected]
        sums = [sum(column) for column in zip(*expected, strict=True)]
        expected = [[value / total for value, total in zip(row, sums, strict=True)] for row in expected]
    torch.testing.assert_close(sinkhorn(cost, epsilon, iterations, log_domain), torch.tensor(expected).double())


@pytest.mark.parametrize("log_domain", [True, False])
@given(seed=seeds, epsilon=st.floats(0.3, 10.0))
def test_columns_sum_to_one_and_rows_do_in_the_end(log_domain, seed, epsilon):
    cost = logits(seed, 6, 6, scale=0.5)[0].abs()
    ones = torch.ones(6, dtype=torch.float64)
    torch.testing.assert_close(sinkhorn(cost, epsilon, 3, log_domain).sum(0), ones)
    converged = sinkhorn(cost, epsilon, 500, log_domain)
    torch.testing.assert_close(converged.sum(0), ones)
    torch.testing.assert_close(converged.sum(1), ones, atol=1e-4, rtol=0)


def test_several_costs_at_once_have_each_its_plan():
    costs = g((2, 4, 4), 0.77, 0.3).abs()
    for log_domain in (True, False):
        together = sinkhorn(costs, 0.2, 7, log_domain)
        torch.testing.assert_close(together, torch.stack([sinkhorn(cost, 0.2, 7, log_domain) for cost in costs]))


@settings(max_examples=10)
@given(seeds)
def test_without_entropy_the_plan_is_the_best_assignment(seed):
    """The entropy of a plan is at most ``N ln N``, so that the cost exceeds the least by ``epsilon N ln N`` at most."""
    cost, epsilon = logits(seed, 5, 5)[0].abs(), 0.01
    rows, columns = linear_sum_assignment(cost.numpy())
    value = (sinkhorn(cost, epsilon, 1000) * cost).sum()
    assert float(value) == pytest.approx(float(cost[rows, columns].sum()), abs=epsilon * 5 * math.log(5))


def test_a_mass_repeats_rows_and_columns():
    cost, times = g((3, 3), 0.77, 0.3).abs(), torch.tensor([1, 3, 2])
    repeated = cost.repeat_interleave(times, 0).repeat_interleave(times, 1)
    place = torch.arange(3).repeat_interleave(times)
    for log_domain in (True, False):
        plan = sinkhorn(repeated, 0.2, 5, log_domain)
        summed = torch.zeros(3, 6, dtype=torch.float64).index_add(0, place, plan)
        summed = torch.zeros(3, 3, dtype=torch.float64).index_add(1, place, summed)
        torch.testing.assert_close(sinkhorn(cost, 0.2, 5, log_domain, mass=times), summed)


# -- the distance


@pytest.mark.parametrize("log_domain", [None, True, False])
@pytest.mark.parametrize(
    ("settings", "expected"),
    [({}, 0.827351264), ({"iterations": 200}, 0.828687042), ({"epsilon": 0.05}, 0.771133790)],
)
def test_oracles(settings, expected, log_domain):
    value = sinkhorn_distance(STUDENT, TEACHER, **settings, log_domain=log_domain)
    assert float(value) == pytest.approx(expected, abs=1e-9)
    assert float(SinkhornDistance(**settings, log_domain=log_domain)(STUDENT, TEACHER)) == float(value)
    scaled = sinkhorn_distance(STUDENT, TEACHER, **settings, scale=0.001, log_domain=log_domain)
    assert float(scaled) == pytest.approx(0.001 * expected, abs=1e-12)


@given(seeds, st.floats(0.5, 8.0), st.floats(0.03, 5.0))
def test_the_distance_is_plan_times_cost_of_scipys_distances(seed, temperature, epsilon):
    student, teacher = logits(seed)
    p_s, p_t = ((z / temperature).softmax(-1).numpy() for z in (student, teacher))
    cost = cdist(p_s, p_t, "cityblock")
    plan = np.exp(-cost / epsilon)
    for _ in range(20):
        plan = plan / plan.sum(1, keepdims=True)
        plan = plan / plan.sum(0, keepdims=True)
    value = sinkhorn_distance(student, teacher, temperature, epsilon)
    assert float(value) == pytest.approx(float((plan * cost).sum()), rel=1e-9)


@given(seeds, st.floats(0.02, 5.0))
def test_plain_and_log_domain_agree_in_value_and_gradient(seed, epsilon):
    student, teacher = logits(seed)
    student.requires_grad_()
    values = [sinkhorn_distance(student, teacher, epsilon=epsilon, log_domain=each) for each in (False, True)]
    torch.testing.assert_close(*values)
    torch.testing.assert_close(*(torch.autograd.grad(value, student)[0] for value in values))


def test_a_small_epsilon_is_taken_in_the_log_domain_by_itself():
    apart = torch.eye(4, dtype=torch.float32) * 100
    student, teacher = torch.cat([apart, 0 * apart], 1), torch.cat([0 * apart, apart], 1)
    for epsilon in (0.019, 0.01, 1e-4):
        leaf = student.clone().requires_grad_()
        value = sinkhorn_distance(leaf, teacher, epsilon=epsilon)
        value.backward()
        assert float(value.detach()) == pytest.approx(8.0)
        assert leaf.grad.isfinite().all()
    assert sinkhorn_distance(student, teacher, epsilon=0.01, log_domain=False).isnan(), "which is why"
    assert float(sinkhorn_distance(student, teacher, epsilon=0.02)) == pytest.approx(8.0), "the plain form still works"


@pytest.mark.parametrize("log_domain", [True, False])
@pytest.mark.parametrize("weights", [None, torch.tensor([1.0, 0.5, 0.0, 2.0]).double()])
def test_gradients_are_those_of_the_values_through_all_iterations(log_domain, weights):
    student = STUDENT.clone().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda z: sinkhorn_distance(z, TEACHER, log_domain=log_domain, weights=weights), student
    )


def test_the_plan_is_no_constant():
    student = STUDENT.clone().requires_grad_()
    cost = torch.cdist((student / 2).softmax(-1), (TEACHER / 2).softmax(-1), p=1)
    (constant,) = torch.autograd.grad((sinkhorn(cost.detach()) * cost).sum(), student)
    (gradient,) = torch.autograd.grad(sinkhorn_distance(student, TEACHER), student)
    assert float((gradient - constant).norm()) > 0.1 * float(constant.norm())


def test_the_teacher_gets_no_gradient():
    student, teacher = STUDENT.clone().requires_grad_(), TEACHER.clone().requires_grad_()
    SinkhornDistance()(student, teacher).backward()
    assert teacher.grad is None
    assert student.grad.abs().sum() > 0


@given(seeds, st.permutations(range(5)))
def test_it_sees_no_pairing(seed, order):
    student, teacher = logits(seed)
    value = float(sinkhorn_distance(student, teacher))
    assert value >= 0
    assert float(sinkhorn_distance(student[order], teacher[order])) == pytest.approx(value)
    assert float(sinkhorn_distance(student, teacher[order])) == pytest.approx(value)
    assert float(sinkhorn_distance(student[order], teacher)) == pytest.approx(value)


@given(seeds)
def test_equal_batches_reach_zero_only_without_entropy(seed):
    _, teacher = logits(seed)
    assert float(sinkhorn_distance(teacher, teacher, epsilon=0.1)) > 1e-6
    assert float(sinkhorn_distance(teacher, teacher, epsilon=1e-4)) == pytest.approx(0, abs=1e-6)


@given(seeds)
def test_one_row_gives_the_distance_itself(seed):
    student, teacher = logits(seed, rows=1)
    expected = ((student / 2).softmax(-1) - (teacher / 2).softmax(-1)).abs().sum()
    torch.testing.assert_close(sinkhorn_distance(student, teacher), expected)


@given(seeds)
def test_an_infinite_entropy_gives_the_mean_cost_times_the_batch(seed):
    student, teacher = logits(seed)
    cost = cdist((student / 2).softmax(-1), (teacher / 2).softmax(-1), "cityblock")
    assert float(sinkhorn_distance(student, teacher, epsilon=1e6)) == pytest.approx(5 * cost.mean(), rel=1e-5)


@given(seeds)
def test_it_grows_with_the_batch(seed):
    student, teacher = logits(seed)
    twice = sinkhorn_distance(torch.cat([student, student]), torch.cat([teacher, teacher]))
    torch.testing.assert_close(twice, 2 * sinkhorn_distance(student, teacher))


def test_one_class_has_nothing_to_compare_and_the_module_says_so():
    student = STUDENT[:, :1].clone().requires_grad_()
    value = sinkhorn_distance(student, TEACHER[:, :1])
    value.backward()
    assert float(value.detach()) == 0
    assert (student.grad == 0).all()
    with pytest.raises(ValueError, match="undefined for regression: the softmax of one output is always 1"):
        SinkhornDistance()(student, TEACHER[:, :1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    student, teacher = STUDENT.to(dtype), TEACHER.to(dtype)
    value = SinkhornDistance()(student, teacher)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, SinkhornDistance()(student.float(), teacher.float()))
    torch.testing.assert_close(value, SinkhornDistance()(student.float(), teacher))


def test_no_rows_give_zero_with_a_gradient_of_zero():
    student = STUDENT[:0].clone().requires_grad_()
    for weights in (None, torch.ones(0)):
        value = SinkhornDistance()(student, TEACHER[:0], weights)
        value.backward()
        assert float(value.detach()) == 0
    assert student.grad.shape == (0, 3)


# -- weights


@pytest.mark.parametrize("log_domain", [True, False])
@given(seed=seeds, times=st.lists(st.integers(0, 3), min_size=5, max_size=5).filter(any))
def test_a_row_of_weight_k_counts_as_k_rows(log_domain, seed, times):
    (student, teacher), times = logits(seed), torch.tensor(times)
    loss = SinkhornDistance(log_domain=log_domain)
    expected = loss(student.repeat_interleave(times, 0), teacher.repeat_interleave(times, 0))
    torch.testing.assert_close(loss(student, teacher, times.double()), expected)


def test_rows_of_weight_zero_are_irrelevant():
    student = STUDENT.clone()
    student[2] = torch.nan
    student.requires_grad_()
    weights = torch.tensor([1.0, 1.0, 0.0, 1.0])
    value = SinkhornDistance()(student, TEACHER, weights)
    torch.testing.assert_close(value, SinkhornDistance()(STUDENT[[0, 1, 3]], TEACHER[[0, 1, 3]]))
    value.backward()
    assert (student.grad[2] == 0).all()
    assert student.grad.isfinite().all()


# -- layers


@pytest.mark.parametrize("layers", [1, 2, 4, 6])
def test_layers_that_cost_nothing_to_their_own_place_stay_there(layers):
    cost = g((layers, layers), 0.37, 0).abs() + 0.1
    cost.fill_diagonal_(0.0)
    eye = torch.eye(layers, dtype=torch.float64)
    torch.testing.assert_close(earth_mover_plan(cost), eye / layers)
    assert float(earth_mover_distance(cost)) == 0


@given(seed=seeds, teachers=st.integers(1, 6), students=st.integers(1, 6), scale=st.sampled_from([1e-9, 1.0, 1e6]))
def test_the_plan_costs_what_the_best_assignment_of_equal_parts_costs(seed, teachers, students, scale):
    """Equal weights: cut every layer in parts of one size and assign the parts."""
    generator = torch.Generator().manual_seed(seed)
    cost = scale * torch.rand(teachers, students, generator=generator, dtype=torch.float64)
    plan = earth_mover_plan(cost)
    assert plan.min() >= 0
    torch.testing.assert_close(plan.sum(1), torch.full((teachers,), 1 / teachers, dtype=torch.float64))
    torch.testing.assert_close(plan.sum(0), torch.full((students,), 1 / students, dtype=torch.float64))
    parts = math.lcm(teachers, students)
    cut = cost.repeat_interleave(parts // teachers, 0).repeat_interleave(parts // students, 1)
    rows, columns = linear_sum_assignment(cut.numpy())
    expected = float(cut[rows, columns].mean())
    assert float(earth_mover_distance(cost)) == pytest.approx(expected, rel=1e-6, abs=1e-12 * scale)


def test_weights_of_layers_are_shares():
    cost = g((3, 2), 0.37, 0).abs()
    plan = earth_mover_plan(cost, torch.tensor([2.0, 0.0, 6.0]), torch.tensor([1.0, 3.0]))
    torch.testing.assert_close(plan.sum(1), torch.tensor([0.25, 0.0, 0.75]).double())
    torch.testing.assert_close(plan.sum(0), torch.tensor([0.25, 0.75]).double())


def test_the_gradient_of_the_distance_of_layers_is_the_plan():
    cost = g((4, 2), 0.37, 0).abs().float().requires_grad_()
    plan = earth_mover_plan(cost)
    assert not plan.requires_grad
    assert plan.dtype == torch.float32
    earth_mover_distance(cost).backward()
    torch.testing.assert_close(cost.grad, plan)


# -- refusals


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda: SinkhornDistance(temperature=0.0), "temperature must be positive, got 0"),
        (lambda: SinkhornDistance(epsilon=0.0), "epsilon must be positive and finite, got 0"),
        (lambda: SinkhornDistance(epsilon=math.nan), "epsilon must be positive and finite, got nan"),
        (lambda: SinkhornDistance(iterations=0), "needs at least 1 iteration, got 0"),
        (lambda: sinkhorn(torch.zeros(2, 2), -1.0), "epsilon must be positive"),
        (lambda: sinkhorn_distance(STUDENT, TEACHER, 0.0), "temperature must be positive"),
        (lambda: sinkhorn_distance(STUDENT, TEACHER[:2]), r"same shape, got \(4, 3\) and \(2, 3\)"),
        (lambda: sinkhorn_distance(STUDENT[None], TEACHER[None]), r"rows \[N, C\], got the shape \(1, 4, 3\)"),
        (lambda: SinkhornDistance()(STUDENT, TEACHER, torch.ones(3)), r"4 rows need as many weights, .* \(3,\)"),
        (lambda: SinkhornDistance()(STUDENT, TEACHER, torch.zeros(4)), "sum to more than nothing"),
        (lambda: SinkhornDistance()(STUDENT, TEACHER, torch.tensor([1.0, 2, -1, 1])), "at least 0"),
        (lambda: earth_mover_plan(torch.zeros(3)), r"a finite matrix \[L_T, L_S\], got the shape \(3,\)"),
        (lambda: earth_mover_plan(torch.full((2, 2), torch.nan)), "a finite matrix"),
        (lambda: earth_mover_plan(torch.zeros(2, 3), torch.ones(3)), "2 layers of the teacher need as many weights"),
        (lambda: earth_mover_plan(torch.zeros(2, 3), None, torch.zeros(3)), "3 layers of the student need"),
        (lambda: earth_mover_plan(torch.zeros(2, 2), torch.tensor([2.0, -1.0])), "weights >= 0"),
    ],
)
def test_settings_and_shapes_that_do_not_fit_are_refused(use, message):
    with pytest.raises(ValueError, match=message):
        use()


# -- over ranks


FEATURES, TARGETS = g((12, 6), 0.61, 0.4), g((12, 5), 0.53, 1, 3)
WEIGHTS = torch.tensor([1, 2, 0, 1, 1, 3, 1, 0.5, 1, 1, 2, 1]).double()
DEALINGS = {
    "halves": [range(6), range(6, 12)],
    "uneven": [[11, 3, 0], [10, 9, 8, 7, 6, 5, 4, 2, 1]],
    "no row on one": [[], range(12)],
}


def student_network():
    network = nn.Linear(6, 5).double()
    with torch.no_grad():
        network.weight.copy_(g((5, 6), 0.3, 1))
        network.bias.copy_(g((5,), 0.7, 2))
    return network


def value_and_gradient(network, rows, loss, weights):
    rows = list(rows)
    value = loss(network(FEATURES[rows]), TARGETS[rows], weights[rows] if weights is not None else None)
    value.backward()
    return [float(value.detach()), *torch.cat([each.grad.flatten() for each in network.parameters()]).tolist()]


def run(rank, folder):
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    found = {}
    for name, ranks in DEALINGS.items():
        for weighted in (False, True):
            network = DistributedDataParallel(student_network())
            loss = SinkhornDistance(over_ranks=True)
            weights = WEIGHTS if weighted else None
            found[f"{name}, {weighted}"] = value_and_gradient(network, ranks[rank], loss, weights)
    network = DistributedDataParallel(student_network())
    found["per device"] = value_and_gradient(network, DEALINGS["halves"][rank], SinkhornDistance(), None)
    if rank == 0:  # in evaluation a rank may have a batch more: no other answers
        with torch.no_grad():
            found["evaluation"] = float(SinkhornDistance(over_ranks=True)(STUDENT, TEACHER))
    (folder / f"{rank}.json").write_text(json.dumps(found))
    distributed.destroy_process_group()


def test_over_two_ranks_value_and_gradient_are_those_of_the_whole_however_it_is_dealt(tmp_path):
    multiprocessing.spawn(run, args=(tmp_path,), nprocs=2)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    for weighted in (False, True):
        whole = value_and_gradient(student_network(), range(12), SinkhornDistance(), WEIGHTS if weighted else None)
        for name in DEALINGS:
            assert first[f"{name}, {weighted}"] == pytest.approx(whole, rel=0, abs=1e-12)
            assert second[f"{name}, {weighted}"] == pytest.approx(whole, rel=0, abs=1e-12)
    alone = value_and_gradient(student_network(), range(12), SinkhornDistance(), None)
    assert first["per device"] != pytest.approx(alone, rel=0, abs=1e-2)
    for rank, found in enumerate((first, second)):
        own = value_and_gradient(student_network(), DEALINGS["halves"][rank], SinkhornDistance(), None)
        assert found["per device"][0] == pytest.approx(own[0]), "without over_ranks a device sees its own rows"
    assert first["evaluation"] == float(SinkhornDistance()(STUDENT, TEACHER))


def test_alone_over_ranks_changes_nothing():
    assert torch.equal(SinkhornDistance(over_ranks=True)(STUDENT, TEACHER), SinkhornDistance()(STUDENT, TEACHER))


def test_it_takes_rows_and_compares_them():
    assert SinkhornDistance.takes_rows
    assert SinkhornDistance.compares_rows


def test_layers_find_their_partners():
    generator = torch.Generator().manual_seed(0)
    states = list(torch.randn(3, 2, 5, 4, generator=generator, dtype=torch.float64))
    mask = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 0, 0, 0]]).bool()
    loss = EarthMoverLayers()
    assert float(loss(states[::-1], states, mask)) == pytest.approx(0, abs=1e-15), "whatever their order"
    few = loss([states[0] + 0.5], states, mask)
    each = [float((states[0] + 0.5 - other)[mask].square().mean()) for other in states]
    assert float(few) == pytest.approx(sum(each) / 3), "one layer learns from all alike"
    wide = EarthMoverLayers(project=True)
    narrow = [state[..., :3].requires_grad_() for state in states[:2]]
    wide(narrow, states, mask).backward()
    assert wide.projection.weight.grad.shape == (4, 3)
    assert all(state.grad is not None for state in narrow)

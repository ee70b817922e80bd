"""InfoNCE and CLIP's loss: against torch, what they obey, and over two processes."""

import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import distributed, multiprocessing
from torch.nn.functional import normalize

from kdbench.losses.contrastive import InfoNCE, info_nce
from kdbench.methods.objective import Objective, Term

seeds = st.integers(0, 10_000)


def drawn(seed, *shape):
    return normalize(torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)), dim=-1)


def slow(queries, candidates, scale):
    total = 0.0
    for place, query in enumerate(queries):
        scores = [scale * float(query @ candidate) for candidate in candidates]
        total += math.log(sum(map(math.exp, scores))) - scores[place]
    return total / len(queries)


@given(seeds, st.integers(1, 6), st.integers(0, 4), st.floats(0.1, 30))
def test_against_a_loop(seed, size, more, scale):
    queries, candidates = drawn(seed, size, 5), drawn(seed + 1, size + more, 5)
    one = float(info_nce(queries, candidates, scale, both_ways=False))
    assert one == pytest.approx(slow(queries, candidates, scale), abs=1e-9)
    both = float(info_nce(queries, candidates, scale))
    back = slow(candidates[:size], queries, scale)
    assert both == pytest.approx((one + back) / 2, abs=1e-9)


@given(seeds, st.integers(1, 6))
def test_both_ways_does_not_see_which_side_is_which(seed, size):
    first, second = drawn(seed, size, 5), drawn(seed + 1, size, 5)
    torch.testing.assert_close(info_nce(first, second, 10.0), info_nce(second, first, 10.0))


@given(st.integers(1, 50), st.floats(0.1, 100))
def test_one_vector_for_all_texts_costs_the_logarithm_of_their_number(size, scale):
    same = drawn(0, 1, 5).expand(size, 5)
    assert float(info_nce(same, same, scale)) == pytest.approx(math.log(size), abs=1e-9)


def test_the_scale_multiplies():
    """Divided by 10, unit vectors could not get below about ``log N - 2 / 10``; multiplied, right answers cost little."""
    right = torch.eye(8, dtype=torch.float64)
    assert float(info_nce(right, right, 10.0)) < 0.001 < math.log(8) - 0.2 < float(info_nce(right, right, 0.1))


def test_the_module_brings_vectors_to_length_one_and_needs_no_teacher():
    first, second = drawn(0, 4, 5), drawn(1, 4, 5)
    objective = Objective({"clip": Term(InfoNCE(10.0), student=["first.embedding", "second.embedding"])})
    assert objective.compares_rows
    assert objective.student_taps() == ["first.embedding", "second.embedding"] and objective.teacher_taps() == {}
    found = objective({"first.embedding": 3 * first, "second.embedding": second / 7}, {}, {})
    torch.testing.assert_close(found["clip"], info_nce(first, second, 10.0))
    with pytest.raises(ValueError, match="InfoNCE compares the student with itself: leave out 'teacher' and 'labels'"):
        Term(InfoNCE(), labels="labels")


def test_half_precision_is_computed_in_float32():
    first, second = drawn(0, 4, 5).half(), drawn(1, 4, 5).half()
    assert info_nce(first, second, 10.0).dtype == torch.float32
    torch.testing.assert_close(info_nce(first, second, 10.0), info_nce(first.float(), second.float(), 10.0))


@pytest.mark.parametrize("shapes", [((3, 4), (2, 4)), ((3, 4), (3, 5)), ((0, 4), (3, 4)), ((3,), (3,))])
def test_shapes_that_do_not_fit(shapes):
    with pytest.raises(ValueError, match=r"every query \[N, D\] needs a candidate of its own"):
        info_nce(*(torch.zeros(shape) for shape in shapes), 1.0)


@pytest.mark.parametrize("scale", [0.0, -1.0, math.inf, math.nan])
def test_scales_that_are_none(scale):
    with pytest.raises(ValueError, match="scale must be positive"):
        InfoNCE(scale)
    with pytest.raises(ValueError, match="scale must be positive"):
        info_nce(drawn(0, 2, 3), drawn(1, 2, 3), scale)


# ---- two processes ----

ROWS = (5, 3)


def sides(rank):
    start = sum(ROWS[:rank])
    rows = slice(start, start + ROWS[rank])
    return drawn(0, sum(ROWS), 4)[rows], drawn(1, sum(ROWS), 4)[rows]


def run(rank, folder):
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    weight = torch.eye(4, dtype=torch.float64, requires_grad=True)
    value = InfoNCE(10.0, over_ranks=True)([side @ weight for side in sides(rank)])
    value.backward()
    distributed.all_reduce(weight.grad)
    (folder / f"{rank}.json").write_text(json.dumps([value.item(), (weight.grad / 2).tolist()]))
    distributed.destroy_process_group()


def test_over_ranks_value_and_mean_gradient_are_those_of_the_whole_batch(tmp_path):
    multiprocessing.spawn(run, args=(tmp_path,), nprocs=2)
    weight = torch.eye(4, dtype=torch.float64, requires_grad=True)
    whole = InfoNCE(10.0)([torch.cat(side) @ weight for side in zip(sides(0), sides(1), strict=True)])
    whole.backward()
    for rank in (0, 1):
        value, gradient = json.loads((tmp_path / f"{rank}.json").read_text())
        assert value == pytest.approx(whole.item(), abs=1e-12)
        torch.testing.assert_close(torch.tensor(gradient, dtype=torch.float64), weight.grad)

"""MiniLM (arXiv 2002.10957) and MiniLMv2 (arXiv 2012.15828): their numbers and what they promise."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kdbench.losses.relations import RelationDivergence, relation_divergence
from kdbench.methods.objective import Objective, Term

# ---- the loss: oracles and invariants ----


def g(shape, a, phase, scale=1.0):
    return (scale * torch.sin(a * torch.arange(math.prod(shape), dtype=torch.float64) + phase)).reshape(shape)


MASK = torch.arange(5) < torch.tensor([5, 3])[:, None]
TEACHER = {
    "query.-1": g((2, 5, 12), 0.37, 0, 2),
    "key.-1": g((2, 5, 12), 0.53, 1, 2),
    "value.-1": g((2, 5, 12), 0.29, 2, 2),
}
STUDENT = {
    "query.-1": g((2, 5, 8), 0.41, 3, 2),
    "key.-1": g((2, 5, 8), 0.61, 4, 2),
    "value.-1": g((2, 5, 8), 0.47, 5, 2),
}
V1 = ["query-key", "value-value"]
V2 = ["query-query", "key-key", "value-value"]


def relation(name, student=STUDENT, teacher=TEACHER, mask=MASK, heads=2, mean="example"):
    ours, theirs = ([side[f"{each}.-1"] for each in name.split("-")] for side in (student, teacher))
    return relation_divergence(ours, theirs, mask, heads, mean)


def total(names, *values, **settings):
    return sum(relation(name, *values, **settings) for name in names)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["query-key"], 2.337458912),
        (["value-value"], 0.489007664),
        (["query-query"], 1.192089266),
        (["key-key"], 2.424463374),
        (V1, 2.826466576),
        (V2, 4.105560304),
    ],
)
def test_oracles(names, expected):
    assert float(total(names)) == pytest.approx(expected, abs=2e-9)


def test_the_loss_is_two_terms_of_an_objective_that_reads_the_last_layers_projections():
    def term(x, y):
        return Term(RelationDivergence(2), 1.0, [f"{x}.-1", f"{y}.-1"], [f"teacher.{x}.-1", f"teacher.{y}.-1"])

    objective = Objective({"attention": term("query", "key"), "value_relation": term("value", "value")})
    terms = objective(STUDENT, {"teacher": TEACHER}, {"inputs": {"attention_mask": MASK.long()}})
    assert float(terms["attention"]) == pytest.approx(2.337458912, abs=1e-9)
    assert float(terms["value_relation"]) == pytest.approx(0.489007664, abs=1e-9)


def test_the_pooled_mean_differs_when_the_lengths_do():
    assert abs(float(total(V1, mean="pooled") - total(V1))) > 1e-3
    full = torch.ones(2, 5)
    torch.testing.assert_close(total(V1, mask=full, mean="pooled"), total(V1, mask=full))


def test_zero_when_the_student_is_the_teacher():
    for names in (V1, V2):
        assert float(total(names, TEACHER)) == pytest.approx(0, abs=1e-12)


@given(st.integers(0, 10_000))
def test_a_rotation_inside_each_head_of_the_student_changes_no_relation_of_v2(seed):
    generator = torch.Generator().manual_seed(seed)
    for name in V2:
        rotation = torch.block_diag(
            *(torch.linalg.qr(torch.randn(4, 4, generator=generator, dtype=torch.float64)).Q for _ in range(2))
        )
        turned = {tap: value @ rotation for tap, value in STUDENT.items()}
        torch.testing.assert_close(relation(name, turned), relation(name))


@given(st.permutations(range(4)))
def test_v2_does_not_see_the_order_of_relation_heads(order):
    def moved(side):
        return {tap: value.unflatten(-1, (4, -1))[:, :, list(order)].flatten(2) for tap, value in side.items()}

    torch.testing.assert_close(total(V2, moved(STUDENT), moved(TEACHER), heads=4), total(V2, heads=4))


@given(st.floats(-1e3, 1e3))
def test_padding_changes_nothing(value):
    changed = [
        {tap: each.masked_fill(~MASK[..., None], value) for tap, each in side.items()} for side in (STUDENT, TEACHER)
    ]
    for names in (V1, V2):
        torch.testing.assert_close(total(names, *changed), total(names))


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_any_number_of_heads_that_divides_both_widths(heads):
    assert float(total(V2, heads=heads)) > 0
    for wrong in (3, 8):
        with pytest.raises(ValueError, match="heads must divide the widths of student and teacher"):
            total(V2, heads=wrong)


def test_the_teacher_gets_no_gradient():
    student, teacher = (
        {tap: value.clone().requires_grad_() for tap, value in side.items()} for side in (STUDENT, TEACHER)
    )
    total(V1, student, teacher).backward()
    assert all(value.grad is None for value in teacher.values())
    assert all(value.grad.abs().sum() > 0 for value in student.values())


def test_each_row_of_a_relation_is_a_distribution_over_real_tokens():
    """Against a student whose relations are uniform, the divergence is ``log n`` less the entropy of the teacher's rows."""
    level = {tap: torch.zeros_like(value) for tap, value in STUDENT.items()}
    expected = 0.0
    for values, length in zip(TEACHER["value.-1"], (5, 3), strict=True):
        for head in values[:length].chunk(2, 1):
            rows = (head @ head.T / math.sqrt(6)).softmax(-1)
            torch.testing.assert_close(rows.sum(1), torch.ones(length, dtype=torch.float64))
            expected += (math.log(length) - torch.special.entr(rows).sum(1)).mean() / 4
    assert float(relation("value-value", level)) == pytest.approx(float(expected), rel=1e-9)

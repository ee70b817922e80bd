"""ERNIE-Tiny (arXiv 2106.02241): its numbers and what it promises."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kdbench.losses.divergences import kl_divergence, soft_cross_entropy
from kdbench.losses.hints import LayersMSE
from kdbench.losses.language import masked_token_cross_entropy
from kdbench.losses.relations import AttentionMapMSE, map_mse

# ---- the losses: oracles and invariants ----


def g(shape, a, phase, scale=1.0):
    return (scale * torch.sin(a * torch.arange(math.prod(shape), dtype=torch.float64) + phase)).reshape(shape)


ALL = torch.ones(2, 4).bool()
STUDENT_SCORES = [g((2, 2, 4, 4), 0.37, m) for m in (1, 2)]
TEACHER_SCORES = [g((2, 2, 4, 4), 0.53, 0.5 + 3 * m) for m in (1, 2)]
STUDENT_HIDDEN = [g((2, 4, 6), 0.29, m) for m in (1, 2)]
TEACHER_HIDDEN = [g((2, 4, 8), 0.41, 3 * m) for m in (1, 2)]


def hidden(weight):
    """Return the loss of hidden states with a given W ``[H_S, H_T]``."""
    loss = LayersMSE(project=True)
    loss.load_state_dict({"projections.0.weight": weight.T})
    return loss


def attention(kind, student=STUDENT_SCORES, teacher=TEACHER_SCORES, mask=ALL):
    return sum(map_mse(ours, theirs, mask, kind) for ours, theirs in zip(student, teacher, strict=True))


def test_the_oracles_of_the_latent_loss():
    states = hidden(g((6, 8), 0.19, 0.5, 0.3))(STUDENT_HIDDEN, TEACHER_HIDDEN, ALL).detach()
    assert float(attention("probabilities")) == pytest.approx(0.025010471, abs=1e-9)
    assert float(states) == pytest.approx(1.004031307, abs=1e-9)
    assert float(attention("probabilities") + states) == pytest.approx(1.029041778, abs=1e-9)
    assert float(attention("scores")) == pytest.approx(1.886761661, abs=1e-9)


def test_the_oracles_of_the_last_stage():
    student, teacher = g((4, 3), 0.37, 0, 3), g((4, 3), 0.53, 1, 3)
    assert float(soft_cross_entropy(student, teacher)) == pytest.approx(1.496789340, abs=1e-9)
    assert float(masked_token_cross_entropy(student, torch.arange(4) % 3)) == pytest.approx(1.537323080, abs=1e-9)
    assert float(kl_divergence(student, teacher)) == pytest.approx(0.648672109, abs=1e-9)


def test_the_latent_loss_of_a_student_that_is_its_teacher_is_0():
    for kind in ("probabilities", "scores"):
        assert float(attention(kind, TEACHER_SCORES)) == 0
    assert float(hidden(torch.eye(8, dtype=torch.float64))(TEACHER_HIDDEN, TEACHER_HIDDEN, ALL).detach()) == 0


def latent(heads=2, kind="probabilities"):
    """Return the latent loss as a run computes it: from queries, keys and hidden states."""
    torch.manual_seed(0)
    maps, states = AttentionMapMSE(heads, kind), LayersMSE(project=True)

    def loss(student, teacher, mask):
        return maps(student, teacher, mask) + states(student[::2], teacher[::2], mask)

    return loss, states


@pytest.mark.parametrize("kind", ["probabilities", "scores"])
@given(value=st.floats(-1e3, 1e3))
def test_padding_changes_nothing(kind, value):
    student = [g((2, 4, 6), 0.29, m) for m in range(4)]
    teacher = [g((2, 4, 8), 0.41, 3 * m) for m in range(4)]
    mask = torch.arange(4) < torch.tensor([4, 2])[:, None]
    loss, _ = latent(kind=kind)
    expected = loss(student, teacher, mask)
    changed = [[each.masked_fill(~mask[..., None], value) for each in side] for side in (student, teacher)]
    torch.testing.assert_close(loss(*changed, mask), expected)
    padded = [
        [each.masked_fill(~(mask[:, None, :, None] & mask[:, None, None, :]), value) for each in side]
        for side in (STUDENT_SCORES, TEACHER_SCORES)
    ]
    torch.testing.assert_close(attention(kind, *padded, mask), attention(kind, mask=mask))


def test_the_map_learns_and_the_teacher_does_not():
    student = [g((2, 4, 6), 0.29, m).requires_grad_() for m in range(4)]
    teacher = [g((2, 4, 8), 0.41, 3 * m).requires_grad_() for m in range(4)]
    loss, states = latent()
    loss(student, teacher, ALL).backward()
    assert states.projections[0].weight.grad.abs().sum() > 0
    assert all(each.grad.abs().sum() > 0 for each in student)
    assert all(each.grad is None for each in teacher)


def test_the_map_of_one_stage_goes_on_in_the_next():
    """The map is a parameter of the loss: its state is what a stage hands over, whether the next one has been run or not."""
    before = hidden(g((6, 8), 0.19, 0.5, 0.3))
    after = LayersMSE(project=True)
    after.load_state_dict(before.state_dict())
    states = (STUDENT_HIDDEN, TEACHER_HIDDEN, ALL)
    torch.testing.assert_close(after(*states), before(*states))

"""Adversarial losses: the discriminator's oracle, who is moved which way by it, and the two forms of GANs."""

import copy
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from kdbench.losses import adversarial
from kdbench.losses.divergences import combine_logits


def s(shape, a, b, c=1.0):
    return (c * torch.sin(a * torch.arange(math.prod(shape), dtype=torch.float64) + b)).reshape(shape)


STUDENT = s((4, 8), 0.37, 0.1, 3)
TEACHERS = [s((4, 8), 0.53, 0.7, 4), s((4, 8), 0.29, 1.1, 2)]
MEAN = combine_logits(TEACHERS, "mean_logits")
KINDS = ["joint", "adversarial"]
numbers = st.lists(st.floats(-30, 30), min_size=8, max_size=8)


def discriminator(kind="joint"):
    """The network 8 -> 4 -> 2 -> 2 of the oracle."""
    loss = adversarial.OutputDiscriminator(kind, divisor=2)
    loss(STUDENT, MEAN)
    with torch.no_grad():
        for i, layer in enumerate(loss.layers):
            layer.weight.copy_(s(layer.weight.shape, 0.31 + 0.1 * i, 0.2 + i, 0.3))
            layer.bias.copy_(s(layer.bias.shape, 0.31, 0.5 + i) + 0.6)
    return loss


def test_the_official_value_and_gradient():
    loss, student = discriminator(), STUDENT.clone().requires_grad_()
    value = loss(student, MEAN)
    value.backward()
    assert value.item() == pytest.approx(0.950754371, abs=1e-9)
    assert float(student.grad.norm()) == pytest.approx(0.00124456264, abs=1e-11)


def test_the_adversary_alone_gets_the_opposite_gradient():
    gradients = {}
    for kind in KINDS:
        loss, student, teacher = discriminator(kind), STUDENT.clone().requires_grad_(), MEAN.clone().requires_grad_()
        value = loss(student, teacher)
        value.backward()
        assert value.item() == pytest.approx(0.950754371, abs=1e-9)
        assert teacher.grad is None
        gradients[kind] = [student.grad, *(each.grad for each in loss.parameters())]
    (ours, *networks), (theirs, *others) = gradients.values()
    torch.testing.assert_close(ours, -theirs)
    assert ours.abs().sum() > 0
    torch.testing.assert_close(networks, others)


@given(numbers, numbers)
def test_it_is_torchs_cross_entropy_over_all_rows_and_scores(student, teacher):
    ours, theirs = (torch.tensor(each, dtype=torch.float64).reshape(4, 2) for each in (student, teacher))
    right = torch.tensor([[1.0, 0.0]] * 4 + [[0.0, 1.0]] * 4, dtype=torch.float64)
    expected = functional.binary_cross_entropy_with_logits(torch.cat([ours, theirs]), right)
    torch.testing.assert_close(adversarial.discriminator_bce(ours, theirs), expected)
    torch.testing.assert_close(adversarial.discriminator_bce(ours, theirs, "none").mean(), expected)


def test_scores_of_0_say_nothing():
    loss = discriminator()
    for parameter in loss.layers[-1].parameters():
        nn.init.zeros_(parameter)
    assert loss(STUDENT, MEAN).item() == pytest.approx(math.log(2))


@pytest.mark.parametrize(("classes", "widths"), [(1000, (125, 15, 2)), (10, (1, 1, 2))])
def test_the_widths_follow_the_classes(classes, widths):
    loss, logits = adversarial.OutputDiscriminator(), torch.randn(3, classes)
    loss(logits, logits)
    assert [tuple(each.weight.shape) for each in loss.layers] == [
        (widths[0], classes),
        (widths[1], widths[0]),
        (2, widths[1]),
    ]
    assert (loss.scores(torch.randn(50, classes)) >= 0).all()  # the last layer is rectified too


def test_a_constant_on_a_teachers_row_is_seen():
    loss = discriminator()
    assert loss(STUDENT, MEAN + 1).item() - loss(STUDENT, MEAN).item() != pytest.approx(0, abs=1e-4)


def test_what_was_learnt_goes_on_in_a_new_run():
    loss, fresh = discriminator(), adversarial.OutputDiscriminator(divisor=2)
    fresh.load_state_dict(loss.state_dict())
    assert torch.equal(fresh(STUDENT, MEAN), loss(STUDENT, MEAN))
    assert torch.equal(copy.deepcopy(loss)(STUDENT, MEAN), loss(STUDENT, MEAN))


def test_half_precision_and_no_rows():
    loss = adversarial.OutputDiscriminator(divisor=2)
    value = loss(STUDENT.bfloat16(), MEAN.bfloat16())
    assert value.dtype == torch.float32 and value.isfinite()
    empty = torch.zeros(0, 8, requires_grad=True)
    assert loss(empty, empty.detach()).item() == 0


@given(numbers, numbers)
def test_the_gan_losses_are_their_equations(made, real):
    made, real = (torch.tensor(each, dtype=torch.float64).reshape(2, 4) for each in (made, real))
    least = sum((1 - x) ** 2 for x in real.flatten()) / 8 + sum(x**2 for x in made.flatten()) / 8
    hinge = sum(max(0, 1 - x) for x in real.flatten()) / 8 + sum(max(0, 1 + x) for x in made.flatten()) / 8
    torch.testing.assert_close(adversarial.least_squares_gan(made, real), least)
    torch.testing.assert_close(adversarial.hinge_gan(made, real), hinge)
    torch.testing.assert_close(adversarial.least_squares_gan(made), sum((1 - x) ** 2 for x in made.flatten()) / 8)
    torch.testing.assert_close(adversarial.hinge_gan(made), -made.mean())


@pytest.mark.parametrize("loss", [adversarial.least_squares_gan, adversarial.hinge_gan])
def test_a_perfect_discriminator_loses_nothing_and_the_generator_moves_against_it(loss):
    real, made = torch.ones(4), torch.zeros(4) if loss is adversarial.least_squares_gan else -torch.ones(4)
    assert float(loss(made, real)) == 0
    made.requires_grad_()
    loss(made).backward()
    assert (made.grad < 0).all()  # a higher score is what the generator wants


def test_mistakes_are_told():
    with pytest.raises(ValueError, match="kind is 'joint' or 'adversarial', got 'none'"):
        adversarial.OutputDiscriminator("none")
    with pytest.raises(ValueError, match="the divisor of the widths is at least 1"):
        adversarial.OutputDiscriminator(divisor=0)
    with pytest.raises(ValueError, match="must have the same shape"):
        adversarial.OutputDiscriminator()(STUDENT, MEAN[:, :4])
    with pytest.raises(ValueError, match=r"two scores a row, \[N, 2\], got the shape \(4, 8\)"):
        adversarial.discriminator_bce(STUDENT, MEAN)

"""Hints between maps and tokens: what is compared with what, and that only the student and the projections learn."""

import pytest
import torch
from torch.nn.functional import conv2d, mse_loss

from kdbench.losses.resized_hint import ResizedHint, as_map


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("class_tokens", [0, 1, 2])
def test_tokens_are_the_map_of_their_grid_behind_the_class_tokens(class_tokens):
    maps = drawn(2, 3, 4, 4)
    tokens = torch.cat([drawn(2, class_tokens, 3, seed=1), maps.flatten(2).mT], 1)
    assert torch.equal(as_map(tokens), maps)
    assert as_map(maps) is maps
    for shape in ((2, 12, 3), (2, 0, 3), (2, 3)):
        with pytest.raises(ValueError, match=r"maps .* or a square grid of tokens"):
            as_map(torch.zeros(shape))


def test_a_level_is_the_squared_error_of_a_1x1_convolution_of_the_resized_map():
    student, teacher = drawn(2, 3, 8, 8), drawn(2, 17, 5, seed=1)
    loss = ResizedHint(levels=1)
    value = loss([student], [teacher])
    weight = loss.projections[0].weight[:, :, None, None]
    averages = student.unfold(2, 2, 2).unfold(3, 2, 2).mean((-2, -1))
    expected = mse_loss(conv2d(averages, weight), teacher[:, 1:].mT.reshape(2, 5, 4, 4))
    torch.testing.assert_close(value, expected)


def test_a_smaller_map_of_the_student_is_repeated():
    student, teacher = drawn(2, 3, 2, 2), drawn(2, 5, 4, 4, seed=1)
    loss = ResizedHint(levels=1)
    large = student.repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(loss([student], [teacher]), loss([large], [teacher]))


def test_levels_are_summed_each_with_a_projection_of_its_own():
    students, teachers = [drawn(2, 3, 8, 8), drawn(2, 6, 4, 4)], [drawn(2, 17, 5), drawn(2, 17, 5, seed=1)]
    loss = ResizedHint(levels=2)
    value = loss(students, teachers)
    assert [tuple(each.weight.shape) for each in loss.projections] == [(5, 3), (5, 6)]
    parts = []
    for place in (0, 1):
        alone = ResizedHint(levels=1)
        alone.projections[0] = loss.projections[place]
        parts.append(alone([students[place]], [teachers[place]]))
    torch.testing.assert_close(value, sum(parts))


def test_the_teacher_gets_no_gradient_and_the_projections_do():
    student, teacher = drawn(2, 16, 4).requires_grad_(), drawn(2, 6, 2, 2, seed=1).requires_grad_()
    loss = ResizedHint(levels=1)
    loss([student], [teacher]).backward()
    assert teacher.grad is None
    assert student.grad.abs().sum() > 0
    assert loss.projections[0].weight.grad.abs().sum() > 0


def test_other_numbers_of_levels_are_refused():
    with pytest.raises(ValueError, match="the hint has 4 levels, got 1 of the student and 1 of the teacher"):
        ResizedHint()([drawn(2, 3, 8, 8)], [drawn(2, 17, 5)])

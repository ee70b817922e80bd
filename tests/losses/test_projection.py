"""The learnt map between widths: when its weight is made, what keeps it, and the hints that use it."""

import copy
import math
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from kdbench.losses import hints
from kdbench.losses.projection import Projection

HINTS = [hints.CosineDistance, hints.MeanSquaredError, hints.NormalisedMSE]
MASK = torch.tensor([[1, 1, 1], [1, 0, 0]]).bool()


def g(shape, a, phase, scale=1.0):
    return (scale * torch.sin(a * torch.arange(math.prod(shape), dtype=torch.float64) + phase)).reshape(shape)


STATES = g((4, 6), 0.37, 0).float()


def made(bias=False, seed=0):
    torch.manual_seed(seed)
    projection = Projection(bias)
    projection(STATES, 9)
    return projection


# -- the map


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 100))
def test_the_weight_is_made_at_the_first_call_as_torchs_linear_layer_makes_it(width, teacher, seed):
    torch.manual_seed(seed)
    expected = nn.Linear(width, teacher, bias=False)
    torch.manual_seed(seed)
    projection, states = Projection(), torch.randn(3, 2, width, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(projection(states, teacher), expected(states))
    assert projection.weight.shape == (teacher, width)
    assert [name for name, _ in projection.named_parameters()] == ["weight"]
    torch.testing.assert_close(projection(states, teacher), expected(states))


def test_a_bias_starts_at_0_and_is_learnt():
    projection = made(bias=True)
    assert (projection.bias == 0).all()
    projection(STATES, 9).sum().backward()
    torch.testing.assert_close(projection.bias.grad, torch.full((9,), 4.0))


def test_an_optimiser_made_before_the_first_call_trains_the_weight():
    torch.manual_seed(0)
    projection = Projection()
    optimizer = torch.optim.AdamW(projection.parameters(), lr=0.1)
    target = STATES @ torch.randn(6, 9)  # some weight reaches it
    values = []
    for _ in range(30):
        value = (projection(STATES, 9) - target).square().mean()
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(float(value.detach()))
    assert values[-1] < values[0] / 10


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_weight_is_float32_or_as_wide_as_the_states(dtype):
    projection = Projection()
    value = projection(STATES.to(dtype), 9)
    assert projection.weight.dtype == value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda each: pickle.loads(pickle.dumps(each))])
def test_copies_before_and_after_the_first_call(copied, bias):
    fresh = copied(Projection(bias))
    assert fresh(STATES, 9).shape == (4, 9)
    projection = made(bias)
    twin = copied(projection)
    torch.testing.assert_close(twin(STATES, 9), projection(STATES, 9))
    with torch.no_grad():
        twin.weight.zero_()
    assert (projection.weight != 0).any(), "a copy is not the same weight"


@pytest.mark.parametrize("bias", [False, True])
def test_a_state_makes_the_weight_of_a_projection_that_has_none(bias):
    projection = made(bias)
    fresh = nn.ModuleDict({"map": Projection(bias)})
    fresh.load_state_dict({f"map.{name}": value for name, value in projection.state_dict().items()})
    torch.testing.assert_close(fresh["map"](STATES, 9), projection(STATES, 9))
    with pytest.raises(ValueError, match="maps the width 6 to 9"):
        fresh["map"](STATES, 8)
    again = made(bias, seed=1)
    again.load_state_dict(projection.state_dict())
    torch.testing.assert_close(again(STATES, 9), projection(STATES, 9))


def test_a_state_of_before_the_first_call_is_empty_and_leaves_the_weight_to_be_made():
    state = Projection(bias=True).state_dict()
    assert dict(state) == {}
    fresh = Projection(bias=True)
    fresh.load_state_dict(state)
    assert fresh(STATES, 9).shape == (4, 9)
    with pytest.raises(RuntimeError, match="Missing key"):
        made().load_state_dict(state)
    with pytest.raises(RuntimeError, match="size mismatch"):
        made().load_state_dict({"weight": torch.zeros(9, 5)})


def test_other_widths_than_at_first_are_refused():
    projection = made()
    for states, width in ((STATES, 8), (STATES[:, :5], 9)):
        with pytest.raises(ValueError, match="the projection maps the width 6 to 9, got states of"):
            projection(states, width)


# -- hints of another width


@pytest.mark.parametrize("kind", HINTS)
def test_hints_project_where_the_widths_differ(kind):
    teacher = g((4, 9), 0.53, 1).float().requires_grad_()
    torch.manual_seed(3)
    loss = kind(project=True)
    value = loss(STATES, teacher)
    torch.manual_seed(3)
    expected = kind()(nn.Linear(6, 9, bias=False)(STATES), teacher)
    torch.testing.assert_close(value, expected)
    value.backward()
    assert loss.projection.weight.grad.abs().sum() > 0
    assert teacher.grad is None
    assert list(loss.state_dict()) == ["projection.weight"]


@pytest.mark.parametrize("kind", HINTS)
def test_hints_of_one_width_have_no_parameters(kind):
    teacher = g((4, 6), 0.53, 1).float()
    loss = kind(project=True)
    torch.testing.assert_close(loss(STATES, teacher), kind()(STATES, teacher))
    assert list(loss.parameters()) == []


@pytest.mark.parametrize("kind", HINTS)
def test_without_a_projection_other_widths_are_refused_with_the_remedy(kind):
    teacher = g((4, 9), 0.53, 1).float()
    with pytest.raises(ValueError, match=r"same shape, got \(4, 6\) and \(4, 9\): .* give the loss 'project: true'"):
        kind()(STATES, teacher)
    for other in (teacher[:3], teacher[0]):
        with pytest.raises(ValueError, match=r"must have the same shape, got \(4, 6\) and \([39](, 9|,)\)$"):
            kind(project=True)(STATES, other)


# -- layers


def layers(dtype=torch.float64):
    return (
        [g((2, 3, 4), 0.29, m).to(dtype) for m in (1, 2)],
        [g((2, 3, 6), 0.41, 3 * m).to(dtype) for m in (1, 2)],
    )


def test_layers_share_one_map_or_have_one_each():
    student, teacher = layers()
    for shared, count in ((True, 1), (False, 2)):
        loss = hints.LayersMSE(project=True, shared=shared)
        value = loss(student, teacher, MASK)
        maps = [each.weight for each in loss.projections]
        assert len(maps) == count
        chosen = maps * 2 if shared else maps
        expected = sum(
            functional.mse_loss(ours[MASK] @ w.T, theirs[MASK])
            for ours, theirs, w in zip(student, teacher, chosen, strict=True)
        )
        torch.testing.assert_close(value, expected)
        value.backward()
        assert all(w.grad.abs().sum() > 0 for w in maps)


def test_layers_of_one_width_have_a_map_too_when_it_is_asked_for():
    _, teacher = layers()
    assert float(hints.LayersMSE()(teacher, teacher, MASK)) == 0
    loss = hints.LayersMSE(project=True)
    assert float(loss(teacher, teacher, MASK).detach()) > 0
    with torch.no_grad():
        loss.projections[0].weight.copy_(torch.eye(6))
    assert float(loss(teacher, teacher, MASK).detach()) == 0, "W is the identity"


@given(st.sampled_from([0.0, 1e30, -7.0, math.nan, math.inf]))
def test_padding_changes_nothing(value):
    student, teacher = layers()
    loss = hints.LayersMSE(project=True)
    expected = loss(student, teacher, MASK)
    changed = [[each.masked_fill(~MASK[..., None], value) for each in side] for side in (student, teacher)]
    torch.testing.assert_close(loss(*changed, MASK), expected)


def test_with_padding_all_tokens_count():
    _, teacher = layers()
    student = [each.flip(0) for each in teacher]
    expected = sum(functional.mse_loss(*pair) for pair in zip(student, teacher, strict=True))
    torch.testing.assert_close(hints.LayersMSE(mask_padding=False)(student, teacher, MASK), expected)
    assert float(hints.LayersMSE()(student, teacher, MASK)) != pytest.approx(float(expected), rel=1e-3)


@pytest.mark.parametrize("shared", [True, False])
def test_the_maps_of_layers_are_copied_and_loaded_before_and_after_the_first_call(shared):
    student, teacher = layers(torch.float32)
    loss = hints.LayersMSE(project=True, shared=shared)
    fresh = pickle.loads(pickle.dumps(copy.deepcopy(loss)))
    value = loss(student, teacher, MASK)
    whole = nn.ModuleDict({"hidden": fresh})
    whole.load_state_dict({f"hidden.{name}": each for name, each in loss.state_dict().items()})
    torch.testing.assert_close(fresh(student, teacher, MASK), value)
    torch.testing.assert_close(copy.deepcopy(loss)(student, teacher, MASK), value)
    hints.LayersMSE(project=True, shared=shared).load_state_dict(
        hints.LayersMSE(project=True, shared=shared).state_dict()
    )


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda a, b: hints.LayersMSE()(a, b, MASK), "give the loss 'project: true'"),
        (lambda a, b: hints.LayersMSE(project=True)(a, b[:1], MASK), "matched one by one, got 2 and 1"),
        (lambda a, b: hints.LayersMSE()([], [], MASK), "matched one by one, got 0 and 0"),
        (lambda a, b: hints.LayersMSE(project=True)(a, [x[:1] for x in b], MASK), "must have the same shape"),
        (lambda a, b: hints.LayersMSE(project=True)(a, b, MASK[:, :2]), "mask of shape"),
        (lambda a, b: hints.LayersMSE(project=True)(a, [b[0], b[1][..., :5]], MASK), "maps the width 4 to 6"),
    ],
)
def test_layers_that_do_not_fit_are_refused(use, message):
    with pytest.raises(ValueError, match=message):
        use(*layers())


def test_what_the_module_says_of_itself():
    loss = hints.LayersMSE()
    assert (loss.takes_rows, loss.takes_mask, loss.compares_rows) == (False, True, False)

"""The oracles of Hinton's, the reverse, Jensen-Shannon and other divergences (float64), and what they obey."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import jensenshannon
from scipy.special import rel_entr
from torch.nn import functional

from kdbench.losses import divergences as d
from kdbench.losses.language import masked_token_cross_entropy


def g(shape, a, phase, scale=1.0):
    return (scale * torch.sin(a * torch.arange(math.prod(shape), dtype=torch.float64) + phase)).reshape(shape)


STUDENT, TEACHER = g((4, 3), 0.37, 0, 3), g((4, 3), 0.53, 1, 3)
LABELS = torch.arange(4) % 3
seeds = st.integers(0, 10_000)
temperatures = st.floats(0.5, 8.0)


def logits(seed, rows=5, classes=7, scale=3.0):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(2, rows, classes, generator=generator, dtype=torch.float64)


DIVERGENCES = [
    d.KLDivergence(2.0),
    d.KLDivergence(3.0, "reverse"),
    d.JensenShannon(2.0),
    d.JensenShannon(1.0, beta=0.1),
    d.JensenShannon(2.0, beta=0),
    d.JensenShannon(2.0, beta=1),
    d.TotalVariation(2.0),
    d.SkewKL(1.0),
    d.SkewKL(2.0, 0.3, "reverse"),
    d.SymmetricKL(2.0, 0.9),
]


# -- oracles


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (d.kl_divergence(STUDENT, TEACHER, 2.0, square_temperature=False), 0.199075989),
        (d.kl_divergence(STUDENT, TEACHER, 2.0), 0.796303955),
        (d.kl_divergence(STUDENT, TEACHER, 2.0, "reverse", square_temperature=False), 0.208626704),
        (d.jensen_shannon(STUDENT, TEACHER, 2.0), 0.048829975),
        (d.total_variation(STUDENT, TEACHER, 2.0), 0.255785254),
        (d.soft_cross_entropy(STUDENT, TEACHER, 2.0), 1.211758275),
        (d.soft_cross_entropy(STUDENT, TEACHER, 2.0, class_mean=True), 0.403919425),
    ],
)
def test_oracles(value, expected):
    assert float(value) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(("classes", "soft", "total"), [(1, 0.796303955, 1.018609692), (3, 0.265434652, 0.647001180)])
def test_totals_of_hinton_and_of_the_mean_over_classes(classes, soft, total):
    kl = d.kl_divergence(STUDENT, TEACHER, 2.0) / classes
    assert float(kl) == pytest.approx(soft, abs=1e-9)
    assert float(0.7 * kl + 0.3 * masked_token_cross_entropy(STUDENT, LABELS)) == pytest.approx(total, abs=1e-9)


def two_teachers():
    return g((3, 5), 0.37, 0, 3), [g((3, 5), 0.53, 1, 3), g((3, 5), 0.71, 2, 3)]


@pytest.mark.parametrize(("combine", "expected"), [("mean_probabilities", 1.49183410), ("mean_logits", 1.66546156)])
def test_two_teachers(combine, expected):
    student, teachers = two_teachers()
    for weights in (None, [0.5, 0.5]):
        mixed = d.combine_logits(teachers, combine, 2.0, weights)
        assert float(d.kl_divergence(student, mixed, 2.0)) == pytest.approx(expected, abs=1e-8)


def test_the_mean_of_losses_exceeds_by_the_teachers_own_divergence():
    student, teachers = two_teachers()
    losses = sum(0.5 * d.kl_divergence(student, teacher, 2.0) for teacher in teachers)
    assert float(losses) == pytest.approx(1.92750831, abs=1e-8)
    mixed = d.kl_divergence(student, d.combine_logits(teachers, "mean_probabilities", 2.0), 2.0)
    assert float(losses - mixed) == pytest.approx(4 * float(d.jensen_shannon(*teachers, 2.0)), abs=1e-12)


# -- against other implementations


@given(seeds, temperatures)
def test_rows_equal_scipys(seed, temperature):
    student, teacher = logits(seed)
    q, p = (student / temperature).softmax(-1).numpy(), (teacher / temperature).softmax(-1).numpy()

    def close(value, expected):
        torch.testing.assert_close(value, torch.as_tensor(expected), atol=1e-10, rtol=1e-8)

    kl, reverse = rel_entr(p, q).sum(1), rel_entr(q, p).sum(1)
    close(d.kl_divergence(student, teacher, temperature, "forward", False, "none"), kl)
    close(d.kl_divergence(student, teacher, temperature, "reverse", False, "none"), reverse)
    close(d.jensen_shannon(student, teacher, temperature, reduction="none"), jensenshannon(p, q, axis=1) ** 2)
    m = 0.3 * p + 0.7 * q
    skewed = 0.3 * rel_entr(p, m).sum(1) + 0.7 * rel_entr(q, m).sum(1)
    close(d.jensen_shannon(student, teacher, temperature, 0.3, "none"), skewed)
    close(d.total_variation(student, teacher, temperature, "none"), abs(p - q).sum(1) / 2)


@given(seeds, temperatures)
def test_values_and_gradients_equal_torchs(seed, temperature):
    student, teacher = logits(seed)
    student.requires_grad_()
    log_q, p = (student / temperature).log_softmax(-1), (teacher / temperature).softmax(-1)
    theirs = temperature**2 * functional.kl_div(log_q, p, reduction="batchmean")
    soft = functional.cross_entropy(student / temperature, p)
    pairs = ((d.kl_divergence, theirs), (d.soft_cross_entropy, soft))
    for function, expected in pairs:
        value = function(student, teacher, temperature)
        torch.testing.assert_close(value, expected)
        ours, other = (torch.autograd.grad(each, student, retain_graph=True)[0] for each in (value, expected))
        torch.testing.assert_close(ours, other)


@pytest.mark.parametrize("loss", [*DIVERGENCES, d.SoftCrossEntropy(2.0), d.LogitMSE(), d.LogitMSE("sum")])
def test_gradients_are_those_of_the_values(loss):
    student = STUDENT.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda z: loss(z, TEACHER), student)


# -- invariants


@pytest.mark.parametrize("loss", [*DIVERGENCES, d.LogitMSE(), d.LogitMSE("sum")])
@given(seed=seeds)
def test_zero_only_at_equality(loss, seed):
    student, teacher = logits(seed)
    assert float(loss(teacher.clone(), teacher)) == pytest.approx(0, abs=1e-14)
    assert float(loss(student, teacher)) > 1e-6


@pytest.mark.parametrize("loss", [*DIVERGENCES, d.SoftCrossEntropy(2.0), d.LogitMSE()])
def test_the_teacher_gets_no_gradient(loss):
    student, teacher = STUDENT.clone().requires_grad_(), TEACHER.clone().requires_grad_()
    loss(student, teacher).backward()
    assert teacher.grad is None
    assert student.grad.abs().sum() > 0


@given(seeds, temperatures)
def test_soft_cross_entropy_at_equality_is_the_entropy_of_the_teacher(seed, temperature):
    _, teacher = logits(seed)
    entropy = torch.distributions.Categorical(logits=teacher / temperature).entropy()
    torch.testing.assert_close(d.soft_cross_entropy(teacher, teacher, temperature, reduction="none"), entropy)


@pytest.mark.parametrize("loss", [*DIVERGENCES, d.SoftCrossEntropy(2.0)])
@given(seed=seeds, shift=st.floats(-50, 50))
def test_a_shift_of_all_logits_of_a_row_changes_nothing(loss, seed, shift):
    student, teacher = logits(seed)
    moved = student.clone()
    moved[2] += shift
    assert float(loss(moved, teacher)) == pytest.approx(float(loss(student, teacher)), abs=1e-10)


def test_logit_mse_sees_a_shift():
    assert float(d.logit_mse(STUDENT + 2, STUDENT)) == pytest.approx(4)
    assert float(d.logit_mse(STUDENT + 2, STUDENT, "sum")) == pytest.approx(12)
    assert d.logit_mse(STUDENT + 2, STUDENT, reduction="none").shape == (4,)


@given(seeds, st.floats(0.1, 40.0))
def test_bounds(seed, scale):
    student, teacher = logits(seed, scale=scale)
    js = d.jensen_shannon(student, teacher, reduction="none")
    tv = d.total_variation(student, teacher, reduction="none")
    kl = d.kl_divergence(student, teacher, reduction="none")
    assert js.max() <= math.log(2) + 1e-12
    torch.testing.assert_close(js, d.jensen_shannon(teacher, student, reduction="none"))
    assert tv.max() <= 1 + 1e-12
    assert (kl >= -1e-12).all()
    assert (tv.square() <= kl / 2 + 1e-12).all(), "Pinsker"


def test_disjoint_supports_reach_the_bounds():
    student, teacher = torch.tensor([[500.0, 0.0]]), torch.tensor([[0.0, 500.0]])
    assert float(d.jensen_shannon(student, teacher)) == pytest.approx(math.log(2))
    assert float(d.total_variation(student, teacher)) == 1
    assert float(d.kl_divergence(student, teacher)) == 500, "no epsilon cuts it"


@given(seeds, temperatures)
def test_the_square_of_the_temperature_is_a_factor_of_the_plain_value(seed, temperature):
    student, teacher = logits(seed)
    for direction in ("forward", "reverse"):
        plain = d.kl_divergence(student, teacher, temperature, direction, square_temperature=False)
        torch.testing.assert_close(d.kl_divergence(student, teacher, temperature, direction), temperature**2 * plain)
    for class_mean in (False, True):
        plain = d.soft_cross_entropy(student, teacher, temperature, class_mean)
        squared = d.soft_cross_entropy(student, teacher, temperature, class_mean, square_temperature=True)
        torch.testing.assert_close(squared, temperature**2 * plain)


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (d.KLDivergence(2.0, square_temperature=False), 0.199075989),
        (d.SoftCrossEntropy(2.0, class_mean=True), 0.403919425),
        (d.SoftCrossEntropy(2.0, square_temperature=True), 4 * 1.211758275),
        (d.KLDivergence(2.0, "reverse"), 4 * 0.208626704),
    ],
)
def test_modules_pass_their_settings_on(module, expected):
    assert float(module(STUDENT, TEACHER)) == pytest.approx(expected, abs=4e-9)
    module.temperature = 1.0
    assert float(module(STUDENT, TEACHER)) != pytest.approx(expected, rel=0.1), "a schedule may move the temperature"


@pytest.mark.parametrize("direction", ["forward", "reverse"])
@given(seed=seeds)
def test_high_temperature_gives_the_squared_difference_of_centred_logits(direction, seed):
    student, teacher = logits(seed)
    centred = (student - student.mean(-1, keepdim=True)) - (teacher - teacher.mean(-1, keepdim=True))
    expected = centred.square().sum(-1).mean() / (2 * student.shape[-1])
    assert float(d.kl_divergence(student, teacher, 1e5, direction)) == pytest.approx(float(expected), rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("loss", [*DIVERGENCES, d.SoftCrossEntropy(2.0), d.LogitMSE()])
def test_half_precision_is_computed_in_float32(loss, dtype):
    student, teacher = STUDENT.to(dtype), TEACHER.to(dtype)
    value = loss(student, teacher)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, loss(student.float(), teacher.float()))


@pytest.mark.parametrize("loss", [*DIVERGENCES, d.SoftCrossEntropy(2.0)])
def test_classes_without_probability_in_both_count_nothing(loss):
    """0 log 0 = 0, in the value and in the gradient."""
    nothing = torch.full((4, 2), -torch.inf, dtype=torch.float64)
    student = STUDENT.clone().requires_grad_()
    value = loss(torch.cat([student, nothing], 1), torch.cat([TEACHER, nothing], 1))
    torch.testing.assert_close(value, loss(STUDENT, TEACHER))
    value.backward()
    plain = STUDENT.clone().requires_grad_()
    loss(plain, TEACHER).backward()
    torch.testing.assert_close(student.grad, plain.grad)


@given(seeds, st.floats(0, 1), st.sampled_from(["forward", "reverse"]))
def test_a_skewed_divergence_lies_below_its_share_of_the_plain_one(seed, alpha, direction):
    student, teacher = logits(seed)
    plain = d.kl_divergence(student, teacher, 1.0, direction, reduction="none")
    skewed = d.skew_kl(student, teacher, 1.0, alpha, direction, "none")
    assert (skewed <= (1 - alpha) * plain + 1e-12).all()
    torch.testing.assert_close(d.skew_kl(student, teacher, 1.0, 0.0, direction, "none"), plain)


@given(seeds, temperatures)
def test_the_symmetric_divergence_sees_no_direction(seed, temperature):
    student, teacher = logits(seed)
    found = d.symmetric_kl(student, teacher, temperature)
    torch.testing.assert_close(found, d.symmetric_kl(teacher, student, temperature))
    p, q = ((each / temperature).softmax(-1) for each in (teacher, student))
    torch.testing.assert_close(found, 0.5 * ((p - q) * (p.log() - q.log())).sum(-1).mean())


def test_the_ends_of_the_skewed_divergence_are_the_two_directions():
    for beta, direction in ((0, "forward"), (1, "reverse")):
        kl = d.kl_divergence(STUDENT, TEACHER, 2.0, direction, square_temperature=False)
        torch.testing.assert_close(d.jensen_shannon(STUDENT, TEACHER, 2.0, beta), kl)


# -- several teachers


@given(seeds, temperatures, st.floats(0.0, 1.0))
def test_the_mean_of_probabilities_has_the_gradient_of_the_mean_of_losses(seed, temperature, share):
    (z, first), (second, _) = logits(seed), logits(seed + 1)
    student, weights = z.requires_grad_(), [share, 1 - share]
    mixed = d.combine_logits([first, second], "mean_probabilities", temperature, weights)
    together = d.kl_divergence(student, mixed, temperature)
    each = sum(w * d.kl_divergence(student, t, temperature) for w, t in zip(weights, (first, second), strict=True))
    ours, theirs = (torch.autograd.grad(value, student)[0] for value in (together, each))
    torch.testing.assert_close(ours, theirs, atol=1e-10, rtol=1e-7)


@given(seeds, temperatures, st.floats(0.0, 1.0))
def test_combined_logits_have_the_mean_distribution(seed, temperature, share):
    first, second = logits(seed)
    mixed = d.combine_logits([first, second], "mean_probabilities", temperature, [share, 1 - share])
    p, q = (first / temperature).softmax(-1), (second / temperature).softmax(-1)
    torch.testing.assert_close((mixed / temperature).softmax(-1), share * p + (1 - share) * q)
    torch.testing.assert_close(
        d.combine_logits([first, second], "mean_logits", temperature, [share, 1 - share]),
        share * first + (1 - share) * second,
    )


@pytest.mark.parametrize("combine", ["mean_probabilities", "mean_logits"])
def test_equal_teachers_are_one_and_get_no_gradient(combine):
    teacher = TEACHER.clone().requires_grad_()
    mixed = d.combine_logits([teacher, teacher], combine, 2.0, [0.25, 0.75])
    assert not mixed.requires_grad
    torch.testing.assert_close((mixed / 2).softmax(-1), (TEACHER / 2).softmax(-1))
    assert d.combine_logits([TEACHER.half(), TEACHER.half()], combine).dtype == torch.float32


def test_a_teacher_of_weight_zero_has_no_part():
    broken = torch.full_like(TEACHER, -torch.inf)
    for combine in ("mean_probabilities", "mean_logits"):
        mixed = d.combine_logits([broken, TEACHER], combine, 1.0, [0.0, 1.0])
        torch.testing.assert_close(mixed.softmax(-1), TEACHER.softmax(-1))


@pytest.mark.parametrize(
    ("teachers", "weights"),
    [(2, [1.0]), (2, [0.5, 0.6]), (2, [-0.5, 1.5]), (2, [float("nan"), 0.5]), (2, []), (0, None)],
)
def test_weights_of_teachers_that_do_not_fit_are_refused(teachers, weights):
    with pytest.raises(ValueError, match="teachers"):
        d.combine_logits([TEACHER] * teachers, weights=weights)


def test_teachers_of_several_vocabularies_are_refused():
    with pytest.raises(ValueError, match=r"one shape, got \[\(4, 3\), \(4, 2\)\]"):
        d.combine_logits([TEACHER, TEACHER[:, :2]])


# -- folding


@given(seeds, temperatures, st.lists(st.integers(-1, 3), min_size=7, max_size=7).filter(lambda x: max(x) >= 0))
def test_folding_sums_probabilities(seed, temperature, groups):
    z, _ = logits(seed)
    folded = d.fold_logits(z, torch.tensor(groups), 4, temperature)
    assert folded.isfinite().all()
    q = (z / temperature).softmax(-1)
    expected = torch.stack([q[:, [v for v in range(7) if groups[v] == u]].sum(1) for u in range(4)], 1)
    actual = (folded / temperature).softmax(-1)
    torch.testing.assert_close(actual, expected / expected.sum(1, keepdim=True))
    assert (actual[:, [u for u in range(4) if u not in groups]] == 0).all(), "no member, exactly no probability"


def test_folding_keeps_the_logits_of_a_group_of_one():
    torch.testing.assert_close(d.fold_logits(STUDENT, torch.tensor([2, 0, 1]), 3, 2.0), STUDENT[:, [1, 2, 0]])


def test_folding_keeps_rare_groups_beside_frequent_ones():
    z = torch.tensor([[300.0, 0.0, math.log(3)]])
    torch.testing.assert_close(d.fold_logits(z, torch.tensor([0, 1, 1]), 2), torch.tensor([[300.0, math.log(4)]]))


@pytest.mark.parametrize("loss", [*DIVERGENCES, d.LogitMSE()])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_groups_that_neither_side_has_cost_nothing(loss, dtype):
    """The value is that of the groups that exist; the gradient is finite and leaves dropped classes alone."""
    groups, student = torch.tensor([0, 1, 0, -1, 3]), g((3, 5), 0.37, 0, 3).to(dtype).requires_grad_()
    teacher, temperature = g((3, 5), 0.53, 1, 3).to(dtype), getattr(loss, "temperature", 1.0)
    ours, theirs = (d.fold_logits(z, groups, 4, temperature) for z in (student, teacher))
    value = loss(ours, theirs)
    kept = loss(ours[:, [0, 1, 3]], theirs[:, [0, 1, 3]]) * (0.75 if isinstance(loss, d.LogitMSE) else 1)
    torch.testing.assert_close(value, kept)
    value.backward()
    assert student.grad.isfinite().all()
    assert (student.grad[:, 3] == 0).all()
    assert (student.grad[:, [0, 1, 2, 4]] != 0).any()


def test_the_gradient_of_folding_is_exact_also_for_suppressed_classes():
    groups = torch.tensor([0, 1, 0, -1, 2])
    student = g((3, 5), 0.37, 0, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: d.fold_logits(z, groups, 3, 2.0), student)
    suppressed = g((3, 5), 0.37, 0, 3)
    suppressed[:, [1, 2]] = -torch.inf
    suppressed.requires_grad_()
    folded = d.fold_logits(suppressed, groups, 3)
    folded.softmax(-1)[:, 0].sum().backward()
    torch.testing.assert_close(folded[:, 0], suppressed[:, 0])
    assert suppressed.grad.isfinite().all()


@pytest.mark.parametrize(
    ("groups", "message"), [([0, 1], "3 classes need as many groups"), ([0, 1, 2], "group 2 is outside the 2 groups")]
)
def test_groups_that_do_not_fit_are_refused(groups, message):
    with pytest.raises(ValueError, match=message):
        d.fold_logits(STUDENT, torch.tensor(groups), 2)


# -- refusals


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan, math.inf])
@pytest.mark.parametrize(
    "use",
    [
        d.KLDivergence,
        d.SoftCrossEntropy,
        d.JensenShannon,
        d.TotalVariation,
        lambda t: d.kl_divergence(STUDENT, TEACHER, t),
        lambda t: d.total_variation(STUDENT, TEACHER, t),
        lambda t: d.combine_logits([TEACHER], temperature=t),
        lambda t: d.fold_logits(STUDENT, torch.arange(3), 3, t),
    ],
)
def test_a_temperature_that_is_not_positive_is_refused(use, temperature):
    with pytest.raises(ValueError, match=rf"temperature must be positive( and finite)?, got {temperature}"):
        use(temperature)


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda: d.KLDivergence(direction="backward"), "direction is 'forward' or 'reverse', got 'backward'"),
        (lambda: d.JensenShannon(beta=1.5), r"beta is a share in \[0, 1\], got 1.5"),
        (lambda: d.LogitMSE("max"), "over_classes is 'mean' or 'sum', got 'max'"),
        (lambda: d.combine_logits([TEACHER], "mean_losses"), "combine is 'mean_probabilities' or 'mean_logits'"),
        (lambda: d.kl_divergence(STUDENT, TEACHER, reduction="batchmean"), "reduction is 'rows' or 'none'"),
        (lambda: d.kl_divergence(STUDENT, TEACHER[:1]), r"same shape, got \(4, 3\) and \(1, 3\)"),
        (lambda: d.logit_mse(STUDENT, TEACHER[:, :1]), r"same shape, got \(4, 3\) and \(4, 1\)"),
    ],
)
def test_settings_and_shapes_that_do_not_fit_are_refused(use, message):
    with pytest.raises(ValueError, match=message):
        use()

"""Baselines of language-model distillation: their numbers on positions of a batch, and what they promise."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kdbench.losses.divergences import (
    JensenShannon,
    KLDivergence,
    SkewKL,
    SoftCrossEntropy,
    TotalVariation,
    jensen_shannon,
    kl_divergence,
    total_variation,
)
from kdbench.methods.generative import GenerativeDistillation
from kdbench.methods.objective import Objective, Term
from kdbench.models.origins import FromConfig


def wave(shape, scale, step, phase):
    return (scale * torch.sin(step * torch.arange(math.prod(shape), dtype=torch.float64) + phase)).reshape(shape)


STUDENT, TEACHER = wave((2, 5, 7), 3, 0.37, 0.1), wave((2, 5, 7), 3, 0.53, 0.7)
PREDICTS = torch.zeros(2, 5, dtype=torch.bool)
PREDICTS[0, 2:], PREDICTS[1, 1:4] = True, True
BATCH = {"predicts": PREDICTS, "per_sequence": PREDICTS / PREDICTS.sum(1, keepdim=True)}


def objective(divergence, **settings):
    """Return the objective of a distillation, whose networks are not built."""
    student, teacher = (FromConfig("GPT2LMHeadModel", {}) for _ in range(2))
    return GenerativeDistillation(student, teacher, divergence=divergence, **settings).objective


def value(divergence, student=STUDENT, batch=BATCH, **settings):
    found = objective(divergence, **settings)({"logits": student}, {"teacher": {"logits": TEACHER}}, batch)
    return found["divergence"]


ORACLES = {
    "forward": (KLDivergence(), 3.0659984),
    "forward, as a cross-entropy": (SoftCrossEntropy(), 4.2500677),
    "reverse": (KLDivergence(direction="reverse"), 3.6010022),
    "total variation": (TotalVariation(), 0.85386707),
    "Jensen-Shannon 0.1": (JensenShannon(beta=0.1), 0.21104001),
    "Jensen-Shannon 0.5": (JensenShannon(), 0.49236097),
    "Jensen-Shannon 0.9": (JensenShannon(beta=0.9), 0.22060215),
    "Jensen-Shannon 0": (JensenShannon(beta=0), 3.0659984),
    "Jensen-Shannon 1": (JensenShannon(beta=1), 3.6010022),
    "Jensen-Shannon 0.3 at temperature 2": (JensenShannon(2.0, beta=0.3), 0.20622055),
    "skewed": (SkewKL(), 1.6514352),
    "skewed reverse": (SkewKL(direction="reverse"), 1.6632568),
}


@pytest.mark.parametrize("name", ORACLES)
def test_oracles(name):
    divergence, expected = ORACLES[name]
    assert float(value(divergence)) == pytest.approx(expected, abs=1e-7)


def test_a_row_is_the_mean_over_its_tokens_and_the_batch_the_mean_over_rows():
    rows = [
        float(value(KLDivergence(), batch={"predicts": PREDICTS & (torch.arange(2) == row)[:, None]})) for row in (0, 1)
    ]
    assert rows == pytest.approx([2.8359113, 3.2960855], abs=1e-7)
    one_token_less = PREDICTS.clone()
    one_token_less[0, 4] = False
    batch = {"predicts": one_token_less, "per_sequence": one_token_less / one_token_less.sum(1, keepdim=True)}
    per_token = kl_divergence(STUDENT[one_token_less], TEACHER[one_token_less], reduction="none")
    by_row = (per_token[:2].mean() + per_token[2:].mean()) / 2
    torch.testing.assert_close(value(KLDivergence(), batch=batch, reduction="sequence"), by_row)
    torch.testing.assert_close(value(KLDivergence(), batch=batch), per_token.mean())


def test_text_counts_by_token_or_by_sequence_too():
    labels = torch.arange(10).reshape(2, 5) % 7
    one = PREDICTS.clone()
    one[1, 2:] = False
    batch = {"predicts": one, "labels": labels, "per_sequence": one / one.sum(1, keepdim=True)}
    logs = -STUDENT.log_softmax(-1).gather(-1, labels[..., None]).squeeze(-1)
    for reduction, expected in (("token", logs[one].mean()), ("sequence", (logs[0, 2:].mean() + logs[1, 1]) / 2)):
        found = objective(None, ratio=0.25, reduction=reduction)
        terms = found({"logits": STUDENT}, {"teacher": {"logits": TEACHER}}, batch)
        assert {name: term.weight for name, term in found.terms.items()} == {"divergence": 0.25, "text": 0.75}
        torch.testing.assert_close(terms["text"], expected)


@pytest.mark.parametrize("name", ORACLES)
def test_positions_that_predict_no_response_get_a_gradient_of_exactly_zero(name):
    divergence, _ = ORACLES[name]
    student = STUDENT.clone().requires_grad_()
    value(divergence, student).backward()
    assert (student.grad[~PREDICTS] == 0).all()
    assert (student.grad[PREDICTS] != 0).any(-1).all()


def test_the_cross_entropy_form_has_the_gradient_of_the_divergence_and_the_teachers_entropy_besides():
    gradients = []
    for divergence in (KLDivergence(), SoftCrossEntropy()):
        student = STUDENT.clone().requires_grad_()
        value(divergence, student).backward()
        gradients.append(student.grad)
    torch.testing.assert_close(*gradients)
    entropy = torch.special.entr(TEACHER[PREDICTS].softmax(-1)).sum(-1).mean()
    assert float(value(SkewKL()) + entropy) == pytest.approx(2.8355045, abs=1e-7), (
        "as the public code of DistiLLM has it"
    )


@given(st.integers(0, 10_000), st.floats(0.05, 0.95))
def test_the_mixture_of_jensen_shannon_turns_with_the_roles(seed, beta):
    p, q = 3 * torch.randn(2, 4, 7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    torch.testing.assert_close(jensen_shannon(q, p, beta=beta), jensen_shannon(p, q, beta=1 - beta))
    assert float(total_variation(q, p)) == pytest.approx(float(total_variation(p, q)))


@given(st.integers(0, 10_000))
def test_a_small_share_of_the_teacher_gives_the_forward_divergence(seed):
    p, q = torch.randn(2, 4, 7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    assert float(jensen_shannon(q, p, beta=1e-6)) / 1e-6 == pytest.approx(float(kl_divergence(q, p)), rel=1e-3)


def test_f_distills_jensen_shannon_is_a_term_on_the_text_of_each():
    """``KL(p || m)`` where the teacher has written, ``KL(q || m)`` where the student has, half of each."""
    by_teacher, by_student = PREDICTS.clone(), PREDICTS.clone()
    by_teacher[1], by_student[0] = False, False
    over = {"teacher": "teacher.logits"}
    terms = {
        "divergence": Term(SkewKL(alpha=0.5), 0.5, mask="by_teacher", **over),
        "own": Term(SkewKL(alpha=0.5, direction="reverse"), 0.5, mask="by_student", **over),
    }
    found = Objective(terms)(
        {"logits": STUDENT}, {"teacher": {"logits": TEACHER}}, {"by_teacher": by_teacher, "by_student": by_student}
    )
    p, q = TEACHER.softmax(-1), STUDENT.softmax(-1)
    m = (p + q) / 2
    expected = [(p * (p / m).log()).sum(-1)[by_teacher].mean(), (q * (q / m).log()).sum(-1)[by_student].mean()]
    torch.testing.assert_close(torch.stack(list(found.values())), torch.stack(expected))

"""Turc et al. 2019, arXiv 1908.08962: the numbers of its equations and sizes, and its pipelines as they are configured."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import BertConfig, BertModel

from kdbench.losses.divergences import SoftCrossEntropy, kl_divergence, soft_cross_entropy
from kdbench.losses.language import masked_token_cross_entropy
from kdbench.methods.objective import Objective, Term
from kdbench.models.surgery import CopyLayers, Facts
from kdbench.suite import experiment


def g(shape, a, phase=0.0, scale=1.0):
    return scale * torch.sin(a * torch.arange(torch.Size(shape).numel(), dtype=torch.float64) + phase).reshape(shape)


STUDENT, TEACHER = g((3, 3), 0.37, 0, 3), g((3, 3), 0.53, 1, 3)
SIZES = {  # encoder with pooler, vocabulary 30,522, 512 positions
    (2, 128): 4_385_920,
    (4, 256): 11_170_560,
    (4, 512): 28_763_648,
    (8, 512): 41_373_184,
    (6, 768): 66_955_008,
    (12, 768): 109_482_240,
}


def test_soft_labels_and_their_gradient():
    student = STUDENT.clone().requires_grad_()
    loss = soft_cross_entropy(student, TEACHER)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(1.31396029, abs=5e-9)
    assert float(soft_cross_entropy(TEACHER, TEACHER)) == pytest.approx(0.92535869, abs=5e-9)
    assert student.grad[0].tolist() == pytest.approx([-0.06026897, -0.05754554, 0.11781452], abs=5e-9)
    torch.testing.assert_close(student.grad, (STUDENT.softmax(-1) - TEACHER.softmax(-1)) / len(STUDENT))


@given(st.integers(0, 10**6), st.floats(-5, 5))
def test_the_loss_less_the_entropy_is_a_divergence(seed, shift):
    generator = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, 4, 5, generator=generator, dtype=torch.float64)
    excess = soft_cross_entropy(student, teacher) - soft_cross_entropy(teacher, teacher)
    torch.testing.assert_close(excess, kl_divergence(student, teacher))
    assert float(excess) >= -1e-12
    moved = soft_cross_entropy(student + shift, teacher - shift)
    torch.testing.assert_close(moved, soft_cross_entropy(student, teacher))


def test_a_certain_teacher_gives_the_cross_entropy_of_labels():
    labels = torch.tensor([0, 2, 1])
    certain = torch.nn.functional.one_hot(labels, 3).double() * 1e4
    torch.testing.assert_close(soft_cross_entropy(STUDENT, certain), masked_token_cross_entropy(STUDENT, labels))


def test_distillation_reads_no_label():
    objective = Objective({"soft": Term(SoftCrossEntropy(), teacher="teacher.logits")})
    values = objective({"logits": STUDENT}, {"teacher": {"logits": TEACHER}}, {})
    assert float(values["soft"]) == pytest.approx(1.31396029, abs=5e-9)
    asked = experiment.read("experiments/well_read_students.yaml")
    terms = asked.config["model"]["init_args"]["objective"]
    assert all("labels" not in term for term in terms.values())


@pytest.mark.parametrize(
    ("layers", "hidden"), [(layers, hidden) for layers in (2, 4, 6, 8, 10, 12) for hidden in (128, 256, 512, 768)]
)
def test_the_grid_of_sizes(layers, hidden):
    config = BertConfig(
        num_hidden_layers=layers, hidden_size=hidden, num_attention_heads=hidden // 64, intermediate_size=4 * hidden
    )
    with torch.device("meta"):
        network = BertModel(config)
    count = sum(parameter.numel() for parameter in network.parameters())
    per_layer = 12 * hidden**2 + 13 * hidden
    embeddings = (30_522 + 512 + 2) * hidden + 2 * hidden
    assert count == embeddings + layers * per_layer + hidden**2 + hidden
    assert SIZES.get((layers, hidden), count) == count
    assert network.encoder.layer[0].attention.self.attention_head_size == 64


def test_truncation_takes_the_first_layers_bit_for_bit():
    torch.manual_seed(0)
    config = BertConfig(vocab_size=20, num_hidden_layers=4, hidden_size=8, num_attention_heads=2, intermediate_size=16)
    teacher = BertModel(config)
    student = CopyLayers(count=2, kind="first")(teacher, Facts())
    own = teacher.state_dict()
    assert student.config.num_hidden_layers == 2
    assert all(torch.equal(value, own[name]) for name, value in student.state_dict().items())

"""ModularStarEncoder (arXiv 2503.03008): its numbers, and what a depth-weighted sum over exits promises."""

import math

import lightning.pytorch as pl
import pytest
import torch
from torch.nn.functional import normalize

from kdbench.data.retrieval import TextRetrieval
from kdbench.data.tokenizers import TrainWordPiece
from kdbench.errors import UserError
from kdbench.losses.contrastive import InfoNCE, info_nce
from kdbench.losses.language import CrossEntropy
from kdbench.methods.multi_exit import MultiExit
from kdbench.methods.objective import Term
from kdbench.metrics.retrieval import gold_ranks, rank_scores
from kdbench.models.multi_exit import AddExits, KeepExits
from kdbench.models.origins import FromConfig

EXITS = [4, 9, 18, 27, 36]
CLIP = {"clip": Term(InfoNCE(10.0), student=["first.embedding_{exit}", "second.embedding_{exit}"])}
PRE_TRAINING = {
    "masked": Term(CrossEntropy(), student="masked_{exit}", labels="masked_labels"),
    "context": Term(CrossEntropy(), student="logits_{exit}", labels="labels"),
}
ENCODER = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "num_hidden_layers": 3,
    "bos_token_id": 3,
    "eos_token_id": 2,
    "mask_token_id": 4,
}


def g(shape, a, phase, scale=1.0):
    return (scale * torch.sin(a * torch.arange(math.prod(shape), dtype=torch.float64) + phase)).reshape(shape)


def unit(phase):
    return normalize(g((4, 6), 0.41, phase), dim=-1)


def module(each=CLIP, exits=EXITS, **settings):
    return MultiExit(FromConfig("EuroBertModel", ENCODER), exits, each, **settings)


def total(found, student, batch=None):
    terms = found.objective(student, {}, batch or {})
    return sum(found.weight_of(name) * value for name, value in terms.items()), terms


# ---- oracles ----


def test_the_clip_term():
    assert float(info_nce(unit(0.2), unit(0.7), 10.0)) == pytest.approx(0.202089650579, abs=5e-13)


def test_fine_tuning_over_all_exits():
    student = {}
    for place, exit in enumerate(EXITS):
        student[f"first.embedding_{exit}"] = unit(0.2 + 0.3 * place)
        student[f"second.embedding_{exit}"] = unit(0.7 + 0.37 * place)
    found = module()
    value, terms = total(found, student)
    expected = [0.202089650579, 0.396200494780, 0.712243290794, 1.092307572425, 1.593763446020]
    assert [float(terms[f"clip_{exit}"]) for exit in EXITS] == pytest.approx(expected, abs=1e-12)
    assert [found.weight_of(f"clip_{exit}") for exit in EXITS] == [1 / 9, 1 / 4, 1 / 2, 3 / 4, 1]
    assert float(value) == pytest.approx(2.890620300051, abs=1e-12)
    assert float(total(module(weights="uniform"), student)[0]) == pytest.approx(sum(expected), abs=1e-11)


def test_pre_training_over_all_exits():
    student = {}
    for place, exit in enumerate(EXITS):
        student[f"masked_{exit}"] = g((2, 6, 5), 0.37, 0.1 + 0.3 * place, 2)
        student[f"logits_{exit}"] = g((2, 2), 0.83, 0.1 + 0.9 * place, 2)
    masked_labels = torch.full((2, 6), -100)
    for row in range(2):
        for position in (0, 3):
            masked_labels[row, position] = (2 * row + position) % 5
    batch = {"masked_labels": masked_labels, "labels": torch.arange(2)}
    value, terms = total(module(PRE_TRAINING), student, batch)
    assert float(terms["masked_4"]) == pytest.approx(1.988906497, abs=1e-9)
    assert float(terms["context_4"]) == pytest.approx(1.437998538, abs=1e-9)
    assert float(value) == pytest.approx(6.612335756, abs=1e-9)
    only = {f"masked_{exit}": student[f"masked_{exit}"][masked_labels != -100] for exit in EXITS}
    assert float(total(module(PRE_TRAINING), student | only, batch)[0]) == pytest.approx(6.612335756, abs=1e-9)


def test_retrieval():
    ranks = gold_ranks(g((5, 12), 0.91, 0.3))
    assert ranks.tolist() == [6, 9, 12, 11, 9]
    found = rank_scores(ranks)
    assert float(found["mrr"]) == pytest.approx(0.112626262626, abs=1e-12)
    assert float(found["recall_10"]) == pytest.approx(0.6)


# ---- the sum over exits ----


def test_the_last_exit_weighs_one_and_the_weights_have_no_sum_of_their_own():
    for exits in ([3], [1, 3], EXITS):
        weights = [term.weight for term in module(exits=exits).objective.terms.values()]
        assert weights[-1] == 1 and weights == [exit / exits[-1] for exit in exits]
    assert sum(term.weight for term in module().objective.terms.values()) == pytest.approx(2.611, abs=1e-3)


def network(exits=(1, 2, 3)):
    torch.manual_seed(0)
    config = {**ENCODER, "vocab_size": 40, "pad_token_id": 0}
    return FromConfig("EuroBertModel", config, then=[AddExits(list(exits))]).build().double()


def gradients(student, weights):
    """Return the gradient of every parameter for the CLIP terms of a batch with these weights."""
    ids = torch.randint(5, 40, (2, 6, 5), generator=torch.Generator().manual_seed(1))
    student.zero_grad()
    first, second = (student(each) for each in ids)
    names = [f"embedding_{exit}" for exit in student.config.exits]
    loss = sum(weight * info_nce(first[name], second[name], 10.0) for weight, name in zip(weights, names, strict=True))
    loss.backward()
    return {name: each.grad.clone() for name, each in student.named_parameters() if each.grad is not None}


def test_without_the_inner_exits_the_gradient_is_that_of_the_plain_network():
    several = network()
    plain = KeepExits([3])(several, None)
    ours, alone = gradients(several, [0.0, 0.0, 1.0]), gradients(plain, [1.0])
    for name, gradient in alone.items():
        torch.testing.assert_close(ours[name], gradient)
    assert all(not ours[name].any() for name in ours.keys() - alone.keys())


def test_every_exit_trains_all_layers_below_it_and_none_above():
    student = network()
    for place, exit in enumerate(student.config.exits):
        found = gradients(student, [float(place == each) for each in range(3)])
        reached = {layer for layer in range(3) if found[f"encoder.layers.{layer}.self_attn.q_proj.weight"].any()}
        assert reached == set(range(exit)), "nothing is detached between exits"


# ---- a fit ----

DATA = {"max_length": 16, "batch_size": 8, "tokenizer": TrainWordPiece(300, lowercase=False, cls_last=True)}


def fitted(exits, steps=2, then=(), **settings):
    pl.seed_everything(0, verbose=False)
    student = FromConfig("EuroBertModel", ENCODER, then=[AddExits([1, 2, 3]), *then])
    found = MultiExit(student, exits, CLIP, **settings)
    data = TextRetrieval("code/stdlib_functions", train_rows=64, **DATA)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = pl.Trainer(
        max_steps=steps, max_epochs=-1, accelerator="cpu", enable_checkpointing=False, check_val_every_n_epoch=None,
        val_check_interval=1, limit_val_batches=1, num_sanity_val_steps=0, **quiet,
    )  # fmt: skip
    trainer.fit(found, datamodule=data)
    validated = dict(trainer.callback_metrics)
    (tested,) = trainer.test(found, datamodule=data, verbose=False)
    return found, validated, tested


def test_every_exit_is_scored_and_measured_alone():
    found, validated, tested = fitted([1, 2, 3], readings={"raw_1": "hidden_states.1.mean"})
    for exit in ("_1", "_2", "_3", "_raw_1", ""):
        for score in ("mrr", "ndcg", "recall_1", "recall_10"):
            assert 0 <= tested[f"test/{score}{exit}@student"] <= 1
        assert f"val/mrr{exit}@student" in validated
    assert tested["test/mrr_3@student"] == tested["test/mrr@student"]
    alone = found.networks()
    assert list(alone) == ["student", "exit_1", "exit_2"]
    assert [each.config.encoder.num_hidden_layers for each in alone.values()] == [3, 1, 2]
    assert set(found.data.views) == {"student", "exit_1", "exit_2"}


def test_arms_with_fewer_exits_begin_with_the_same_weights():
    whole, alone = (
        fitted(exits, steps=0, then=then)[0].student.state_dict()
        for exits, then in (([1, 2, 3], []), ([2], [KeepExits([2])]))
    )
    assert alone.keys() < whole.keys() and all(torch.equal(whole[name], value) for name, value in alone.items())
    assert {name for name in alone if name.startswith("encoder.layers.")} == {
        name for name in whole if name.startswith(("encoder.layers.0.", "encoder.layers.1."))
    }


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"exits": [2, 1]}, "ascend"),
        ({"exits": []}, "ascend"),
        ({"weights": "deep"}, "weights is 'depth' or 'uniform'"),
        ({"each": {}}, "the objective has no term"),
    ],
)
def test_mistakes(settings, says):
    with pytest.raises((UserError, ValueError), match=says):
        module(**settings)

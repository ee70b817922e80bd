"""Entity F1 against seqeval on random tag sequences, broken ones included."""

import itertools
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from seqeval.metrics import f1_score, precision_score, recall_score

from kdbench.metrics.spans import SpanF1

TAGS = ["O", "B-PER", "I-PER", "B-geo-loc", "I-geo-loc", "B-ORG", "I-ORG"]
sentences = st.lists(
    st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=8), min_size=1, max_size=6
)


def flat(corpus, first=0):
    """Predictions, labels and sentence numbers of a corpus: a list of sentences of (prediction, label)."""
    rows = [(*pair, number) for number, words in enumerate(corpus, first) for pair in words]
    return torch.tensor(rows, dtype=torch.int64).reshape(-1, 3).unbind(1)


def ids(text):
    return [TAGS.index(tag) for tag in text.split()]


def score(corpus):
    metric = SpanF1(TAGS)
    metric.update(*flat(corpus))
    return {name: result.item() for name, result in metric.compute().items()}


def expected(corpus):
    predictions = [[TAGS[p] for p, _ in words] for words in corpus]
    labels = [[TAGS[g] for _, g in words] for words in corpus]
    occurs = any(tag != "O" for words in predictions + labels for tag in words)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {
            "micro_f1": f1_score(labels, predictions),
            "macro_f1": f1_score(labels, predictions, average="macro") if occurs else 0.0,  # seqeval: mean of nothing
            "precision": precision_score(labels, predictions),
            "recall": recall_score(labels, predictions),
        }


@given(sentences)
@settings(deadline=None, max_examples=150)
def test_equals_seqeval_on_arbitrary_tags(corpus):
    assert score(corpus) == pytest.approx(expected(corpus), abs=1e-12)


@given(sentences, st.integers(0, 2**16))
@settings(deadline=None, max_examples=60)
def test_equals_seqeval_on_mostly_right_predictions(corpus, seed):
    keep = torch.rand(64, generator=torch.Generator().manual_seed(seed)) < 0.8
    corpus = [[(g if keep[i] else p, g) for i, (p, g) in enumerate(words)] for words in corpus]
    assert score(corpus) == pytest.approx(expected(corpus), abs=1e-12)


@given(sentences, st.lists(st.integers(0, 6), max_size=3))
@settings(deadline=None, max_examples=40)
def test_batches_and_merged_states_equal_one_call(corpus, cuts):
    bounds = [0, *sorted(min(cut, len(corpus)) for cut in cuts), len(corpus)]
    batched, merged = SpanF1(TAGS), SpanF1(TAGS)
    for begin, end in itertools.pairwise(bounds):
        part = flat(corpus[begin:end])
        batched.update(*part)
        other = SpanF1(TAGS)
        other.update(*part)
        merged.merge_state(other)
    merged._update_count = 1  # merge_state does not count as an update, about which compute would warn
    assert {name: result.item() for name, result in batched.compute().items()} == score(corpus)
    assert {name: result.item() for name, result in merged.compute().items()} == score(corpus)


def test_an_entity_does_not_cross_the_end_of_a_sentence():
    split = [[*zip(ids("B-PER"), ids("B-PER"), strict=True)], [*zip(ids("I-PER O"), ids("I-PER O"), strict=True)]]
    metric = SpanF1(TAGS)
    metric.update(*flat(split))
    assert metric.counts.sum(1).tolist() == [2, 2, 2]
    metric.reset()
    metric.update(*flat([split[0] + split[1]]))
    assert metric.counts.sum(1).tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("predicted", "gold", "correct"),
    [
        ("B-PER I-PER O", "B-PER O O", 0),  # longer
        ("B-PER O O", "B-PER I-PER O", 0),  # shorter
        ("B-ORG I-ORG O", "B-PER I-PER O", 0),  # another type
        ("O I-PER O", "O B-PER O", 1),  # a lone I- begins an entity
        ("B-PER I-ORG O", "B-PER B-ORG O", 2),  # so does one of another type
        ("B-PER B-PER O", "B-PER I-PER O", 0),  # two entities are not one
    ],
)
def test_only_exact_spans_count(predicted, gold, correct):
    metric = SpanF1(TAGS)
    metric.update(*flat([[*zip(ids(predicted), ids(gold), strict=True)]]))
    assert metric.counts[0].sum().item() == correct


def test_macro_is_over_the_types_that_occur():
    corpus = [[*zip(ids("B-PER O B-ORG"), ids("B-PER O O"), strict=True)]]
    assert score(corpus)["macro_f1"] == 0.5  # PER 1, ORG predicted wrongly 0, geo-loc absent


def test_sentence_numbers_need_not_be_consecutive():
    predictions, labels, sentence = flat([[(1, 1)], [(2, 2)]])
    metric = SpanF1(TAGS)
    metric.update(predictions, labels, sentence * 10 + 3)
    assert metric.counts.sum(1).tolist() == [2, 2, 2]


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: SpanF1(["O", "S-PER"]),
        lambda: SpanF1(["O", "B-"]),
        lambda: SpanF1(["O", "O"]),
        lambda: SpanF1(TAGS).update(torch.tensor([0]), torch.tensor([7]), torch.tensor([0])),
        lambda: SpanF1(TAGS).update(torch.tensor([-1]), torch.tensor([0]), torch.tensor([0])),
        lambda: SpanF1(TAGS).update(torch.tensor([0, 0]), torch.tensor([0, 0]), torch.tensor([1, 0])),
        lambda: SpanF1(TAGS).update(torch.tensor([0, 0]), torch.tensor([0, 0]), torch.tensor([0])),
        lambda: SpanF1(TAGS).update(*torch.zeros(3, 2, 2, dtype=torch.int64)),
    ],
)
def test_wrong_use_is_named(wrong):
    with pytest.raises(ValueError, match=r"[Tt]ag|decrease|Expected"):
        wrong()

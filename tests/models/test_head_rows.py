import pytest
import torch
import transformers
from torch import nn

from kdbench.models.head_rows import HeadRows, has_row_head
from kdbench.models.taps import Taps

SIZES = {
    "vocab_size": 40,
    "hidden_size": 16,
    "embedding_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 24,
    "dim": 16,
    "n_layers": 2,
    "n_heads": 2,
    "hidden_dim": 32,
    "pad_token_id": 0,
}
NAMES = [
    "BertForMaskedLM",
    "DistilBertForMaskedLM",
    "RobertaForMaskedLM",
    "XLMRobertaForMaskedLM",
    "ElectraForMaskedLM",
    "AlbertForMaskedLM",
    "DebertaV2ForMaskedLM",
    "ModernBertForMaskedLM",
]


def network_of(name):
    kind = getattr(transformers, name)
    torch.manual_seed(0)
    given = {key: value for key, value in SIZES.items() if key not in ("dim", "n_layers", "n_heads", "hidden_dim")}
    if name.startswith("DistilBert"):
        given = {key: SIZES[key] for key in ("vocab_size", "dim", "n_layers", "n_heads", "hidden_dim", "pad_token_id")}
    return kind(kind.config_class(**given)).eval()


def view():
    ids = torch.randint(3, 40, (3, 9), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    return {"input_ids": ids.masked_fill(mask == 0, 0), "attention_mask": mask}


@pytest.mark.parametrize("name", NAMES)
def test_logits_of_chosen_rows_are_those_of_all_positions_with_equal_gradients(name):
    network = network_of(name)
    assert has_row_head(network)
    rows = torch.rand(3, 9, generator=torch.Generator().manual_seed(2)) < 0.3
    whole = network(**view()).logits[rows]
    whole.square().sum().backward()
    expected = {name: value.grad.clone() for name, value in network.named_parameters() if value.grad is not None}
    network.zero_grad()
    head = HeadRows(network)
    with head(rows):
        few = network(**view()).logits
    torch.testing.assert_close(few, whole)
    few.square().sum().backward()
    for name, value in network.named_parameters():
        if value.grad is not None:
            torch.testing.assert_close(value.grad, expected[name], atol=1e-4, rtol=1e-4)
    assert network(**view()).logits.shape == (3, 9, 40), "outside the 'with' the head sees all positions"


def test_taps_still_see_the_whole_state():
    network = network_of("BertForMaskedLM")
    taps = Taps(network, ["hidden_states.-1", "logits"])
    rows = view()["attention_mask"].bool()
    with HeadRows(network)(rows):
        found = taps(view())
    assert found["hidden_states.-1"].shape == (3, 9, 16)
    assert found["logits"].shape == (int(rows.sum()), 40)


def test_no_rows_at_all():
    network = network_of("BertForMaskedLM")
    with HeadRows(network)(torch.zeros(3, 9, dtype=torch.bool)):
        assert network(**view()).logits.shape == (0, 40)


@pytest.mark.parametrize("name", ["BertForSequenceClassification", "BertModel", "GPT2LMHeadModel"])
def test_other_heads_are_left_alone(name):
    kind = getattr(transformers, name)
    network = kind(kind.config_class(vocab_size=40, hidden_size=16, num_attention_heads=2, num_hidden_layers=1))
    assert not has_row_head(network)
    assert not has_row_head(nn.Linear(2, 2))

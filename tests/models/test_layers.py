import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers import AlbertConfig, AlbertModel, BartConfig, BartModel, BertConfig, BertForMaskedLM

from kdbench.errors import UserError
from kdbench.models.layers import layer_map, transformer_blocks


@pytest.mark.parametrize(
    ("teacher", "student", "kind", "expected"),
    [
        (12, 6, "even", [0, 2, 4, 7, 9, 11]),  # distilbert_ro
        (4, 2, "even", [0, 3]),
        (6, 3, "even", [0, 3, 5]),  # 2.5 goes up; Python's round would take 2
        (12, 1, "even", [0]),
        (12, 6, "skip", [1, 3, 5, 7, 9, 11]),
        (12, 5, "skip", [1, 3, 5, 7, 9]),  # PKD-Skip: 2, 4, 6, 8, 10 counted from 1
        (12, 6, "first", [0, 1, 2, 3, 4, 5]),
        (12, 6, "last", [6, 7, 8, 9, 10, 11]),
        (12, 6, "last_of_group", [1, 3, 5, 7, 9, 11]),
        (12, 4, "last_of_group", [2, 5, 8, 11]),
        (12, 4, "uniform", [2, 5, 8, 11]),  # TinyBERT: 3, 6, 9, 12 counted from 1
        (12, 5, "uniform", [1, 4, 6, 9, 11]),
    ],
)
def test_maps_of_the_cards(teacher, student, kind, expected):
    assert layer_map(teacher, student, kind) == expected


def test_pkd_leaves_out_the_last_student_layer():
    assert [layer + 1 for layer in layer_map(12, 6, "skip")[:-1]] == [2, 4, 6, 8, 10]
    assert [layer + 1 for layer in layer_map(12, 6, "last")[:-1]] == [7, 8, 9, 10, 11]


@given(st.integers(1, 48), st.integers(1, 48), st.sampled_from(["even", "skip", "first", "last", "uniform"]))
def test_every_map_rises_inside_the_teacher(one, other, kind):
    teacher, student = max(one, other), min(one, other)
    layers = layer_map(teacher, student, kind)
    assert len(layers) == student
    assert all(0 <= layer < teacher for layer in layers)
    assert layers == sorted(set(layers))
    assert layer_map(teacher, teacher, kind) == list(range(teacher))
    if kind == "even" and student > 1:
        assert (layers[0], layers[-1]) == (0, teacher - 1)
    if kind in ("last", "uniform"):
        assert layers[-1] == teacher - 1


@given(st.integers(1, 12), st.integers(1, 6))
def test_groups_of_equal_size_make_three_maps_one(student, group):
    skip = layer_map(student * group, student, "skip")
    assert (
        skip == layer_map(student * group, student, "last_of_group") == layer_map(student * group, student, "uniform")
    )


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((6, 12, "even"), "between 1 and 6"),
        ((6, 0, "even"), "between 1 and 6"),
        ((12, 5, "last_of_group"), "no multiple of 5"),
        ((12, 6, "evn"), "Did you mean 'even'"),
    ],
)
def test_nonsense_is_told(arguments, told):
    with pytest.raises(UserError, match=told):
        layer_map(*arguments)


def test_blocks_are_found_by_the_config_and_not_inside_other_blocks():
    small = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8, "vocab_size": 9}
    path, blocks = transformer_blocks(BertForMaskedLM(BertConfig(**small, num_hidden_layers=3)))
    assert (path, len(blocks)) == ("bert.encoder.layer", 3)

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.experts = nn.ModuleList([nn.Linear(9, 9) for _ in range(5)])

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.exits = nn.ModuleList([nn.Linear(2, 2) for _ in range(2)])
            self.mixed = nn.ModuleList([nn.Linear(50, 50), nn.GELU()])
            self.blocks = nn.ModuleList([Block(), Block()])

    assert transformer_blocks(Network())[0] == "blocks"


def test_networks_without_numbered_layers_say_so():
    sizes = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8, "vocab_size": 9, "embedding_size": 4}
    with pytest.raises(UserError, match="no list of 3 Transformer blocks"):
        transformer_blocks(AlbertModel(AlbertConfig(**sizes, num_hidden_layers=3)))
    bart = BartConfig(
        vocab_size=9,
        d_model=8,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
    )
    with pytest.raises(UserError, match="an encoder and a decoder"):
        transformer_blocks(BartModel(bart))

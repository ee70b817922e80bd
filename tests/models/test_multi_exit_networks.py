"""Networks with exits: what an exit is, alone and among others, what it becomes for others, and mistakes."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize
from transformers import (
    AutoModel,
    BertConfig,
    BertForMaskedLM,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    EuroBertConfig,
    EuroBertModel,
    ModernBertConfig,
    ModernBertModel,
)

from kdbench.callbacks.export import save_network
from kdbench.data.tokenizers import train_wordpiece
from kdbench.errors import UserError
from kdbench.models.mlp import MLPClassifier, MLPConfig
from kdbench.models.multi_exit import AddExits, KeepExits, MultiExitConfig, MultiExitEncoder, MultiExitForPreTraining
from kdbench.models.origins import Facts, FromFolder, quiet
from kdbench.models.sentence import last_token, masked_mean
from kdbench.models.sentence_folder import SentenceFolder
from kdbench.models.surgery import CopyLayers

EXITS = [2, 3, 5]
IDS = {"bos_token_id": 3, "eos_token_id": 2, "pad_token_id": 0}
SIZES = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 5, "num_attention_heads": 2}
FAMILIES = {
    "eurobert": (EuroBertModel, EuroBertConfig(**SIZES, **IDS, mask_token_id=4, num_key_value_heads=1)),
    "modernbert": (ModernBertModel, ModernBertConfig(**SIZES, **IDS, cls_token_id=2, sep_token_id=3)),
    "bert": (BertModel, BertConfig(**SIZES)),
    "distilbert": (DistilBertModel, DistilBertConfig(vocab_size=40, dim=16, hidden_dim=24, n_layers=5, n_heads=2)),
}
ROTARY = ["eurobert", "modernbert"]


def encoder(family="eurobert"):
    kind, config = FAMILIES[family]
    torch.manual_seed(0)
    network = kind(config)
    with torch.no_grad():  # norms that are not 1, so that a forgotten one shows
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network.eval()


def multi_exit(family="eurobert", **settings):
    return AddExits(EXITS, **settings)(encoder(family), Facts()).eval()


def view(lengths=(7, 4, 1), padding=2, left=False):
    """Return texts of given lengths, with so much padding beyond the longest."""
    width = max(lengths) + padding
    ids = torch.zeros(len(lengths), width, dtype=torch.int64)
    for row, length in enumerate(lengths):
        text = torch.randint(5, 40, (length,), generator=torch.Generator().manual_seed(row))
        ids[row, width - length if left else 0 :][:length] = text
    return {"input_ids": ids, "attention_mask": (ids != 0).long()}


@pytest.mark.parametrize("family", FAMILIES)
def test_an_exit_is_the_encoder_that_ends_there(family):
    network, plain = multi_exit(family), encoder(family)
    inputs = view()
    states = network.states(inputs["input_ids"], inputs["attention_mask"])
    told = network(**inputs)
    assert list(told) == [*(f"embedding_{exit}" for exit in EXITS), "embedding"]
    for exit in EXITS:
        alone = CopyLayers(layers=list(range(exit)))(plain, Facts()).eval()
        expected = alone(**inputs).last_hidden_state
        torch.testing.assert_close(states[exit], expected)
        head = network.projections[str(exit)]
        embedding = normalize(head(masked_mean(expected, inputs["attention_mask"])), dim=-1)
        torch.testing.assert_close(told[f"embedding_{exit}"], embedding)
    assert told.embedding is told.embedding_5


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kept", [[2], [3], [2, 5]])
def test_a_kept_exit_says_what_it_said_and_nothing_deeper_is_left(family, kept):
    network = multi_exit(family)
    small = KeepExits(kept)(network, Facts()).eval()
    told, alone = network(**view()), small(**view())
    assert list(alone) == [*(f"embedding_{exit}" for exit in kept), "embedding"]
    for exit in kept:
        assert torch.equal(alone[f"embedding_{exit}"], told[f"embedding_{exit}"])
    assert small.config.encoder.num_hidden_layers == kept[-1]
    assert sorted(small.projections) == sorted(map(str, kept))
    with torch.no_grad():
        next(small.encoder.parameters()).zero_()
    assert torch.equal(network(**view()).embedding, told.embedding), "it has weights of its own"


@given(st.integers(0, 100), st.lists(st.integers(1, 9), min_size=1, max_size=4), st.integers(0, 6))
@settings(deadline=None, max_examples=25)
def test_embeddings_have_length_one_and_no_padding_changes_them(seed, lengths, padding):
    for family, pooling in itertools.product(ROTARY, ("mean", "last")):
        network = multi_exit(family, pooling=pooling, dim=8)
        bare, right, left = (network(**view(lengths, *how)) for how in ((0, False), (padding, False), (padding, True)))
        for exit in EXITS:
            name = f"embedding_{exit}"
            torch.testing.assert_close(bare[name].norm(dim=-1), torch.ones(len(lengths)))
            assert bare[name].shape == (len(lengths), 8)
            torch.testing.assert_close(right[name], bare[name], atol=2e-5, rtol=0)
            torch.testing.assert_close(left[name], bare[name], atol=2e-5, rtol=0)


@pytest.mark.parametrize("left", [False, True])
def test_the_last_token_is_the_last_real_one(left):
    inputs = view(left=left)
    ids = inputs["input_ids"][..., None].float()
    expected = [row[row != 0][-1] for row in inputs["input_ids"]]
    assert last_token(ids, inputs["attention_mask"]).flatten().tolist() == expected


def test_projections_are_separate_and_pre_training_heads_are_shared():
    network = multi_exit()
    first, second, third = network.projections.values()
    assert len({id(each.weight) for each in (first, second, third)}) == 3
    shared = multi_exit(heads="shared")
    assert isinstance(shared, MultiExitForPreTraining)
    heads = [name for name, _ in shared.named_parameters() if not name.startswith(("encoder.", "exit_embeddings."))]
    assert {name.partition(".")[0] for name in heads} == {"masked_head", "context_head"}
    assert all(not vector.any() for vector in shared.exit_embeddings.values())
    inputs = view()
    masked = torch.zeros_like(inputs["input_ids"]).bool()
    masked[0, 2], masked[1, 1] = True, True
    every, few = shared(**inputs), shared(**inputs, masked=masked)
    assert torch.equal(every.logits, every.logits_5)
    for exit in EXITS:
        assert every[f"masked_{exit}"].shape == (3, 9, 40) and every[f"logits_{exit}"].shape == (3, 2)
        torch.testing.assert_close(few[f"masked_{exit}"], every[f"masked_{exit}"][masked])
    with torch.no_grad():
        shared.exit_embeddings["3"].add_(1.0)
    moved = shared(**inputs)
    assert torch.equal(moved.logits_2, every.logits_2) and not torch.equal(moved.logits_3, every.logits_3)
    small = KeepExits([3])(shared, Facts()).eval()
    torch.testing.assert_close(small(**inputs).logits, moved.logits_3)


def test_fine_tuning_begins_with_the_encoder_of_pre_training():
    shared = multi_exit(heads="shared")
    network = AddExits([3, 5])(shared, Facts())
    assert isinstance(network, MultiExitEncoder)
    ours, theirs = network.encoder.state_dict(), shared.encoder.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.parametrize("heads", ["separate", "shared"])
def test_saved_and_opened_again(tmp_path, heads):
    network = multi_exit(heads=heads, dim=8)
    with quiet():
        network.save_pretrained(tmp_path)
    found = FromFolder(str(tmp_path)).build().eval()
    assert type(found) is type(network) and found.config.exits == EXITS
    told, expected = found(**view()), network(**view())
    assert told.keys() == expected.keys() and all(torch.equal(told[name], expected[name]) for name in told)
    if heads == "separate":
        with quiet():
            assert isinstance(AutoModel.from_pretrained(tmp_path), MultiExitEncoder)


# ---- an exit for others ----

TEXTS = ["def f(a): return a", "one two three four five six", "x"]


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_an_exit_as_a_folder_of_plain_libraries(tmp_path, pooling):
    tokenizer = train_wordpiece(TEXTS * 3, 60, lowercase=False, cls_last=True)
    config = EuroBertConfig(**SIZES | {"vocab_size": len(tokenizer)}, **IDS, mask_token_id=4)
    network = AddExits(EXITS, dim=8, pooling=pooling)(EuroBertModel(config), Facts()).eval()
    small = KeepExits([3])(network, Facts())
    save_network(tmp_path / "exit", SentenceFolder(small), tokenizer, "a card")
    inputs = dict(tokenizer(TEXTS, padding=True, return_tensors="pt"))
    inputs.pop("token_type_ids", None)
    assert inputs["attention_mask"][:, -1].all() and (inputs["input_ids"][:, -1] == tokenizer.cls_token_id).all()
    with quiet():
        plain = AutoModel.from_pretrained(tmp_path / "exit").eval()
    assert type(plain) is EuroBertModel and plain.config.num_hidden_layers == 3
    states = network.states(inputs["input_ids"], inputs["attention_mask"])[3]
    torch.testing.assert_close(plain(**inputs).last_hidden_state, states)
    library = pytest.importorskip("sentence_transformers", reason="it opens the folder as its own users do")
    with quiet():
        found = library.SentenceTransformer(str(tmp_path / "exit"), device="cpu").encode(TEXTS)
    torch.testing.assert_close(torch.from_numpy(found), network(**inputs).embedding_3.detach(), atol=1e-5, rtol=0)


# ---- mistakes ----


@pytest.mark.parametrize(
    ("exits", "says"),
    [
        ([], "ascend"),
        ([4, 2], r"ascend, such as \[2, 4, 6\], not \[4, 2\]"),
        ([2, 2, 5], "ascend"),
        ([0, 5], r"lie outside a network of 5 layers: choose from 1 to 5"),
        ([2, 6], r"lie outside a network of 5 layers"),
        ([2, 4], r"The last exit is 4 and the network has 5 layers.*CopyLayers"),
    ],
)
def test_exits_that_cannot_be(exits, says):
    with pytest.raises(UserError, match=says):
        AddExits(exits)(encoder(), Facts())


def test_other_mistakes():
    with pytest.raises(UserError, match="no heads 'common'"):
        AddExits(EXITS, heads="common")
    with pytest.raises(UserError, match="no pooling 'max'"):
        MultiExitConfig(pooling="max")
    for other in (torch.nn.Linear(2, 2), MLPClassifier(MLPConfig(widths=[4], num_labels=2))):
        with pytest.raises(UserError, match=f"AddExits needs an encoder of texts, and {type(other).__name__} is none"):
            AddExits(EXITS)(other, Facts())
    with pytest.raises(UserError, match=r"cannot keep \[4\] of the exits \[2, 3, 5\]"):
        KeepExits([4])(multi_exit(), Facts())
    with pytest.raises(UserError, match="ascend"):
        KeepExits([3, 2])
    with pytest.raises(UserError, match="BertForMaskedLM has none: add AddExits"):
        KeepExits([2])(BertForMaskedLM(FAMILIES["bert"][1]), Facts())

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModel, BertConfig, BertModel, DistilBertConfig

from kdbench.models.origins import FromFolder, quiet
from kdbench.models.sentence import SentenceEncoder, SentenceEncoderConfig, masked_mean

BERT = {"vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}


def encoder(pool_padding=False):
    torch.manual_seed(0)
    return SentenceEncoder(SentenceEncoderConfig(encoder=BertConfig(**BERT), pool_padding=pool_padding)).eval()


def view():
    ids = torch.tensor([[2, 5, 7, 9, 3], [2, 8, 3, 0, 0]])
    return {"input_ids": ids, "attention_mask": (ids != 0).long()}


def test_the_embedding_is_the_mean_of_the_real_tokens():
    network = encoder()
    output = network(**view())
    assert output.embedding.shape == (2, 32)
    assert torch.equal(output.last_hidden_state, network.encoder(**view()).last_hidden_state)
    torch.testing.assert_close(output.embedding[0], output.last_hidden_state[0].mean(0))
    torch.testing.assert_close(output.embedding[1], output.last_hidden_state[1, :3].mean(0))


def test_the_baseline_of_ro_sts_averages_over_padding_too():
    network = encoder(pool_padding=True)
    output = network(**view())
    torch.testing.assert_close(output.embedding[1], output.last_hidden_state[1].mean(0))
    assert not torch.allclose(output.embedding[1], encoder()(**view()).embedding[1])


def test_without_a_mask_every_token_is_real():
    ids = view()["input_ids"]
    assert torch.equal(encoder()(ids).embedding, encoder()(ids, torch.ones_like(ids)).embedding)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 4), st.integers(0, 4), st.floats(-1e30, 1e30))
def test_padding_changes_nothing(real, padding, content):
    states = torch.randn(1, real, 8, dtype=torch.float64)
    rubbish = torch.full((1, padding, 8), content, dtype=torch.float64)
    mask = torch.tensor([[1] * real + [0] * padding])
    torch.testing.assert_close(masked_mean(torch.cat([states, rubbish], 1), mask), states.mean(1))


def test_padding_may_even_hold_nan():
    states = torch.tensor([[[1.0], [torch.nan]], [[torch.inf], [torch.nan]]])
    assert masked_mean(states, torch.tensor([[1, 0], [0, 0]])).tolist() == [[1.0], [0.0]]


@pytest.mark.parametrize("pool_padding", [False, True])
def test_saved_and_loaded_it_gives_equal_outputs(tmp_path, pool_padding):
    network = encoder(pool_padding)
    with quiet():
        network.save_pretrained(tmp_path)
        plain = AutoModel.from_pretrained(tmp_path)
    ours = FromFolder(str(tmp_path)).build().eval()
    for other in (plain, ours):
        assert isinstance(other, SentenceEncoder)
        assert torch.equal(other(**view()).embedding, network(**view()).embedding)
    assert (ours.config.vocab_size, ours.config.hidden_size, ours.config.max_position_embeddings) == (40, 32, 512)


def test_every_parameter_has_a_gradient():
    network = encoder()
    network(**view()).embedding.square().sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_token_types_go_to_encoders_that_have_them():
    types = torch.ones_like(view()["input_ids"])
    bert = encoder()
    assert not torch.equal(bert(**view(), token_type_ids=types).embedding, bert(**view()).embedding)
    small = DistilBertConfig(vocab_size=40, dim=32, n_layers=1, n_heads=4, hidden_dim=48)
    distilbert = SentenceEncoder(SentenceEncoderConfig(encoder=small))
    with pytest.raises(ValueError, match="DistilBertModel takes no token_type_ids"):
        distilbert(**view(), token_type_ids=types)


def test_the_encoder_alone_can_be_saved_for_plain_transformers(tmp_path):
    network = encoder()
    with quiet():
        network.encoder.save_pretrained(tmp_path)
        plain = BertModel.from_pretrained(tmp_path)
    assert torch.equal(plain(**view()).last_hidden_state, network(**view()).last_hidden_state)

"""Folding shifts and scales: in every layout the function stays the same, and what cannot be folded is named."""

import pytest
import torch
import transformers
from torch import nn

from kdbench.errors import UserError
from kdbench.models.folding import Restore, attention_modules, fold, layer_outputs, matrix, sites
from kdbench.models.origins import FromFolder
from kdbench.models.outliers import InjectOutliers
from kdbench.models.quantised_folder import describe
from kdbench.models.surgery import Facts

SIZES = {
    "vocab_size": 50,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "max_position_embeddings": 32,
}
GROUPED = SIZES | {"num_key_value_heads": 2}
OPT = {key: value for key, value in SIZES.items() if key != "intermediate_size"} | {
    "ffn_dim": 24,
    "word_embed_proj_dim": 16,
}
NETWORKS = {
    "gpt2": ("GPT2LMHeadModel", {"vocab_size": 50, "n_embd": 16, "n_head": 2, "n_layer": 2, "n_positions": 32}),
    "opt": ("OPTForCausalLM", OPT),
    "llama": ("LlamaForCausalLM", GROUPED),
    "mistral": ("MistralForCausalLM", GROUPED),
    "qwen2": ("Qwen2ForCausalLM", GROUPED),
    "bert": ("BertForSequenceClassification", SIZES),
    "bare bert": ("BertModel", SIZES),
    "roberta": ("RobertaForMaskedLM", SIZES),
    "camembert": ("CamembertForMaskedLM", SIZES),
    "xlm-roberta": ("XLMRobertaForTokenClassification", SIZES),
    "electra": ("ElectraForTokenClassification", SIZES | {"embedding_size": 8}),
}
IDS = torch.randint(5, 50, (3, 7), generator=torch.Generator().manual_seed(0))
MASK = (torch.arange(7) < torch.tensor([7, 4, 5])[:, None]).long()
VIEW = {"input_ids": IDS, "attention_mask": MASK}
SHIFTED = ("gpt2", "opt", "bert", "bare bert", "roberta", "camembert", "xlm-roberta", "electra")


def network(name, seed=0, **changes):
    """A small random network in float64 whose norms and biases are not those of a start."""
    torch.manual_seed(seed)
    architecture, sizes = NETWORKS[name]
    kind = getattr(transformers, architecture)
    made = kind(kind.config_class(**sizes | changes)).double().eval()
    for key, value in made.named_parameters():
        if value.dim() == 1:
            nn.init.uniform_(value, 0.5, 1.5) if "weight" in key else nn.init.uniform_(value, -1, 1)
        else:
            nn.init.normal_(value, std=0.2)
    return made


def told(made, view=VIEW):
    """What a network says at real tokens."""
    with torch.no_grad():
        said = made(**view)
    logits = said.logits if "logits" in said else said.last_hidden_state
    return logits if logits.dim() == 2 else logits[view["attention_mask"].bool()]


def given(made, path, view=VIEW):
    """What a linear layer is given at real tokens, ``[N, C]``."""
    seen = []
    handle = made.get_submodule(path).register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    told(made, view)
    handle.remove()
    return (
        seen[0][view["attention_mask"].bool()]
        if seen[0].dim() == 3
        else seen[0][view["attention_mask"].flatten().bool()]
    )


def drawn(width, seed):
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(width, generator=generator, dtype=torch.float64),
        0.2 + 5 * torch.rand(width, generator=generator, dtype=torch.float64),
    )


@pytest.mark.parametrize("name", NETWORKS)
def test_a_folded_network_is_the_original_and_its_layers_are_given_what_was_asked(name):
    made = network(name)
    before = told(made)
    for seed, site in enumerate(sites(made)):
        shift, scale = drawn(matrix(made.get_submodule(site.readers[0])).shape[1], seed)
        if not site.shifts:
            shift = torch.zeros_like(shift)
        states = given(made, site.readers[0])
        fold(made, site, shift, scale)
        for reader in site.readers:
            torch.testing.assert_close(given(made, reader), (states - shift) / scale, rtol=0, atol=1e-5)
    exact = name in SHIFTED
    torch.testing.assert_close(
        told(made), before, rtol=0, atol=1e-12 if exact else 1e-5
    )  # RMS norms compute in float32


@pytest.mark.parametrize(("name", "count"), [("gpt2", 4), ("opt", 4), ("llama", 4), ("bert", 6), ("electra", 5)])
def test_the_sites_of_each_layout(name, count):
    made = network(name)
    found = sites(made)
    assert len(found) == count
    assert all(site.shifts for site in found) == (name != "llama")
    heads = {module for path in attention_modules(made) for module in made.get_submodule(path).modules()}
    for site in found:
        inside = [made.get_submodule(path) in heads for path in site.readers]
        assert (site.function in attention_modules(made)) == all(inside)
    assert len(layer_outputs(made)) == 4
    if name == "bert":
        assert not any(
            made.bert.encoder.layer[-1].output.LayerNorm is made.get_submodule(each.source) for each in found
        )
    if name == "llama":
        assert [site.function.rpartition(".")[2] for site in found] == ["self_attn", "mlp"] * 2


def test_a_network_that_was_folded_twice_is_still_the_original():
    made = network("bert")
    before = told(made)
    for seed in (3, 4):
        for site in sites(made):
            fold(made, site, *drawn(16, seed))
    torch.testing.assert_close(told(made), before, rtol=0, atol=1e-12)
    assert sum(isinstance(module, Restore) for module in made.modules()) == 4


@pytest.mark.parametrize("name", NETWORKS)
def test_outliers_leave_the_function_as_it_is_and_are_where_they_were_put(name):
    made, plain = network(name), network(name)
    InjectOutliers(channels=3, gain=(20.0, 60.0), offset=30.0)(made, Facts())
    atol = 1e-10 if name in SHIFTED else 1e-4
    torch.testing.assert_close(told(made), told(plain), rtol=0, atol=atol)
    for site in sites(made):
        if isinstance(made.get_submodule(site.source), nn.Linear):
            continue
        large, small = (given(each, site.readers[0]) for each in (made, plain))
        moved = (large - small).abs().amax(0) > 1e-3
        assert int(moved.sum()) == 3
        gains = (large.std(0) / small.std(0))[moved]
        assert ((gains > 20 - 1e-6) & (gains < 60 + 1e-6)).all()
        offsets = (large - small * gains.new_ones(16).masked_scatter(moved, gains)).mean(0)[moved].abs()
        torch.testing.assert_close(offsets, torch.full_like(offsets, 30.0 * site.shifts), atol=1e-4, rtol=0)


def test_what_was_folded_behind_norms_survives_saving(tmp_path):
    made = network("bert").float()
    InjectOutliers()(made, Facts())
    made.save_pretrained(tmp_path)
    again = FromFolder(str(tmp_path)).build().eval()
    torch.testing.assert_close(told(again), told(made))
    bare = FromFolder(str(tmp_path), architecture="AutoModel").build().eval()
    torch.testing.assert_close(bare(**VIEW).last_hidden_state, made.bert(**VIEW).last_hidden_state)


def test_a_describing_config_names_what_is_restored():
    made = network("bert")
    describe(made)
    assert made.config.quantization_config.restored == []
    InjectOutliers()(made, Facts())
    assert made.config.quantization_config.restored[:2] == [
        "encoder.layer.0.attention.output",
        "encoder.layer.0.output",
    ]


def test_what_cannot_be_folded_is_named():
    other = transformers.DistilBertModel(transformers.DistilBertConfig(dim=8, hidden_dim=8, n_heads=2, n_layers=1))
    with pytest.raises(
        UserError, match=r"The layers of DistilBertModel \('distilbert'\) cannot be folded: .* gpt2, opt"
    ):
        sites(other)
    with pytest.raises(UserError, match=r"The layers of Linear \('None'\) cannot be folded"):
        sites(nn.Linear(2, 2))
    with pytest.raises(UserError, match="its 'self_attn_layer_norm' stands behind the shortcut"):
        sites(network("opt", do_layer_norm_before=False))
    with pytest.raises(UserError, match=r"The norm 'model\.decoder\.layers\.0\.self_attn_layer_norm' has no weight"):
        sites(network("opt", layer_norm_elementwise_affine=False))
    made = network("llama")
    with pytest.raises(ValueError, match=r"'model\.layers\.0\.input_layernorm' or a layer that reads it has no bias"):
        fold(made, sites(made)[0], torch.ones(16).double(), torch.ones(16).double())
    with pytest.raises(UserError, match="InjectOutliers takes a channel or more and gains above 0, not 0"):
        InjectOutliers(channels=0)
    with pytest.raises(UserError, match=r"'transformer.h.0.ln_1' has 16 channels, not 17"):
        InjectOutliers(channels=17)(network("gpt2"), Facts())

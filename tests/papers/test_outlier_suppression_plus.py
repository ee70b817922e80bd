"""Outlier Suppression+ (arXiv 2304.09145) in whole models: what it promises. The numbers of a layer: tests/compression."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.nn import functional

from kdbench.callbacks.export import save_network
from kdbench.compression.calibration import reached, real_tokens
from kdbench.compression.migration import channel_scale, channel_shift, smoothing_scale
from kdbench.compression.quantisers import Quantiser
from kdbench.data.labelled_text import TextClassification
from kdbench.data.tokenizers import TrainWordLevel
from kdbench.errors import UserError
from kdbench.methods.outlier_suppression import FILE, OutlierSuppression
from kdbench.models.folding import matrix
from kdbench.models.origins import FromConfig, FromFolder
from kdbench.models.outliers import InjectOutliers
from kdbench.models.quantised import KINDS, roundings, set_mode
from kdbench.models.surgery import Surgery
from tests.models.test_folding import MASK, NETWORKS, SIZES, VIEW, given, told

ROOT = Path(__file__).parent.parent.parent
SIX, SIX_ROWS = Quantiser(6, symmetric=False), Quantiser(6, symmetric=False, part="channel")
EXACT, EXACT_ROWS = Quantiser(16, symmetric=False), Quantiser(16, symmetric=False, part="channel")
KINDS_OF_MIGRATION = ["none", "smoothing", "shift", "scale", "both"]
NAMES = ["gpt2", "opt", "bert", "llama"]


class Settled(Surgery):
    """The same random weights each time, so that student and original are one network."""

    def __call__(self, network, facts):
        generator = torch.Generator().manual_seed(0)
        for key, value in network.named_parameters():
            drawn = torch.randn(value.shape, generator=generator)
            with torch.no_grad():
                value.copy_(0.2 * drawn if value.dim() > 1 else drawn.abs() + 0.5 if "weight" in key else drawn)
        return network


def method(name, migration="both", weights=SIX_ROWS, activations=SIX, outliers=True, **settings):
    """The method with a student that is built and rounds nothing yet."""
    architecture, sizes = NETWORKS[name]
    then = [Settled(), *([InjectOutliers()] if outliers else [])]
    origin = FromConfig(architecture, dict(sizes), then=then)
    found = OutlierSuppression(origin, weights, activations, migration, **settings)
    found.student = origin.build().eval()
    with torch.no_grad():
        found.complete()
    return found


def moved(found, view=VIEW):
    """Go through the places of a method; return what was done at each."""
    with torch.no_grad():
        return [found._move(site, view) for site in found.sites]


@pytest.mark.parametrize("migration", KINDS_OF_MIGRATION)
@pytest.mark.parametrize("name", NAMES)
def test_in_full_precision_the_moved_model_is_the_original(name, migration):
    if (name, migration) == ("llama", "shift"):
        with pytest.raises(UserError, match="LlamaForCausalLM has no biases that take a shift"):
            method(name, migration)
        return
    found = method(name, migration)
    before = told(found.student)
    done = moved(found)
    assert len(done) == {"gpt2": 4, "opt": 4, "bert": 6, "llama": 4}[name] * (migration != "none")
    set_mode(found.student, "off")
    torch.testing.assert_close(told(found.student), before, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("name", ["gpt2", "opt", "bert"])
def test_after_shifting_every_channel_is_symmetric_and_after_scaling_none_exceeds_the_threshold(name):
    shifted, both = method(name, "shift", EXACT_ROWS, EXACT), method(name, "both", EXACT_ROWS, EXACT)
    moved(shifted)
    done = moved(both)
    for place, site in enumerate(both.sites):
        states = []
        for each in (shifted, both):
            set_mode(each.student, "batch", MASK)
            states.append(given(each.student, site.readers[0]))
        highest, lowest = states[0].amax(0), states[0].amin(0)
        torch.testing.assert_close(highest, -lowest, rtol=0, atol=2e-3 * float(highest.abs().max()))
        assert float(states[1].abs().max()) <= done[place]["threshold"] * 1.01
        assert done[place]["before"] > done[place]["after"] or site.function is None


def loss_of_attention(states, mask, layers, threshold, heads):
    """L(t) of query, key and value by hand: attention of the shifted and scaled states, before the output projection."""
    real = states[mask.bool()]
    shift = channel_shift(real)
    scale = channel_scale(real - shift, threshold)
    end = torch.tensor(threshold)

    def attention(values, weights):
        query, key, value = (
            (values @ weight.T + layer.bias + layer.weight @ shift).unflatten(-1, (heads, -1)).transpose(1, 2)
            for weight, layer in zip(weights, layers, strict=True)
        )
        later = torch.ones(values.shape[1], values.shape[1]).triu(1).bool()
        hidden = later | ~mask.bool()[:, None, None]
        scores = (query @ key.transpose(2, 3) / query.shape[-1] ** 0.5).masked_fill(hidden, -torch.inf)
        return (scores.softmax(-1) @ value).transpose(1, 2).flatten(2)[mask.bool()]

    rounded = SIX.grid.rounded((states - shift) / scale, -end, end)
    lost = attention(rounded, [SIX_ROWS(layer.weight * scale) for layer in layers])
    return float((lost - attention(states - shift, [layer.weight for layer in layers])).square().sum(-1).mean())


def test_query_key_and_value_are_searched_by_what_attention_loses():
    found = method("opt")
    block = found.student.model.decoder.layers[0].self_attn
    layers = [nn.Linear(16, 16) for _ in range(3)]
    with torch.no_grad():
        for layer, own in zip(layers, (block.q_proj, block.k_proj, block.v_proj), strict=True):
            layer.load_state_dict({"weight": own.weight, "bias": own.bias})
        states = reached(found.student, block, VIEW).states
        first = moved(found)[0]
        at = [
            loss_of_attention(states, MASK, layers, t, 4)
            for t in (first["threshold"], 0.8 * first["threshold"], 40.0, 2.0)
        ]
    assert first["loss"] == pytest.approx(at[0], rel=1e-3)
    assert first["loss"] <= min(at) * (1 + 1e-3)


def test_a_gated_part_is_searched_by_what_its_product_loses():
    found = method("llama")
    network, (_, site, *_) = found.student, found.sites
    with torch.no_grad():
        found._move(found.sites[0], VIEW)
        set_mode(network, "batch", MASK)
        part = network.model.layers[0].mlp
        states = real_tokens(reached(network, part, VIEW).states, MASK)
        gate, up = part.gate_proj.weight.clone(), part.up_proj.weight.clone()
        done = found._move(site, VIEW)
        end = torch.tensor(done["threshold"])
        scale = channel_scale(states, done["threshold"])
        rounded = SIX.grid.rounded(states / scale, -end, end)
        lost = functional.silu(rounded @ SIX_ROWS(gate * scale).T) * (rounded @ SIX_ROWS(up * scale).T)
        whole = functional.silu(states @ gate.T) * (states @ up.T)
    assert done["loss"] == pytest.approx(float((lost - whole).square().sum(-1).mean()), rel=1e-3)
    torch.testing.assert_close(part.up_proj.weight, up * scale)


def test_each_place_sees_what_those_before_it_lose():
    coarse, fine = (moved(method("opt", "shift", *both)) for both in ((SIX_ROWS, SIX), (EXACT_ROWS, EXACT)))
    assert coarse[0] == fine[0], "nothing is rounded before the first place"
    assert all(abs(one["before"] - other["before"]) > 1e-4 for one, other in zip(coarse[1:], fine[1:], strict=True))


def test_smoothing_is_shared_by_all_readers():
    found = method("bert", "smoothing", EXACT_ROWS, EXACT, share=0.3)
    network, site = found.student, found.sites[0]
    with torch.no_grad():
        states = given(network, site.readers[0])
        weight = torch.cat([matrix(network.get_submodule(path)) for path in site.readers])
        found._move(site, VIEW)
        set_mode(network, "off")
        expected = states / smoothing_scale(states, weight, 0.3)
        for path in site.readers:
            torch.testing.assert_close(given(network, path), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["opt", "bert"])
def test_padding_moves_nothing(name):
    """Other tokens in the padding, and more of it, lead to the same thresholds."""
    other = VIEW | {"input_ids": VIEW["input_ids"].where(MASK.bool(), torch.tensor(49))}
    longer = {key: functional.pad(value, (0, 3), value=0) for key, value in VIEW.items()}
    for view in (other, longer):
        for one, two in zip(moved(method(name)), moved(method(name), view), strict=True):
            assert one.pop("source") == two.pop("source")
            assert one == pytest.approx(two, rel=1e-4)


# ---- through a fit ----


def trainer(folder, **changes):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    settings = {"max_epochs": 1, "num_sanity_val_steps": 0, "enable_checkpointing": False, "limit_test_batches": 2}
    return pl.Trainer(accelerator="cpu", default_root_dir=folder, **quiet | settings | changes)


def data():
    words = TrainWordLevel(lowercase=True)
    return TextClassification(
        "synthetic/skewed_lengths",
        "dialect",
        tokenizer=words,
        train_rows=24,
        batch_size=8,
        max_length=32,
        group_by_length=False,
    )


def student(architecture="BertForSequenceClassification", **sizes):
    sizes = (
        {key: value for key, value in SIZES.items() if key != "vocab_size"} | {"max_position_embeddings": 160} | sizes
    )
    return FromConfig(architecture, sizes, then=[Settled(), InjectOutliers()])


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """Every kind of migration after a fit: the method, its trainer, its test scores."""
    found = {}
    for migration in KINDS_OF_MIGRATION:
        pl.seed_everything(0, verbose=False)
        module = OutlierSuppression(student(), SIX_ROWS, SIX, migration)
        fit = trainer(tmp_path_factory.mktemp(migration))
        fit.fit(module, datamodule=data())
        fit.save_checkpoint(module.folder / "last.ckpt")
        (scores,) = fit.test(module, datamodule=data(), verbose=False)
        found[migration] = (module, scores)
    return found


def test_outliers_hurt_and_moving_them_helps(fitted):
    error = {migration: scores["test/layer_error@student"] for migration, (_, scores) in fitted.items()}
    assert error["none"] > 10 * error["both"]
    assert error["shift"] > error["both"]
    assert max(error["smoothing"], error["scale"]) < error["none"]
    loyalty = {migration: scores["test/probability_loyalty@original"] for migration, (_, scores) in fitted.items()}
    assert loyalty["both"] > loyalty["none"]


def test_what_was_done_is_an_artifact_of_the_run(fitted):
    module, _ = fitted["both"]
    done = json.loads((module.folder / FILE).read_text())
    assert [each["source"] for each in done] == [site.source for site in module.sites]
    for each in done:
        assert each["after"] <= each["threshold"] * (1 + 1e-5)
        assert each["threshold"] >= 1 or each["threshold"] == pytest.approx(each["after"]), (
            "the largest is below 1 already"
        )


def test_the_student_rounds_in_the_mean_range_of_all_batches_and_its_weights_are_on_their_grids(fitted):
    for module, _ in fitted.values():
        assert {each.mode for each in roundings(module.student).values()} == {"fixed"}
        for path, each in roundings(module.student).items():
            assert each.low <= 0 <= each.high or not path.endswith("probabilities")
            assert float(each.high - each.low) > 0
        layers = [layer for layer in module.student.modules() if type(layer) in KINDS.values()]
        assert len(layers) == 14
        for layer in layers:
            assert all(len(row.unique()) <= 64 for row in layer.weight.detach())


def test_the_student_is_the_same_after_a_checkpoint_and_after_export(fitted, tmp_path):
    module, scores = fitted["both"]
    again = OutlierSuppression(student(), SIX_ROWS, SIX)
    fit = trainer(tmp_path)
    (found,) = fit.test(again, datamodule=data(), ckpt_path=module.folder / "last.ckpt", verbose=False)
    assert found == pytest.approx(scores)
    save_network(tmp_path / "student", module.student)
    opened = FromFolder(str(tmp_path / "student")).build().eval()
    view = {key: value[:, :5] for key, value in VIEW.items()}
    view["input_ids"] = view["input_ids"] % 30
    module.student.eval()
    torch.testing.assert_close(told(opened, view), told(module.student, view))


def test_a_quantile_of_tokens_makes_ranges_narrower_and_a_search_chooses_one(fitted, tmp_path):
    plain, _ = fitted["none"]
    ranges = {}
    for quantile in (0.8, "search"):
        pl.seed_everything(0, verbose=False)
        module = OutlierSuppression(student(), SIX_ROWS, SIX, "none", token_quantile=quantile)
        trainer(tmp_path).fit(module, datamodule=data())
        ranges[quantile] = {path: each.high - each.low for path, each in roundings(module.student).items()}
    widest = {path: each.high - each.low for path, each in roundings(plain.student).items()}
    assert all(ranges[0.8][path] <= width + 1e-6 for path, width in widest.items())
    assert all(ranges["search"][path] <= width + 1e-6 for path, width in widest.items())
    assert sum(ranges[0.8].values()) < sum(widest.values())


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"weights": {"bits": 1}}, "A quantiser has 2 to 16 bits, not 1"),
        ({"migration": "booth"}, "There is no migration 'booth'. Did you mean 'both'"),
    ],
)
def test_impossible_settings_are_told_in_one_sentence(settings, sentence):
    with pytest.raises(UserError, match=sentence):
        weights = Quantiser(**settings.get("weights", {}))
        OutlierSuppression(student(), weights, SIX, settings.get("migration", "both"))


@pytest.mark.parametrize("settings", [{"share": 1.5}, {"least": 0.0}, {"token_quantile": 0.0}])
def test_numbers_out_of_range_are_refused(settings):
    with pytest.raises(ValueError, match=r"(lies in|is above)"):
        OutlierSuppression(student(), SIX_ROWS, SIX, **settings)


def test_a_model_that_cannot_be_folded_and_half_precision_are_told(tmp_path):
    sizes = {"dim": 16, "hidden_dim": 16, "n_heads": 2, "n_layers": 1}
    other = FromConfig("DistilBertForSequenceClassification", sizes, then=[Settled()])
    with pytest.raises(UserError, match=r"The layers of DistilBertForSequenceClassification .* cannot be folded"):
        trainer(tmp_path).fit(OutlierSuppression(other, SIX_ROWS, SIX), datamodule=data())
    with pytest.raises(UserError, match=r"calibrates in full precision: set trainer\.precision to 32, not bf16-mixed"):
        trainer(tmp_path, precision="bf16-mixed").fit(OutlierSuppression(student(), SIX_ROWS, SIX), datamodule=data())


# ---- as a person types it ----


def kdbench(*words, runs):
    done = subprocess.run(
        [sys.executable, "-m", "kdbench.cli", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "KDBENCH_RUNS": str(runs)},
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.slow
def test_fit_test_and_export_from_the_command_line(tmp_path):
    words = ["--config", "experiments/outlier_suppression_plus.yaml", "--stages.teacher.trainer.max_steps", "30"]
    code, out, err = kdbench("fit", "--quiet", *words, runs=tmp_path)
    assert code == 0, err
    run = Path(re.search(r"Run folder: (.+)", out).group(1))
    record = json.loads((run / "record.json").read_text())
    assert record["metrics"]["test/accuracy@original"] > 0
    assert len(json.loads((run / FILE).read_text())) == 6
    code, _, err = kdbench("test", *words, runs=tmp_path)
    assert code == 0, err
    again = json.loads((run / "record.json").read_text())["metrics"]
    scores = [key for key in again if key.startswith("test/")]
    assert {key: again[key] for key in scores} == pytest.approx({key: record["metrics"][key] for key in scores})
    code, _, err = kdbench("export", str(run), runs=tmp_path)
    assert code == 0, err
    assert "simulated" in (run / "export" / "README.md").read_text()
    assert FromFolder(str(run / "export")).build().config.quantization_config.weights["bits"] == 6
    code, _, err = kdbench("fit", *words, "--model.weights.bits", "1", runs=tmp_path)
    assert (code, err.strip()) == (2, "kdbench: A quantiser has 2 to 16 bits, not 1.")
    code, _, err = kdbench("fit", *words, "--trainer.max_epochs", "2", runs=tmp_path)
    assert code == 2
    assert "set trainer.max_epochs to 1" in err

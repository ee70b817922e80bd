"""Generative distillation: who writes what is learnt from, what is drawn from which numbers, exact resumption, mistakes."""

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from small_language import WIDE, adam, data, fitted, same, still, student, teacher, trainer, weights

from kdbench.callbacks.resume import ExactResume
from kdbench.callbacks.teacher_cache import TeacherCache
from kdbench.data.causal_language import continued
from kdbench.data.causal_tokenizers import TrainCharacters
from kdbench.data.vectors import VectorClassification
from kdbench.errors import UserError
from kdbench.losses.divergences import KLDivergence, TotalVariation
from kdbench.methods.adaptive import AdaptiveDistillation
from kdbench.methods.generative import GenerativeDistillation
from kdbench.methods.supervised import Supervised
from kdbench.models.generation import Sampling, generate
from kdbench.models.origins import FromConfig, FromFolder


def generative(kind=GenerativeDistillation, **settings):
    return kind(student(), teacher(), **{"optimizer": adam} | settings)


def prepared(module, rows=16, **changes):
    """Return the batch that a fitted module sees of the first training rows."""
    batch = module.data.collate("train", [(item, 0) for item in module.data.items["train"][:rows]])
    return module.prepare(batch | changes)


# ---- the text that is learnt from ----


def test_text_of_the_data_is_left_as_it_is(tmp_path):
    module = fitted(generative(), 1, tmp_path)
    batch = module.data.collate("train", [(item, 0) for item in module.data.items["train"][:4]])
    found = module.prepare(batch)
    assert found["inputs"]["input_ids"].equal(batch["inputs"]["input_ids"])
    assert found["by_data"].equal(batch["predicts"])


def test_the_student_writes_what_it_would_say_to_the_prompts_now(tmp_path):
    module = fitted(generative(text={"student": 1.0}), 3, tmp_path)
    found = prepared(module)
    prompt = found["prompt"]
    drawn = generate(
        module.student,
        prompt["input_ids"],
        prompt["attention_mask"],
        module.uniforms("student", found["id"], module.current_epoch),
    )
    assert found["response"]["input_ids"].equal(drawn.tokens)
    assert found["inputs"]["input_ids"][:, 2:].equal(drawn.tokens)
    assert found["labels"][:, 1:-1].equal(drawn.tokens)
    assert found["by_student"].equal(found["predicts"])
    assert module.written == 3 * 16 + 16, "the rehearsal did not count"


def test_what_is_drawn_depends_on_row_and_epoch_alone(tmp_path, monkeypatch):
    module = fitted(generative(text={"student": 1.0}, optimizer=still), 1, tmp_path)
    whole, part = prepared(module, 16), prepared(module, 5)
    assert part["response"]["input_ids"].equal(whole["response"]["input_ids"][:5])
    monkeypatch.setattr(GenerativeDistillation, "current_epoch", 7)
    assert not prepared(module, 5)["response"]["input_ids"].equal(part["response"]["input_ids"])


def test_the_teacher_writes_once(tmp_path, monkeypatch):
    module = fitted(generative(text={"teacher": 1.0}), 6, tmp_path)
    first = prepared(module, 16)["response"]["input_ids"]
    monkeypatch.setattr(GenerativeDistillation, "current_epoch", 7)
    assert prepared(module, 5)["response"]["input_ids"].equal(first[:5])
    prompt = prepared(module, 16)["prompt"]
    drawn = module.write("teacher", prompt, module.uniforms("teacher", torch.arange(16), 0))
    assert first.equal(drawn["input_ids"])
    assert module.written == 0


@pytest.mark.parametrize("unit", ["batch", "row"])
def test_shares_of_a_mixture(unit, tmp_path):
    module = fitted(generative(text={"data": 0.25, "teacher": 0.25, "student": 0.5}, unit=unit), 1, tmp_path)
    rows = torch.arange(4000)
    if unit == "row":
        shares = torch.bincount(module.writers(rows), minlength=3) / 4000
    else:
        assert len(module.writers(rows[:16]).unique()) == 1
        shares = torch.cat([module.writers(rows[at : at + 1]) for at in range(4000)]).bincount(minlength=3) / 4000
    torch.testing.assert_close(shares, torch.tensor([0.25, 0.25, 0.5]), atol=0.03, rtol=0)


def test_each_position_has_one_writer(tmp_path):
    module = fitted(generative(text={"data": 0.3, "teacher": 0.3, "student": 0.4}, unit="row"), 1, tmp_path)
    found = prepared(module, 80)
    by = torch.stack([found[f"by_{name}"] for name in ("data", "teacher", "student")])
    assert by.sum(0).equal(found["predicts"].long())
    assert by.any(2).any(1).all()
    rows = found["by_data"].any(1)
    own = module.data.collate("train", [(item, 0) for item in module.data.items["train"][:80]])
    assert found["labels"][rows].equal(own["labels"][rows])


def test_texts_that_end_are_padded_behind_their_end_and_predict_it(tmp_path):
    module = fitted(generative(text={"student": 1.0}), 1, tmp_path, end=True)
    end = module.data.end_token
    found = prepared(module, 80)
    for ids, mask, labels in zip(
        found["response"]["input_ids"], found["response"]["attention_mask"].bool(), found["labels"], strict=True
    ):
        real = ids[mask]
        assert not (real[:-1] == end).any()
        assert (ids[~mask] == 0).all()
        assert labels[labels != -100].equal(real)
    assert (found["response"]["attention_mask"].sum(1) < 10).any(), "some have ended"


def test_padding_changes_no_term(tmp_path):
    module = fitted(generative(ratio=0.5, reduction="sequence"), 1, tmp_path, end=True)
    batch = prepared(module, 8)
    keep = torch.tensor([2, 5, 3, 8, 1, 4, 7, 6])
    values = []
    for padding in (0, 5):
        mask = (torch.arange(10) < keep[:, None]).long()
        ids = batch["response"]["input_ids"].masked_fill(mask == 0, padding)
        text = batch | continued(batch["prompt"], {"input_ids": ids, "attention_mask": mask})
        teacher_said = module.teach(text)
        values.append(module.objective(module.learn(text, teacher_said), teacher_said, text))
    for name, value in values[0].items():
        torch.testing.assert_close(value, values[1][name])


def test_sampling_leaves_the_mode_and_the_gradient_alone(tmp_path):
    module = GenerativeDistillation(student({"attn_pdrop": 0.5}), teacher(), {"student": 1.0}, optimizer=adam)
    fitted(module, 1, tmp_path)
    module.student.train()
    torch.manual_seed(0)
    first = prepared(module, 8)
    torch.manual_seed(1)
    assert first["response"]["input_ids"].equal(prepared(module, 8)["response"]["input_ids"]), "without dropout"
    assert module.student.training
    assert not module.network("teacher").training
    assert not first["inputs"]["input_ids"].is_floating_point()


def test_a_temperature_draws_other_text(tmp_path):
    plain, greedy = (
        fitted(generative(text={"student": 1.0}, sampling=how, optimizer=still), 1, tmp_path)
        for how in (None, Sampling(temperature=0.0))
    )
    assert not prepared(plain)["labels"].equal(prepared(greedy)["labels"])


# ---- what is learnt ----


@pytest.mark.parametrize("text", [{"data": 1.0}, {"teacher": 0.5, "student": 0.5}])
def test_the_student_comes_nearer_to_its_teacher(text, tmp_path):
    module = generative(text=text, unit="row", divergence=TotalVariation(), reduction="sequence")
    run = trainer(40, tmp_path)
    (before,) = run.test(module, datamodule=data(), verbose=False)
    run.fit(module, datamodule=module.data)
    (after,) = run.test(module, datamodule=module.data, verbose=False)
    assert after["test/acceptance@teacher"] > before["test/acceptance@teacher"] + 0.02
    assert after["test/acceptance@teacher"] == pytest.approx(1 - after["test/total_variation@teacher"], abs=1e-6)


def test_fresh_texts_of_a_teacher_are_the_same_for_every_student_and_seed(tmp_path):
    left = fitted(Supervised(teacher(), optimizer=adam), 1, tmp_path)
    left.student.save_pretrained(tmp_path)
    left.data.tokenizers["inputs"].save_pretrained(tmp_path)
    told = []
    for seed in (0, 1):
        pl.seed_everything(seed, verbose=False)
        module = GenerativeDistillation(student(), FromFolder(str(tmp_path)))
        (found,) = trainer(1, tmp_path).test(module, datamodule=data(), verbose=False)
        told.append({name: found[f"test/{name}@teacher"] for name in ("entropy", "acceptance", "own_entropy")})
    assert told[0]["entropy"] == told[1]["entropy"]
    assert told[0]["acceptance"] != told[1]["acceptance"]
    assert told[0]["own_entropy"] != told[1]["own_entropy"], "each student writes its own"


def test_predictions_are_the_texts_of_the_student(tmp_path):
    module = fitted(generative(), 1, tmp_path)
    batches = trainer(1, tmp_path).predict(module, datamodule=module.data)
    assert sum(len(batch["id"]) for batch in batches) == 512
    assert batches[0]["predictions"].shape == (32, 10)
    assert batches[0]["predictions"].equal(
        module.fresh("student", module.data.collate("test", [(item, 0) for item in module.data.items["test"][:32]]))[
            "input_ids"
        ]
    )


def test_validation_compares_on_the_texts_of_the_data(tmp_path):
    module = generative()
    run = trainer(5, tmp_path, limit_val_batches=1.0)
    run.fit(module, datamodule=data())
    assert 0 < float(run.callback_metrics["val/acceptance@teacher"]) < 1
    assert "val/own_kl@teacher" not in run.callback_metrics


def test_heads_wider_than_the_vocabulary_are_cut_to_what_both_know(tmp_path):
    module = GenerativeDistillation(
        student(),
        FromConfig("GPT2LMHeadModel", WIDE | {"vocab_size": 40}),
        {"teacher": 0.5, "student": 0.5},
        "row",
        optimizer=adam,
    )
    fitted(module, 3, tmp_path)
    assert module.pieces == 27
    assert prepared(module)["inputs"]["input_ids"].max() < 27
    (found,) = trainer(1, tmp_path).test(module, datamodule=module.data, verbose=False)
    assert found["test/kl@teacher"] > 0


# ---- the teacher cache ----


def test_what_a_teacher_says_is_kept_only_where_its_text_was_written_before(tmp_path):
    kept = {}
    for name in ("data", "teacher", "student"):
        cache = TeacherCache(tmp_path / "targets", mode="on")
        module = generative(text={name: 1.0})
        fitted(module, 6, tmp_path, trained={"callbacks": [ExactResume(), cache]})
        kept[name] = cache.told()
    assert kept["data"]["rows_computed"] == 80
    assert kept["data"]["rows_read"] == 16
    assert kept["student"]["off"] == "the text that is learnt from is written by the student during the fit"
    assert "written by the teacher" in kept["teacher"]["off"]


# ---- exact resumption ----

MIXED = {"data": 0.2, "teacher": 0.4, "student": 0.4}
KINDS = {
    "batch": lambda: generative(text=MIXED, divergence=KLDivergence(direction="reverse")),
    "row": lambda: generative(text=MIXED, unit="row", plain_weight=0.5),
    "adaptive": lambda: generative(AdaptiveDistillation, start=0.7, rise=0.3, tolerance=-10.0, capacity=32),
}


@pytest.mark.parametrize("name", KINDS)
def test_a_resumed_fit_ends_with_the_same_bits(name, tmp_path):
    kept = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=7, save_top_k=-1)
    validated = {"trained": {"limit_val_batches": 1.0}} if name == "adaptive" else {}
    whole = fitted(KINDS[name](), 16, tmp_path, keep=kept, **validated)  # 5 batches an epoch
    state = weights(whole)
    resumed = fitted(KINDS[name](), 16, tmp_path, checkpoint=str(tmp_path / "step=7.ckpt"), **validated)
    assert same(state, weights(resumed))
    assert whole.written > 0


# ---- adaptive ----


def test_phi_rises_when_validation_gets_worse_than_at_its_last_rise():
    module = generative(AdaptiveDistillation)
    module.bar.fill_(2.0)
    seen = []
    for value in (2.05, 2.1, 2.15, 2.2, 2.1, 2.31):
        module.adapt(value)
        seen.append(round(float(module.phi), 1))
    assert seen == [0.0, 0.1, 0.1, 0.2, 0.2, 0.3]
    module.phi.fill_(0.95)
    module.adapt(9.0)
    assert float(module.phi) == 1.0


def test_the_bar_is_the_student_before_training(tmp_path):
    module = fitted(generative(AdaptiveDistillation, optimizer=still), 1, tmp_path, trained={"limit_val_batches": 1.0})
    (found,) = module.trainer.validate(module, datamodule=module.data, verbose=False)
    assert float(module.bar) == pytest.approx(found["val/cross_entropy@student"])
    assert float(module.phi) == 0
    assert module.written == 0


def test_the_buffer_keeps_the_newest_texts_and_gives_them_back_with_their_prompts(tmp_path):
    module = generative(AdaptiveDistillation, start=1.0, capacity=20, optimizer=still)
    fitted(module, 3, tmp_path)
    assert module.written >= 32, "it writes until the buffer is full"
    written = module.rewritten(prepared(module), torch.ones(16))
    module.remember(written, int(module.written) - 16)
    again = module.replayed(written)
    assert again["by_student"].equal(again["predicts"])
    items = module.data.items["train"]
    for place, row in enumerate(again["id"].tolist()):
        assert again["prompt"]["input_ids"][place].tolist() == items[row]["prompt"].tolist()
    kept, taken = (
        [(row, *ids) for row, ids in zip(rows.tolist(), texts.tolist(), strict=True)]
        for rows, texts in ((module.replay_rows, module.replay_tokens), (again["id"], again["response"]["input_ids"]))
    )
    assert set(taken) <= set(kept)
    newest = [
        (row, *ids) for row, ids in zip(written["id"].tolist(), written["response"]["input_ids"].tolist(), strict=True)
    ]
    assert set(newest) <= set(kept)


def test_without_doubt_the_data_are_learnt_from(tmp_path):
    module = fitted(generative(AdaptiveDistillation), 2, tmp_path)
    assert prepared(module)["by_data"].equal(prepared(module)["predicts"])


# ---- fine-tuning ----


def test_fine_tuning_learns_the_next_token(tmp_path):
    module = Supervised(student(), optimizer=adam)
    fitted(module, 60, tmp_path)
    (found,) = trainer(1, tmp_path).test(module, datamodule=module.data, verbose=False)
    assert found["test/cross_entropy@student"] < 3.25  # 27 tokens any alike: 3.30


# ---- mistakes ----


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"text": {"data": 0.5, "student": 0.4}}, "the shares of those who write the text sum to 1, got"),
        ({"text": {"data": 1.5, "student": -0.5}}, "the shares of those who write the text sum to 1, got"),
        ({"text": {"studnt": 1.0}}, "written by data, teacher or student, not by 'studnt'. Did you mean 'student'?"),
        ({"text": {"student": 1.0}, "ratio": 0.5}, "the student's own text is no answer to learn by heart"),
        ({"ratio": 1.5}, "ratio is a share in [0, 1], got 1.5"),
        ({"unit": "token"}, "unit is 'batch' or 'row', got 'token'"),
        ({"reduction": "row"}, "reduction is 'token' or 'sequence', got 'row'"),
    ],
)
def test_impossible_settings(settings, sentence):
    with pytest.raises(ValueError) as raised:
        generative(**settings)
    assert sentence in str(raised.value)


def test_what_does_not_fit_together_is_told_before_the_first_step(tmp_path):
    with pytest.raises(UserError, match="GenerativeDistillation writes text: it needs CausalLanguageModeling"):
        trainer(1, tmp_path).fit(generative(), datamodule=VectorClassification("synthetic/gaussian_tree"))
    with pytest.raises(UserError, match="The buffer keeps 8 texts and a batch has 16: keep more"):
        fitted(generative(AdaptiveDistillation, capacity=8), 1, tmp_path)
    with pytest.raises(ValueError, match="the buffer keeps a text or more, got capacity 0"):
        generative(AdaptiveDistillation, capacity=0)


def test_a_teacher_of_another_vocabulary(tmp_path):
    other = fitted(Supervised(teacher(), optimizer=adam), 1, tmp_path, tokenizer=TrainCharacters())
    other.student.save_pretrained(tmp_path)
    other.data.tokenizers["inputs"].save_pretrained(tmp_path)
    module = GenerativeDistillation(student(), FromFolder(str(tmp_path)), optimizer=adam)
    with pytest.raises(UserError, match="'teacher' has another vocabulary than the student: what one of them writes"):
        fitted(module, 1, tmp_path)

"""MiniLLM as a fit: texts of a mixture, terms on them, collections that last, and exact resumption."""

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from small_language import adam, fitted, same, still, student, teacher, trainer, weights

from kdbench.errors import UserError
from kdbench.losses.divergences import kl_divergence
from kdbench.methods.minillm import MiniLLM
from kdbench.models.generation import generate


def mini(**settings):
    return MiniLLM(student(), teacher(), **{"optimizer": adam, "epochs": 3} | settings)


def first_batch(module, rows=16):
    return module.data.collate("train", [(item, 0) for item in module.data.items["train"][:rows]])


@pytest.mark.parametrize("share", [0.0, 0.2, 1.0])
def test_texts_are_drawn_from_the_mixture_and_weighed_by_it(share, tmp_path):
    module = fitted(mini(teacher_share=share), 2, tmp_path)
    batch = first_batch(module)
    text = module.roll_out(batch)
    prompt = batch["prompt"]
    drawn = generate(
        module.student,
        prompt["input_ids"],
        prompt["attention_mask"],
        module.uniforms("rollouts", batch["id"], module.current_epoch),
        mixed=(module.network("teacher"), share),
    )
    assert text["response"]["input_ids"].equal(drawn.tokens)
    mixed = drawn.log_probabilities.float()
    torch.testing.assert_close(text["weights"], (text["before"] - mixed).exp(), rtol=1e-4, atol=1e-5)
    alone = {0.0: module.student, 1.0: module.network("teacher")}.get(share)
    if alone is not None:
        uniforms = module.uniforms("rollouts", batch["id"], module.current_epoch)
        own = generate(alone, prompt["input_ids"], prompt["attention_mask"], uniforms)
        assert own.tokens.equal(drawn.tokens)


def test_terms_are_taken_on_the_texts_and_on_the_data(tmp_path):
    module = fitted(mini(), 2, tmp_path)
    batch = first_batch(module)
    text = module.roll_out(batch)
    terms = module.terms(batch, text)
    student_said, teacher_said = (
        {where: module.network(name)(**each["inputs"]).logits for where, each in (("drawn", text), ("data", batch))}
        for name in ("student", "teacher")
    )
    expected = kl_divergence(
        student_said["drawn"][:, 1:-1].flatten(0, 1), teacher_said["drawn"][:, 1:-1].flatten(0, 1), direction="reverse"
    )
    torch.testing.assert_close(terms["single_step"], expected)
    torch.testing.assert_close(
        terms["soft"], kl_divergence(student_said["data"][batch["predicts"]], teacher_said["data"][batch["predicts"]])
    )
    logs = student_said["data"].log_softmax(-1)[batch["predicts"]]
    own = -logs.gather(-1, batch["labels"][batch["predicts"]][:, None]).mean()
    torch.testing.assert_close(terms["text"], own)
    assert module.weights == {"policy": 1.0, "single_step": 1.0, "text": 0.5, "soft": 0.5}


def test_the_policy_term_pushes_what_the_teacher_likes(tmp_path):
    """One step on the policy term alone raises the student's probability of tokens with a positive advantage."""
    steep = lambda parameters: torch.optim.SGD(parameters, lr=0.1)  # noqa: E731
    module = mini(single_weight=0.0, plain_weight=0.0, optimizer=still)
    fitted(module, 1, tmp_path)
    batch = first_batch(module)
    text = module.roll_out(batch)
    update = steep(module.student.parameters())
    module.student.train()
    module.terms(batch, text)["policy"].backward()
    update.step()
    with torch.no_grad():
        now = module._token_logs(module.student(**text["inputs"]).logits, text)
    gain = (now - text["before"]) * text["advantages"] * text["weights"]
    assert float(gain.mean()) > 0


def test_a_collection_is_learnt_from_for_so_many_steps(tmp_path):
    class Watched(MiniLLM):
        def roll_out(self, batch):
            seen.append(self.global_step if self.trainer.fit_loop.epoch_loop.total_batch_idx >= 0 else None)
            return super().roll_out(batch)

    seen = []
    fitted(Watched(student(), teacher(), epochs=3, optimizer=adam), 8, tmp_path)
    assert seen[-3:] == [0, 3, 6]
    assert len(seen) == 4, "the first was the rehearsal"


def test_a_resumed_fit_ends_with_the_same_bits(tmp_path):
    kept = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=7, save_top_k=-1)
    whole = fitted(mini(), 12, tmp_path, keep=kept)
    state = weights(whole)
    resumed = fitted(mini(), 12, tmp_path, checkpoint=str(tmp_path / "step=7.ckpt"))  # in the midst of a collection
    assert same(state, weights(resumed))


def test_the_student_comes_nearer_to_its_teacher(tmp_path):
    module = fitted(mini(), 1, tmp_path)
    (before,) = trainer(1, tmp_path).test(module, datamodule=module.data, verbose=False)
    module = fitted(mini(), 60, tmp_path)
    (after,) = trainer(1, tmp_path).test(module, datamodule=module.data, verbose=False)
    assert after["test/own_reverse_kl@teacher"] < before["test/own_reverse_kl@teacher"] - 0.02


def test_mistakes(tmp_path):
    for settings, sentence in (
        ({"teacher_share": 1.5}, "teacher_share is a share in"),
        ({"epochs": 0}, "epochs is at least 1"),
        ({"clip": 1.0}, "clip in \\(0, 1\\)"),
    ):
        with pytest.raises(ValueError, match=sentence):
            mini(**settings)
    with pytest.raises(UserError, match=r"leave out trainer\.accumulate_grad_batches"):
        fitted(mini(), 1, tmp_path, trained={"accumulate_grad_batches": 2})

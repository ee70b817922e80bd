"""What a config can be wrong about, each told in one sentence with the place and what is possible there."""

from pathlib import Path

import pytest
import torch

from kdbench import cli
from kdbench.errors import UserError, refused_by_disk
from kdbench.suite import chain, experiment, fit, messages

ROOT = Path(__file__).parent.parent.parent
FAULTS = {
    "--model.align.cased sideways": (
        "model.align.cased: expected one of same_vocabulary, fold_vocabulary, shared_words, hidden_only, got 'sideways'."
    ),
    "--model.objective.soft.combine mean_logit": (
        "model.objective.soft.combine: expected one of mean_probabilities, mean_logits, mean_losses, got 'mean_logit'. "
        "Did you mean 'mean_logits'?"
    ),
    "--model.objective.soft.wieght 3": "model.objective.soft: there is no key 'wieght'. Did you mean 'weight'?",
    "--model.objective.soft.weight heavy": "model.objective.soft.weight: expected a number, got 'heavy'.",
    "--model.objective.soft.teacher 5": "model.objective.soft.teacher: expected a list or a text, got '5'.",
    "--model.objective.soft.teacher casd.logits": (
        "a term reads the teacher 'casd', and there is none. Did you mean 'cased'?"
    ),
    "--model.objective.soft.loss null": "model.objective: Term needs 'loss'.",
    "--model.objective.soft.loss AdamW": "model.objective.soft.loss: AdamW is no Module.",
    "--model.objective.hidden.loss.weight 2": "model.objective.hidden.loss: CosineDistance has no argument 'weight'.",
    "--model.student 5": "model.student: expected a class of the kind Origin, got '5'.",
    "--model.student KLDivergence": "model.student: KLDivergence is no Origin.",
    "--model.student.then.0.layers [0,x]": "model.student.then.0.layers.1: expected a whole number, got 'x'.",
    "--model.optimizer.lr fast": "model.optimizer.lr: expected a number, got 'fast'.",
    "--model.optimizer.betas [2,2]": "model.optimizer: Invalid beta parameter at index 0: 2.0.",
    "--model.schedule.warmup 2": "model.schedule: warmup is a share of the steps in [0, 1), got 2.0.",
    "--data.batch_size many": "data.batch_size: expected a whole number, got 'many'.",
    "--data.batch_size 0": "data: a batch has at least one row, got batch_size 0 and 64.",
    "--trainer.max_steps few": "trainer.max_steps: expected a whole number, got 'few'.",
    "--trainer.gradient_clip_val much": ("trainer.gradient_clip_val: expected a number or a whole number, got 'much'."),
    "--trainer.devices 0": (
        "trainer: `Trainer(devices=0)` value is not a valid input using cpu accelerator. "
        "Change the settings under 'trainer:'."
    ),
}


@pytest.mark.parametrize("words", FAULTS)
def test_a_fault_of_a_config_is_one_sentence_with_its_place(words, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("KDBENCH_RUNS", str(tmp_path))
    arguments = ["--config", "experiments/distilbert_ro.yaml", "--trainer.accelerator", "cpu", *words.split()]
    parsed = cli.parse(arguments, set(), set())
    stage = chain.plan(experiment.read(*parsed.configs, overrides=parsed.overrides))
    with pytest.raises(UserError) as raised, fit.friendly(stage):
        fit.build(stage, [], False)
    assert str(raised.value) == FAULTS[words]


def test_a_state_of_another_optimizer_is_a_foreign_checkpoint(tmp_path):
    one, two = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    state = torch.optim.SGD([{"params": [each]} for each in one.parameters()], lr=0.1).state_dict()
    with pytest.raises(ValueError) as raised:
        torch.optim.SGD(two.parameters(), lr=0.1).load_state_dict(state)
    told = messages.runtime_fault(raised.value, tmp_path)
    assert told.startswith(f"The checkpoint in '{tmp_path}' belongs to another architecture (loaded state dict has a")
    assert messages.runtime_fault(ValueError("a bug of ours"), tmp_path) is None


def test_a_file_that_may_not_be_opened_is_named(tmp_path):
    told = messages.runtime_fault(PermissionError(13, "Permission denied", "/somebody/else"), tmp_path)
    assert told == "'/somebody/else' cannot be opened: Permission denied."


def test_a_full_disk_is_known_behind_the_errors_of_libraries():
    def hidden(text):
        try:
            try:
                raise OSError(28, "No space left on device")
            except OSError as error:
                raise RuntimeError(text) from error
        except RuntimeError as error:
            return error

    assert refused_by_disk(hidden("unexpected pos 64 vs 0")) == "No space left on device"
    assert (
        refused_by_disk(RuntimeError("I/O error: No space left on device (os error 28)")) == "No space left on device"
    )
    assert refused_by_disk(OSError(30, "Read-only file system")) == "Read-only file system"
    assert refused_by_disk(RuntimeError("a bug")) is None
    assert refused_by_disk(FileNotFoundError(2, "No such file")) is None

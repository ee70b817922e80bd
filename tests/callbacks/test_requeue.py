"""The pieces of requeueing that need no Slurm: a faked ``scontrol`` writes down what it is asked."""

import os
import signal
import subprocess
import sys

import lightning.pytorch as pl
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from kdbench.callbacks import requeue


class Line(pl.LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(4, 1)

    def training_step(self, batch, batch_idx):
        return self.layer(batch[0]).square().mean()

    test_step = training_step

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.1)


class Warned(pl.Callback):
    """Sends the signal to the thread that trains: those of torch were started before it was blocked."""

    def __init__(self, batch):
        self.batch = batch

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if batch_idx == self.batch:
            signal.raise_signal(signal.SIGUSR1)


@pytest.fixture
def job(tmp_path, monkeypatch):
    """The environment of a job, and the file of what scontrol was asked."""
    asked = tmp_path / "asked"
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "scontrol").write_text(f'#!/bin/sh\necho "$@" >> {asked}\n')
    (tmp_path / "bin" / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    monkeypatch.delenv("SLURM_NTASKS", raising=False)
    before = signal.getsignal(signal.SIGTERM)
    yield asked
    if requeue.wished():
        signal.sigwait([signal.SIGUSR1])
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR1])
    signal.signal(signal.SIGTERM, before)


class Validated(Line):
    validation_step = Line.training_step

    def val_dataloader(self):
        return DataLoader(TensorDataset(torch.ones(4, 4)))


def train(file, *callbacks, module=None, resume=None, **settings):
    module = module or Line()
    rows = torch.arange(80.0).reshape(20, 4) / 80
    trainer = pl.Trainer(
        max_epochs=1,
        accelerator="cpu",
        callbacks=[requeue.Requeue(file), *callbacks],
        default_root_dir=file.parent,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **settings,
    )
    trainer.fit(module, DataLoader(TensorDataset(rows), batch_size=2), ckpt_path=resume)
    return module, trainer


def test_the_job_saves_requeues_and_ends(job, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "7")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    file = tmp_path / "last.ckpt"
    with pytest.raises(SystemExit) as end:
        train(file, Warned(3))
    assert end.value.code == os.EX_TEMPFAIL
    assert torch.load(file, weights_only=True)["global_step"] == 4
    assert job.read_text() == "requeue 7_3\n", "an array's task alone"
    assert capsys.readouterr().err == "kdbench: saved at step 4; job 7_3 is requeued and goes on from there.\n"
    assert not list(tmp_path.glob("hpc_ckpt*"))
    os.kill(os.getpid(), signal.SIGTERM)  # by Slurm, while the process leaves; its lock is still to be released


@pytest.mark.parametrize(("batch", "step"), [(0, 1), (3, 1), (4, 2)])
def test_nothing_is_saved_between_the_batches_of_a_step(job, tmp_path, batch, step):
    with pytest.raises(SystemExit):
        train(tmp_path / "last.ckpt", Warned(batch), accumulate_grad_batches=4)
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert saved["global_step"] == step
    assert saved["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]["processed"] == 4 * step


@pytest.mark.parametrize(("step", "every", "validated"), [(3, 4, []), (4, 4, [4]), (10, 5, [5, 10])])
def test_a_step_is_validated_before_its_job_ends(job, tmp_path, step, every, validated):
    seen = []

    class Watch(pl.Callback):
        def on_validation_end(self, trainer, module):
            seen.append(trainer.global_step)

    with pytest.raises(SystemExit):
        train(
            tmp_path / "last.ckpt",
            Watch(),
            Warned(step - 1),
            module=Validated(),
            val_check_interval=every,
            num_sanity_val_steps=0,
        )
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == step
    assert seen == validated


def test_a_run_that_is_not_signalled_is_left_alone(job, tmp_path):
    train(tmp_path / "last.ckpt")
    assert not (tmp_path / "last.ckpt").exists()
    assert not job.exists()


def test_a_signal_while_scoring_requeues_without_another_checkpoint(job, tmp_path, capsys):
    module, trainer = train(tmp_path / "last.ckpt")
    signal.raise_signal(signal.SIGUSR1)
    with pytest.raises(SystemExit):
        trainer.test(module, DataLoader(TensorDataset(torch.ones(4, 4))), verbose=False)
    assert not (tmp_path / "last.ckpt").exists()
    assert "trained, not yet scored; job 12 is requeued" in capsys.readouterr().err


def test_what_hinders_requeueing_is_told(job, tmp_path, monkeypatch):
    (tmp_path / "bin" / "scontrol").write_text('#!/bin/sh\necho "Requeue is disabled" >&2\nexit 1\n')
    assert requeue.requeue() == "job 12 is not requeued (Requeue is disabled): submit it again, and it goes on"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "no scontrol here" in requeue.requeue()


def test_lightning_has_no_handler_of_its_own(job, monkeypatch):
    assert requeue.plugins() == []
    monkeypatch.setenv("SLURM_NTASKS", "1")
    monkeypatch.setenv("SLURM_JOB_NAME", "kdbench")
    (plugin,) = requeue.plugins()
    assert not plugin.auto_requeue


def test_a_signal_at_the_very_start_kills_nothing():
    code = "from kdbench import cli; cli.main(['--version']); import os; os.kill(os.getpid(), 10); print('alive')"
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | {"SLURM_JOB_ID": "1"}
    )
    assert answer.stdout.endswith("alive\n"), answer.stderr

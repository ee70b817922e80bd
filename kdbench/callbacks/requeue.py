"""A job that Slurm warns of its end writes a checkpoint, requeues itself and goes on from there, bit for bit.

Lightning's own handler is turned off: it saves wherever between two bytecodes the signal arrives, perhaps with the weights of
one step and the counters of the one before, and then trains on until it is killed.
"""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.plugins.environments import SLURMEnvironment

from kdbench.callbacks.resume import AfterSteps

WISH = signal.SIGUSR1


class Requeue(AfterSteps):
    """Looks for the signal after each optimiser step, where a checkpoint is exact, and then saves, requeues and ends.

    The signal stays blocked, and the kernel keeps it until it is looked for: it interrupts nothing, and kills neither a
    process that is still starting nor a worker of the data loader, which Slurm signals too. All ranks have to know of it
    before one of them saves: with several processes that is one sum of one number at each step, under Slurm alone. It
    makes a GPU wait for its queue once a step.

    Args:
        file: the checkpoint that the next start looks for.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        block()

    def after_step(self, trainer: pl.Trainer) -> None:
        """End the job when a rank was signalled."""
        if trainer.strategy.reduce_boolean_decision(wished(), all=False):
            trainer.save_checkpoint(self.file)
            self._end(trainer, f"saved at step {trainer.global_step}")

    def on_test_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """End a job that is signalled while it scores: what it trained is on the disk. Ranks may have unequal batches here."""
        if trainer.world_size == 1 and wished():
            self._end(trainer, "trained, not yet scored")

    def _end(self, trainer: pl.Trainer, done: str) -> None:
        # Requeueing terminates this process, which has to release its lock first: for other nodes it would be held for a
        # minute. Lightning sets its old handlers again as it ends, unless it has done so before.
        trainer._signal_connector.teardown()
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if trainer.is_global_zero:
            for logger in trainer.loggers:
                if isinstance(logger, WandbLogger):
                    logger.experiment.finish()  # else the last lines are lost when Slurm kills its process
                logger.save()
            print(f"kdbench: {done}; {requeue()}.", file=sys.stderr, flush=True)
        trainer.strategy.barrier()  # a rank that ends earlier makes srun kill the one that still requeues
        sys.exit(os.EX_TEMPFAIL)


def block() -> None:
    """Keep the signal for whoever looks for it; threads and processes that start later keep it too."""
    signal.pthread_sigmask(signal.SIG_BLOCK, [WISH])


def wished() -> bool:
    """Tell whether the signal has come."""
    return WISH in signal.sigpending()


def requeue() -> str:
    """Put the Slurm job of this process back into the queue, an array's task alone; return what came of it."""
    job = os.environ["SLURM_JOB_ID"]
    if array := os.environ.get("SLURM_ARRAY_JOB_ID"):
        job = f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    if shutil.which("scontrol") is None:
        return f"job {job} is not requeued, there is no scontrol here: submit it again, and it goes on"
    answer = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, check=False)
    if answer.returncode:
        why = (answer.stderr or answer.stdout).strip()
        return f"job {job} is not requeued ({why}): submit it again, and it goes on"
    return f"job {job} is requeued and goes on from there"


def plugins() -> list[SLURMEnvironment]:
    """Return what makes the processes that srun started one run, without Lightning's own handler of the signal."""
    if "SLURM_NTASKS" in os.environ and SLURMEnvironment.detect():
        return [SLURMEnvironment(auto_requeue=False)]
    return []

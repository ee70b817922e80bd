"""What Slurm does with runs on a real cluster of two nodes: DDP, arrays with dependencies, requeueing, a node that dies."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from walk import files_named

from tests.suite.test_reproduce import CLAIM

pytestmark = pytest.mark.slurm

ROOT = Path(__file__).parent.parent.parent
CASED = "experiments/distilbert_ro/teacher_cased.yaml"
SINGLE = "experiments/distilbert_ro/single_cased.yaml"
SMALL = {
    "model.student.config.hidden_size": 32,
    "model.student.config.intermediate_size": 32,
    "data.batch_size": 4,
    "data.max_length": 16,
}
TEACHER = {f"stages.teacher_cased.{key}": value for key, value in (SMALL | {"trainer.max_steps": 4}).items()}
STUDENT = {"data.batch_size": 4, "data.max_length": 16, "trainer.max_steps": 4}
TWO = {"trainer.num_nodes": 2, "trainer.devices": 1, "trainer.accelerator": "cpu"}


def words(settings):
    return [f"--{key}={value}" for key, value in settings.items()]


class Shell:
    """A user's shell on the cluster, with a folder for runs and one for sweeps."""

    def __init__(self, cluster, folder):
        self.cluster, self.folder = cluster, folder
        self.runs, self.sweeps = folder / "runs", folder / "sweeps"
        self.environment = os.environ | cluster.environment
        self.environment |= {"KDBENCH_RUNS": str(self.runs), "KDBENCH_SWEEPS": str(self.sweeps)}
        self.environment |= {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}

    def __call__(self, *command, code=0, runs=None):
        environment = self.environment | ({"KDBENCH_RUNS": str(runs)} if runs else {})
        answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment, timeout=600)
        assert answer.returncode == code, f"{answer.returncode}: {answer.stdout}{answer.stderr}"
        return answer.stdout + answer.stderr

    def sbatch(self, *options, runs=None):
        told = self("sbatch", "--parsable", f"--output={self.folder}/%j.log", *options, runs=runs)
        return told.strip(), self.folder / f"{told.strip()}.log"

    def records(self, runs=None):
        """Return the records by experiment, without those of the student's copies."""
        found = {}
        for file in sorted((runs or self.runs).rglob("record.json")):
            record = json.loads(file.read_text())
            found.setdefault(record["experiment"], []).append(record)
        return found

    def status(self, folder):
        told = self("kdbench", "sweep", "--status", str(folder))
        return {state: int(count) for count, state in re.findall(r"(\d+) (done|running|waiting|failed|missing)", told)}


@pytest.fixture
def shell(cluster, tmp_path):
    yield Shell(cluster, tmp_path)
    cluster.ask("scancel", "--user=root", check=False)


def test_two_nodes_fit_one_run(shell, cluster):
    """The teacher in one process, the student in one process a node; without the teacher srun is refused."""
    asked = ["--config", SINGLE, *words(TEACHER | STUDENT | TWO)]
    refused = shell("srun", "--nodes=2", "--ntasks-per-node=1", "kdbench", "fit", *asked, code=2)
    told = [line for line in refused.splitlines() if line.startswith("kdbench:")]
    assert len(told) == 1, refused
    assert "--prepare' first" in told[0]
    assert not shell.records()

    _, log = shell.sbatch("--nodes=2", "--wait", "slurm/fit.sbatch", *asked)
    records = shell.records()
    assert records.keys() == {"distilbert_ro/teacher_cased", "distilbert_ro/single_cased"}, log.read_text()
    assert [each["hardware"]["processes"] for each in records["distilbert_ro/teacher_cased"]] == [1]
    assert [each["hardware"]["processes"] for each in records["distilbert_ro/single_cased"]] == [2]
    assert log.read_text().count("Run folder:") == 1, "one process speaks"

    again = shell("srun", "--nodes=2", "--ntasks-per-node=1", "kdbench", "fit", *asked)
    assert again.count("This run was finished before") == again.count("Run folder:") == 1
    assert shell.records() == records


def test_an_array_of_eight_arms_after_their_teacher(shell, cluster):
    asked = [
        *("kdbench", "sweep", "distilbert_ro/single_cased", "--name", "arms", "--slurm", "--seeds", "4"),
        *("--set", "model.optimizer.lr=1e-3,1e-4", *words(TEACHER | STUDENT)),
    ]
    dry = shell(*asked, "--dry-run")
    assert "srun --kill-on-bad-exit=1" in dry
    assert "--array=0 " in dry and "--array=1-8 " in dry and "--dependency=afterok:<job 0>" in dry
    assert not shell.sweeps.exists() and not cluster.ask("squeue", "-h").strip(), "nothing is submitted"

    shell(*asked)
    folder = shell.sweeps / "arms"
    assert shell.status(folder)["done"] == 0
    jobs = {job["level"]: job["job"] for job in json.loads((folder / "submitted.json").read_text())["jobs"]}
    assert jobs.keys() == {0, 1}
    cluster.wait_for_jobs()
    logs = "\n".join(file.read_text() for file in folder.glob("*.log"))
    assert shell.status(folder) == {"done": 9, "running": 0, "waiting": 0, "failed": 0, "missing": 0}, logs
    records = shell.records()
    assert len(records["distilbert_ro/teacher_cased"]) == 1
    assert len(records["distilbert_ro/single_cased"]) == 8
    assert sorted(each["seed"] for each in records["distilbert_ro/single_cased"]) == [0, 0, 1, 1, 2, 2, 3, 3]
    assert len(list(folder.glob("*_*.log"))) == 9
    lines = [json.loads(line) for line in (folder / "runs.jsonl").read_text().splitlines()]
    assert [line["label"] for line in lines[1:3]] == ["lr=0.001 seed=0", "lr=0.001 seed=1"]
    assert "0 to do" in shell("kdbench", "sweep", "--retry", str(folder))
    assert "lr=0.0001" in shell("kdbench", "sweep", "--status", str(folder)), "the table of results"


def test_a_claim_is_run_on_the_cluster_and_judged_from_there(shell, cluster):
    home = shell.folder / "leaderboards"
    (home / "small").mkdir(parents=True)
    (home / "small" / "claim.yaml").write_text(yaml.safe_dump(CLAIM))
    own = ("small", "--leaderboards", str(home))
    shell("kdbench", "sweep", *own, "--name", "claim", "--slurm")
    folder = shell.sweeps / "claim"
    assert [job["level"] for job in json.loads((folder / "submitted.json").read_text())["jobs"]] == [0, 1, 2]
    cluster.wait_for_jobs()
    logs = "\n".join(file.read_text() for file in folder.glob("*.log"))
    assert "7 runs, 7 found, 0 to do" in shell("kdbench", "reproduce", *own, "--dry-run"), logs


def test_a_signal_in_mid_epoch_requeues_and_changes_no_bit(shell, cluster):
    dropout = {"model.student.config.hidden_dropout_prob": 0.1}  # each rank draws its own
    asked = ["--config", CASED, *words(SMALL | TWO | dropout | {"trainer.max_steps": 700})]
    whole = shell.folder / "whole"
    shell.sbatch("--nodes=2", "slurm/fit.sbatch", *asked, runs=whole)
    job, log = shell.sbatch("--nodes=2", "slurm/fit.sbatch", *asked)
    cluster.wait_for(lambda: files_named(shell.runs, "last.ckpt"), 240, "checkpoint")
    cluster.ask("scancel", "--signal=USR1", job)
    cluster.wait_for(lambda: "PENDING" in cluster.ask("squeue", "-h", f"--job={job}", "-o", "%T"), 60, "requeued job")
    cluster.ask("scontrol", "update", f"JobId={job}", "StartTime=now")  # Slurm would hold it back for two minutes
    cluster.wait_for_jobs()
    saved = re.search(rf"kdbench: saved at step (\d+); job {job} is requeued", log.read_text())
    assert saved, log.read_text()
    assert int(saved[1]) % 200, "not where a checkpoint is due anyway"
    (record,) = shell.records()["distilbert_ro/teacher_cased"]
    assert record["resumed"] and record["hardware"]["processes"] == 2 and record["steps"] == 700
    (unbroken,) = shell.records(whole)["distilbert_ro/teacher_cased"]
    assert not unbroken["resumed"]
    assert unbroken["id"] == record["id"]
    one, two = (next(runs.rglob("student/model.safetensors")).read_bytes() for runs in (whole, shell.runs))
    assert one == two
    assert not list(shell.folder.rglob("hpc_ckpt*"))


def test_a_node_dies_and_retry_finishes_its_run(shell, cluster):
    asked = [
        *("kdbench", "sweep", "distilbert_ro/teacher_cased", "--name", "dying", "--slurm", "--cpus-per-task", "2"),
        *("--set", "model.optimizer.lr=1e-3", "--seeds", "2", *words(SMALL | {"trainer.max_steps": 600})),
    ]
    shell(*asked)
    folder = shell.sweeps / "dying"
    cluster.wait_for(lambda: len(files_named(shell.runs, "last.ckpt")) == 2, 240, "two checkpoints")
    cluster.kill_node("node2")
    try:
        (job,) = (each["job"] for each in json.loads((folder / "submitted.json").read_text())["jobs"])
        # Slurm puts the task back into the queue by itself once it misses the node; a user who will not wait cancels it.
        cluster.wait_for(lambda: "PENDING" in cluster.ask("squeue", "-h", "--array", "-o", "%T"), 180, "requeued task")
        assert shell.status(folder)["waiting"] == 1
        cluster.ask("scancel", "--state=PENDING", job)
        cluster.wait_for_jobs()
        cluster.wait_for(lambda: shell.status(folder)["running"] == 0, 90, "end of the dead run's lock")
        assert shell.status(folder) == {"done": 1, "running": 0, "waiting": 0, "failed": 1, "missing": 0}
    finally:
        cluster.start_node("node2")
    (before,) = shell.runs.rglob("record.json")
    kept = before.read_bytes()
    assert "1 to do" in shell("kdbench", "sweep", "--retry", str(folder))
    cluster.wait_for_jobs()
    assert shell.status(folder) == {"done": 2, "running": 0, "waiting": 0, "failed": 0, "missing": 0}
    records = shell.records()["distilbert_ro/teacher_cased"]
    assert sorted(each["seed"] for each in records) == [0, 1]
    assert before.read_bytes() == kept, "a finished run is left alone"
    assert [each["resumed"] for each in records].count(True) == 1, "the killed run went on from its checkpoint"

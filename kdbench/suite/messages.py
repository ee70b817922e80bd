"""Faults of libraries, told in one sentence."""

import re

from kdbench.errors import nearest

IDLE_WARNINGS = (
    r"\s*Unable to serialize instance",
    "LightningCLI's args parameter is intended",
    ".*does not have many workers.*",
    ".*`val_dataloader` but have no `validation_step`.*",
    ".*`LightningModule.configure_optimizers` returned `None`.*",
    ".*You have overridden `on_before_batch_transfer` in `LightningModule`.*",
    "Be aware that when using `ckpt_path`",
    ".*GPU available but not used.*",
    ".*The number of training batches .* is smaller than the logging interval.*",
    ".*Checkpoint directory .* exists and is not empty.*",
    ".*Experiment logs directory .* exists and is not empty.*",
    ".*Trying to infer the `batch_size`.*",
    ".*The `srun` command is available.*",
    ".*is not supported in .* exists but is not a directory.*",
    ".*Found .* module\\(s\\) in eval mode.*",
    ".*You're resuming from a checkpoint that ended before the epoch ended.*",
    ".*`isinstance\\(treespec, LeafSpec\\)` is deprecated.*",
)

_LEAF = re.compile(
    r"is not accepted|has no attribute|Expected an? <|Expected an? |No module named|must be|cannot|invalid|needs|got "
)


def config_fault(error: Exception) -> str:
    """Return what is wrong with a config, out of jsonargparse's account of every type that it tried."""
    text = str(error)
    keys = [key for key in re.findall(r'(?:Parser key|key|Key) "([^"]+)"', text) if key]
    where = max(keys, key=len, default="")
    lines = [line.strip(" -") for line in text.splitlines() if line.strip()]
    leaves = [line for line in lines if _LEAF.search(line) and "subtypes" not in line]
    fault = leaves[0] if leaves else lines[0] if lines else type(error).__name__
    fault = re.sub(r'^(?:Parser key|Key) "[^"]+":\s*', "", fault)
    unknown = re.search(r"Option '([\w.]+)' is not accepted", fault)
    if unknown:
        from kdbench.methods.objective import Term

        fault += nearest(unknown.group(1), Term.__dataclass_fields__)
    return f"{where}: {fault}" if where and where not in fault else fault


def runtime_fault(error: RuntimeError) -> str | None:
    """Return the sentence for a fault that the user can mend, None for a bug."""
    text = str(error)
    if "Error(s) in loading state_dict" in text:
        first = next((line.strip() for line in text.splitlines()[1:] if line.strip()), "")
        return f"the checkpoint belongs to another architecture ({first}): start with --fresh."
    if "No space left" in text or ("enforce fail" in text and "write" in text):
        return "the disk is full; what lay in the run folder before is intact, and the same command resumes it."
    return None

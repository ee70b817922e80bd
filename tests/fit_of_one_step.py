"""What tests of data share: data that a small network has been fitted to for one step."""

import lightning.pytorch as pl

from kdbench.data.tokenizers import TrainWordPiece
from kdbench.methods.supervised import Supervised
from kdbench.models.multi_exit import AddExits
from kdbench.models.origins import FromConfig

ENCODER = {
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_attention_heads": 1,
    "num_hidden_layers": 1,
    "bos_token_id": 3,
    "eos_token_id": 2,
    "mask_token_id": 4,
}


def ready(data, heads="separate", student=None):
    """Fit a network, by default one with an exit, for one step and return the data, ready to be looked at."""
    pl.seed_everything(0, verbose=False)
    student = student or FromConfig("EuroBertModel", ENCODER, then=[AddExits([1], heads=heads)])
    trainer = pl.Trainer(
        max_steps=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
    )
    trainer.fit(Supervised(student), datamodule=data)
    data.setup("test")
    return data


def tokenizer(cls_last=True, size=600):
    """Return a small vocabulary of the texts."""
    return TrainWordPiece(size, lowercase=False, cls_last=cls_last)

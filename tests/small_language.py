"""Small language models and texts to fit them on, for the tests of what writes text."""

import lightning.pytorch as pl
import torch

from kdbench.callbacks.resume import ExactResume
from kdbench.data.causal_language import CausalLanguageModeling
from kdbench.data.causal_tokenizers import TrainWords
from kdbench.models.origins import FromConfig

SMALL = {"n_layer": 1, "n_embd": 8, "n_head": 2, "n_positions": 12}
QUIET = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
WIDE = SMALL | QUIET | {"n_embd": 16, "initializer_range": 0.5}


def adam(parameters):
    return torch.optim.Adam(parameters, lr=1e-2)


def still(parameters):
    """Return an optimiser that changes nothing."""
    return torch.optim.SGD(parameters, lr=0.0)


def data(**changes):
    settings = {
        "prompt_length": 2,
        "max_length": 12,
        "end": False,
        "batch_size": 16,
        "train_rows": 80,
        "eval_batch_size": 32,
    }
    return CausalLanguageModeling("synthetic/markov_language", **settings | {"tokenizer": TrainWords()} | changes)


def trainer(steps, folder, **more):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "limit_val_batches": 0}
    saved = {"enable_checkpointing": False, "callbacks": [ExactResume()], "default_root_dir": folder}
    return pl.Trainer(max_steps=steps, max_epochs=-1, accelerator="cpu", **quiet | saved | more)


def fitted(module, steps, folder, checkpoint=None, keep=None, trained=None, **changes):
    pl.seed_everything(0, verbose=False)
    kept = {"enable_checkpointing": True, "callbacks": [ExactResume(), keep]} if keep else {}
    trainer(steps, folder, **kept | (trained or {})).fit(module, datamodule=data(**changes), ckpt_path=checkpoint)
    return module


def student(config=None):
    return FromConfig("GPT2LMHeadModel", SMALL | QUIET | (config or {}))


def teacher():
    return FromConfig("GPT2LMHeadModel", WIDE)


def weights(module):
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(value.equal(other[name]) for name, value in one.items())

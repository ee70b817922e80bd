"""What a class takes: its own arguments, and the options that it hands on to its parent."""

import importlib
import inspect
import pkgutil

import lightning.pytorch as pl
import pytest

import kdbench.data
import kdbench.methods
from kdbench.data.labelled_text import TextClassification
from kdbench.errors import UserError
from kdbench.methods.logit import LogitDistillation, MixupDistillation
from kdbench.suite import check


def classes():
    """Return every family and every DataModule that hands options on."""
    for package in (kdbench.data, kdbench.methods):
        for module in pkgutil.iter_modules(package.__path__):
            for found in vars(importlib.import_module(f"{package.__name__}.{module.name}")).values():
                ours = inspect.isclass(found) and issubclass(found, pl.LightningModule | pl.LightningDataModule)
                if ours and found.__module__.endswith(module.name) and "options" in inspect.signature(found).parameters:
                    yield found


CLASSES = sorted(set(classes()), key=lambda each: each.__name__)


def test_there_are_such_classes():
    assert {LogitDistillation, MixupDistillation, TextClassification} < set(CLASSES)


@pytest.mark.parametrize("found", CLASSES)
def test_a_parent_takes_what_is_handed_on_to_it(found):
    (options,) = inspect.signature(found).parameters["options"].annotation.__args__
    parents = [each for each in found.__mro__[1:] if "__init__" in vars(each)]
    taken = check.parameters_of(parents[0])
    for key, kind in options.__annotations__.items():
        assert taken[key].annotation == kind, key
    assert not options.__required_keys__


def test_options_are_told_by_their_names():
    found = check.parameters_of(MixupDistillation)
    assert {"student", "teacher", "rate", "temperature", "optimizer", "train"} < found.keys()
    assert "options" not in found
    assert "unpad" not in found


def test_an_unknown_option_names_the_nearest():
    node = {
        "class_path": "kdbench.methods.logit.MixupDistillation",
        "init_args": {"student": 1, "teacher": 2, "optimiser": 3},
    }
    with pytest.raises(UserError, match=r"has no argument 'optimiser'.* Did you mean 'optimizer'"):
        check.check({"model": node, "data": {}})

"""Images through a fit: views, labels, changes, mixtures and negatives of a batch, and what the teacher cache keeps."""

from dataclasses import replace

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats

from kdbench.callbacks.export import StudentExport
from kdbench.callbacks.teacher_cache import TeacherCache
from kdbench.data.image_augmentation import HorizontalFlip, RandomCrop, RandomResizedCrop
from kdbench.data.image_files import as_array, centre_of
from kdbench.data.image_views import IMAGENET, Normalise
from kdbench.data.images import ImageClassification
from kdbench.data.mixing import CutMix, Mixup
from kdbench.data.registry import load
from kdbench.errors import UserError
from kdbench.losses.divergences import KLDivergence
from kdbench.losses.language import CrossEntropy
from kdbench.methods.base import Distillation
from kdbench.methods.ensemble import EnsembleDistillation
from kdbench.methods.objective import Term
from kdbench.methods.supervised import Supervised
from kdbench.models.origins import PREPROCESSOR, FromConfig, FromFolder

DIGITS = "vision/digits"


def network(*widths):
    return FromConfig("ConvNet", {"widths": list(widths or (4, 4, 4))})


def soft(*teachers):
    return {f"soft_{name}": Term(KLDivergence(), teacher=f"{name}.logits") for name in teachers}


def fitted(data, module=None, *callbacks, steps=1, **settings):
    """Fit for some steps and return the trainer; the data are ready to be looked at then."""
    pl.seed_everything(0, verbose=False)
    module = module or Supervised(student=network())
    fitting = pl.Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=steps,
        max_epochs=-1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        limit_val_batches=0,
        callbacks=list(callbacks),
        **settings,
    )
    fitting.fit(module, datamodule=data)
    return fitting


def distilled(**data):
    """Return data that were fitted without labels."""
    made = ImageClassification(DIGITS, **data)
    fitted(made, Distillation(network(), soft("big"), {"big": network(8, 8, 8)}))
    return made


def epoch(data, number=0):
    loader = data.train_dataloader()
    loader.batch_sampler.set_epoch(number)
    return [data.finish(batch) for batch in loader]


def pixels(batches):
    """Return ``{id: pixel values}`` of the student's view."""
    return {
        int(row): image
        for batch in batches
        for row, image in zip(batch["id"], batch["inputs"]["pixel_values"], strict=True)
    }


@pytest.fixture(scope="module")
def plain():
    data = ImageClassification(DIGITS, batch_size=128)
    fitted(data)
    return data


# ---- views and labels ----


def test_a_batch_is_the_images_normalised_and_their_classes(plain):
    rows = load(DIGITS, "embedded", "train")
    mean, std = (torch.tensor(each)[:, None, None] for each in (plain.takes["inputs"].mean, plain.takes["inputs"].std))
    seen = []
    for batch in epoch(plain):
        seen += batch["id"].tolist()
        assert set(batch) == {"id", "draw", "labels", "images", "inputs"} and not batch["draw"].any()
        images = np.stack([rows[place]["image"] for place in batch["id"]])
        assert np.array_equal(batch["images"], images)
        expected = (torch.from_numpy(images) / 255 - mean) / std
        torch.testing.assert_close(batch["inputs"]["pixel_values"], expected)
        assert [plain.labels[each] for each in batch["labels"]] == [rows[place]["label"] for place in batch["id"]]
    assert sorted(seen) == list(range(1000))
    every = torch.cat([batch["inputs"]["pixel_values"] for batch in epoch(plain)])
    assert abs(every.mean()) < 1e-4 and every.std(correction=0) == pytest.approx(1, abs=1e-4)


def test_example_and_speed_batch_have_views(plain):
    assert plain.example()["inputs"]["pixel_values"].shape == (2, 1, 8, 8)
    assert plain.speed_batch()["inputs"]["pixel_values"].shape == (128, 1, 8, 8)


def test_each_network_takes_images_in_its_own_way():
    own = {"big": Normalise((0.5,), (0.25,), 16), "other": Normalise((0.5,), (0.25,), 16)}
    data = ImageClassification(DIGITS, normalise=own)
    teachers = {"big": network(), "other": network(), "same": network()}
    fitted(data, EnsembleDistillation(network(), teachers, soft("big", "other", "same")))
    assert data.views == {"student": "inputs", "big": "inputs.big", "other": "inputs.big", "same": "inputs"}
    batch = data.example()
    assert batch["inputs"]["pixel_values"].shape[-1] == 8
    wide = torch.nn.functional.interpolate(batch["images"] / 255, (16, 16), mode="bilinear", antialias=True)
    torch.testing.assert_close(batch["inputs.big"]["pixel_values"], (wide - 0.5) / 0.25)
    assert data.preprocessor("inputs.big")["size"] == {"height": 16, "width": 16}


def test_a_network_brings_what_it_was_trained_with(tmp_path, plain):
    folder = tmp_path / "student"
    fitted(ImageClassification(DIGITS), None, StudentExport(folder))

    def views(**settings):
        data = ImageClassification(DIGITS, train_rows=100, **settings)
        fitted(data, Distillation(network(), soft("big"), {"big": FromFolder(str(folder))}))
        return data.takes

    assert views() == plain.takes, "the same data make the same view, however many of their rows are used"
    file = folder / PREPROCESSOR
    file.write_text(file.read_text().replace('"height": 8', '"height": 12').replace('"width": 8', '"width": 12'))
    (own, other) = views().values()
    assert (own.size, other.size) == (8, 12) and other.mean == own.mean
    assert views(normalise={"big": own}) == plain.takes, "what the config says goes before"
    file.write_text("{")
    with pytest.raises(UserError, match=r"preprocessor_config.json' is no JSON"):
        views()


def test_images_are_resized():
    data = ImageClassification(DIGITS, image_size=12)
    fitted(data)
    batch = data.example()
    assert batch["inputs"]["pixel_values"].shape == (2, 1, 12, 12) and batch["images"].shape == (2, 1, 8, 8)


def test_only_some_rows_keep_their_labels():
    data = ImageClassification(DIGITS, labelled_rows=200, batch_size=100)
    fitted(data, steps=12)
    numbers = [int(row["label"]) for row in load(DIGITS, "embedded", "train")]
    labels = {}
    for batch in epoch(data):
        labels |= dict(zip(batch["id"].tolist(), batch["labels"].tolist(), strict=True))
        logits = torch.randn(len(batch["id"]), 10)
        few = batch["id"] < 200
        assert CrossEntropy()(logits, batch["labels"]) == CrossEntropy()(logits[few], batch["labels"][few])
    assert labels == {row: numbers[row] if row < 200 else -100 for row in range(1000)}
    assert all((batch["labels"] >= 0).all() for batch in data.val_dataloader())


# ---- changes ----


CHANGES = (RandomCrop(1), HorizontalFlip())


def test_what_is_drawn_belongs_to_the_image_and_its_draw():
    made = [ImageClassification(DIGITS, batch_size=size, augment=list(CHANGES)) for size in (64, 250)]
    for data in made:
        fitted(data)
    for number in range(2):
        ours, theirs = (pixels(epoch(data, number)) for data in made)
        assert all(torch.equal(ours[row], theirs[row]) for row in range(1000)), "whatever the batch"
    first, again, second = (pixels(epoch(made[0], number)) for number in (0, 0, 1))
    assert all(torch.equal(first[row], again[row]) for row in range(1000))
    assert sum(torch.equal(first[row], second[row]) for row in range(1000)) < 200


def test_the_changes_are_made_in_order_and_in_training_alone():
    data = ImageClassification(DIGITS, augment=list(CHANGES))
    fitted(data)
    batch = epoch(data)[0]
    images = batch["images"] / 255
    drawn = batch["drawn"]
    assert drawn.shape == (64, 3) and stats.kstest(drawn.flatten(), "uniform").pvalue > 1e-3
    expected = CHANGES[1](CHANGES[0](images, drawn[:, :2]), drawn[:, 2:])
    torch.testing.assert_close(batch["inputs"]["pixel_values"], data.takes["inputs"].pixel_values(expected))
    held_out = data.finish(next(iter(data.val_dataloader())))
    torch.testing.assert_close(
        held_out["inputs"]["pixel_values"], data.takes["inputs"].pixel_values(held_out["images"] / 255)
    )


def test_a_finite_number_of_versions_comes_in_turn():
    data = ImageClassification(DIGITS, augment=list(CHANGES), draws=2)
    fitted(data)
    first, second, third = (pixels(epoch(data, number)) for number in range(3))
    assert all(torch.equal(first[row], third[row]) for row in range(1000))
    assert any(not torch.equal(first[row], second[row]) for row in range(1000))


def test_the_teacher_cache_keeps_versions(tmp_path):
    def run(mode, steps=16, **settings):  # four epochs of four batches
        cache = TeacherCache(tmp_path, mode)
        module = Distillation(network(), soft("big"), {"big": network(8, 8, 8)})
        data = ImageClassification(DIGITS, **{"batch_size": 250, "augment": list(CHANGES), "draws": 2, **settings})
        fitted(data, module, cache, steps=steps)
        told = cache.told()
        return module.student.state_dict(), (
            told.get("rows_computed"),
            told.get("rows_read"),
            told.get("teachers_loaded"),
        )

    plain, _ = run("off")
    kept, told = run("on")
    assert told == (2000, 2000, 1)
    for name, value in plain.items():
        torch.testing.assert_close(value, kept[name], atol=1e-5, rtol=0)
    assert run("on")[1] == (0, 4000, 0), "a teacher that has said everything is not even built"
    assert run("on", 4, augment=[RandomCrop(2), HorizontalFlip()])[1] == (1000, 0, 1), "other changes, other images"
    assert (
        run("on", 4, normalise={"student": Normalise((0.5,), (0.5,)), "big": Normalise((0.5,), (0.5,))})[1][0] == 1000
    )
    assert run("on", 8, augment=None, draws=None)[1] == (1000, 1000, 1), "images as they are come in every epoch"


def test_without_end_nothing_is_kept(tmp_path):
    for settings in ({"augment": list(CHANGES)}, {"mix": [Mixup()]}):
        cache = TeacherCache(tmp_path, "on")
        module = Distillation(network(), soft("big"), {"big": network()})
        fitted(ImageClassification(DIGITS, **settings), module, cache)
        assert "without end" in cache.told()["off"]


# ---- mixtures ----


@pytest.mark.parametrize("mixing", [Mixup(), CutMix()])
def test_all_networks_see_the_mixture(mixing):
    data = distilled(mix=[mixing], augment=[HorizontalFlip()])
    assert data.views["big"] == "inputs" and data.versions is None
    batch = epoch(data)[0]
    images = HorizontalFlip()(batch["images"] / 255, batch["drawn"])
    mixed, _ = mixing(images, batch["partner"], batch["mixed"])
    torch.testing.assert_close(batch["inputs"]["pixel_values"], data.takes["inputs"].pixel_values(mixed))
    assert not torch.allclose(mixed, images)
    again = epoch(data)[0]
    assert torch.equal(batch["mixed"], again["mixed"]) and not torch.equal(batch["mixed"], epoch(data, 1)[0]["mixed"])
    assert "mixing" not in next(iter(data.val_dataloader()))


def test_one_of_several_mixtures_is_drawn_for_a_batch():
    data = distilled(mix=[Mixup(), CutMix()], batch_size=20)
    kinds = [batch["mixing"] for number in range(2) for batch in epoch(data, number)]
    assert len(kinds) == 100 and 30 < sum(kinds) < 70


def test_labels_beside_mixtures_are_refused_unless_they_are_mixed():
    for module, told in (
        (None, "the loss of the task reads them"),
        (Supervised(network(), {"task": Term(CrossEntropy(), labels="labels")}), "the term 'task' reads them"),
    ):
        with pytest.raises(UserError, match=told):
            fitted(ImageClassification(DIGITS, mix=[Mixup()]), module)
    data = ImageClassification(DIGITS, mix=[CutMix()], soft_labels=True)
    fitted(data)
    loader = data.train_dataloader()
    batch = next(iter(loader))
    gold = torch.nn.functional.one_hot(batch["labels"], 10).float()
    _, share = CutMix()(batch["images"] / 255, batch["partner"], batch["mixed"])
    expected = share[:, None] * gold + (1 - share[:, None]) * gold[batch["partner"]]
    torch.testing.assert_close(data.finish(batch)["labels"], expected)
    with pytest.raises(ValueError, match="soft_labels mixes the labels"):
        ImageClassification(DIGITS, soft_labels=True)


# ---- negatives ----


def test_negatives_are_rows_of_other_classes_drawn_anew():
    data = ImageClassification(DIGITS, negatives=16)
    fitted(data)
    numbers = torch.tensor([int(row["label"]) for row in load(DIGITS, "embedded", "train")])
    found = [torch.cat([each["negatives"] for each in sorted_by_row(epoch(data, number))]) for number in range(2)]
    for negatives in found:
        assert negatives.shape == (1000, 16) and (numbers[negatives] != numbers[:, None]).all()
    assert not torch.equal(*found) and data.versions == 1
    assert data.example()["negatives"].shape == (2, 16)


def sorted_by_row(batches):
    """Take batches apart into rows in the order of their numbers."""
    rows = [
        {"id": int(row), "negatives": own[None]}
        for batch in batches
        for row, own in zip(batch["id"], batch["negatives"], strict=True)
    ]
    return sorted(rows, key=lambda row: row["id"])


# ---- images in files ----


@pytest.fixture
def photographs(tmp_path, monkeypatch):
    monkeypatch.setenv("KDBENCH_DATA", str(tmp_path))
    generator = np.random.default_rng(0)
    for split, size in (("train", 60), ("val", 2)):
        for name in ("n01", "n02"):
            folder = tmp_path / "imagenet" / split / name
            folder.mkdir(parents=True)
            for place in range(size):
                pixels = generator.integers(0, 256, size=(20 + place, 30, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{place}.png")
    return tmp_path / "imagenet"


def test_images_in_files_are_cut_at_their_full_resolution(photographs):
    crop, flip = RandomResizedCrop(), HorizontalFlip()
    data = ImageClassification(
        "vision/imagenet", source="local", image_size=16, centre=0.8, augment=[crop, flip], batch_size=30
    )
    fitted(data)
    assert data.takes == {"inputs": replace(IMAGENET, size=16)}
    batch = next(iter(data.train_dataloader()))
    rows = load("vision/imagenet", "local", "train")
    for row, image, drawn in zip(batch["id"], batch["images"], batch["drawn"], strict=True):
        picture = Image.open(rows[int(row)]["image"].path).convert("RGB")
        assert np.array_equal(as_array(crop.cut(picture, drawn[:22], 16)), image)
    expected = IMAGENET.pixel_values(flip(batch["images"] / 255, batch["drawn"][:, 22:]))
    torch.testing.assert_close(data.finish(batch)["inputs"]["pixel_values"], expected)
    held_out = next(iter(data.val_dataloader()))
    picture = Image.open(load("vision/imagenet", "local", "validation")[0]["image"].path)
    assert np.array_equal(as_array(centre_of(picture, 16, 0.8)), held_out["images"][0])


def test_images_in_files_need_a_size_and_a_damaged_one_is_named(photographs):
    with pytest.raises(UserError, match=r"of different sizes: give data.image_size"):
        fitted(ImageClassification("vision/imagenet", source="local"))
    for path in (photographs / "train" / "n02").iterdir():
        path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match=r"n02/\d+.png: no image that Pillow can read"):
        fitted(ImageClassification("vision/imagenet", source="local", image_size=16), steps=9)


# ---- mistakes ----


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"label": "labels"}, r"no field 'labels'.*Did you mean 'label'"),
        ({"image": "pixels"}, r"no field 'pixels'"),
        ({"normalise": {"studend": Normalise((0.5,), (0.5,))}}, r"names 'studend'.*Did you mean 'student'"),
        ({"negatives": 990}, r"data.negatives asks for 990 rows"),
    ],
)
def test_mistakes_are_told(arguments, told):
    with pytest.raises(UserError, match=told):
        fitted(ImageClassification(DIGITS, **arguments))


def test_arguments_are_checked():
    for arguments in ({"labelled_rows": 0}, {"draws": 0}, {"negatives": 0}, {"centre": 0.0}, {"batch_size": 0}):
        with pytest.raises(ValueError, match=r"at least|share of an image"):
            ImageClassification(DIGITS, **arguments)

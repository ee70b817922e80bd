import json
import os
import re

import datasets
import pytest

from kdbench.data.cards import CARDS, Hub
from kdbench.data.readers import english, english_hub
from kdbench.data.readers.normalise import duplicate_key
from kdbench.data.readers.published import held_out
from kdbench.data.registry import SPLITS, fingerprint, load
from kdbench.errors import UserError

real = pytest.mark.skipif("KDBENCH_DATA" not in os.environ, reason="KDBENCH_DATA is not set: no real English data")
NAMES = ("en/text", "en/sst2", "en/stsb", "en/banking77")
INTENTS = ["card_arrival", "Refund_not_showing_up"]


def write_sst2(folder):
    folder.mkdir(parents=True)
    for part in ("train", "dev", "test"):
        lines = [f"a  {part} film , number {place}\t{place % 2}\n" for place in range(6)]
        if part == "train":
            lines += ["a dev film , number 3\t1\n", "a train film , number 1\t1\n"]
        (folder / f"{part}.tsv").write_text("".join(lines), encoding="utf-8")


def write_stsb(folder):
    folder.mkdir(parents=True)
    for part in ("train", "dev", "test"):
        lines = [f"{place / 2}\tA {part} man {place}.\tA \u2028{part} boy {place}." for place in range(11)]
        (folder / f"{part}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_banking77(folder):
    folder.mkdir(parents=True)
    (folder / "categories.json").write_text(json.dumps(INTENTS))
    for part, count in (("train", 40), ("test", 5)):
        lines = [f'"Where, is my\n{part} card {place}?",{INTENTS[place * 2 // count]}\r\n' for place in range(count)]
        (folder / f"{part}.csv").write_text("text,category\r\n" + "".join(lines), encoding="utf-8", newline="")


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A small copy of the layout of all sets."""
    write_sst2(tmp_path / "en/sst2")
    write_stsb(tmp_path / "en/stsb")
    write_banking77(tmp_path / "en/banking77")
    monkeypatch.setenv("KDBENCH_DATA", str(tmp_path))
    return tmp_path / "en"


# ---- made files in the published layout ----


@pytest.mark.parametrize("name", NAMES)
def test_there_is_no_embedded_source(name):
    for ask in (lambda: load(name, "embedded", "train"), lambda: fingerprint(name, "embedded")):
        with pytest.raises(UserError, match=f"'{name}' has no source 'embedded': choose local or hub"):
            ask()


def test_sst2(root):
    rows = load("en/sst2", "local", "validation")
    assert rows[:2] == [
        {"text": "a dev film , number 0", "label": "negative"},
        {"text": "a dev film , number 1", "label": "positive"},
    ]
    assert [len(load("en/sst2", "local", split)) for split in SPLITS] == [8, 6, 6]


def test_stsb(root):
    rows = load("en/stsb", "local", "test")
    assert [row["score"] for row in rows] == [place / 2 for place in range(11)]
    assert rows[3] == {"first": "A test man 3.", "second": "A test boy 3.", "score": 1.5}


def test_banking77_holds_out_every_tenth_row_and_mixes_the_others(root):
    rows = {split: load("en/banking77", "local", split) for split in SPLITS}
    numbers = {split: [int(re.search(r"\d+", row["text"])[0]) for row in found] for split, found in rows.items()}
    assert numbers["validation"] == [9, 19, 29, 39]
    assert sorted(numbers["train"]) == [place for place in range(40) if place % 10 != 9] != numbers["train"]
    assert rows["test"] == [
        {"text": f"Where, is my test card {place}?", "label": INTENTS[place * 2 // 5]} for place in range(5)
    ]
    assert {row["label"] for row in rows["train"][:10]} == set(INTENTS)  # the file lists class by class


def test_raw_text_leaves_out_what_is_scored_and_every_duplicate(root):
    texts = [row["text"] for split in SPLITS for row in load("en/text", "local", split)]
    assert len(texts) == len({duplicate_key(text) for text in texts}) == 6 + 22 + 36
    assert "a dev film , number 3" not in texts
    assert {"a train film , number 1", "A train man 3.", "Where, is my train card 0?"} <= set(texts)
    assert not {"Where, is my train card 9?", "A test man 3."} & set(texts)
    for split in SPLITS:
        assert all(held_out(row["text"]) == split for row in load("en/text", "local", split))


def test_raw_text_is_read_anew_when_a_file_changes(root):
    before = {row["text"] for split in SPLITS for row in load("en/text", "local", split)}
    path = root / "sst2/train.tsv"
    path.write_text(path.read_text("utf-8") + "an entirely new film\t1\n", encoding="utf-8")
    after = {row["text"] for split in SPLITS for row in load("en/text", "local", split)}
    assert after - before == {"an entirely new film"}


# ---- damaged files: one sentence with the file and the line ----


@pytest.mark.parametrize(
    ("name", "split", "file", "old", "new", "says"),
    [
        ("en/sst2", "train", "sst2/train.tsv", "number 1\t1", "number 1\t2", "line 2: the label '2' is none of 0, 1"),
        ("en/sst2", "train", "sst2/train.tsv", "number 2\t0", "number 2 0", "line 3: no tab"),
        ("en/stsb", "test", "stsb/test.tsv", "0.5\t", "5.5\t", "line 2: '5.5' is no score"),
        ("en/stsb", "test", "stsb/test.tsv", "0.5\t", "nan\t", "line 2: 'nan' is no score"),
        ("en/stsb", "test", "stsb/test.tsv", "\tA \u2028test boy 4.", "", "line 5: 2 columns"),
        ("en/banking77", "test", "banking77/test.csv", "text,category", "category,text", "line 1: the header"),
        (
            "en/banking77",
            "test",
            "banking77/test.csv",
            ",card_arrival",
            ",card_arival",
            "line 3: the label 'card_arival'",
        ),
        ("en/banking77", "test", "banking77/test.csv", ",card_arrival", "", "line 3: 1 columns"),
        ("en/banking77", "train", "banking77/train.csv", '2?"', '2?" ', "line 7: not valid CSV"),
        ("en/banking77", "train", "banking77/categories.json", '"card_arrival"', "1", "not the published list"),
        ("en/banking77", "train", "banking77/categories.json", "]", "", "line 1: not valid JSON"),
        ("en/text", "train", "sst2/dev.tsv", "number 1\t1", "number 1\tx", "line 2: the label 'x'"),
    ],
)
def test_damaged_line(root, name, split, file, old, new, says):
    path = root / file
    content = path.read_bytes().decode()
    assert old in content
    path.write_bytes(content.replace(old, new, 1).encode())
    with pytest.raises(UserError) as raised:
        load(name, "local", split)
    message = str(raised.value)
    assert says in message and message.endswith("; replace it with the published data.")
    assert message.startswith(str(root)) and "\n" not in message


def test_a_quote_that_never_ends(root):
    path = root / "banking77/train.csv"
    path.write_bytes(path.read_bytes()[:-30])  # in the middle of the last text
    with pytest.raises(UserError, match=r"train\.csv, line 81: not valid CSV"):
        load("en/banking77", "local", "train")


def test_foreign_bytes_and_cut_gzip(root):
    (root / "sst2/test.tsv").write_bytes(b"a film\t1\n\xff\t0\n")
    with pytest.raises(UserError, match=r"test\.tsv, line 2: not UTF-8"):
        load("en/sst2", "local", "test")
    (root / "stsb/dev.tsv").unlink()
    (root / "stsb/dev.tsv.gz").write_bytes(b"\x1f\x8b\x08\x00")
    with pytest.raises(UserError, match=r"dev\.tsv\.gz: a broken gzip file"):
        load("en/stsb", "local", "validation")


def test_empty_file_and_missing_file(root):
    (root / "stsb/test.tsv").write_text("")
    with pytest.raises(UserError, match="The split 'test' of 'en/stsb' from the source 'local' has no row"):
        load("en/stsb", "local", "test")
    (root / "banking77/test.csv").write_text("")
    with pytest.raises(UserError, match=r"test\.csv, line 1: the header is not text,category"):
        load("en/banking77", "local", "test")
    (root / "sst2/dev.tsv").unlink()
    with pytest.raises(UserError, match=re.escape(f"There is no file {root / 'sst2/dev.tsv'}")):
        load("en/sst2", "local", "validation")


# ---- the published files themselves ----


@real
@pytest.mark.parametrize("name", NAMES)
def test_published_sizes_and_normal_texts(name):
    sizes = []
    for split in SPLITS:
        rows = load(name, "local", split)
        sizes.append(len(rows))
        texts = [value for row in rows for value in row.values() if isinstance(value, str)]
        assert "" not in texts and not set("".join(texts)) & set("\ufeff\u200b\t\r\n")
    if name == "en/text":
        assert sum(sizes) > 20000 and 0.04 < sizes[1] / sum(sizes) < 0.06 and 0.04 < sizes[2] / sum(sizes) < 0.06
    else:
        assert tuple(sizes) == CARDS[name].splits["local"]


@real
def test_published_labels():
    sentiments = [row["label"] for row in load("en/sst2", "local", "test")]
    assert (sentiments.count("negative"), sentiments.count("positive")) == (912, 909)
    for split in SPLITS:
        assert len({row["label"] for row in load("en/banking77", "local", split)}) == 77
    assert len({row["label"] for row in load("en/banking77", "local", "train")[:1000]}) == 77
    counts = [row["label"] for row in load("en/banking77", "local", "test")]
    assert {counts.count(label) for label in set(counts)} == {40}


@real
def test_no_scored_text_is_in_the_raw_text():
    raw = {duplicate_key(row["text"]) for split in SPLITS for row in load("en/text", "local", split)}
    scored = {
        duplicate_key(row[field])
        for name in NAMES[1:]
        for split in ("validation", "test")
        for row in load(name, "local", split)
        for field in ("text", "first", "second")
        if field in row
    }
    assert len(scored) > 11000 and not raw & scored


# ---- the hub's layout, written to a folder and read by the datasets library ----


def hub_folder(tmp_path, columns, features):
    for split, rows in columns.items():
        folder = tmp_path / "default" / split
        folder.mkdir(parents=True)
        datasets.Dataset.from_list(rows, features=datasets.Features(features)).to_parquet(folder / "0000.parquet")
    return Hub(str(tmp_path), "default", "refs/convert/parquet")


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


TEXT = datasets.Value("string")


def test_hub_sst2(tmp_path):
    rows = [{"text": "a  film", "label": 1, "label_text": "positive"}, {"text": "b", "label": -1, "label_text": ""}]
    features = {"text": TEXT, "label": datasets.Value("int64"), "label_text": TEXT}
    hub = hub_folder(tmp_path, {"train": rows[:1], "test": rows}, features)
    assert english_hub.hub_sst2(hub, "train") == [{"text": "a film", "label": "positive"}]
    with pytest.raises(UserError, match=r"\(test\), row 2: the label '-1' is none of 0, 1"):
        english_hub.hub_sst2(hub, "test")


def test_hub_stsb(tmp_path):
    rows = [{"split": "test", "score": 2.5, "sentence1": "A man.", "sentence2": "A boy."}]
    features = {"split": TEXT, "score": datasets.Value("float64"), "sentence1": TEXT, "sentence2": TEXT}
    hub = hub_folder(tmp_path, {"test": rows}, features)
    assert english_hub.hub_stsb(hub, "test") == [{"first": "A man.", "second": "A boy.", "score": 2.5}]


def test_hub_banking77_gives_the_rows_of_the_files(tmp_path, root):
    features = {"text": TEXT, "label": datasets.ClassLabel(names=sorted(INTENTS))}
    published = {
        part: [
            {"text": f"Where, is my\n{part} card {place}?", "label": INTENTS[place * 2 // count]}
            for place in range(count)
        ]
        for part, count in (("train", 40), ("test", 5))
    }
    hub = hub_folder(tmp_path, published, features)
    for split in SPLITS:
        assert english_hub.hub_banking77(hub, split) == load("en/banking77", "local", split)


def test_hub_text_is_split_by_paragraph_and_takes_the_first_file_alone(tmp_path):
    folder = tmp_path / "20231101.en"
    folder.mkdir()
    for part in range(2):
        articles = [
            {"title": str(number), "text": f"Article {part} {number} begins.\n\nAnd it has  {part} {number} ends."}
            for number in range(50)
        ]
        datasets.Dataset.from_list(articles).to_parquet(folder / f"train-0000{part}-of-00002.parquet")
    hub = Hub(str(tmp_path), "20231101.en", "main")
    texts = {split: {row["text"] for row in english_hub.hub_text(hub, split)} for split in SPLITS}
    assert sum(map(len, texts.values())) == 100 == len(set.union(*texts.values()))
    assert all(held_out(text) == split for split in SPLITS for text in texts[split])
    assert "And it has 0 7 ends." in set.union(*texts.values())
    assert english.clean(" a \u200b b\n", "here") == "a b"

import gzip
import json
import os
import re
from pathlib import Path

import datasets
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdbench.data.cards import CARDS, Hub
from kdbench.data.readers import romanian, romanian_hub
from kdbench.data.readers.normalise import clean, comma_below, duplicate_key
from kdbench.data.registry import SPLITS, load
from kdbench.errors import UserError

real = pytest.mark.skipif("KDBENCH_DATA" not in os.environ, reason="KDBENCH_DATA is not set: no real Romanian data")
LOCAL = [name for name, card in CARDS.items() if card.local and card.languages == ("ro",)]

TREE = """\
# sent_id = 1\r
# text = Îţi dau-o.\r
1-2\tÎţi\t_\t_\t_\t_\t_\t_\t_\t_
1\tÎţi\ttu\tPRON\tPp2\t_\t2\tiobj\t_\t_
2\tdau\tda\tVERB\tVmip1s\t_\t0\troot\t_\tSpaceAfter=No
2.1\tcare\tcare\tPRON\tPw3\t_\t_\t_\t_\t_
3\t-o\tel\tPRON\tPp3\t_\t2\tobj\t_\tSpaceAfter=No
4\t.\t.\tPUNCT\tPERIOD\t_\t2\tpunct\t_\t_
\r
# sent_id = 2
1\tDa\tda\tADV\tRp\t_\t0\troot\t_\t_
"""


def write_json(path, content):
    path.write_text(json.dumps(content), encoding="utf-8")


def write_rrt(folder):
    folder.mkdir(parents=True)
    for part in ("train", "dev", "test"):
        (folder / f"ro_rrt-ud-{part}.conllu").write_text(
            TREE.replace("Da\t", f"Da{part}\t"), encoding="utf-8", newline=""
        )


def write_ronec(folder, count=20):
    folder.mkdir(parents=True)
    for name in ("valid", "test"):
        rows = [
            {
                "id": place,
                "tokens": [f"{name}{place}", "Bucureşti", "."],
                "ner_tags": ["O", "B-GPE", "O"],
                "space_after": [True, False, False],
            }
            for place in range(count)
        ]
        write_json(folder / f"{name}.json", rows)


def write_laroseda(folder):
    folder.mkdir(parents=True)

    def review(index, stars):
        return {"index": str(index), "title": f"titlu {index}", "content": f"părere  {index}", "starRating": str(stars)}

    positive = [review(index, 4 + index % 2) for index in range(1, 31)]
    negative = [review(index, 1 + index % 2) for index in range(31, 61)]
    write_json(folder / "positive_reviews.json", {"reviews": positive})
    write_json(folder / "negative_reviews.json", {"reviews": negative})
    tested = json.dumps({"reviews": positive[:10] + negative[20:]})
    (folder / "laroseda_test.json.gz").write_bytes(gzip.compress(tested.encode()))


def write_rosts(folder):
    folder.mkdir(parents=True)
    for part in ("train", "dev", "test"):
        lines = [f"{place / 2}\tO fată {part} {place}.\tUn băiat {part} {place}." for place in range(11)]
        if part == "train":
            lines.append("5.0\tO  fată dev 3.\tO fată nouă.")  # its first sentence is also in the development split
        (folder / f"RO-STS.{part}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_moroco(folder):
    folder.mkdir(parents=True)
    for stem, count in (("dev", 5), ("test", 1012)):
        labels = ["RO" if place % 3 else "MD" for place in range(count)]
        texts = [f"ştire {stem} {place}\tdespre $NE$ \u2028 azi" for place in range(count)]
        lines = [f"{text}\t{label}\n" for text, label in zip(texts, labels, strict=True)]
        (folder / f"{stem}.txt").write_text("".join(lines), encoding="utf-8")
        (folder / f"{stem}.labels").write_text("\n".join(labels) + "\n", encoding="utf-8")


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A small copy of the layout of all five sets."""
    write_rrt(tmp_path / "ro/rrt")
    write_ronec(tmp_path / "ro/ronec")
    write_laroseda(tmp_path / "ro/laroseda")
    write_rosts(tmp_path / "ro/rosts")
    write_moroco(tmp_path / "ro/moroco_tweets")
    monkeypatch.setenv("KDBENCH_DATA", str(tmp_path))
    return tmp_path / "ro"


# ---- text ----


def test_comma_below_replaces_the_four_cedilla_letters():
    assert comma_below("ŞtiinŢa şi viaţa") == "ȘtiinȚa și viața"


@given(st.text(alphabet="aşţŞŢșțȘȚ \t\n\ufeff\u200b", max_size=30))
def test_clean_is_idempotent_and_the_key_ignores_whitespace_and_cedillas(text):
    assert clean(clean(text)) == clean(text)
    assert not set(clean(text)) & set("şţŞŢ\ufeff\u200b\t\n")
    assert duplicate_key("  ".join(text)) == duplicate_key(text) == duplicate_key(comma_below(text))


def test_held_out_splits_are_near_five_percent_and_depend_on_the_text_alone():
    splits = [romanian.held_out(f"propoziția {place}") for place in range(4000)]
    for split in ("validation", "test"):
        assert 0.04 < splits.count(split) / 4000 < 0.06
    assert romanian.held_out("a ş") == romanian.held_out("a  ș")


# ---- made files in the published layout ----


def test_rrt_skips_multiword_ranges_and_empty_nodes_and_reads_a_last_sentence_without_blank_line(root):
    first, last = load("ro/rrt", "local", "validation")
    assert first == {
        "words": ["Îți", "dau", "-o", "."],
        "upos": ["PRON", "VERB", "PRON", "PUNCT"],
        "xpos": ["Pp2", "Vmip1s", "Pp3", "PERIOD"],
    }
    assert last["words"] == ["Dadev"]


def test_ronec_validates_on_the_last_fifteen_percent(root):
    rows = {split: load("ro/ronec", "local", split) for split in SPLITS}
    assert [len(rows[split]) for split in SPLITS] == [17, 3, 20]
    assert rows["train"][0] == {"words": ["valid0", "București", "."], "ner": ["O", "B-GPE", "O"]}
    assert [row["words"][0] for row in rows["validation"]] == ["valid17", "valid18", "valid19"]


def test_laroseda_keeps_the_official_test_reviews_out_of_training(root):
    rows = {split: [row["content"] for row in load("ro/laroseda", "local", split)] for split in SPLITS}
    assert rows["validation"] == [f"părere {index}" for index in (11, 12, 13, 31, 32, 33)]
    assert rows["train"] == [f"părere {index}" for index in (*range(14, 31), *range(34, 51))]
    assert set(rows["test"]) == {f"părere {index}" for index in (*range(1, 11), *range(51, 61))}
    assert load("ro/laroseda", "local", "train")[0]["stars"] == 4


def test_rosts_scores(root):
    rows = load("ro/rosts", "local", "test")
    assert [row["score"] for row in rows] == [place / 2 for place in range(11)]
    assert rows[3] | {"score": 0} == {"first": "O fată test 3.", "second": "Un băiat test 3.", "score": 0}


def test_moroco_takes_only_the_last_column_as_label(root):
    rows = {split: load("ro/moroco", "local", split) for split in SPLITS}
    assert [len(rows[split]) for split in SPLITS] == [12, 5, 1000]
    assert rows["train"][0] == {"text": "știre test 0 despre $NE$ azi", "dialect": "MD"}
    assert rows["test"][0]["text"].startswith("știre test 12 ")


def test_raw_text_leaves_out_what_is_scored_and_every_duplicate(root):
    texts = [row["text"] for split in SPLITS for row in load("ro/text", "local", split)]
    assert len(texts) == len({duplicate_key(text) for text in texts})
    assert "Îți dau-o." not in texts  # in all three splits of the treebank
    assert "O fată dev 3." not in texts
    assert {"Datrain", "O fată nouă.", "valid0 București.", "părere 14", "știre test 0 despre $NE$ azi"} <= set(texts)
    assert not any("valid17" in text or "titlu" in text for text in texts)


def test_raw_text_is_read_anew_when_a_file_changes(root):
    before = {row["text"] for split in SPLITS for row in load("ro/text", "local", split)}
    path = root / "rosts/RO-STS.train.tsv"
    path.write_text(path.read_text("utf-8") + "1.0\tO propoziție cu totul nouă.\tAlta.\n", encoding="utf-8")
    after = {row["text"] for split in SPLITS for row in load("ro/text", "local", split)}
    assert after - before == {"O propoziție cu totul nouă.", "Alta."}


# ---- damaged files: one sentence with the file and the line ----


def replace(path, old, new):
    assert old in path.read_text("utf-8")
    path.write_text(path.read_text("utf-8").replace(old, new, 1), encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "split", "file", "old", "new", "says"),
    [
        ("ro/rrt", "train", "rrt/ro_rrt-ud-train.conllu", "\tPRON\tPp2", "\tPRONOM\tPp2", "line 4: the label 'PRONOM'"),
        ("ro/rrt", "train", "rrt/ro_rrt-ud-train.conllu", "\tda\tVERB", " VERB", "line 5: no word of 10"),
        ("ro/rrt", "train", "rrt/ro_rrt-ud-train.conllu", "2.1\t", "x\t", "line 6: no word of 10"),
        ("ro/ronec", "test", "ronec/test.json", '"B-GPE"', '"B-CITY"', "entry 1: the label 'B-CITY'"),
        ("ro/ronec", "test", "ronec/test.json", '"O", "B-GPE"', '"B-GPE"', "entry 1: 3 words"),
        ("ro/ronec", "test", "ronec/test.json", "true, false", "true", "entry 1: 3 words"),
        ("ro/ronec", "test", "ronec/test.json", '"tokens"', '"words"', "entry 1: without the fields"),
        ("ro/ronec", "test", "ronec/test.json", "]}]", "]}", "line 1: not valid JSON"),
        (
            "ro/laroseda",
            "train",
            "laroseda/positive_reviews.json",
            '"starRating": "5"',
            '"starRating": "3"',
            "review 1: ",
        ),
        ("ro/laroseda", "train", "laroseda/positive_reviews.json", '"reviews"', '"rows"', "not the published list"),
        (
            "ro/laroseda",
            "train",
            "laroseda/positive_reviews.json",
            '"index": "3"',
            '"index": "99"',
            "review 3 is in",
        ),
        ("ro/rosts", "train", "rosts/RO-STS.train.tsv", "0.5\t", "5.5\t", "line 2: '5.5' is no score"),
        ("ro/rosts", "train", "rosts/RO-STS.train.tsv", "0.5\t", "nan\t", "line 2: 'nan' is no score"),
        ("ro/rosts", "train", "rosts/RO-STS.train.tsv", "\tUn băiat train 4.", "", "line 5: 2 columns"),
        ("ro/moroco", "validation", "moroco_tweets/dev.txt", "\tMD\n", "\n", "line 1: the last column"),
        ("ro/moroco", "validation", "moroco_tweets/dev.labels", "RO\n", "MD\n", "line 2: the last column"),
        ("ro/text", "train", "rosts/RO-STS.dev.tsv", "0.5\t", "x\t", "line 2: 'x' is no score"),
    ],
)
def test_damaged_line(root, name, split, file, old, new, says):
    replace(root / file, old, new)
    with pytest.raises(UserError) as raised:
        load(name, "local", split)
    message = str(raised.value)
    assert says in message and message.endswith("; replace it with the published data.")
    assert re.match(re.escape(str(root)), message) and "\n" not in message


def test_label_of_both_moroco_files_outside_the_set(root):
    replace(root / "moroco_tweets/dev.txt", "\tMD\n", "\tFR\n")
    replace(root / "moroco_tweets/dev.labels", "MD\n", "FR\n")
    with pytest.raises(UserError, match="line 1: the label 'FR' is none of MD, RO"):
        load("ro/moroco", "local", "validation")


def test_moroco_labels_without_text(root):
    replace(root / "moroco_tweets/dev.labels", "MD\n", "MD\n")
    with (root / "moroco_tweets/dev.labels").open("a") as file:
        file.write("RO\n")
    with pytest.raises(UserError, match=r"dev\.txt: 5 lines, but .*dev\.labels has 6"):
        load("ro/moroco", "local", "validation")


def test_cut_gzip_and_foreign_bytes(root):
    path = root / "laroseda/laroseda_test.json.gz"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match=r"laroseda_test\.json\.gz: a broken gzip file"):
        load("ro/laroseda", "local", "test")
    (root / "rosts/RO-STS.test.tsv").write_bytes(b"1.0\ta\tb\n1.0\t\xff\tb\n")
    with pytest.raises(UserError, match=r"RO-STS\.test\.tsv, line 2: not UTF-8"):
        load("ro/rosts", "local", "test")


def test_empty_file_and_missing_file(root):
    (root / "ronec/test.json").write_text("[]")
    with pytest.raises(UserError, match="The split 'test' of 'ro/ronec' from the source 'local' has no row"):
        load("ro/ronec", "local", "test")
    (root / "rrt/ro_rrt-ud-dev.conllu").unlink()
    with pytest.raises(UserError, match=re.escape(str(root / "rrt/ro_rrt-ud-dev.conllu"))):
        load("ro/rrt", "local", "validation")


# ---- the published files themselves ----


@real
@pytest.mark.parametrize("name", LOCAL)
def test_published_sizes_and_normal_texts(name):
    sizes = []
    for split in SPLITS:
        rows = load(name, "local", split)
        sizes.append(len(rows))
        values = [value for row in rows for value in row.values()]
        texts = [text for value in values for text in (value if isinstance(value, list) else [value])]
        letters = set("".join(text for text in texts if isinstance(text, str)))
        assert "" not in texts and not letters & set("şţŞŢ\ufeff\u200b\t\r\n")
    if name == "ro/text":
        assert 0.04 < sizes[1] / sum(sizes) < 0.06 and 0.04 < sizes[2] / sum(sizes) < 0.06
    else:
        assert tuple(sizes) == CARDS[name].splits["local"]


@real
def test_published_laroseda_stars():
    stars = [row["stars"] for row in load("ro/laroseda", "local", "test")]
    assert [stars.count(each) for each in (1, 2, 4, 5)] == [1102, 398, 244, 1256]
    for split, half in (("train", 5100), ("validation", 900)):
        assert sum(row["stars"] > 3 for row in load("ro/laroseda", "local", split)) == half


@real
def test_published_treebank_token_counts():
    counts = {split: sum(len(row["words"]) for row in load("ro/rrt", "local", split)) for split in SPLITS}
    assert (counts["validation"], counts["test"]) == (17073, 16324)


@real
def test_published_entities_of_the_test_split():
    tags = [tag for row in load("ro/ronec", "local", "test") for tag in row["ner"]]
    assert {entity: tags.count(f"B-{entity}") for entity in ("PERSON", "GPE", "EVENT")} == {
        "PERSON": 4230,
        "GPE": 1728,
        "EVENT": 169,
    }


@real
def test_published_tweets_never_hold_their_label():
    folder = Path(os.environ["KDBENCH_DATA"], "ro/moroco_tweets")
    rows = [row for split in ("validation", "train", "test") for row in load("ro/moroco", "local", split)]
    files = [(folder / f"{stem}.txt").read_text("utf-8").removesuffix("\n") for stem in ("dev", "test")]
    for row, line in zip(rows, "\n".join(files).split("\n"), strict=True):
        text, label = line.split("\t")
        assert row == {"text": clean(text), "dialect": label}


@real
def test_no_scored_text_is_in_the_raw_text():
    raw = {"".join(comma_below(row["text"]).split()) for split in SPLITS for row in load("ro/text", "local", split)}
    scored = {
        "".join((" ".join(value) if isinstance(value, list) else value).split())
        for name in LOCAL
        if name != "ro/text"
        for split in ("validation", "test")
        for row in load(name, "local", split)
        for field, value in row.items()
        if field in ("words", "title", "content", "first", "second", "text")
    }
    assert len(scored) > 13000
    assert not raw & scored


# ---- the hub's layout, written to a folder and read by the datasets library ----


def hub_folder(tmp_path, config, columns, features):
    for split, rows in columns.items():
        folder = tmp_path / config / split
        folder.mkdir(parents=True)
        datasets.Dataset.from_list(rows, features=datasets.Features(features)).to_parquet(folder / "0000.parquet")
    return Hub(str(tmp_path), config, "refs/convert/parquet")


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def strings():
    return datasets.List(datasets.Value("string"))


def test_hub_rrt(tmp_path):
    names = ["NOUN", "PUNCT", "_", "VERB", "PRON"]
    rows = [{"tokens": ["Îţi", "Îţi", "dau"], "upos": [2, 4, 3], "xpos": ["_", "Pp2", "Vm"]}]
    features = {"tokens": strings(), "upos": datasets.List(datasets.ClassLabel(names=names)), "xpos": strings()}
    hub = hub_folder(tmp_path, "ro_rrt", {"train": rows, "validation": rows[:1], "test": rows}, features)
    assert romanian_hub.hub_rrt(hub, "validation") == [
        {"words": ["Îți", "dau"], "upos": ["PRON", "VERB"], "xpos": ["Pp2", "Vm"]}
    ]


def test_hub_ronec(tmp_path):
    tags = datasets.List(datasets.ClassLabel(names=["O", "B-GPE", "B-CITY"]))
    rows = [{"tokens": ["la", "Iaşi"], "ner_tags": [0, 1]}]
    wrong = [{"tokens": ["la", "Iaşi"], "ner_tags": [0, 2]}]
    hub = hub_folder(tmp_path, "ronec", {"train": rows, "test": wrong}, {"tokens": strings(), "ner_tags": tags})
    assert romanian_hub.hub_ronec(hub, "train") == [{"words": ["la", "Iași"], "ner": ["O", "B-GPE"]}]
    with pytest.raises(UserError, match=r"\(test\), row 1: the label 'B-CITY'"):
        romanian_hub.hub_ronec(hub, "test")


def test_hub_laroseda(tmp_path):
    def review(index):
        return {"index": str(index), "title": "t", "content": f"părere {index}", "starRating": 1 + index % 2}

    columns = {"train": [review(index) for index in range(20)], "test": [review(index) for index in range(20, 24)]}
    text = datasets.Value("string")
    features = {"index": text, "title": text, "content": text, "starRating": datasets.Value("int64")}
    hub = hub_folder(tmp_path, "laroseda", columns, features)
    rows = {split: romanian_hub.hub_laroseda(hub, split) for split in SPLITS}
    assert [len(rows[split]) for split in SPLITS] == [17, 3, 4]
    assert rows["validation"][1] == {"title": "t", "content": "părere 1", "stars": 2}
    assert rows["train"][0]["content"] == "părere 3"


def test_hub_rosts(tmp_path):
    features = {"score": datasets.Value("float32"), **{f"sentence{side}": datasets.Value("string") for side in (1, 2)}}
    rows = [{"score": 2.5, "sentence1": "ştie", "sentence2": "nu"}]
    hub = hub_folder(tmp_path, "ro_sts", {"train": rows, "validation": rows, "test": rows}, features)
    assert romanian_hub.hub_rosts(hub, "test") == [{"first": "știe", "second": "nu", "score": 2.5}]


def test_hub_text_is_split_by_paragraph(tmp_path):
    articles = [
        {"title": str(number), "text": f"Articolul {number} începe.\n\nŞi are  {number} urmări."}
        for number in range(50)
    ]
    features = {"title": datasets.Value("string"), "text": datasets.Value("string")}
    hub = hub_folder(tmp_path, "20231101.ro", {"train": articles}, features)
    texts = {split: {row["text"] for row in romanian_hub.hub_text(hub, split)} for split in SPLITS}
    assert sum(map(len, texts.values())) == 100 == len(set.union(*texts.values()))
    assert all(romanian.held_out(text) == split for split in SPLITS for text in texts[split])
    assert "Și are 7 urmări." in set.union(*texts.values())


def test_hub_moroco_joins_samples_and_dialects(tmp_path):
    (tmp_path / "train_samples.txt").write_text('11\t"Ştire $NE$\n12\tAlta\tcu tab\n', encoding="utf-8")
    (tmp_path / "train_dialect_labels.txt").write_text("11\t1\n12\t2\n")
    assert romanian_hub.moroco_rows(str(tmp_path), "made", "train") == [
        {"text": '"Știre $NE$', "dialect": "MD"},
        {"text": "Alta cu tab", "dialect": "RO"},
    ]
    (tmp_path / "train_dialect_labels.txt").write_text("11\t1\n13\t2\n")
    with pytest.raises(UserError, match="row 2: sample 12 has the label of 13"):
        romanian_hub.moroco_rows(str(tmp_path), "made", "train")

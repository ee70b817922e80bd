import hashlib
import itertools
import math
import re
import subprocess
import sys
from collections import Counter, defaultdict

import pytest

from kdbench.data.generators import romanian
from kdbench.data.generators import romanian_lexicon as lexicon

KINDS = {
    "sentences": ("text",),
    "tagged": ("words", "upos", "xpos"),
    "entities": ("words", "ner"),
    "reviews": ("title", "content", "stars"),
    "pairs": ("first", "second", "score"),
    "dialects": ("text", "dialect"),
}
SPLITS = ("train", "validation", "test")


@pytest.fixture(scope="module")
def rows():
    """300 rows of each kind and split."""
    return {kind: {split: getattr(romanian, kind)(split, 300) for split in SPLITS} for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_rows_have_their_fields_and_are_different(rows, kind):
    for found in rows[kind].values():
        assert all(tuple(row) == KINDS[kind] for row in found)
        assert len({romanian.texts_of(row) for row in found}) == 300


def test_no_text_is_in_two_splits_not_even_of_two_kinds(rows):
    texts = {
        split: {text for kind in KINDS for row in rows[kind][split] for text in romanian.texts_of(row)}
        for split in SPLITS
    }
    assert not texts["train"] & texts["validation"]
    assert not texts["train"] & texts["test"]
    assert not texts["validation"] & texts["test"]
    assert all(romanian.split_of(text) == split for split in SPLITS for text in texts[split])


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_depends_on_its_number_alone(rows, kind):
    assert getattr(romanian, kind)("test", 40) == rows[kind]["test"][:40]


def test_another_process_makes_the_same_rows(rows):
    code = f"""
import hashlib, sys
from kdbench.data.generators import romanian
assert "torch" not in sys.modules
rows = [getattr(romanian, kind)("test", 300) for kind in {tuple(KINDS)}]
print(hashlib.sha256(repr(rows).encode()).hexdigest())"""
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    here = [rows[kind]["test"] for kind in KINDS]
    assert told.strip() == hashlib.sha256(repr(here).encode()).hexdigest()


def test_letters_are_those_of_the_standard(rows):
    letters = set(str(rows))
    assert not set("şţŞŢ") & letters
    assert set("șțăâîȘ") <= letters


# ---- lexicon ----


@pytest.mark.parametrize(
    ("singular", "definite", "plural_definite", "genitive"),
    [
        ("băiat", "băiatul", "băieții", "băiatului"),
        ("copil", "copilul", "copiii", "copilului"),
        ("ministru", "ministrul", "miniștrii", "ministrului"),
        ("frate", "fratele", "frații", "fratelui"),
        ("casă", "casa", "casele", "casei"),
        ("carte", "cartea", "cărțile", "cărții"),
        ("farmacie", "farmacia", "farmaciile", "farmaciei"),
        ("femeie", "femeia", "femeile", "femeii"),
        ("perdea", "perdeaua", "perdelele", "perdelei"),
        ("tablou", "tabloul", "tablourile", "tabloului"),
        ("ou", "oul", "ouăle", "oului"),
        ("teatru", "teatrul", "teatrele", "teatrului"),
    ],
)
def test_articles(singular, definite, plural_definite, genitive):
    (noun,) = [noun for nouns in lexicon.NOUNS.values() for noun in nouns if noun.singular == singular]
    assert (noun.definite(False), noun.definite(True), noun.genitive()) == (definite, plural_definite, genitive)


@pytest.mark.parametrize(
    ("infinitive", "first_plural", "imperfect"),
    [
        ("citi", "citim", "citea"),
        ("vedea", "vedem", "vedea"),
        ("scrie", "scriem", "scria"),
        ("cumpăra", "cumpărăm", "cumpăra"),
        ("coborî", "coborâm", "cobora"),
        ("construi", "construim", "construia"),
        ("trăi", "trăim", "trăia"),
        ("merge", "mergem", "mergea"),
    ],
)
def test_conjugation(infinitive, first_plural, imperfect):
    groups = (*lexicon.TRANSITIVE, lexicon.MOTION, lexicon.REST, lexicon.SAYING)
    (verb,) = [verb for group in groups for verb in group if verb.infinitive == infinitive]
    assert (verb.first_plural(), verb.imperfect()) == (first_plural, imperfect)


def test_a_lemma_stands_in_one_table_and_its_forms_tell_its_number():
    nouns = [noun for each in lexicon.NOUNS.values() for noun in each]
    verbs = [verb for each in (*lexicon.TRANSITIVE, lexicon.MOTION, lexicon.REST, lexicon.SAYING) for verb in each]
    lemmas = Counter([noun.singular for noun in nouns] + [verb.infinitive for verb in verbs])
    assert max(lemmas.values()) == 1 and len(lemmas) > 400
    assert set(lexicon.SYNONYMS) <= set(lemmas)
    tags = defaultdict(set)
    for noun in nouns:
        for plural in (False, True):
            tags[noun.plural if plural else noun.singular].add((noun.agreement(plural), "bare"))
            tags[noun.definite(plural)].add((noun.agreement(plural), "definite"))
        tags[noun.genitive()].add((noun.agreement(False), "genitive"))
    assert [form for form, found in tags.items() if len(found) > 1] == []


# ---- tags ----


def test_sentences_are_short_and_seldom_long(rows):
    lengths = [len(row["words"]) for split in SPLITS for row in rows["tagged"][split]]
    assert min(lengths) == 5 and max(lengths) <= 20
    assert sorted(lengths)[len(lengths) // 2] <= 9 < sum(lengths) / len(lengths)


def test_tags_are_a_modest_set():
    found = romanian.tagged("train", 3000)
    assert all(len(row["words"]) == len(row["upos"]) == len(row["xpos"]) for row in found)
    assert len({tag for row in found for tag in row["upos"]}) >= 13
    assert 25 <= len({tag for row in found for tag in row["xpos"]}) <= 60
    assert all(row["words"][0][0].isupper() and row["upos"][-1] == "PUNCT" for row in found)


def test_determiners_and_adjectives_agree_with_their_noun():
    seen = 0
    for row in romanian.tagged("train", 2000):
        for (upos, xpos), (after, its) in itertools.pairwise(zip(row["upos"], row["xpos"], strict=True)):
            if upos == "NOUN" and after == "ADJ":
                assert its[4] == xpos[3] and its[3] in (xpos[2], "-")
                seen += 1
            if upos == "DET" and after == "NOUN" and xpos.startswith("T"):
                assert xpos[2:4] == its[2:4]
                seen += 1
    assert seen > 1000


def test_tags_follow_from_the_words():
    """UPOS from the neighbours; XPOS from the neighbour before and the subject, the first nominal of a clause."""
    upos, xpos = defaultdict(set), defaultdict(set)
    for row in romanian.tagged("train", 8000):
        words = ["", *(word.lower() for word in row["words"]), ""]
        subject = ""
        for place, (coarse, fine) in enumerate(zip(row["upos"], row["xpos"], strict=True)):
            upos[tuple(words[place : place + 3])].add(coarse)
            xpos[subject, *words[place : place + 2]].add(fine)
            if coarse in ("PUNCT", "CCONJ", "SCONJ"):
                subject = ""
            elif coarse in ("NOUN", "PROPN", "PRON"):
                subject = subject or fine
    assert [key for key, found in upos.items() if len(found) > 1] == []
    assert [key for key, found in xpos.items() if len(found) > 1] == []
    assert romanian.BEST_SCORES["tagged"] == 1.0


# ---- entities ----


def test_entities_are_well_formed_and_follow_from_the_words():
    seen, classes = defaultdict(set), Counter()
    for row in romanian.entities("train", 8000):
        words, before = ["", "", "", "", *row["words"], "", ""], "O"
        for place, tag in enumerate(row["ner"]):
            assert not tag.startswith("I-") or before[2:] == tag[2:]
            before = tag
            classes[tag[2:]] += tag.startswith("B-")
            seen[tuple(words[place : place + 7])].add(tag)
    assert [key for key, tags in seen.items() if len(tags) > 1] == []
    assert len(+classes) == 12 and min((+classes).values()) > 100


# ---- reviews ----

LEVEL = {
    form: level for level, table in lexicon.JUDGEMENTS.items() for forms in lexicon.entries(table) for form in forms
}
PRODUCT = "|".join(sorted((*lexicon.PRODUCTS["m"], *lexicon.PRODUCTS["f"]), key=len, reverse=True))


def stars(content):
    """Read the stars of a review from its words, apart from the generator."""
    verb, word = re.search(rf"(?i)\b(?:{PRODUCT}) (este|nu este deloc|nu este) (\w+)", content).groups()
    plain = {"best": 5, "good": 4, "weak": 2, "worst": 1}[LEVEL[word]]
    if verb == "nu este deloc":
        return 1
    if verb == "nu este":
        return 4 if plain < 3 else 2
    if re.search(r"(?i)\bdeși\b|\bdar\b", content):
        return 4 if plain > 3 else 2
    return plain


def test_stars_follow_from_the_words_but_not_from_one_word():
    found = romanian.reviews("train", 2000)
    assert all(stars(row["content"]) == row["stars"] for row in found)
    counts = Counter(row["stars"] for row in found)
    assert counts[5] > counts[1] > counts[2] > counts[4] > 80

    by_word = defaultdict(Counter)
    for row in found:
        by_word[next(word for word in re.findall(r"\w+", row["content"]) if word in LEVEL)][row["stars"]] += 1
    assert sum(max(each.values()) for each in by_word.values()) < 0.85 * len(found)
    by_title = defaultdict(Counter)
    for row in found:
        by_title[row["title"]][row["stars"]] += 1
    assert sum(max(each.values()) for each in by_title.values()) < 0.75 * len(found)


# ---- pairs ----

NOUN = {noun.singular: noun for nouns in lexicon.NOUNS.values() for noun in nouns}
VERB = {verb.third: verb for group in lexicon.TRANSITIVE for verb in group}


def parts(text):
    """Read a sentence of a pair back, apart from the generator."""
    words = text[:-1].lower().split()
    at = words.index("lângă")
    place, clause = words[at + 2], words[at + 3 :] if at == 0 else words[:at]
    negated = "nu" in clause
    _, subject, verb, _, thing = [word for word in clause if word != "nu"]
    return NOUN[subject], VERB[verb], NOUN[thing], NOUN[place], negated


def test_scores_follow_from_the_words_and_spread():
    found = romanian.pairs("train", 1000)
    for row in found:
        assert row["first"] != row["second"]
        assert row["score"] == romanian.similarity(parts(row["first"]), parts(row["second"]))
        assert row["score"] == romanian.similarity(parts(row["second"]), parts(row["first"]))
    scores = [row["score"] for row in found]
    assert min(scores) == 0 and max(scores) == 5
    assert all(sum(low <= score < low + 1 for score in scores) > 50 for low in range(5))


def test_similarity_by_hand():
    doctor = parts("Un medic vede un tablou lângă o școală.")
    assert romanian.similarity(doctor, parts("Lângă o școală un doctor zărește un tablou.")) == 5.0
    assert romanian.similarity(doctor, parts("Un medic nu vede un tablou lângă o școală.")) == 3.0
    assert romanian.similarity(doctor, parts("Un medic vede un tablou lângă un lac.")) == 4.5
    assert romanian.similarity(doctor, parts("Un medic admiră o lampă lângă un lac.")) == 2.4  # 5 (0.3 + 0.09 + 0.09)
    assert romanian.similarity(doctor, parts("Un elev hrănește o vacă lângă un lac.")) == 0.0


# ---- dialects ----


def test_dialects_are_as_predictable_as_stated():
    odds = {}
    for (strength, _), table in lexicon.MARKS.items():
        logit = math.log({"strong": 0.97 / 0.03, "weak": 0.8 / 0.2}[strength])
        for romanian_word, moldavian_word in lexicon.entries(table):
            odds |= {romanian_word: -logit, moldavian_word: logit}
    found = romanian.dialects("train", 6000)
    right, single = 0.0, 0
    for row in found:
        marks = [odds[word] for word in re.findall(r"\w+", row["text"]) if word in odds]
        assert 1 <= len(marks) <= 2
        single += len(marks) == 1 and abs(marks[0]) < 2
        right += 0.5 if sum(marks) == 0 else (sum(marks) > 0) == (row["dialect"] == "MD")
    best = romanian.BEST_SCORES["dialects"]
    assert best == pytest.approx(0.6 * 0.97 + 0.4 * 0.8)
    assert right / len(found) == pytest.approx(best, abs=4 * math.sqrt(best * (1 - best) / len(found)))
    assert 0.1 < single / len(found) < 0.3
    assert sum(row["dialect"] == "MD" for row in found) / len(found) == pytest.approx(0.5, abs=0.03)
    assert sum("$NE$" in row["text"] for row in found) > 0.9 * len(found)

"""Romanian texts from a small grammar (:mod:`.romanian_grammar`), with the labels of five tasks known by construction.

Row ``i`` of a split is a pure function of the kind, the split and ``i``: candidates come from one stream of random numbers
a kind, and a hash of its text says to which split a candidate belongs. No text is in two splits, not even of two kinds.
"""

import hashlib
import itertools
import math
from collections.abc import Callable
from typing import Any

from kdbench.data.generators import romanian_lexicon as lexicon
from kdbench.data.generators.romanian_grammar import Dice, capitalised, joined, name, sentence
from kdbench.data.generators.romanian_lexicon import Noun, Verb

Row = dict[str, Any]


def sentences(split: str, count: int) -> list[Row]:
    """Return raw texts ``{"text"}`` of all kinds of this module, for masked language modelling."""
    return _rows("sentences", split, count, _sentence)


def tagged(split: str, count: int) -> list[Row]:
    """Return ``{"words", "upos", "xpos"}``: 5 to 20 words with UD's tags and a subset of MULTEXT-East's for Romanian."""
    return _rows("tagged", split, count, _tagged)


def entities(split: str, count: int) -> list[Row]:
    """Return ``{"words", "ner"}`` with BIO tags over twelve of RONEC's classes."""
    return _rows("entities", split, count, _entities)


def reviews(split: str, count: int) -> list[Row]:
    """Return ``{"title", "content", "stars"}`` with 1, 2, 4 or 5 stars, about as frequent as in LaRoSeDa's test set.

    The judgement of the product decides. A negation ("nu este bun") turns it, an opposite remark on one aspect ("deși
    bateria este jalnică") takes the strength from it, and an equal remark changes nothing.
    """
    return _rows("reviews", split, count, _review)


def pairs(split: str, count: int) -> list[Row]:
    """Return ``{"first", "second", "score"}`` with the score of :func:`similarity`, from 0 to 5."""
    return _rows("pairs", split, count, _pair)


def dialects(split: str, count: int) -> list[Row]:
    """Return ``{"text", "dialect"}`` with dialect RO or MD; names are replaced by ``$NE$`` as in MOROCO.

    A text has one or two regional marks, each of them the other region's word with a small (strong marks) or a larger
    probability (weak marks); all else is alike in both.
    """
    return _rows("dialects", split, count, _dialect)


# ---- rows and splits ----


def _rows(kind: str, split: str, count: int, make: Callable[[Dice], Row]) -> list[Row]:
    """Return the first ``count`` different rows of the kind's stream whose texts belong to ``split``."""
    dice = Dice(int.from_bytes(hashlib.sha256(kind.encode()).digest()[:8]))
    found: dict[tuple[str, ...], Row] = {}
    while len(found) < count:
        row = make(dice)
        texts = texts_of(row)
        if all(split_of(text) == split for text in texts):
            found.setdefault(texts, row)
    return list(found.values())


def texts_of(row: Row) -> tuple[str, ...]:
    """Return the texts of a row that no other split may hold: both of a pair, of a review the content."""
    if "words" in row:
        return (joined(row["words"]),)
    return tuple(row[key] for key in ("text", "content", "first", "second") if key in row)


def split_of(text: str) -> str:
    """Return the split that owns a text: half of all texts are train's, a quarter each validation's and test's."""
    place = hashlib.sha256(text.encode()).digest()[0]
    return "train" if place < 128 else "validation" if place < 192 else "test"


def _tagged(dice: Dice) -> Row:
    words, upos, xpos = map(list, zip(*sentence(dice), strict=True))
    return {"words": words, "upos": upos, "xpos": xpos}


def _sentence(dice: Dice) -> Row:
    kinds = {_tagged: 0.6, _entities: 0.15, _dialect: 0.1, _review: 0.1, _pair: 0.05}
    return {"text": texts_of(dice.weighted(kinds)(dice))[0]}


# ---- entities ----


def _date(dice: Dice) -> str:
    day = f"{1 + int(28 * dice.number())} {dice.of(lexicon.MONTHS)}"
    if dice.chance(0.3):
        return f"{dice.of(lexicon.DAYS)} {day}"
    return f"{day} {1950 + int(75 * dice.number())}" if dice.chance(0.5) else day


def _count(dice: Dice) -> str:
    return str(2 + int(18 * dice.number())) if dice.chance(0.6) else dice.of(lexicon.NUMERALS)


_ENTITIES: dict[str, Callable[[Dice], str]] = {
    "PERSON": lambda dice: " ".join(word for word, _, _ in name(dice)),
    "GPE": lambda dice: dice.of(lexicon.CITIES if dice.chance(0.75) else lexicon.COUNTRIES),
    "LOC": lambda dice: dice.of(lexicon.NATURE),
    "ORG": lambda dice: (
        f"{dice.of(lexicon.ORGANISATION_OF)} {dice.of(lexicon.CITIES)}"
        if dice.chance(0.5)
        else dice.of(lexicon.ORGANISATIONS)
    ),
    "DATETIME": _date,
    "NUMERIC": _count,
    "MONEY": lambda dice: (
        f"{_count(dice)} {dice.of(lexicon.CURRENCIES)}"
        if dice.chance(0.5)
        else f"{dice.of(lexicon.LARGE_NUMERALS)} de {dice.of(lexicon.CURRENCIES)}"
    ),
    "NAT_REL_POL": lambda dice: dice.of(lexicon.PEOPLES),
    "LANGUAGE": lambda dice: dice.of(lexicon.LANGUAGES),
    "EVENT": lambda dice: dice.of(lexicon.EVENTS),
    "WORK_OF_ART": lambda dice: dice.of(lexicon.WORKS),
    "ORDINAL": lambda dice: dice.of(lexicon.ORDINALS),
}


def _entities(dice: Dice) -> Row:
    words = dice.of(lexicon.ENTITY_OPENINGS).split() if dice.chance(0.4) else []
    tags = ["O"] * len(words)
    for part in dice.of(lexicon.ENTITY_FORMS).split():
        kind = part.strip("{}") if part.startswith("{") else None
        found = _ENTITIES[kind](dice).split() if kind else [part]
        words += found
        tags += [f"{'I' if place else 'B'}-{kind}" if kind else "O" for place in range(len(found))]
    return {"words": [capitalised(words[0]), *words[1:]], "ner": tags}


# ---- reviews ----

# Of each number of stars: how the product is judged, and how strong the remark on an aspect of it is.
_VERDICTS = {
    5: (("este", "best", None), ("este", "best", "good"), ("este", "best", "best")),
    4: (("este", "good", None), ("nu este", "weak", None), ("este", "best", "worst"), ("este", "good", "good")),
    2: (("este", "weak", None), ("nu este", "good", None), ("nu este", "best", None), ("este", "worst", "best")),
    1: (
        ("este", "worst", None),
        ("nu este deloc", "good", None),
        ("este", "worst", "weak"),
        ("este", "worst", "worst"),
    ),
}
_JUDGEMENTS = {level: lexicon.entries(table) for level, table in lexicon.JUDGEMENTS.items()}


def _judged(dice: Dice, things: dict[str, tuple[str, ...]], verb: str, level: str) -> str:
    gender = dice.of(("m", "f"))
    return f"{dice.of(things[gender])} {verb} {dice.of(_JUDGEMENTS[level])[gender == 'f']}"


def _review(dice: Dice) -> Row:
    stars = dice.weighted({1: 0.37, 2: 0.13, 4: 0.08, 5: 0.42})
    verb, level, aside = dice.of(_VERDICTS[stars])
    text = _judged(dice, lexicon.PRODUCTS, verb, level)
    if aside:
        opposite = {level, aside} == {"best", "worst"}
        forms = ("deși {1}, {0}", "{1}, dar {0}", "{0}, deși {1}") if opposite else ("{1}, iar {0}", "{0}, iar {1}")
        text = dice.of(forms).format(text, _judged(dice, lexicon.ASPECTS, "este", aside))
    said = [capitalised(text)]
    if dice.chance(0.6):
        said.insert(0, capitalised(dice.of(lexicon.BACKGROUND)))
    if dice.chance(0.4):
        said.append(capitalised(dice.of(lexicon.ENDINGS)))
    tone = "neutral" if dice.chance(0.4) else "positive" if stars > 3 else "negative"
    return {"title": dice.of(lexicon.TITLES[tone]), "content": ". ".join(said) + ".", "stars": stars}


# ---- pairs ----

Parts = tuple[Noun, Verb, Noun, Noun, bool]  # subject, verb, object, place, negated


def similarity(first: Parts, second: Parts) -> float:
    """Return the score of two sentences, from 0 to 5: ``5 sum_part share alike``, times 0.6 when one alone is negated.

    A part is alike by 1 when it is the same word or a synonym; verbs that take the same objects, and objects of one
    meaning, are alike by 0.3. The shares are subject, verb and object 0.3, place 0.1; word order does not count.
    """
    same = [
        other[0] in (one[0], lexicon.SYNONYMS.get(one[0])) for one, other in zip(first[:4], second[:4], strict=True)
    ]
    verb = max(same[1], 0.3 * (first[1].takes == second[1].takes))
    thing = max(same[2], 0.3 * (first[2].meaning == second[2].meaning))
    total = 0.3 * same[0] + 0.3 * verb + 0.3 * thing + 0.1 * same[3]
    return round(5 * total * (1.0 if first[4] == second[4] else 0.6), 2)


def _parts(dice: Dice) -> Parts:
    verb = dice.of(dice.of(lexicon.TRANSITIVE))
    subject, thing, place = (dice.of(lexicon.NOUNS[meaning]) for meaning in ("person", dice.of(verb.takes), "place"))
    return subject, verb, thing, place, dice.chance(0.15)


_BY_LEMMA = {each[0]: each for group in (*lexicon.NOUNS.values(), *lexicon.TRANSITIVE) for each in group}


def _varied(dice: Dice, parts: Parts) -> Parts:
    """Return the parts with some replaced by synonyms, by words of the same kind or by quite other ones."""
    subject, verb, thing, place, negated = parts
    other = _parts(dice)
    if dice.chance(0.25):
        return other
    subject = other[0] if dice.chance(0.25) else subject
    place = other[3] if dice.chance(0.4) else place
    negated = negated != dice.chance(0.15)
    change = dice.number()
    if change < 0.2:
        verb, thing = other[1:3]
    elif change < 0.35:
        verb = dice.of(next(group for group in lexicon.TRANSITIVE if verb in group))
    elif change < 0.5:
        thing = dice.of(lexicon.NOUNS[thing.meaning])
    return (*(_synonym(part) if dice.chance(0.4) else part for part in (subject, verb, thing, place)), negated)


def _synonym(part: Noun | Verb) -> Noun | Verb:
    return _BY_LEMMA[lexicon.SYNONYMS.get(part[0], part[0])]


def _pair(dice: Dice) -> Row:
    first = _parts(dice)
    second = _varied(dice, first)
    texts = _told(dice, first), _told(dice, second)
    if texts[0] == texts[1]:
        return _pair(dice)
    return {"first": texts[0], "second": texts[1], "score": similarity(first, second)}


def _told(dice: Dice, parts: Parts) -> str:
    subject, verb, thing, place, negated = parts
    subject, thing, place = (
        f"{'o' if noun.agreement(False) == 'fs' else 'un'} {noun.singular}" for noun in (subject, thing, place)
    )
    clause = f"{subject} {'nu ' if negated else ''}{verb.third} {thing}"
    forms = ("{0} lângă {1}.", "lângă {1} {0}.")
    return capitalised(dice.of(forms).format(clause, place))


# ---- dialects ----

_RELIABILITY = {"strong": 0.97, "weak": 0.8}
_MARKED = {("strong",): 0.35, ("strong", "weak"): 0.25, ("weak", "weak"): 0.2, ("weak",): 0.2}
_MARKS = {key: lexicon.entries(table) for key, table in lexicon.MARKS.items()}
_STRENGTHS = {
    strength: [(topic, pair) for (other, topic), table in _MARKS.items() if other == strength for pair in table]
    for strength in _RELIABILITY
}
_MARK_FORMS = {topic: table.strip().splitlines() for topic, table in lexicon.MARK_FORMS.items()}


def _dialect(dice: Dice) -> Row:
    region, said = dice.chance(0.5), []
    for strength in dice.weighted(_MARKED):
        topic, words = dice.of(_STRENGTHS[strength])
        word = words[region if dice.chance(_RELIABILITY[strength]) else not region]
        number = str(20 + int(80 * dice.number()))
        said.append(capitalised(joined(dice.of(_MARK_FORMS[topic]).format(word, number=number).split())))
    if dice.chance(0.6):
        row = _tagged(dice)
        words = ["$NE$" if tag == "PROPN" else word for word, tag in zip(row["words"], row["upos"], strict=True)]
        said.insert(int(dice.number() * (len(said) + 1)), joined(words))
    return {"text": " ".join(said), "dialect": "MD" if region else "RO"}


def _best_dialect_accuracy() -> float:
    """Return the accuracy of Bayes' rule on the marks: ``1/2 sum_marks max(p(marks | RO), p(marks | MD))``."""
    total = 0.0
    for strengths, probability in _MARKED.items():
        rights = [_RELIABILITY[strength] for strength in strengths]
        for told in itertools.product((True, False), repeat=len(rights)):
            likelihoods = (
                math.prod(right if tells == own else 1 - right for right, tells in zip(rights, told, strict=True))
                for own in (True, False)
            )
            total += probability * max(likelihoods) / 2
    return total


# The best possible macro-F1 (tagged, entities, reviews, dialects) or Pearson correlation (pairs). Four kinds are decided by
# their texts: words that have two tags are told apart by their neighbours, and the stars and the score are functions of the
# words. Of dialects, some marks mislead by design. The entropy of `sentences` has no closed form.
BEST_SCORES = {"tagged": 1.0, "entities": 1.0, "reviews": 1.0, "pairs": 1.0, "dialects": _best_dialect_accuracy()}

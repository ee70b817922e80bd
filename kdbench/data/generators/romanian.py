"""Romanian sentences from a small grammar, with the labels of five tasks known by construction.

A sentence is a clause (subject, verb, object, place, adverb) or two joined ones. Articles, numerals and adjectives agree
in gender and number, nouns stand definite or indefinite, verbs in the present or the compound past. Row ``i`` of a split
is a pure function of the kind, the split and ``i``: candidates are drawn from one stream a kind, and a hash of its text
says to which split a candidate belongs, so that no sentence is in two splits.
"""

import functools
import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np

from kdbench.data.generators import romanian_lexicon as lexicon

Row = dict[str, Any]
Token = tuple[str, str, str]  # word, UPOS, XPOS
BEST_SCORES = {
    "tagged": "100: every tag follows from the words, but for forms that are alike in singular and plural (97 or more)",
    "entities": "100: entities are names from closed lists and dates",
    "reviews": "100: a sentence of each review tells its stars; titles alone tell them too",
    "pairs": "100: the score is a sum over the parts that two sentences share, synonyms counting as shared",
    "dialects": "100: every text holds at least one regional word",
}


def sentences(split: str, count: int) -> list[Row]:
    """Return raw sentences ``{"text"}`` of all kinds of this module, for masked language modelling."""
    return _rows("sentences", split, count, _sentence)


def tagged(split: str, count: int) -> list[Row]:
    """Return ``{"words", "upos", "xpos"}``; the XPOS tags are a subset of MULTEXT-East's for Romanian."""
    return _rows("tagged", split, count, _tagged)


def entities(split: str, count: int) -> list[Row]:
    """Return ``{"words", "ner"}`` with BIO tags over RONEC's classes PERSON, GPE, LOC, ORG, DATETIME, NUMERIC."""
    return _rows("entities", split, count, _entities)


def reviews(split: str, count: int) -> list[Row]:
    """Return ``{"title", "content", "stars"}`` with 1, 2, 4 or 5 stars."""
    return _rows("reviews", split, count, _review)


def pairs(split: str, count: int) -> list[Row]:
    """Return ``{"first", "second", "score"}``, the score from 0 to 5."""
    return _rows("pairs", split, count, _pair)


def dialects(split: str, count: int) -> list[Row]:
    """Return ``{"text", "dialect"}`` with dialect RO or MD; names are replaced by ``$NE$`` as in MOROCO."""
    return _rows("dialects", split, count, _dialect)


def _rows(kind: str, split: str, count: int, make: Callable[["_Dice"], Row]) -> list[Row]:
    """Return the first ``count`` different rows of the kind's stream whose text belongs to ``split``."""
    dice = _Dice(int.from_bytes(hashlib.sha256(kind.encode()).digest()[:8]))
    found: dict[str, Row] = {}
    while len(found) < count:
        row = make(dice)
        text = _text_of(row)
        if _split_of(text) == split:
            found.setdefault(text, row)
    return list(found.values())


def _text_of(row: Row) -> str:
    if "words" in row:
        return " ".join(row["words"])
    return row["text"] if "text" in row else " | ".join(str(row[key]) for key in row if key not in ("score", "stars"))


def _split_of(text: str) -> str:
    place = hashlib.sha256(text.encode()).digest()[0]
    return "train" if place < 192 else "validation" if place < 224 else "test"


class _Dice:
    """Choices from one stream of random numbers, the same on every machine."""

    def __init__(self, seed: int) -> None:
        self._generator = np.random.Generator(np.random.PCG64(seed))
        self._numbers = iter(())

    def number(self) -> float:
        """Return a number in [0, 1); drawn in blocks, for speed."""
        for value in self._numbers:
            return value
        self._numbers = iter(self._generator.random(4096).tolist())
        return next(self._numbers)

    def of(self, choices: Any) -> Any:
        """Return one of the choices."""
        return choices[int(self.number() * len(choices))]

    def chance(self, probability: float) -> bool:
        """Return True with a probability."""
        return self.number() < probability


@functools.cache
def _table(name: str) -> dict[str, tuple[str, ...]]:
    """Return the forms of a word class by their first form."""
    entries = getattr(lexicon, name).replace("\n", " | ").split("|")
    return {forms[0]: tuple(forms) for forms in (entry.split() for entry in entries) if forms}


def _noun_phrase(dice: _Dice, lemmas: tuple[str, ...]) -> tuple[list[Token], bool]:
    """Return a noun phrase and whether it is plural."""
    single, definite, many, many_definite, gender = _table("NOUNS")[dice.of(lemmas)]
    plural = dice.chance(0.35)
    agrees = "f" if gender == "f" or (gender == "n" and plural) else "m"
    number = "p" if plural else "s"
    direct = "r" if agrees == "f" and not plural else "-"
    indefinite_tag = f"Nc{agrees}{number}{direct}n"
    tokens: list[Token] = []
    if dice.chance(0.5):
        tokens.append((many_definite if plural else definite, "NOUN", f"Nc{agrees}{number}ry"))
    elif plural:
        tokens.append((dice.of(lexicon.NUMBERS[agrees]), "NUM", f"Mc{agrees}p-l"))
        tokens.append((many, "NOUN", indefinite_tag))
    else:
        tokens.append(("o" if agrees == "f" else "un", "DET", f"Ti{agrees}sr"))
        tokens.append((single, "NOUN", indefinite_tag))
    if dice.chance(0.4):
        forms = _table("ADJECTIVES")[dice.of(tuple(_table("ADJECTIVES")))]
        tokens.append((forms[(agrees == "f") + 2 * plural], "ADJ", f"Afp{agrees}{number}{direct}n"))
    return tokens, plural


def _subject(dice: _Dice) -> tuple[list[Token], bool]:
    choice = dice.number()
    if choice < 0.2:
        return [(dice.of(lexicon.FIRST_NAMES), "PROPN", "Np")], False
    if choice < 0.3:
        word, plural, gender = dice.of((("el", False, "m"), ("ea", False, "f"), ("ei", True, "m"), ("ele", True, "f")))
        return [(word, "PRON", f"Pp3{gender}{'p' if plural else 's'}r--------s")], plural
    return _noun_phrase(dice, lexicon.PEOPLE)


def _clause(dice: _Dice) -> list[Token]:
    subject, plural = _subject(dice)
    forms = _table("VERBS")[dice.of(tuple(_table("VERBS")))]
    number = "p" if plural else "s"
    if dice.chance(0.4):
        verb = [("au" if plural else "a", "AUX", f"Va--3{number}"), (forms[2], "VERB", "Vmp--sm")]
    else:
        verb = [(forms[plural], "VERB", f"Vmip3{number}")]
    if dice.chance(0.15):
        verb.insert(0, ("nu", "PART", "Qz"))
    tokens = [*subject, *verb, *_noun_phrase(dice, lexicon.THINGS)[0]]
    if dice.chance(0.45):
        tokens.append((dice.of(lexicon.PREPOSITIONS), "ADP", "Spsa"))
        named = dice.chance(0.3)
        tokens += [(dice.of(lexicon.CITIES), "PROPN", "Np")] if named else _noun_phrase(dice, lexicon.PLACES)[0]
    if dice.chance(0.35):
        tokens.append((dice.of(lexicon.ADVERBS), "ADV", "Rgp"))
    return tokens


def _tokens(dice: _Dice) -> list[Token]:
    tokens = _clause(dice)
    if dice.chance(0.3):
        joint = dice.of(
            (
                ("și", "CCONJ", "Crssp"),
                ("dar", "CCONJ", "Ccssp"),
                ("pentru că", "SCONJ", "Csssp"),
                ("când", "SCONJ", "Csssp"),
            )
        )
        words = joint[0].split()
        tokens += [
            (word, "ADP" if word == "pentru" else joint[1], "Spsa" if word == "pentru" else joint[2]) for word in words
        ]
        tokens += _clause(dice)
    end = dice.of((".", ".", ".", ".", "!", "?"))
    first, *rest = tokens
    last = (end, "PUNCT", {".": "PERIOD", "!": "EXCL", "?": "QUEST"}[end])
    return [(first[0][0].upper() + first[0][1:], *first[1:]), *rest, last]


def _tagged(dice: _Dice) -> Row:
    words, upos, xpos = zip(*_tokens(dice), strict=True)
    return {"words": list(words), "upos": list(upos), "xpos": list(xpos)}


def _joined(words: list[str]) -> str:
    return " ".join(words[:-1]) + words[-1]


def _sentence(dice: _Dice) -> Row:
    choice = dice.number()
    if choice < 0.6:
        return {"text": _joined(_tagged(dice)["words"])}
    if choice < 0.8:
        return {"text": _joined(_entities(dice)["words"])}
    if choice < 0.9:
        return {"text": _review(dice)["content"]}
    return {"text": _dialect(dice)["text"]}


def _entity(dice: _Dice, kind: str) -> list[tuple[str, str]]:
    words = {
        "PERSON": lambda: [dice.of(lexicon.FIRST_NAMES), dice.of(lexicon.LAST_NAMES)],
        "GPE": lambda: [dice.of(lexicon.CITIES)],
        "LOC": lambda: [dice.of(lexicon.NATURE)],
        "ORG": lambda: dice.of(lexicon.COMPANIES).split(),
        "DATETIME": lambda: [str(1 + int(28 * dice.number())), dice.of(lexicon.MONTHS)],
        "NUMERIC": lambda: [dice.of(("200", "35", "12", "1 500", "zece", "trei"))],
    }[kind]()
    return [(word, f"{'I' if place else 'B'}-{kind}") for place, word in enumerate(words)]


_ENTITY_FORMS = (
    "{PERSON} locuiește în {GPE} din {DATETIME} .",
    "{ORG} a deschis {NUMERIC} magazine în {GPE} .",
    "pe {DATETIME} , {PERSON} a vizitat {ORG} .",
    "{PERSON} și {PERSON} au mers spre {LOC} .",
    "trenul din {GPE} ajunge lângă {LOC} după {NUMERIC} ore .",
    "directorul de la {ORG} , {PERSON} , a anunțat decizia pe {DATETIME} .",
    "în {GPE} locuiesc {NUMERIC} prieteni ai Mariei .",
    "lângă {LOC} a fost găsită o scrisoare veche .",
)


def _entities(dice: _Dice) -> Row:
    pairs_: list[tuple[str, str]] = []
    for word in dice.of(_ENTITY_FORMS).split():
        pairs_ += _entity(dice, word[1:-1]) if word.startswith("{") else [(word, "O")]
    words = [word for word, _ in pairs_]
    tags = [tag if word != "Mariei" else "B-PERSON" for word, tag in pairs_]
    words[0] = words[0][0].upper() + words[0][1:]
    return {"words": words, "ner": tags}


def _review(dice: _Dice) -> Row:
    stars = dice.of((1, 1, 2, 4, 5, 5))
    titles, opinions = lexicon.OPINIONS[stars]
    product = dice.of(lexicon.PRODUCTS)
    parts = [f"{product} {dice.of(opinions)}", dice.of(lexicon.NEUTRAL)]
    if dice.chance(0.5):
        parts.append(dice.of(lexicon.NEUTRAL))
    if dice.chance(0.5):
        parts.reverse()
    text = ", ".join(parts) + "."
    return {"title": dice.of(titles).capitalize(), "content": text[0].upper() + text[1:], "stars": stars}


_SHARES = (1.5, 1.75, 1.25, 0.5)  # of subject, verb, object and place in the score


def _pair(dice: _Dice) -> Row:
    first = _parts(dice)
    second, score = [], 0.0
    for part, other, share in zip(first, _parts(dice), _SHARES, strict=True):
        choice = dice.number()
        if choice < 0.35:
            second.append(part)
        elif choice < 0.6:
            second.append(lexicon.SYNONYMS.get(part, part))
        else:
            second.append(other)
        score += share * (second[-1] in (part, lexicon.SYNONYMS.get(part)))
    return {"first": _simple(first), "second": _simple(second), "score": score}


def _parts(dice: _Dice) -> list[str]:
    return [dice.of(lexicon.PEOPLE), dice.of(tuple(_table("VERBS"))), dice.of(lexicon.THINGS), dice.of(lexicon.PLACES)]


_SYNONYM_GENDERS = {
    "doctor": "m", "puști": "m", "automobil": "n", "epistolă": "f", "pictură": "f", "basm": "n", "locuință": "f", "cale": "f"
}  # fmt: skip


def _simple(parts: list[str]) -> str:
    subject, verb, thing, place = parts

    def gender(noun: str) -> str:
        return _SYNONYM_GENDERS[noun] if noun in _SYNONYM_GENDERS else _table("NOUNS")[noun][4]

    def with_article(noun: str) -> str:
        return f"{'o' if gender(noun) == 'f' else 'un'} {noun}"

    text = f"{with_article(subject)} {verb} {with_article(thing)} lângă {with_article(place)}."
    return text[0].upper() + text[1:]


_DIALECT_FORMS = (
    "la piață în $NE$ se vinde {} proaspăt , a declarat $NE$ .",
    "astăzi {} din $NE$ a întârziat mult .",
    "ministrul $NE$ a vorbit despre {} și despre drumuri .",
    "în $NE$ oamenii cumpără {} înainte de sărbători .",
    "un locuitor din $NE$ a găsit {} lângă pod .",
    "anul acesta {} costă mai mult , spune $NE$ .",
)


def _dialect(dice: _Dice) -> Row:
    place = dice.chance(0.5)
    text = dice.of(_DIALECT_FORMS).format(dice.of(lexicon.REGIONAL)[place])
    if dice.chance(0.6):
        text += " " + dice.of(_DIALECT_FORMS).format(dice.of(lexicon.REGIONAL)[place])
    if dice.chance(0.7):
        said = _tagged(dice)
        hidden = ["$NE$" if tag == "PROPN" else word for word, tag in zip(said["words"], said["upos"], strict=True)]
        text += " " + _joined(hidden)
    return {"text": text[0].upper() + text[1:], "dialect": "MD" if place else "RO"}

"""A small grammar of Romanian whose sentences know their tags.

    sentence  = clause [conjunction clause] | person says "că" clause
    clause    = [time] subject ["nu"] verb complement [place] [time | manner]
    subject   = name | pronoun | noun phrase, or none in the first person plural
    verb      = present | compound past | imperfect | future | "pot" infinitive
    noun      = definite noun [possessive | genitive] [adjective] | determiner noun [adjective]

Determiners, possessives and adjectives agree in gender and number, verbs in person and number; a verb takes only objects
of meanings that suit it, a time adverb suits the tense, and a preposition before an article contracts (într-o).
"""

import bisect
import itertools
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from kdbench.data.generators import romanian_lexicon as lexicon
from kdbench.data.generators.romanian_lexicon import Noun, Verb

Token = tuple[str, str, str]  # word, UPOS, XPOS
Choice = TypeVar("Choice")


class Dice:
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

    def of(self, choices: Sequence[Choice]) -> Choice:
        """Return one of the choices."""
        return choices[int(self.number() * len(choices))]

    def chance(self, probability: float) -> bool:
        """Return True with a probability."""
        return self.number() < probability

    def weighted(self, weights: dict[Choice, float]) -> Choice:
        """Return a key with the probability that is its value."""
        place = bisect.bisect(list(itertools.accumulate(weights.values())), self.number())
        return tuple(weights)[min(place, len(weights) - 1)]  # the sum may round to less than 1


def joined(words: Sequence[str]) -> str:
    """Return words as a text: no space before a mark of punctuation nor after the hyphen of a contraction."""
    text = ""
    for word in words:
        text += word if word in ".,?!" or text[-1:] in ("", "-") else f" {word}"
    return text


def capitalised(text: str) -> str:
    """Return the text with a capital at its beginning."""
    return text[0].upper() + text[1:]


def _adjective(dice: Dice, meaning: str, agreement: str) -> Token:
    forms = dice.of(lexicon.ADJECTIVES[meaning])
    tag = {"ms": "Afpms-n", "fs": "Afpfsrn", "mp": "Afpmp-n", "fp": "Afpfp-n"}[agreement]
    if agreement[1] == "p" and forms[2] == forms[3]:
        tag = "Afp-p-n"  # the form does not tell the gender
    return forms[("ms", "fs", "mp", "fp").index(agreement)], "ADJ", tag


def _noun(noun: Noun, plural: bool) -> Token:
    agreement = noun.agreement(plural)
    return noun.plural if plural else noun.singular, "NOUN", f"Nc{agreement}{'r' if agreement == 'fs' else '-'}n"


def _noun_phrase(dice: Dice, meaning: str, definite: float = 0.5, bare: bool = False) -> list[Token]:
    """Return a phrase, definite with a probability; ``bare`` leaves a lone noun without its article (în parc)."""
    noun, plural = dice.of(lexicon.NOUNS[meaning]), dice.chance(0.35)
    agreement = noun.agreement(plural)
    if dice.chance(definite):
        tokens = [(noun.definite(plural), "NOUN", f"Nc{agreement}ry")]
        if dice.chance(0.15):  # without an adjective: it could be of either noun
            owner = dice.of(lexicon.NOUNS["person"])
            return [*tokens, (owner.genitive(), "NOUN", f"Nc{owner.agreement(False)}oy")]
        if not plural and dice.chance(0.15):
            tokens.append(lexicon.POSSESSIVES[agreement])
    else:
        bare = False
        few = plural and dice.chance(0.4)
        number = (dice.of(lexicon.NUMERALS), "NUM", "Mc-p-l") if few else dice.of(lexicon.DETERMINERS[agreement])
        tokens = [number, _noun(noun, plural)]
    if dice.chance(0.35):
        tokens.append(_adjective(dice, meaning, agreement))
    return [_noun(noun, plural)] if bare and len(tokens) == 1 else tokens


def _is_plural(phrase: list[Token]) -> bool:
    return next(xpos[3] for _, upos, xpos in phrase if upos == "NOUN") == "p"


def name(dice: Dice) -> list[Token]:
    """Return a first name, often with a last name."""
    tokens = [(dice.of(lexicon.FIRST_NAMES), "PROPN", "Np")]
    return [*tokens, (dice.of(lexicon.LAST_NAMES), "PROPN", "Np")] if dice.chance(0.4) else tokens


def _subject(dice: Dice, meaning: str, tense: str) -> tuple[list[Token], str]:
    """Return a subject and its person and number: 1s, 1p, 3s or 3p; the future is left to the third person."""
    choice = dice.number()
    if choice < 0.2:
        return name(dice), "3s"
    if choice < 0.32:
        agreement = dice.of(tuple(lexicon.PRONOUNS))
        return [(lexicon.PRONOUNS[agreement], "PRON", f"Pp3{agreement}r--------s")], "3" + agreement[1]
    if choice < 0.38 and tense != "future":
        return [("eu", "PRON", "Pp1-sn--------s")], "1s"
    if choice < 0.46 and tense != "future":
        return ([("noi", "PRON", "Pp1-pn--------s")] if dice.chance(0.5) else []), "1p"
    phrase = _noun_phrase(dice, meaning, definite=0.75)
    return phrase, "3p" if _is_plural(phrase) else "3s"


_TENSES = {"present": 0.36, "perfect": 0.32, "imperfect": 0.12, "future": 0.1, "can": 0.1}


def _present(verb: Verb, who: str) -> str:
    return {"1s": verb.first, "1p": verb.first_plural(), "3s": verb.third, "3p": verb.third_plural}[who]


def _verb(dice: Dice, verb: Verb, who: str, tense: str) -> list[Token]:
    """Return the verb with its auxiliaries and, sometimes, a negation."""
    if tense == "present":
        alike = who[0] == "3" and verb.third == verb.third_plural
        tokens = [(_present(verb, who), "VERB", "Vmip3" if alike else f"Vmip{who}")]
    elif tense == "perfect":
        word, tag = {"1s": ("am", "1"), "1p": ("am", "1"), "3s": ("a", "3s"), "3p": ("au", "3p")}[who]
        tokens = [(word, "AUX", f"Va--{tag}"), (verb.participle, "VERB", "Vmp--sm")]
    elif tense == "imperfect":
        ending, tag = {"1s": ("m", "1"), "1p": ("m", "1"), "3s": ("", "3s"), "3p": ("u", "3p")}[who]
        tokens = [(verb.imperfect() + ending, "VERB", f"Vmii{tag}")]
    elif tense == "future":
        tokens = [("va" if who == "3s" else "vor", "AUX", f"Va--{who}"), (verb.infinitive, "VERB", "Vmnp")]
    else:
        word = {"1s": "pot", "1p": "putem", "3s": "poate", "3p": "pot"}[who]
        tokens = [(word, "VERB", f"Vmip{who}"), (verb.infinitive, "VERB", "Vmnp")]
    return [("nu", "PART", "Qz"), *tokens] if dice.chance(0.12) else tokens


def _place(dice: Dice, prepositions: Sequence[str]) -> list[Token]:
    preposition = dice.of(prepositions)
    if dice.chance(0.25):
        city = [(word, "PROPN", "Np") for word in dice.of(lexicon.CITIES).split()]
        return [(preposition, "ADP", "Spsa"), *city]
    phrase = _noun_phrase(dice, "place", bare=True)
    if preposition in lexicon.CONTRACTED and phrase[0][0] in ("un", "o"):
        return [(lexicon.CONTRACTED[preposition], "ADP", "Spsay"), *phrase]
    return [(preposition, "ADP", "Spsa"), *phrase]


def _transitive(dice: Dice, tense: str) -> list[Token]:
    verb = dice.of(dice.of(lexicon.TRANSITIVE))
    subject, who = _subject(dice, "person", tense)
    meaning = dice.of(verb.takes)
    # a definite person would need "pe" and a clitic
    thing = _noun_phrase(dice, meaning, definite=0.0 if meaning == "person" else 0.5)
    place = _place(dice, lexicon.WITHIN) if meaning != "place" and dice.chance(0.3) else []
    return [*subject, *_verb(dice, verb, who, tense), *thing, *place]


def _motion(dice: Dice, tense: str) -> list[Token]:
    subject, who = _subject(dice, dice.of(("person", "animal")), tense)
    return [*subject, *_verb(dice, dice.of(lexicon.MOTION), who, tense), *_place(dice, lexicon.TOWARDS)]


def _rest(dice: Dice, tense: str) -> list[Token]:
    subject, who = _subject(dice, "person", tense)
    return [*subject, *_verb(dice, dice.of(lexicon.REST), who, tense), *_place(dice, lexicon.WITHIN)]


def _copular(dice: Dice, tense: str) -> list[Token]:
    meaning = dice.of(tuple(lexicon.NOUNS))
    phrase = _noun_phrase(dice, meaning, definite=0.9)
    plural = _is_plural(phrase)
    agreement = next(xpos[2:4] for _, upos, xpos in phrase if upos == "NOUN")
    past = tense in ("perfect", "imperfect")
    word = (("este", "sunt"), ("era", "erau"))[past][plural]
    verb = [(word, "AUX", f"Va{'ii' if past else 'ip'}3{'p' if plural else 's'}")]
    if dice.chance(0.2):
        verb.insert(0, ("nu", "PART", "Qz"))
    degree = [(dice.of(("foarte", "prea", "destul")), "ADV", "Rgp")] if dice.chance(0.4) else []
    degree += [("de", "ADP", "Spsa")] if degree and degree[0][0] == "destul" else []
    return [*phrase, *verb, *degree, _adjective(dice, meaning, agreement)]


_CLAUSES = {_transitive: 0.5, _motion: 0.18, _rest: 0.14, _copular: 0.18}


def _clause(dice: Dice) -> list[Token]:
    make, tense = dice.weighted(_CLAUSES), dice.weighted(_TENSES)
    tokens = make(dice, tense)
    if make is _copular:
        return tokens
    time, choice = (dice.of(lexicon.TIME[tense]), "ADV", "Rgp"), dice.number()
    if choice < 0.12:
        return [time, *tokens]
    if choice < 0.3:
        return [*tokens, time]
    return [*tokens, (dice.of(lexicon.MANNER), "ADV", "Rgp")] if choice < 0.4 else tokens


def sentence(dice: Dice) -> list[Token]:
    """Return a sentence of 5 to 20 words with its mark at the end."""
    comma, choice, tokens = (",", "PUNCT", "COMMA"), dice.number(), _clause(dice)
    if choice < 0.2:
        joint = dice.of(lexicon.CONJUNCTIONS)
        tokens += [joint, *_clause(dice)] if joint[0] == "și" else [comma, joint, *_clause(dice)]
    elif choice < 0.32:
        tokens += [comma, dice.of(lexicon.SUBORDINATORS), *_clause(dice)]
    elif choice < 0.42:
        tense = dice.of(("present", "perfect"))
        subject, who = _subject(dice, "person", tense)
        saying = _verb(dice, dice.of(lexicon.SAYING), who, tense)
        tokens = [*subject, *saying, ("că", "SCONJ", "Csssp"), *tokens]
    if not 4 <= len(tokens) <= 19:
        return sentence(dice)
    end, tag = dice.weighted({(".", "PERIOD"): 0.8, ("!", "EXCL"): 0.1, ("?", "QUEST"): 0.1})
    first, *others = tokens
    return [(capitalised(first[0]), *first[1:]), *others, (end, "PUNCT", tag)]

"""Word-by-word translation with a dictionary derived from the training pairs; and copies of the source sentence."""

from __future__ import annotations

import random
import re
from collections import Counter

from drivetrain_workers.assessment.splits import Splits
from measures import held_out, measures, texts

_WORD = re.compile(r"\w+|[^\w\s]")
_ASSESSED = 200


def dictionary(splits: Splits) -> dict[str, float]:
    """Translate each word to the one with the highest Dice coefficient (1945)."""
    pair_counts: dict[str, Counter[str]] = {}
    english_count: Counter[str] = Counter()
    spanish_count: Counter[str] = Counter()
    for english, spanish in texts(splits, "train"):
        english_words, spanish_words = set(_WORD.findall(english.lower())), set(_WORD.findall(spanish.lower()))
        english_count.update(english_words)
        spanish_count.update(spanish_words)
        for word in english_words:
            pair_counts.setdefault(word, Counter()).update(spanish_words)
    best = {
        word: max(counts, key=lambda other: 2 * counts[other] / (english_count[word] + spanish_count[other]))
        for word, counts in pair_counts.items()
    }
    references = held_out(splits)
    sentences = sorted(references)
    random.Random(0).shuffle(sentences)
    sentences = sentences[:_ASSESSED]
    wanted_references = [references[sentence] for sentence in sentences]
    translations = [
        re.sub(r"\s+([^\w\s])", r"\1", " ".join(best.get(word, word) for word in _WORD.findall(sentence.lower())))
        for sentence in sentences
    ]
    copied = measures(sentences, wanted_references)
    return {**measures(translations, wanted_references), "copy_chrf": copied["chrf"], "copy_bleu": copied["bleu"]}

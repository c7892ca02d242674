"""Translation word by word, with a dictionary that is made from the pairs; and none at all, which copies."""

from __future__ import annotations

import random
import re
from collections import Counter

from drivetrain_workers.assessment.splits import Splits
from measures import held_out, measures, texts

_WORD = re.compile(r"\w+|[^\w\s]")
_ASSESSED = 200


def dictionary(splits: Splits) -> dict[str, float]:
    """Each word becomes the one that it goes with most often, by Dice's coefficient (1945)."""
    together: dict[str, Counter[str]] = {}
    english_count: Counter[str] = Counter()
    spanish_count: Counter[str] = Counter()
    for english, spanish in texts(splits, "train"):
        ours, theirs = set(_WORD.findall(english.lower())), set(_WORD.findall(spanish.lower()))
        english_count.update(ours)
        spanish_count.update(theirs)
        for word in ours:
            together.setdefault(word, Counter()).update(theirs)
    best = {
        word: max(counts, key=lambda other: 2 * counts[other] / (english_count[word] + spanish_count[other]))
        for word, counts in together.items()
    }
    references = held_out(splits)
    sentences = sorted(references)
    random.Random(0).shuffle(sentences)
    sentences = sentences[:_ASSESSED]
    wanted = [references[sentence] for sentence in sentences]
    spoken = [
        re.sub(r"\s+([^\w\s])", r"\1", " ".join(best.get(word, word) for word in _WORD.findall(sentence.lower())))
        for sentence in sentences
    ]
    copied = measures(sentences, wanted)
    return {**measures(spoken, wanted), "copy_chrf": copied["chrf"], "copy_bleu": copied["bleu"]}

"""Quality of translations: chrF (Popović 2015) and BLEU (Papineni et al. 2002), by sacrebleu."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
from data import SEPARATOR
from drivetrain_workers.assessment.splits import Splits
from sacrebleu import corpus_bleu, corpus_chrf


def texts(splits: Splits, split: str) -> list[tuple[str, str]]:
    """Return pairs of English and Spanish sentences of ``train`` or ``evaluation``, decoded from tokens."""
    assert splits.tokenizer
    rows = np.asarray(getattr(splits, split)["tokens"])
    found = splits.tokenizer.decode_batch([row[row > 0].tolist() for row in rows], skip_special_tokens=False)
    return [
        (english, spanish) for english, separator, spanish in (text.partition(SEPARATOR) for text in found) if separator
    ]


def held_out(splits: Splits) -> dict[str, list[str]]:
    """Return the translations of each held-out English sentence."""
    references: dict[str, list[str]] = defaultdict(list)
    for english, spanish in texts(splits, "evaluation"):
        references[english].append(spanish)
    return references


def measures(translations: list[str], references: list[list[str]]) -> dict[str, float]:
    """Compute chrF and BLEU, 0 to 100 each. Sentences with fewer references repeat their first one."""
    most = max(map(len, references))
    columns = [[own[n] if n < len(own) else own[0] for own in references] for n in range(most)]
    return {"chrf": corpus_chrf(translations, columns).score, "bleu": corpus_bleu(translations, columns).score}

"""How good translations are: chrF (Popović 2015) and BLEU (Papineni et al. 2002), by sacrebleu."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
from data import MARK
from drivetrain_workers.assessment.splits import Splits
from sacrebleu import corpus_bleu, corpus_chrf


def texts(splits: Splits, split: str) -> list[tuple[str, str]]:
    """Pairs of English and Spanish sentences of ``train`` or ``evaluation``, as they were tokenized."""
    assert splits.tokenizer
    rows = np.asarray(getattr(splits, split)["tokens"])
    found = splits.tokenizer.decode_batch([row[row > 0].tolist() for row in rows], skip_special_tokens=False)
    return [(english, spanish) for english, mark, spanish in (text.partition(MARK) for text in found) if mark]


def held_out(splits: Splits) -> dict[str, list[str]]:
    """Translations of each English sentence that was held out."""
    references: dict[str, list[str]] = defaultdict(list)
    for english, spanish in texts(splits, "evaluation"):
        references[english].append(spanish)
    return references


def measures(spoken: list[str], references: list[list[str]]) -> dict[str, float]:
    """0 to 100 each. A sentence may have several references; what has fewer than others is filled up with its first."""
    most = max(map(len, references))
    columns = [[own[n] if n < len(own) else own[0] for own in references] for n in range(most)]
    return {"chrf": corpus_chrf(spoken, columns).score, "bleu": corpus_bleu(spoken, columns).score}

"""Classic methods on the same split, for comparison with the network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from drivetrain_pipelines.errors import InputError
from drivetrain_pipelines.stream.columns import Columns, Ragged, Values

from drivetrain_workers.assessment.scores import Outcomes, scores
from drivetrain_workers.assessment.splits import Splits
from drivetrain_workers.classification import main_column

_MAX_COMPONENTS = 100
_MAX_TRAINING_ROWS = 10_000
_DISCOUNT = 0.75  # subtracted from every count, in favour of shorter contexts (Ney, Essen, Kneser 1994)


def standard_baseline(splits: Splits) -> tuple[str, Callable[[Splits], dict[str, float]]]:
    """Return the name and the function of the standard method for a kind of data.

    Raises:
        InputError: there is none for this data.
    """
    labelled = "label" in splits.train
    if splits.tokenizer:
        return ("TF-IDF and logistic regression", bag_of_tokens) if labelled else ("trigram", trigram)
    if labelled:
        return "logistic regression", logistic_regression
    raise InputError("baseline", "true, for data without labels", "baseline: {function: module:function}")


def logistic_regression(splits: Splits) -> dict[str, float]:
    """Score principal components of the input with logistic regression on the eval split.

    Args:
        splits: with a column ``label`` ``[rows, 1]``.
    """
    from sklearn.decomposition import PCA
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    labels = _labels(splits.train)
    some = slice(None, None, -(-len(labels) // _MAX_TRAINING_ROWS))
    inputs, labels = _flat(splits.train, some), labels[some]
    components = min(_MAX_COMPONENTS, *inputs.shape)
    reduced = PCA(components, random_state=0)
    method = make_pipeline(StandardScaler(), reduced, StandardScaler(), LogisticRegression(max_iter=2000, C=0.1))
    method.fit(inputs, labels)
    return _scores(method, _flat(splits.evaluation), _labels(splits.evaluation))


def bag_of_tokens(splits: Splits) -> dict[str, float]:
    """Score TF-IDF weights of tokens with logistic regression on the eval split."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    def tokens(row: npt.NDArray[np.int64]) -> list[int]:
        return row[row > 0].tolist()  # type: ignore[no-any-return]  # a list of numbers; 0 is padding

    features = TfidfVectorizer(analyzer=tokens, sublinear_tf=True)
    method = make_pipeline(features, LogisticRegression(max_iter=2000, C=10.0))
    method.fit(_integers(splits.train["tokens"]), _labels(splits.train))
    return _scores(method, _integers(splits.evaluation["tokens"]), _labels(splits.evaluation))


def _scores(method: Any, inputs: npt.NDArray[Any], targets: npt.NDArray[np.int64]) -> dict[str, float]:
    known = method.predict_proba(inputs)
    probabilities = np.zeros((len(known), int(max(method.classes_.max(), targets.max())) + 1))
    probabilities[:, method.classes_] = known
    found = scores(Outcomes.of(probabilities, targets, np.zeros(len(targets), int)))
    return {**found, "loss": found["log_loss"]}


def trigram(splits: Splits) -> dict[str, float]:
    """Score an interpolated Kneser-Ney trigram (Chen and Goodman 1999): ``loss`` in nats per token, and perplexity."""
    assert splits.tokenizer
    model = _Trigram(_integers(splits.train["tokens"]), splits.tokenizer.get_vocab_size())
    losses = -np.log(model.probabilities(_integers(splits.evaluation["tokens"])))
    if "segments" in splits.evaluation:  # like for the network, padding and the first token of a document do not count
        segments = _integers(splits.evaluation["segments"])
        losses = losses[(segments[:, 1:] > 0) & (segments[:, 1:] == segments[:, :-1])]
    loss = float(losses.mean())
    return {"loss": loss, "perplexity": float(np.exp(loss))}


class _Trigram:
    """Counts of sequences of one to three tokens, and the resulting probabilities of the next token.

    Args:
        rows: int64 ``[rows, tokens]``; each row is a separate text.
    """

    def __init__(self, rows: npt.NDArray[np.int64], vocab_size: int) -> None:
        self._size = vocab_size
        pairs = np.unique(self._pair(rows[:, :-1], rows[:, 1:]))
        triples, triple_counts = np.unique(
            self._pair(self._pair(rows[:, :-2], rows[:, 1:-1]), rows[:, 2:]), return_counts=True
        )
        self._triples = _Table(triples, triple_counts)
        self._after_pair = _Table.sums(triples // vocab_size, triple_counts)  # how often a pair had a successor
        self._kinds_after_pair = _Table.sums(triples // vocab_size)
        # Shorter contexts count the distinct contexts in which a token occurs.
        within = triples % (vocab_size * vocab_size)
        self._kinds_of_pair = _Table.sums(within)
        self._kinds_around = _Table.sums(within // vocab_size)
        seen = np.unique(within)
        self._kinds_after = _Table.sums(seen // vocab_size)
        self._kinds_before = np.bincount(pairs % vocab_size, minlength=vocab_size)

    def probabilities(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """Return the probability of each token given its predecessors in the row; ``[rows, tokens - 1]``."""
        first, second = self._lower(rows[:, :1], rows[:, 1:2]), self._lower(rows[:, 1:-1], rows[:, 2:])
        context = self._pair(rows[:, :-2], rows[:, 1:-1])
        counts = self._triples(self._pair(context, rows[:, 2:]))
        higher = self._mixed(counts, self._after_pair(context), self._kinds_after_pair(context), second)
        return np.concatenate([first, higher], axis=1)

    def _lower(self, before: npt.NDArray[np.int64], token: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        total = self._kinds_before.sum()
        alone = np.maximum(self._kinds_before[token] - _DISCOUNT, 0) / total
        alone = alone + _DISCOUNT * np.count_nonzero(self._kinds_before) / total / self._size
        counts = self._kinds_of_pair(self._pair(before, token))
        return self._mixed(counts, self._kinds_around(before), self._kinds_after(before), alone)

    @staticmethod
    def _mixed(counts: Any, total: Any, kinds: Any, lower: Any) -> npt.NDArray[np.float64]:
        known = np.maximum(total, 1)
        found: npt.NDArray[np.float64] = np.where(
            total > 0, np.maximum(counts - _DISCOUNT, 0) / known + _DISCOUNT * kinds / known * lower, lower
        )
        return found

    def _pair(self, first: npt.NDArray[np.int64], second: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        return first * self._size + second


class _Table:
    """Counts by key; missing keys count 0."""

    def __init__(self, keys: npt.NDArray[np.int64], counts: npt.NDArray[Any]) -> None:
        self._keys, self._counts = keys, counts

    @classmethod
    def sums(cls, keys: npt.NDArray[np.int64], counts: npt.NDArray[Any] | None = None) -> _Table:
        """Create a table from repeated keys: the sums of their counts, or how often they occur."""
        unique, inverse = np.unique(keys, return_inverse=True)
        return cls(unique, np.bincount(inverse, counts, len(unique)))

    def __call__(self, keys: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        place = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
        found: npt.NDArray[Any] = np.where(self._keys[place] == keys, self._counts[place], 0)
        return found


def _flat(columns: Columns, rows: slice = slice(None)) -> npt.NDArray[np.float32]:
    """Return the model's input as one row of numbers per sample; of a table, all columns but the label."""
    main = main_column(columns)
    names = [main] if main in ("image", "mel", "tokens") else [name for name in columns if name != "label"]
    parts = []
    for values in (columns[name] for name in names):
        if isinstance(values, Ragged):
            raise InputError("baseline", "true, for rows of different lengths", "baseline: {function: module:function}")
        parts.append(values[rows].reshape(len(values[rows]), -1).astype(np.float32))
    return np.concatenate(parts, axis=1)


def _labels(columns: Columns) -> npt.NDArray[np.int64]:
    return _integers(columns["label"])[:, 0]


def _integers(values: Values) -> npt.NDArray[np.int64]:
    assert not isinstance(values, Ragged)
    return values.astype(np.int64)

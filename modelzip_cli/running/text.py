"""Text as data: windows of one long text, and texts of any length, filled up batch by batch."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from modelzip_cli.errors import BadData, UsageError
from modelzip_cli.running.arrays import ArrayExamples, token_examples
from modelzip_cli.running.content import Origin, decode_text
from modelzip_cli.running.inputs import IGNORED, Batch, Examples, Rows, Wanted, fingerprint
from modelzip_cli.running.tokenizer import TOKENIZERS, Encode, Tokenizer, as_tokenizer

WINDOW = 64  # tokens, for a model that says nothing
LONGEST_WINDOW = 2048  # for a model that takes more: at this length perplexities are quoted (GPTQ, arXiv:2210.17323)


class TextExamples(Examples):
    """Token sequences of any lengths. A batch is as long as its longest, or as `time`, and filled up with `pad`.

    `labels` int64 [n], or None; `next_token`: each position is labelled with the token after it, the last one falls
    away, and what is filled up is IGNORED. `mask`: a second input says which positions count, int64 [batch, time].
    """

    def __init__(
        self,
        origin: Origin,
        sequences: Sequence[NDArray[np.int64]],
        labels: NDArray[np.int64] | None,
        *,
        next_token: bool = False,
        pad: int = 0,
        time: int | None = None,
        mask: bool = False,
    ) -> None:
        self.label, self.classes, self.warnings = origin.label, origin.classes, origin.warnings
        self.labels, self.labelled = labels, next_token or labels is not None
        self.a_label_a_position = next_token
        self._starts = np.cumsum([0, *map(len, sequences)])
        self._tokens = np.concatenate(sequences)
        self._pad, self._time, self._mask, self._place = pad, time, mask, origin.place
        tokens = hashlib.sha256(self._tokens.tobytes() + self._starts.tobytes()).hexdigest()
        self.fingerprint = fingerprint(origin.digest, tokens, next_token, pad, time, mask)

    def __len__(self) -> int:
        return len(self._starts) - 1

    def batch(self, rows: Rows) -> Batch:
        """Gather and fill up."""
        starts = self._starts[rows]
        lengths = self._starts[rows + 1] - starts
        longest = int(lengths.max()) if self._time is None else self._time + self.a_label_a_position
        inside = np.arange(longest) < lengths[:, None]  # [batch, time]
        tokens = np.full(inside.shape, self._pad, np.int64)
        tokens[inside] = self._tokens[(starts[:, None] + np.arange(longest))[inside]]
        labels = None if self.labels is None else self.labels[rows]
        if self.a_label_a_position:
            labels = np.where(inside, tokens, IGNORED)[:, 1:]
            tokens, inside = tokens[:, :-1], inside[:, :-1]
        inputs = (tokens, inside.astype(np.int64)) if self._mask else (tokens,)
        return Batch(
            tuple(torch.from_numpy(np.ascontiguousarray(values)) for values in inputs),
            None if labels is None else torch.from_numpy(np.ascontiguousarray(labels)),
        )

    def place(self, row: int) -> str:
        """The line of the text."""
        return self._place(row)


def open_texts(
    texts: Sequence[str | list[int]],
    labels: NDArray[np.int64] | None,
    origin: Origin,
    wanted: Wanted,
    encode: Encode | None,
) -> TextExamples:
    """Texts, or lists of tokens, one an example; without `labels` they are for a language model, unless it is none.

    Longer ones than the model takes are cut, with a warning; a language model does without those of one token or none.
    Raises UsageError without a tokenizer, BadData for a text without a token.
    """
    next_token = labels is None and wanted.positions is not False
    time = _fixed_time(wanted)
    most = time or wanted.context
    sequences, cut = _encoded(texts, encode, origin.label, None if most is None else most + next_token)
    if cut:
        origin = origin.warn(f"{cut:,} of {len(texts):,} texts were cut to the {most} tokens that the model takes")
    kept = [row for row, tokens in enumerate(sequences) if len(tokens) > next_token]
    if not next_token and len(kept) < len(sequences):
        raise BadData(f"{origin.place(_first_gap(kept))}: a text without a token")
    if not kept:
        raise BadData(f"{origin.label}: no text has two tokens, so no token has one after it to be its label")
    if len(kept) < len(sequences):
        origin = origin.warn(f"{len(sequences) - len(kept):,} of {len(texts):,} texts have no two tokens: left out")
    place = origin.place
    return TextExamples(
        replace(origin, name_row=lambda row: place(kept[row])),
        [sequences[row] for row in kept],
        labels,
        next_token=next_token,
        pad=as_tokenizer(encode).pad if encode else 0,
        time=time,
        mask=wanted.inputs > 1,
    )


def _first_gap(rows: Sequence[int]) -> int:
    """The first number that ascending `rows` from 0 do without."""
    return next((number for number, row in enumerate(rows) if number != row), len(rows))


def _encoded(
    texts: Sequence[str | list[int]], encode: Encode | None, label: str, most: int | None
) -> tuple[list[NDArray[np.int64]], int]:
    """Texts as tokens, at most `most` of each, and how many had more."""
    sequences, cut = [], 0
    for text in texts:
        tokens = _needed(encode, label)(text) if isinstance(text, str) else text
        if most is not None and len(tokens) > most:
            cut += 1
            tokens = _needed(encode, label).cut(text, most) if isinstance(text, str) else tokens[:most]
        sequences.append(np.array(tokens, np.int64))
    return sequences, cut


def _needed(encode: Encode | None, label: str) -> Tokenizer:
    """The tokenizer. Raises UsageError where there is none."""
    if encode is None:
        raise UsageError(f"{label}: text needs the tokenizer of the model; --tokenizer names one: {TOKENIZERS}")
    return as_tokenizer(encode)


def _fixed_time(wanted: Wanted) -> int | None:
    """The number of tokens that the model takes, where it takes no other."""
    return wanted.shape[0] if wanted.shape is not None and len(wanted.shape) == 1 else None


def open_text(content: bytes, origin: Origin, wanted: Wanted, encode: Encode | None) -> ArrayExamples:
    """One long text for a language model, cut into windows; each position is labelled with the token after it.

    A window ends with the token that the next one starts with, so that none is predicted twice; a last short window is
    dropped. It is as long as the model's input, its context, or WINDOW, but at most LONGEST_WINDOW.
    Raises UsageError for other models and without a tokenizer, BadData for a text shorter than a window.
    """
    label = origin.label
    if wanted.kind != "tokens" or wanted.positions is False:
        raise UsageError(f"{label}: one long text is for language models; give examples with labels")
    tokens = np.array(_needed(encode, label)(decode_text(content, label)), np.int64)
    time = _fixed_time(wanted) or min(wanted.context or WINDOW, LONGEST_WINDOW, max(len(tokens) - 1, 1))
    if len(tokens) <= time:
        raise BadData(f"{label}: {len(tokens):,} tokens, but one window takes {time + 1:,}")
    windows = np.lib.stride_tricks.sliding_window_view(tokens, time + 1)[::time]
    digest = fingerprint(hashlib.sha256(tokens.tobytes()).hexdigest(), time)
    return token_examples(windows, None, replace(origin, digest=digest), wanted)

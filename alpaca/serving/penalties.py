"""What settings take from the logits of tokens that were said, and of those that would end an answer too early.

Only those tokens are touched, of all rows together: a GPU gets two short lists and a handful of operations, however
many rows there are and however large the vocabulary is.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from alpaca.serving.request import GenerationRequest
from alpaca.serving.transfer import send


class Penalties:
    """Those of one answer, and the tokens that they are about.

    Repetition counts the prompt too and divides (arXiv:1909.05858); presence and frequency are subtracted for tokens of
    the answer, once and as often as they occurred; before `min_tokens` nothing may end the answer.
    """

    def __init__(self, request: GenerationRequest, prompt: Sequence[int], eos_ids: Sequence[int]) -> None:
        self._request = request
        self._eos_ids = list(eos_ids)
        self._said = 0
        self._repetition = request.repetition_penalty != 1.0
        self._counting = self._repetition or bool(request.presence_penalty or request.frequency_penalty)
        distinct = dict.fromkeys(prompt) if self._repetition else {}
        self._at = {token: number for number, token in enumerate(distinct)}
        self._ids = array("q", distinct)
        self._counts = array("f", [0.0] * len(distinct))

    def accept(self, token: int) -> None:
        """The answer says `token`."""
        self._said += 1
        if not self._counting:
            return
        at = self._at.setdefault(token, len(self._ids))
        if at == len(self._ids):
            self._ids.append(token)
            self._counts.append(0.0)
        self._counts[at] += 1

    @property
    def ids(self) -> np.ndarray:
        """[n] tokens that are penalised, each once."""
        return np.asarray(self._ids)

    @property
    def divisors(self) -> np.ndarray:
        """[n] what a positive logit is divided by and a negative one multiplied with."""
        return np.full(len(self._ids), self._request.repetition_penalty, np.float32)

    @property
    def subtracted(self) -> np.ndarray:
        """[n] what is subtracted afterwards."""
        counts = np.asarray(self._counts)
        once, each = np.float32(self._request.presence_penalty), np.float32(self._request.frequency_penalty)
        return once * (counts > 0) + each * counts

    @property
    def forbidden(self) -> list[int]:
        """Tokens that must not come now."""
        return self._eos_ids if self._said < self._request.min_tokens else []


def penalise(logits: Tensor, penalties: Sequence[Penalties]) -> None:
    """Change logits [rows, vocabulary] in place, each row by its own penalties."""
    rows = [(number, row) for number, row in enumerate(penalties) if len(row.ids)]
    if rows:
        ids = np.concatenate([row.ids for _, row in rows])
        places = np.stack([np.repeat([number for number, _ in rows], [len(row.ids) for _, row in rows]), ids])
        by = np.stack([np.concatenate([getattr(row, of) for _, row in rows]) for of in ("divisors", "subtracted")])
        at = tuple(send(torch.from_numpy(places), logits.device))
        divisors, subtracted = send(torch.from_numpy(by), logits.device)
        scores = logits[at]
        logits.index_put_(at, torch.where(scores < 0, scores * divisors, scores / divisors) - subtracted)
    forbidden = [(number, token) for number, row in enumerate(penalties) for token in row.forbidden]
    if forbidden:
        at = tuple(send(torch.tensor(forbidden).T.contiguous(), logits.device))
        logits.index_put_(at, logits.new_full((), -torch.inf))

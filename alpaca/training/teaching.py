"""What it costs that the base teaches some rows (`packed.taught`): it reads them once more, without gradients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from alpaca.packed.batch import label_count
from alpaca.packed.packing import Pack, Step
from alpaca.prompts.encode import Encoded


@dataclass(frozen=True)
class Teaching:
    """The rows that the base reads once more: their tokens and labels in all steps, and the labels of the micro-batch
    that has the most."""

    tokens: int = 0
    labels: int = 0
    most_labels: int = 0

    def flop(self, layer_weights: int, head_weights: int) -> int:
        """Beside what the rows cost as any other: a forward pass, 2 for each matrix weight and token. The head turns
        the teacher's states into logits too."""
        return 2 * layer_weights * self.tokens + 2 * head_weights * self.labels

    def memory(self, largest: int, width: int, size: int) -> int:
        """Bytes beside what a micro-batch of `largest` tokens takes, its states `width` numbers of `size` bytes.

        Only states are held: the teacher's of its labels, and those of all labels once more, parted into taught ones
        and others. Its layers are through before the first activation is kept for the backward pass. The two sets of
        logits are made for half as many labels at a time as one set is (`packed.loss`).
        """
        return (largest + self.most_labels) * width * size if self.labels else 0


NOTHING_TAUGHT = Teaching()


def teaching_of(steps: Sequence[Step], examples: Sequence[Encoded], first: int | None) -> Teaching:
    """What `steps` have of the examples from index `first` on, which the base teaches; nothing for None."""
    if first is None:
        return NOTHING_TAUGHT
    tokens = sum(len(examples[index]) for step in steps for index in step.examples if index >= first)
    labels = [_labels(pack, examples, first) for step in steps for rank in step.packs for pack in rank]
    return Teaching(tokens, sum(labels), max(labels, default=0))


def taught_tokens(pack: Pack, examples: Sequence[Encoded], first: int | None) -> int:
    """Tokens of a pack that the base reads once more."""
    return 0 if first is None else sum(len(examples[index]) for index in pack if index >= first)


def _labels(pack: Pack, examples: Sequence[Encoded], first: int) -> int:
    return sum(label_count(examples[index]) for index in pack if index >= first)

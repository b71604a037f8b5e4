"""A pack as tensors: a label belongs to the position before it, in its own example."""

from __future__ import annotations

from alpaca.packed.batch import collate, label_count
from alpaca.prompts.encode import Encoded


def test_examples_lie_end_to_end_with_positions_and_labels_of_their_own() -> None:
    examples = [Encoded([5, 6, 7, 8], [(2, 4)], row=11), Encoded([9, 10, 11, 12, 13], [(1, 2), (4, 5)], row=12)]
    batch = collate((1, 0), examples)
    assert batch.input_ids.tolist() == [[9, 10, 11, 12, 13, 5, 6, 7, 8]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 4, 0, 1, 2, 3]]
    assert batch.bounds == [0, 5, 9]
    assert batch.label_positions.tolist() == [0, 3, 6, 7]
    assert batch.targets.tolist() == [10, 13, 7, 8]
    assert [label_count(example) for example in examples] == [2, 2]


def test_the_first_token_of_an_example_is_nobody_s_target() -> None:
    examples = [Encoded([5, 6], [(0, 2)]), Encoded([7, 8], [(0, 2)]), Encoded([9], [(0, 1)])]
    batch = collate((0, 1, 2), examples)
    assert batch.label_positions.tolist() == [0, 2]
    assert batch.targets.tolist() == [6, 8]
    assert [label_count(example) for example in examples] == [1, 1, 0]


def test_an_idle_pack_has_tokens_and_no_labels() -> None:
    batch = collate((), [])
    assert batch.input_ids.shape == (1, 2)
    assert (batch.bounds, len(batch.targets)) == ([0, 2], 0)

"""Rows that decode share a product where their ranges allow it, and nobody reads what is not his."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from alpaca.serving.attention import SLACK, Gathered, Row, Span, attend, prefill, spans

CPU = torch.device("cpu")
KV_HEADS, GROUP, SIZE = 2, 3, 8


def grouped(*rows: tuple[int, int, int]) -> list[tuple[int, int, int]]:
    """The first row, the number of rows and the distance of every span."""
    return [(span.first, span.last - span.first, span.stride) for span in spans([Row(*row) for row in rows], CPU)]


def test_ranges_at_equal_distances_share_a_product() -> None:
    assert grouped((0, 64, 9), (64, 64, 5), (128, 64, 7), (192, 64, 9)) == [(0, 4, 64)]
    assert grouped((0, 64, 9), (192, 64, 5), (384, 64, 7)) == [(0, 3, 192)]


def test_two_ranges_always_do_and_a_third_at_another_distance_does_not() -> None:
    assert grouped((0, 64, 9), (640, 64, 5), (704, 64, 5)) == [(0, 2, 640), (2, 1, 0)]


def test_rows_of_very_different_lengths_do_not() -> None:
    long = 2 * 20 + SLACK
    assert grouped((0, 512, 20), (512, 512, long)) == [(0, 2, 512)]
    assert grouped((0, 512, 20), (512, 512, long + 1)) == [(0, 1, 0), (1, 1, 0)]


def test_a_row_is_never_read_beyond_its_range() -> None:
    assert grouped((0, 64, 20), (64, 128, 64)) == [(0, 2, 64)]
    assert grouped((0, 64, 20), (64, 128, 65)) == [(0, 1, 0), (1, 1, 0)]


def plain(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, start: int, length: int) -> torch.Tensor:
    """One token's attention over `length` tokens of the pool, by the book: [heads, head_dim]."""
    k, v = (memory[:, start : start + length].repeat_interleave(GROUP, 0) for memory in (keys, values))
    return functional.scaled_dot_product_attention(query[:, None], k, v, scale=0.3)[:, 0]


def gathered(rows: list[Row], longest: int) -> Gathered:
    """All rows together, each reading `longest` tokens of which only its own are not masked."""
    reach = torch.arange(longest)
    at = torch.tensor([[row.start, row.length - 1] for row in rows])
    index = at[:, :1] + torch.minimum(reach, at[:, 1:])
    mask = torch.zeros(index.shape).masked_fill(reach > at[:, 1:], -torch.inf)
    return Gathered(0, len(rows), index.flatten(), mask[:, None, None, :])


@settings(deadline=None)
@given(st.data())
def test_every_row_attends_to_its_own_tokens_whatever_lies_around(data: st.DataObject) -> None:
    """What is not of the running answers is NaN, and what they have not written yet is zero, as the cache keeps it."""
    start, rows = 0, []
    for _ in range(data.draw(st.integers(1, 6))):
        start += 64 * data.draw(st.sampled_from([0, 0, 1, 3]))
        size = 64 * data.draw(st.sampled_from([1, 1, 2, 8]))
        rows.append(Row(start, size, data.draw(st.integers(1, size))))
        start += size
    keys, values = (torch.full((KV_HEADS, start + 64, SIZE), torch.nan) for _ in range(2))
    for memory in (keys, values):
        for row in rows:
            memory[:, row.start : row.start + row.size] = 0
            memory[:, row.start : row.start + row.length] = torch.randn(KV_HEADS, row.length, SIZE)
    query = torch.randn(len(rows), KV_HEADS * GROUP, SIZE)
    found = torch.empty_like(query)
    attend(query, keys, values, spans(rows, CPU), 0.3, found)
    copied = torch.empty_like(query)
    attend(query, keys, values, [gathered(rows, data.draw(st.sampled_from([512, 513, 1024])))], 0.3, copied)
    for number, row in enumerate(rows):
        wanted = plain(query[number], keys, values, row.start, row.length)
        torch.testing.assert_close(found[number], wanted)
        torch.testing.assert_close(copied[number], wanted)


@pytest.mark.parametrize("done", [0, 5])
def test_a_chunk_of_a_prompt_attends_to_what_came_before_in_it(done: int) -> None:
    keys, values = torch.randn(KV_HEADS, 256, SIZE), torch.randn(KV_HEADS, 256, SIZE)
    query = torch.randn(7, KV_HEADS * GROUP, SIZE)
    found = torch.empty_like(query)
    parts: list[Span] = spans([Row(0, 64, 3)], CPU)
    attend(query, keys, values, [*parts, prefill(1, 6, 64, done, GROUP, CPU)], 0.3, found)
    for number in range(6):
        wanted = plain(query[1 + number], keys, values, 64, done + number + 1)
        torch.testing.assert_close(found[1 + number], wanted)

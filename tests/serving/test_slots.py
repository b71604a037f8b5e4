"""One pool of tokens: no two answers overlap, nothing leaks, and a prompt finds the slot that remembers most of it."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alpaca.serving.slots import BASE, BLOCK, WORTH, Grant, Key, Slot, Slots, in_blocks

ADAPTER: Key = ((("abc", 1.0),), "")
LONG = list(range(100, 140))


def take(slots: Slots, prompt: list[int], key: Key = BASE, length: int = 0) -> Grant:
    """A slot of a block, or of what holds `length` tokens, with the prompt computed in it."""
    grant = slots.take(key, prompt, max(length, len(prompt)))
    assert grant is not None
    assert grant.slot.tokens == prompt[: grant.reused]
    grant.slot.tokens += prompt[grant.reused :]
    return grant


def use(slots: Slots, prompt: list[int], key: Key = BASE, length: int = 0) -> Slot:
    """Take a slot, compute the prompt in it, and give it back."""
    slot = take(slots, prompt, key, length).slot
    slots.release(slot)
    return slot


def words(number: int, count: int = 20) -> list[int]:
    """A prompt that has nothing in common with those of other numbers."""
    return [1000 + number] * count


# --- room ---------------------------------------------------------------------------------------------------------
def test_an_answer_takes_what_it_may_need_in_whole_blocks() -> None:
    slots = Slots(9, 10 * BLOCK)
    grants = [take(slots, [1, 2], length=length) for length in (1, BLOCK, BLOCK + 1, 3 * BLOCK)]
    assert [(grant.slot.start // BLOCK, grant.slot.size // BLOCK) for grant in grants] == [
        (0, 1),
        (1, 1),
        (2, 2),
        (4, 3),
    ]


def test_what_eight_contexts_take_holds_sixty_answers_of_a_thousand_tokens() -> None:
    slots = Slots(64, 8 * 8192)
    assert sum(slots.take(BASE, [1] * 24, 1024) is not None for _ in range(64)) == 64
    one = Slots(64, 8 * 8192)
    assert one.take(BASE, [1] * 24, 8192) is not None


def test_all_places_are_handed_out_and_no_more() -> None:
    slots = Slots(3, 9 * BLOCK)
    grants = [take(slots, [1, 2]) for _ in range(3)]
    assert (slots.free, slots.fits(1), slots.take(BASE, [1, 2], 2)) == (0, False, None)
    slots.release(grants[1].slot)
    assert (slots.free, take(slots, [3]).slot.start) == (1, BLOCK)


def test_without_room_there_is_no_slot_though_a_place_is_free() -> None:
    slots = Slots(3, 4 * BLOCK)
    first = take(slots, [1, 2], length=3 * BLOCK).slot
    assert (slots.free, slots.fits(BLOCK), slots.fits(BLOCK + 1)) == (2, True, False)
    assert slots.take(BASE, [1, 2], 2 * BLOCK) is None
    slots.release(first)
    assert slots.fits(4 * BLOCK)


def test_room_in_several_pieces_is_pushed_together() -> None:
    slots = Slots(4, 4 * BLOCK)
    first, second, third, fourth = (take(slots, words(n)).slot for n in range(4))
    slots.release(first)
    slots.release(third)
    grant = take(slots, words(5), length=2 * BLOCK)
    assert grant.moves == ((BLOCK, second), (3 * BLOCK, fourth))
    assert [slot.start // BLOCK for slot in (second, fourth, grant.slot)] == [0, 1, 2]
    slots.release(grant.slot)
    again = take(slots, words(1))
    assert (again.reused, again.source) == (19, 0), "what moved is remembered where it is now"


def test_what_is_forgotten_for_that_is_not_reused() -> None:
    slots = Slots(4, 4 * BLOCK)
    use(slots, LONG)
    take(slots, words(1))
    other = take(slots, words(2)).slot
    take(slots, words(3))
    slots.release(other)
    grant = take(slots, LONG, length=2 * BLOCK)
    assert (len(grant.moves), grant.slot.start, grant.reused, grant.source) == (2, 2 * BLOCK, 0, None)


# --- what is remembered -------------------------------------------------------------------------------------------
def test_a_prompt_gets_the_slot_that_remembers_most_of_it() -> None:
    slots = Slots(3, 3 * BLOCK)
    use(slots, LONG[:10])
    longest = use(slots, [*LONG[:20], 1, 2])
    use(slots, [7] * 30)
    grant = take(slots, LONG)
    assert (grant.slot.start, grant.reused, grant.source) == (longest.start, 20, None)


def test_the_last_token_is_always_computed() -> None:
    slots = Slots(2, 2 * BLOCK)
    use(slots, LONG)
    assert take(slots, LONG).reused == len(LONG) - 1
    assert take(slots, LONG[:20]).reused == 19


def test_what_an_adapter_computed_is_of_use_to_the_same_strength_of_the_same_adapter_only() -> None:
    slots = Slots(8, 8 * BLOCK)
    use(slots, LONG, ADAPTER)
    one, half, other = ("abc", 1.0), ("abc", 0.5), ("abd", 1.0)
    for key in (BASE, ((half,), ""), ((other,), ""), ((one, other), ""), ((one,), " of another")):
        assert take(slots, LONG, key).reused == 0
    assert take(slots, LONG, ADAPTER).reused == len(LONG) - 1


def test_what_is_in_use_is_copied() -> None:
    slots = Slots(2, 2 * BLOCK)
    running = take(slots, LONG).slot
    grant = take(slots, [*LONG[:30], 1, 2, 3])
    assert (grant.slot.start, grant.reused, grant.source) == (BLOCK, 30, running.start)
    assert running.tokens == LONG


def test_a_conversation_stays_where_it_is_while_there_is_room_behind_it() -> None:
    slots = Slots(4, 8 * BLOCK)
    before = take(slots, words(1), length=3 * BLOCK).slot
    talk = use(slots, LONG)
    slots.release(before, broken=True)
    grant = take(slots, LONG * 3, length=3 * BLOCK)  # there is as much room before it
    assert (grant.slot.start, grant.reused, grant.source) == (talk.start, len(LONG), None)


def test_a_conversation_moves_to_where_there_is_room_and_its_old_place_goes_first() -> None:
    slots = Slots(4, 4 * BLOCK)
    use(slots, LONG)
    use(slots, words(1))
    grant = take(slots, LONG * 3, length=2 * BLOCK)
    assert (grant.slot.start, grant.reused, grant.source) == (2 * BLOCK, len(LONG), 0)
    assert take(slots, words(2)).slot.start == 0
    assert take(slots, words(1)).reused == 19


def test_a_slot_with_much_more_in_it_is_copied_from_and_left_alone() -> None:
    slots = Slots(3, 3 * BLOCK)
    talk = use(slots, LONG)
    use(slots, words(1))
    use(slots, words(2))
    grant = take(slots, [*LONG[:10], 1, 2, 3])
    assert (grant.slot.start, grant.source, grant.reused) == (BLOCK, talk.start, 10), "though it was unused for longest"
    take(slots, words(3))
    # but where it is the only one left it is given up
    grant = take(slots, [*LONG[:10], 4, 5, 6])
    assert (grant.slot.start, grant.reused, grant.source) == (talk.start, 10, None)


def test_of_two_that_remember_as_much_the_idle_one_is_taken() -> None:
    slots = Slots(3, 3 * BLOCK)
    use(slots, LONG)
    take(slots, LONG)
    copy = take(slots, LONG).slot
    slots.release(copy)
    grant = take(slots, LONG)
    assert (grant.slot.start, grant.source) == (copy.start, None)


def test_few_tokens_in_common_are_not_looked_for() -> None:
    slots = Slots(1, BLOCK)
    use(slots, LONG)
    assert take(slots, [*LONG[: WORTH - 1], 1, 2, 3]).reused == 0


def test_nothing_of_a_failed_step_is_remembered() -> None:
    slots = Slots(1, BLOCK)
    slots.release(take(slots, LONG).slot, broken=True)
    assert take(slots, LONG).reused == 0


# --- who makes room -----------------------------------------------------------------------------------------------
def test_what_was_never_used_goes_first_and_then_what_was_unused_for_longest() -> None:
    slots = Slots(3, 3 * BLOCK)
    first, second = use(slots, words(1)).start, use(slots, words(2)).start
    assert use(slots, words(3)).start == 2 * BLOCK
    assert use(slots, words(1)).start == first
    assert use(slots, words(4)).start == second
    assert use(slots, words(5)).start == 2 * BLOCK


def test_a_long_answer_displaces_the_neighbours_whose_last_use_is_longest_ago() -> None:
    slots = Slots(6, 6 * BLOCK)
    for number in range(6):
        use(slots, words(number))
    for number in (0, 2):
        use(slots, words(number))
    # by last use: 1 3 4 5 0 2; two side by side: 3 and 4
    assert use(slots, words(7), length=2 * BLOCK).start == 3 * BLOCK
    for number in (0, 1, 2, 5):
        assert take(slots, words(number)).reused == 19, number


def test_a_slot_given_back_keeps_no_more_room_than_its_tokens_take() -> None:
    slots = Slots(2, 4 * BLOCK)
    use(slots, LONG, length=4 * BLOCK)
    assert take(slots, words(1), length=3 * BLOCK).slot.start == BLOCK
    assert take(slots, LONG).reused == len(LONG) - 1


# --- whatever happens ---------------------------------------------------------------------------------------------
@settings(deadline=None)
@given(st.data())
def test_no_sequence_of_requests_confuses_what_the_pool_holds(data: st.DataObject) -> None:
    """The memory is played by a list: whatever is reused must stand in it, under the same key, and nobody's tokens may
    be touched while he runs. Whoever would fit in sum always gets a slot."""
    count, blocks = data.draw(st.integers(1, 4)), data.draw(st.integers(2, 12))
    slots, memory = Slots(count, blocks * BLOCK), [(BASE, 0)] * blocks * BLOCK
    running: list[tuple[Slot, list[int], int]] = []
    for _ in range(data.draw(st.integers(1, 30))):
        if running and data.draw(st.booleans()):
            slot, _, _ = running.pop(data.draw(st.integers(0, len(running) - 1)))
            slots.release(slot, broken=data.draw(st.booleans()))
            continue
        key = data.draw(st.sampled_from([BASE, ADAPTER]))
        prompt = [7] * data.draw(st.integers(1, 2 * BLOCK)) + data.draw(st.lists(st.integers(1, 2), max_size=15))
        length = min(len(prompt) + data.draw(st.integers(1, 3 * BLOCK)), blocks * BLOCK)
        prompt = prompt[: length - 1] or [7]
        taken = sum(in_blocks(size) for _, _, size in running)
        grant = slots.take(key, prompt, length)
        assert (grant is not None) == (len(running) < count and taken + in_blocks(length) <= blocks * BLOCK)
        if grant is None:
            continue
        for source, moved in grant.moves:
            memory[moved.start : moved.start + len(moved.tokens)] = memory[source : source + len(moved.tokens)]
        slot, reused = grant.slot, grant.reused
        if grant.source is not None:
            memory[slot.start : slot.start + reused] = memory[grant.source : grant.source + reused]
        assert reused < len(prompt)
        assert memory[slot.start : slot.start + reused] == [(key, token) for token in prompt[:reused]]
        assert slot.size == in_blocks(length)
        computed = data.draw(st.integers(reused, len(prompt)))  # it may be cancelled half way
        memory[slot.start + reused : slot.start + computed] = [(key, token) for token in prompt[reused:computed]]
        slot.tokens += prompt[reused:computed]
        running.append((slot, prompt, length))
        by_start = sorted((slot for slot, _, _ in running), key=lambda slot: slot.start)
        assert all(slot.start >= 0 and slot.end <= blocks * BLOCK for slot in by_start)
        assert all(before.end <= after.start for before, after in pairwise(by_start))
        for slot, asked, _ in running:
            held = [token for _, token in memory[slot.start : slot.start + len(slot.tokens)]]
            assert held == slot.tokens == asked[: len(slot.tokens)]
    for slot, _, _ in running:
        slots.release(slot)
    assert (slots.free, slots.fits(blocks * BLOCK)) == (count, True)


@pytest.mark.parametrize("count", [1, 3])
def test_what_is_remembered_never_takes_more_than_the_pool(count: int) -> None:
    slots = Slots(count, 5 * BLOCK)
    for number in range(200):
        use(slots, words(number, 9 + number % 50), length=BLOCK + number % (4 * BLOCK))
        assert sum(slot.size for slot in slots._slots) <= 5 * BLOCK
        assert all(a.end <= b.start for a, b in pairwise(slots._slots))

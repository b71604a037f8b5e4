"""Slots remember what was computed in them, and a prompt finds the one that remembers most of it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from alpaca.serving.slots import BASE, WORTH, Grant, Key, Slot, Slots

ADAPTER: Key = ((("abc", 1.0),), "")
LONG = list(range(100, 140))


def use(slots: Slots, prompt: list[int], key: Key = BASE) -> Slot:
    """Take a slot, compute the prompt in it, and give it back."""
    slot = take(slots, prompt, key).slot
    slots.release(slot)
    return slot


def take(slots: Slots, prompt: list[int], key: Key = BASE) -> Grant:
    grant = slots.take(key, prompt)
    assert grant is not None
    assert grant.slot.tokens == prompt[: grant.reused]
    grant.slot.tokens += prompt[grant.reused :]
    return grant


def test_all_are_handed_out_and_no_more() -> None:
    slots = Slots(3)
    grants = [take(slots, [1, 2]) for _ in range(3)]
    assert [grant.slot.number for grant in grants] == [0, 1, 2]
    assert (slots.free, slots.take(BASE, [1, 2])) == (0, None)
    slots.release(grants[1].slot)
    assert slots.free == 1
    assert take(slots, [3]).slot.number == 1


def test_a_prompt_gets_the_slot_that_remembers_most_of_it() -> None:
    slots = Slots(3)
    use(slots, LONG[:10])
    longest = use(slots, [*LONG[:20], 1, 2])
    use(slots, [7] * 30)
    grant = take(slots, LONG)
    assert (grant.slot, grant.reused, grant.source) == (longest, 20, None)


def test_the_last_token_is_always_computed() -> None:
    slots = Slots(2)
    use(slots, LONG)
    assert take(slots, LONG).reused == len(LONG) - 1
    assert take(slots, LONG[:20]).reused == 19


def test_what_an_adapter_computed_is_of_use_to_the_same_strength_of_the_same_adapter_only() -> None:
    slots = Slots(8)
    use(slots, LONG, ADAPTER)
    one, half, other = ("abc", 1.0), ("abc", 0.5), ("abd", 1.0)
    for key in (BASE, ((half,), ""), ((other,), ""), ((one, other), ""), ((one,), " of another")):
        assert take(slots, LONG, key).reused == 0
    assert take(slots, LONG, ADAPTER).reused == len(LONG) - 1


def test_what_is_in_use_is_copied() -> None:
    slots = Slots(2)
    running = take(slots, LONG).slot
    grant = take(slots, [*LONG[:30], 1, 2, 3])
    assert (grant.slot is not running, grant.reused, grant.source) == (True, 30, running)
    assert running.tokens == LONG


def test_an_idle_slot_with_much_more_in_it_is_copied_from_and_left_alone() -> None:
    slots = Slots(3)
    talk = use(slots, LONG)
    grant = take(slots, [*LONG[:10], 1, 2, 3])
    assert (grant.source, grant.reused) == (talk, 10)
    assert talk.tokens == LONG
    # but where it is the only one left it is given up
    take(slots, [1])
    grant = take(slots, [*LONG[:10], 4, 5, 6])
    assert (grant.slot, grant.reused, grant.source) == (talk, 10, None)


def test_of_two_that_remember_as_much_the_idle_one_is_taken() -> None:
    slots = Slots(3)
    use(slots, LONG)
    take(slots, LONG)
    copy = take(slots, LONG).slot
    slots.release(copy)
    grant = take(slots, LONG)
    assert (grant.slot, grant.source) == (copy, None)


def test_few_tokens_in_common_are_not_looked_for() -> None:
    slots = Slots(1)
    use(slots, LONG)
    assert take(slots, [*LONG[: WORTH - 1], 1, 2, 3]).reused == 0


def test_an_empty_slot_goes_first_and_then_the_one_unused_for_longest() -> None:
    slots = Slots(3)
    first, second = use(slots, [1] * 20), use(slots, [2] * 20)
    assert use(slots, [3] * 20).number == 2
    assert use(slots, [1] * 20) is first
    assert use(slots, [4] * 20) is second
    assert use(slots, [5] * 20).number == 2


def test_nothing_of_a_failed_step_is_remembered() -> None:
    slots = Slots(1)
    slots.release(take(slots, LONG).slot, broken=True)
    assert take(slots, LONG).reused == 0


def test_all_can_be_forgotten() -> None:
    slots = Slots(2)
    use(slots, LONG)
    slots.forget()
    assert take(slots, LONG).reused == 0


@given(st.data())
def test_no_sequence_of_requests_confuses_what_a_slot_holds(data: st.DataObject) -> None:
    """The cache is played by a list per slot: whatever is reused must stand in it, under the same key."""
    slots, cache, keys = Slots(3), {n: [0] * 40 for n in range(3)}, dict.fromkeys(range(3), BASE)
    running: list[tuple[Slot, list[int]]] = []
    for _ in range(data.draw(st.integers(1, 25))):
        if running and data.draw(st.booleans()):
            slot, _ = running.pop(data.draw(st.integers(0, len(running) - 1)))
            slots.release(slot, broken=data.draw(st.booleans()))
            continue
        key = data.draw(st.sampled_from([BASE, ADAPTER]))
        prompt = [7] * data.draw(st.integers(1, 20)) + data.draw(st.lists(st.integers(1, 2), max_size=15))
        grant = slots.take(key, prompt)
        if grant is None:
            assert len(running) == 3
            continue
        assert grant.slot.number not in {slot.number for slot, _ in running}
        assert grant.reused < len(prompt)
        number, reused = grant.slot.number, grant.reused
        if grant.source is not None:
            assert keys[grant.source.number] == key
            cache[number][:reused] = cache[grant.source.number][:reused]
        elif reused:
            assert keys[number] == key
        keys[number] = key
        assert cache[number][:reused] == prompt[:reused]
        computed = data.draw(st.integers(reused, len(prompt)))  # it may be cancelled half way
        cache[number][reused:computed] = prompt[reused:computed]
        grant.slot.tokens += prompt[reused:computed]
        running.append((grant.slot, prompt))
        for slot, asked in running:
            assert cache[slot.number][: len(slot.tokens)] == slot.tokens == asked[: len(slot.tokens)]
    assert slots.free == 3 - len(running)

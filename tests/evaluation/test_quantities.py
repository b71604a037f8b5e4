"""Numbers, units and dates, in the ways in which languages write them."""

from __future__ import annotations

import pytest

from alpaca.evaluation.quantities import quantities
from alpaca.evaluation.quantity import Quantity


def one(text: str) -> Quantity:
    found = quantities(text)
    assert len(found) == 1, (text, found)
    return found[0]


@pytest.mark.parametrize(
    ("one_way", "other_way"),
    [
        ("1,234.5 kg", "1.234,5 kg"),
        ("1,234 sheep", "1.234 sheep"),
        ("12 345 678 people", "12,345,678 people"),
        ("12\u202f345 people", "12'345 people"),
        ("12,34,567 rupees", "1234567 rupees"),
        ("3,5 Millionen Menschen", "3.500.000 Menschen"),
        ("3,5 Mrd. €", "€3,500,000,000"),
        ("2 Mio. Euro", "2,000,000 euros"),
        ("3.5万公斤", "35 t"),
        ("三百四十天", "340 days"),
        ("两万元", "20000 元"),
        ("百分之十", "10 %"),
        ("二十公斤", "20 kg"),
        ("50％", "fifty per cent"),
        ("١٢٣ kg", "123 kg"),
        ("eleven and a half months", "11.5 Monate"),
        ("twenty-five sheep", "25 sheep"),
        ("ein Jahr", "one year"),
        ("zwei Wochen", "14 days"),
        ("deux semaines", "14 jours"),
        ("37.8 °C", "100 °F"),
        ("2,5 kg", "2500 g"),
        ("2½ kg", "2.5 kg"),
        ("6 feet", "1.83 m"),
        ("12 March 2024", "12. März 2024"),
        ("March 12, 2024", "2024-03-12"),
        ("12.03.2024", "2024年3月12日"),
        ("12 mars 2024", "12 de marzo de 2024"),
        ("3/12/2024", "12.03.2024"),
        ("3/12/2024", "3. Dezember 2024"),
        ("1853", "12 March 1853"),
        ("the 1830s", "1836"),
        ("3月12日", "12 March"),
        ("8 to 12 adults", "10 adults"),
        ("between 8 and 12 adults", "8–12 adults"),
        ("zwischen 8 und 12 Tieren", "8 bis 12 Tieren"),
        ("3至5天", "3 to 5 days"),
        ("$3,000", "3000 US$"),
        ("14:30", "14:30"),
        ("42", "42 things"),
    ],
)
def test_ways_to_write_the_same_agree(one_way: str, other_way: str) -> None:
    assert one(one_way).agrees(one(other_way)) and one(other_way).agrees(one(one_way))


@pytest.mark.parametrize(
    ("one_way", "other_way"),
    [
        ("12,5 kg", "125 kg"),
        ("12 kg", "12 days"),
        ("12 kg", "13 kg"),
        ("3 euros", "3 dollars"),
        ("2.5 to 3.5 kg", "3 to 5"),
        ("8 to 12 adults", "20 adults"),
        ("8 to 12 adults", "12 to 30 adults"),
        ("12 March 2024", "13 March 2024"),
        ("1853", "1854"),
        ("1.234 kg", "1235 kg"),
        ("37.8 °C", "37.8 °F"),
        ("-5 °C", "5 °C"),
        ("14:30", "14:31"),
        ("三百四十天", "三百天"),
    ],
)
def test_what_differs_does_not_agree(one_way: str, other_way: str) -> None:
    assert not one(one_way).agrees(one(other_way)) and not one(other_way).agrees(one(one_way))


@pytest.mark.parametrize(
    "text",
    ["", "No number here.", "C1 and GPT4", "a 3D film", "version 1.2.3", "at 192.168.0.1", "COVID-19", "someone",
     "一起", "one of them", "31.02.2024"],
)  # fmt: skip
def test_what_is_no_quantity_is_none(text: str) -> None:
    assert quantities(text) == []


def test_the_numbers_of_list_items_are_not_counted() -> None:
    assert [found.shown for found in quantities("1. Take 5 g.\n2. Wait 3 days.\n\n10. Rest.")] == ["5 g", "3 days"]
    assert [found.shown for found in quantities("5 animals are enough.")] == ["5 animals"]
    assert [found.shown for found in quantities("They need:\n\n1. Hay, 2 kg of")] == ["2 kg"], "cut off at its end"


def test_the_first_end_of_a_range_has_the_unit_of_the_second() -> None:
    assert one("37.5 to 38.9 °C").spans == ((37.5, 38.9),)
    assert [found.measures for found in quantities("two and 5 kg")] == ["mass", "mass"]
    assert [found.measures for found in quantities("2 days and 5 kg")] == ["time", "mass"]


def test_a_long_text_of_numbers_is_read_quickly_and_whole() -> None:
    assert len(quantities(" ".join(f"{n} kg," for n in range(500)))) == 500

"""Units of measure as people write them: each spelling with what it measures, and how much of it it is."""

from __future__ import annotations

# dimension → {how many of the first unit: spellings in small letters, of English, German, French, Spanish and Chinese}
_SPELLED: dict[str, dict[float, str]] = {
    "mass": {
        1: "kg kilo kilos kilogram kilograms kilogramm kilogramme kilogrammes kilogramos 公斤 千克",
        0.001: "g gram grams gramm gramme grammes gramos 克",
        1e-6: "mg milligram milligrams milligramm milligrammes miligramos 毫克",
        1000: "t tonne tonnes ton tons tonnen toneladas 吨",
        0.4536: "lb lbs pound pounds pfund libras 磅",
        0.02835: "oz ounce ounces unzen onces onzas 盎司",
        0.5: "斤",
    },
    "length": {
        1: "m metre metres meter meters metern mètre mètres metro metros 米",
        0.01: "cm centimetre centimetres centimeter centimeters zentimeter zentimetern centimètres centímetros 厘米",
        0.001: "mm millimetre millimetres millimeter millimeters millimetern millimètres milímetros 毫米",
        1e-6: "µm μm micron microns mikrometer mikron microns micras 微米",
        1000: "km kilometre kilometres kilometer kilometers kilometern kilomètres kilómetros 公里 千米",
        0.3048: "ft foot feet fuß pieds pies 英尺",
        0.0254: "inch inches zoll pouces pulgadas 英寸",
        1609.34: "mile miles meile meilen milles millas 英里",
    },
    "area": {
        1: "m² m2 qm sqm 平方米",
        10_000: "ha hectare hectares hektar hectáreas 公顷",
        4046.86: "acre acres acren 英亩",
        1e6: "km² km2 平方公里",
    },
    "volume": {
        1: "l litre litres liter liters litern litros 升",
        0.001: "ml millilitre millilitres milliliter milliliters millilitern mililitros 毫升",
        3.785: "gallon gallons gallonen galones 加仑",
        1000: "m³ m3 立方米",
    },
    "time": {
        1: "day days tag tage tagen jour jours día días dia dias 天",
        7: "week weeks woche wochen semaine semaines semana semanas 周 星期",
        30.44: "month months monat monate monaten mois mes meses 个月",
        365.25: "year years jahr jahre jahren ans année années año años 年 岁 周岁",
        36_525: "century centuries jahrhundert jahrhunderte jahrhunderten siècle siècles siglo siglos 世纪",
        1 / 24: "h hr hrs hour hours std stunde stunden heure heures hora horas 小时",
        1 / 1440: "min minute minutes minuten minuto minutos 分钟",
        1 / 86_400: "s sec second seconds sekunde sekunden seconde secondes segundo segundos 秒",
    },
    "share": {
        1: "% percent per\u00a0cent prozent pour\u00a0cent por\u00a0ciento ％",
        0.1: "‰ promille",
    },
    "temperature": {1: "°c ℃ 摄氏度", 0: "°f ℉ 华氏度"},  # 0: no factor, see `measured`
    "degrees": {1: "° degree degrees grad degrés grados 度"},
    "speed": {1: "km/h kmh kph", 1.609: "mph", 3.6: "m/s"},
    "dollars": {1: "$ usd us$ dollar dollars dólares 美元"},
    "euros": {1: "€ eur euro euros 欧元"},
    "pounds sterling": {1: "£ gbp 英镑"},
    "yuan": {1: "¥ cny rmb yuan 元 块 人民币"},
}  # fmt: skip
UNITS = {
    spelling.replace("\u00a0", " "): (dimension, factor)
    for dimension, spelled in _SPELLED.items()
    for factor, spellings in spelled.items()
    for spelling in spellings.split(" ")
}
"""Spelling → (what it measures, how many of its first unit)."""
BEFORE = ("US$", "$", "€", "£", "¥")
"""Those that may stand before their number."""


def measured(value: float, spelling: str) -> tuple[str, float]:
    """(what a number with this unit measures, how much in the dimension's first unit)."""
    dimension, factor = UNITS[spelling]
    return dimension, value * factor if factor else (value - 32) / 1.8  # Fahrenheit

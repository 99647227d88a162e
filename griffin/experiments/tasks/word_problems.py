"""Word problems of two to four steps whose answer is a whole number. Each has a template and drawn numbers.

They are ours, in the manner of GSM8K (Cobbe et al. 2021). Scores can be compared with each other, but not with
published ones.
"""

from collections.abc import Callable
from random import Random

Problem = tuple[str, int]

NAMES = ("Anna", "Ben", "Clara", "David", "Emma", "Felix", "Grace", "Henry", "Ida", "Jonas", "Lena", "Marco")
SEED = 20261130


class Draw:
    """Random draws for one problem. The same problem number always gives the same draws."""

    def __init__(self, number: int) -> None:
        self._random = Random(f"{SEED} {number}")

    def whole(self, low: int, high: int, step: int = 1) -> int:
        """A multiple of ``step`` between ``low`` (itself a multiple) and ``high``."""
        return self._random.randint(low // step, high // step) * step

    def name(self) -> str:
        return NAMES[self._random.randint(0, len(NAMES) - 1)]


def problems(count: int) -> list[Problem]:
    """Questions and answers, from the templates in turn. A longer list begins with the problems of a shorter one."""
    return [TEMPLATES[number % len(TEMPLATES)](Draw(number)) for number in range(count)]


def _bakery(draw: Draw) -> Problem:
    name, trays, each, sold = draw.name(), draw.whole(4, 9), draw.whole(12, 24), draw.whole(15, 36)
    question = (
        f"{name} bakes {trays} trays of {each} rolls in the morning. {sold} rolls are sold before noon, and 6 are "
        "given to a neighbour. How many rolls are left?"
    )
    return question, trays * each - sold - 6


def _savings(draw: Draw) -> Problem:
    name, weekly, weeks, gift = draw.name(), draw.whole(6, 18), draw.whole(5, 12), draw.whole(20, 60, 5)
    spent = draw.whole(10, 45)
    question = (
        f"{name} saves ${weekly} every week for {weeks} weeks and then gets ${gift} from an aunt. After buying a book "
        f"for ${spent}, how many dollars does {name} have?"
    )
    return question, weekly * weeks + gift - spent


def _buses(draw: Draw) -> Problem:
    seats, buses, empty = draw.whole(28, 54, 2), draw.whole(3, 7), draw.whole(2, 9)
    question = (
        f"A school hires {buses} buses with {seats} seats each for a trip. On every bus {empty} seats stay empty. "
        f"{buses * 2} of the travellers are teachers and all others are pupils. How many pupils go on the trip?"
    )
    return question, buses * (seats - empty) - buses * 2


def _shopping(draw: Draw) -> Problem:
    name, pens, pen, books, book = draw.name(), draw.whole(3, 9), draw.whole(2, 4), draw.whole(2, 6), draw.whole(7, 15)
    total = pens * pen + books * book
    paid = (total // 50 + 1) * 50
    question = (
        f"{name} buys {pens} pens for ${pen} each and {books} notebooks for ${book} each, and pays with ${paid}. How "
        "many dollars of change are there?"
    )
    return question, paid - total


def _ages(draw: Draw) -> Problem:
    name, own, times, years = draw.name(), draw.whole(5, 12), draw.whole(3, 5), draw.whole(4, 11)
    question = (
        f"{name} is {own} years old. An uncle is {times} times as old. How old will the two be together in "
        f"{years} years?"
    )
    return question, own + own * times + 2 * years


def _garden(draw: Draw) -> Problem:
    rows, each, share = draw.whole(6, 14, 2), draw.whole(8, 18), draw.whole(3, 9)
    question = (
        f"A garden has {rows} rows of {each} tulips. Half of the rows are red and the other half are yellow. {share} "
        "of the red tulips are picked. How many red tulips are left in the garden?"
    )
    return question, rows // 2 * each - share


def _travel(draw: Draw) -> Problem:
    slow, fast, first, second = draw.whole(40, 60, 5), draw.whole(70, 95, 5), draw.whole(2, 4), draw.whole(2, 5)
    rest = draw.whole(30, 90, 5)
    question = (
        f"A train goes {slow} km an hour for {first} hours and then {fast} km an hour for {second} hours. After that "
        f"it still has {rest} km to go. How long is the whole way in km?"
    )
    return question, slow * first + fast * second + rest


def _sharing(draw: Draw) -> Problem:
    name, friends, each, kept = draw.name(), draw.whole(4, 9), draw.whole(7, 16), draw.whole(5, 19)
    question = (
        f"{name} has {friends * each + kept} stickers, keeps {kept} of them and shares the others equally among "
        f"{friends} friends. One of the friends then loses 4 stickers. How many stickers does that friend have?"
    )
    return question, each - 4


def _discount(draw: Draw) -> Problem:
    price, percent, count = draw.whole(40, 120, 20), draw.whole(10, 40, 10), draw.whole(2, 5)
    question = (
        f"A jacket costs ${price}. In a sale its price falls by {percent} percent. How many dollars do {count} such "
        "jackets cost in the sale?"
    )
    return question, count * (price - price * percent // 100)


def _wages(draw: Draw) -> Problem:
    name, rate, hours, days, bonus = (
        draw.name(), draw.whole(11, 19), draw.whole(4, 8), draw.whole(3, 6), draw.whole(25, 75, 5),
    )  # fmt: skip
    question = (
        f"{name} earns ${rate} an hour and works {hours} hours a day. After {days} days there is a bonus of ${bonus}. "
        f"How many dollars has {name} earned in all?"
    )
    return question, rate * hours * days + bonus


def _library(draw: Draw) -> Problem:
    books, lent, back, bought = draw.whole(240, 480, 10), draw.whole(35, 95), draw.whole(12, 30), draw.whole(2, 6)
    question = (
        f"A library has {books} books. On Monday {lent} are lent, on Tuesday {back} come back, and on Wednesday "
        f"{bought} boxes of 15 new books arrive. How many books are in the library then?"
    )
    return question, books - lent + back + bought * 15


def _eggs(draw: Draw) -> Problem:
    hens, each, used, price = draw.whole(9, 18), draw.whole(3, 5), draw.whole(3, 8), draw.whole(2, 3)
    question = (
        f"{hens} hens lay {each} eggs each in a week. The farmer uses {used} eggs and sells the others for ${price} "
        "each. How many dollars does the farmer get?"
    )
    return question, (hens * each - used) * price


def _tank(draw: Draw) -> Problem:
    rate, leak, minutes, start = draw.whole(14, 28), draw.whole(3, 8), draw.whole(6, 15), draw.whole(30, 90, 10)
    question = (
        f"A tank holds {start} litres of water. Every minute {rate} litres flow in and {leak} litres leak out. How "
        f"many litres are in the tank after {minutes} minutes?"
    )
    return question, start + (rate - leak) * minutes


def _reading(draw: Draw) -> Problem:
    name, daily, days, left = draw.name(), draw.whole(12, 28), draw.whole(4, 7), draw.whole(3, 8)
    pages = daily * days + (daily + 10) * left
    question = (
        f"{name} reads a book of {pages} pages. On each of the first {days} days {name} reads {daily} pages, and after "
        f"that {daily + 10} pages a day. How many days does the whole book take?"
    )
    return question, days + left


def _fruit(draw: Draw) -> Problem:
    one, other, apples, more = draw.name(), "Paul", draw.whole(14, 38), draw.whole(5, 17)
    question = (
        f"{one} picks {apples} apples. {other} picks {more} apples more than {one}. Together they put 12 apples into a "
        "cake and sell the others. How many apples do they sell?"
    )
    return question, 2 * apples + more - 12


def _cinema(draw: Draw) -> Problem:
    adults, children, full = draw.whole(3, 8), draw.whole(4, 12), draw.whole(10, 16, 2)
    question = (
        f"A ticket costs ${full} for adults and half of that for children. {adults} adults and {children} children go "
        "to the cinema and buy 3 bags of popcorn for $5 each. How many dollars do they pay?"
    )
    return question, adults * full + children * full // 2 + 15


def _fence(draw: Draw) -> Problem:
    length, width, price, gate = draw.whole(12, 30), draw.whole(7, 15), draw.whole(4, 9), draw.whole(2, 4)
    question = (
        f"A field is {length} m long and {width} m wide. A fence goes all around it, except for a gate of {gate} m. "
        f"One metre of fence costs ${price}. How many dollars does the fence cost?"
    )
    return question, (2 * (length + width) - gate) * price


def _marbles(draw: Draw) -> Problem:
    name, red, times, lost = draw.name(), draw.whole(8, 19), draw.whole(2, 4), draw.whole(3, 7)
    question = (
        f"{name} has {red} red marbles, {times} times as many blue ones, and 5 fewer green ones than red ones. {lost} "
        "blue marbles get lost. How many marbles are there now?"
    )
    return question, red + red * times + red - 5 - lost


def _boxes(draw: Draw) -> Problem:
    size, boxes, broken, price = draw.whole(6, 15, 3), draw.whole(7, 16), draw.whole(2, 3), draw.whole(4, 11)
    question = (
        f"A shop gets {size * boxes} glasses in boxes of {size}. {broken} whole boxes are broken. Each of the other "
        f"boxes is sold for ${price}. How many dollars does the shop get?"
    )
    return question, (boxes - broken) * price


def _running(draw: Draw) -> Problem:
    name, first, step, lap = draw.name(), draw.whole(3, 8), draw.whole(2, 4), draw.whole(2, 5) * 100
    question = (
        f"{name} runs {first} laps on Monday, {step} laps more on Tuesday, and on Wednesday twice as many as on "
        f"Tuesday. A lap has {lap} m. How many metres are that on the three days together?"
    )
    return question, (first + (first + step) * 3) * lap


TEMPLATES: tuple[Callable[[Draw], Problem], ...] = (
    _bakery, _savings, _buses, _shopping, _ages, _garden, _travel, _sharing, _discount, _wages,
    _library, _eggs, _tank, _reading, _fruit, _cinema, _fence, _marbles, _boxes, _running,
)  # fmt: skip

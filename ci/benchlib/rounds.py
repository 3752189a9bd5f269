"""What lanes with hosts share: a clean host before each run, and rows of figures taken in rounds."""

from .base import median, spread
from .peers import RESET

LONG = 25  # ms one way


def reset(lab, count=1):
    for number in range(1, count + 1):
        lab.root(number, RESET)


def ratios(times, name, kind):
    return median(theirs / ours for theirs, ours in zip(times[name, kind], times["roadie", kind], strict=True))


def rows_of(section, times, where, kind):
    for (name, of), values in times.items():
        if of == kind and values:
            ratio = "" if name == "roadie" else f"{ratios(times, name, kind):.2f} x"
            section.rows.append([where, name, f"{median(values):.3f} s", spread(values), ratio])

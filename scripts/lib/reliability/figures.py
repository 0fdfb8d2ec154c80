"""What a check has measured, beside the bar that it is held to."""
import dataclasses
import math

# Exit statuses of a check.
MET, MISSED, TOO_SHORT = 0, 1, 3


@dataclasses.dataclass(frozen=True)
class Figure:
    """One line of a table. Without a bar it is there to be read; with a bar, `met` is None where the run was too short to tell."""

    name: str
    value: str
    bar: str = ""
    met: bool | None = None
    # The bare value, for who wants to compute with it.
    number: float = math.nan

    @property
    def verdict(self):
        if not self.bar:
            return ""
        return {True: "met", False: "MISSED", None: "too short to tell"}[self.met]


def at_most(name, number, bar, unit="", more=""):
    """A figure that may be no more than its bar."""
    return Figure(name, f"{shown(number)}{unit}{more}", f"<= {shown(bar)}{unit}", number <= bar, number)


def at_least(name, number, bar, unit="", more=""):
    """A figure that may be no less than its bar."""
    return Figure(name, f"{shown(number)}{unit}{more}", f">= {shown(bar)}{unit}", number >= bar, number)


def exactly(name, number, bar):
    """A count that must be this one."""
    return Figure(name, str(number), str(bar), number == bar, number)


def decided(figure, enough):
    """The figure, if there was enough of what it was taken from; else one that was too short to tell."""
    return figure if enough else dataclasses.replace(figure, met=None)


def told(name, value):
    """A figure without a bar."""
    return Figure(name, str(value))


def shown(number):
    """Whole numbers as they are, others with three digits that count."""
    if number == int(number) if math.isfinite(number) else False:
        return str(int(number))
    digits = 0 if abs(number) >= 100 else 1 if abs(number) >= 10 else 2 if abs(number) >= 1 else 3
    return f"{number:.{digits}f}"


def percentile(values, percent):
    """The smallest value that so many percent of all don't exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(percent / 100 * len(ordered)) - 1)]


def table(title, figures):
    """Lines of text: figure, what was measured, its bar, and whether it is met."""
    rows = [("figure", "measured", "bar", "")] + [(f.name, f.value, f.bar, f.verdict) for f in figures]
    widths = [max(len(row[at]) for row in rows) for at in range(3)]
    lines = ["  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3]]).rstrip() for row in rows]
    return "\n".join([title, *(f"  {line}" for line in lines)])


def status(figures):
    """The exit status of these figures: one that is missed weighs more than one that wants more time."""
    held = [figure.met for figure in figures if figure.bar]
    if not all(met is None or met for met in held):
        return MISSED
    return TOO_SHORT if None in held else MET

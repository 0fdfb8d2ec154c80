"""Whether a series of samples grows: a line by least squares, and how sure its slope is."""
import dataclasses
import math
import statistics

# Neighbouring samples are alike, which would make the line look surer than it is: means of so many parts of the time are not.
PARTS = 30
PARTS_MIN = 8
# Of a normal distribution: 95 % lie within.
Z = 1.959964


@dataclasses.dataclass(frozen=True)
class Slope:
    """Growth by a unit of time, and the half width of its 95 % confidence interval."""

    rate: float
    half_width: float

    @property
    def low(self):
        return self.rate - self.half_width

    @property
    def high(self):
        return self.rate + self.half_width

    def at_most(self, bar):
        """True or False where the interval lies on one side of the bar, None where it has the bar within: more time is wanted."""
        if self.high <= bar:
            return True
        return False if self.low > bar else None


def quantile_of_t(freedom):
    """Of Student's distribution, 97.5 %: the expansion around the normal one (Abramowitz and Stegun, 26.7.5), exact to 0.1 % from six
    degrees of freedom on."""
    first = (Z ** 3 + Z) / 4
    second = (5 * Z ** 5 + 16 * Z ** 3 + 3 * Z) / 96
    third = (3 * Z ** 7 + 19 * Z ** 5 + 17 * Z ** 3 - 15 * Z) / 384
    return Z + first / freedom + second / freedom ** 2 + third / freedom ** 3


def means(times, values, parts):
    """The means of times and values in so many parts of the series."""
    edges = [round(at * len(values) / parts) for at in range(parts + 1)]
    spans = list(zip(edges, edges[1:], strict=False))
    return [statistics.fmean(times[low:high]) for low, high in spans], [statistics.fmean(values[low:high]) for low, high in spans]


def slope(times, values):
    """The slope of values over times. With too few of them nothing is known of it."""
    if len(values) < PARTS_MIN:
        return Slope(math.nan, math.inf)
    xs, ys = means(times, values, min(PARTS, len(values)))
    middle_x, middle_y = statistics.fmean(xs), statistics.fmean(ys)
    spread = sum((x - middle_x) ** 2 for x in xs)
    rate = sum((x - middle_x) * (y - middle_y) for x, y in zip(xs, ys, strict=True)) / spread
    left = sum((y - middle_y - rate * (x - middle_x)) ** 2 for x, y in zip(xs, ys, strict=True))
    freedom = len(xs) - 2
    return Slope(rate, quantile_of_t(freedom) * math.sqrt(left / freedom / spread))

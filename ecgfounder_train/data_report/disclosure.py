"""Small counts hidden so that no sum gives them away."""

from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from enum import Enum

import numpy as np
from scipy.optimize import linprog

from ecgfounder_train.core.errors import UserError
from ecgfounder_train.core.small_cells import is_small

Name = Hashable


class Cover(Enum):
    """How a count is shown, and what a reader then knows of it."""

    OPEN = "the count itself"
    SMALL = "1 to min_cell - 1"
    BESIDE = "min_cell or more, hidden so that a small one cannot be worked out"
    UNKNOWN = "hidden, nothing is said of its size"
    UNPUBLISHED = "on no page, but a reader can write down its sums"


@dataclass
class CountSystem:
    """Counts of people or recordings that add up, and which of them a page may show.

    A count of 1 to ``min_cell - 1`` is small. Its neighbours in a row or column with a printed sum
    would give it away, so others are hidden beside it until a reader who knows every sum, and knows
    what the marks mean, cannot tell it: linear programs say which values still fit.

    Source: Willenborg and de Waal 2001, Elements of Statistical Disclosure Control, chapter 4.
    """

    min_cell: int
    values: dict[Name, int] = field(default_factory=dict)
    covers: dict[Name, Cover] = field(default_factory=dict)
    sums: list[tuple[Name, tuple[Name, ...]]] = field(default_factory=list)
    kept: set[Name] = field(default_factory=set)
    """Hidden beside another only where no other count helps: the totals a reader comes for."""
    kept_longest: set[Name] = field(default_factory=set)
    """Hidden beside another only when nothing else helps at all."""

    def add(self, name: Name, value: int, published: bool = True) -> Name:
        """Enter a count; it stays open unless it is small."""
        assert name not in self.values and value >= 0, name
        self.values[name] = int(value)
        if not published:
            self.covers[name] = Cover.UNPUBLISHED
        else:
            self.covers[name] = Cover.SMALL if self.is_small(int(value)) else Cover.OPEN
        return name

    def add_sum(self, total: Name, parts: Iterable[Name]) -> None:
        """State that `parts` make up `total`, which every reader knows."""
        parts = tuple(parts)
        assert self.values[total] == sum(self.values[part] for part in parts), total
        self.sums.append((total, parts))

    def is_small(self, value: int) -> bool:
        """True if a count must not be shown."""
        return is_small(value, self.min_cell)

    def protect(self) -> None:
        """Hide what would give a small count away."""
        # Hiding more only widens what fits, so a count that is safe stays so.
        for name in [name for name, value in self.values.items() if self.is_small(value)]:
            while True:
                group = next(group for group in self._groups() if name in group)
                if self._is_safe(name, group) or not self._hide_more(name, group):
                    break

    def is_open(self, name: Name) -> bool:
        """True if the page may show the count."""
        return self.covers[name] is Cover.OPEN

    def range_of(self, name: Name) -> tuple[float, float]:
        """Return the least and the largest value that fits all that is shown."""
        if self.is_open(name):
            return self.values[name], self.values[name]
        group = next(group for group in self._groups() if name in group)
        return _Program(self, group).range_of(name)

    def equations(self, group: frozenset[Name]) -> list[tuple[Name, ...]]:
        """Return the sums, total first, in which a count of the group stands."""
        lines = [(total, *parts) for total, parts in self.sums]
        return [line for line in lines if not group.isdisjoint(line)]

    def _groups(self) -> list[frozenset[Name]]:
        """Return the hidden counts in groups that no sum connects with each other."""
        parent: dict[Name, Name] = {n: n for n, c in self.covers.items() if c is not Cover.OPEN}

        def root(name: Name) -> Name:
            while parent[name] != name:
                parent[name] = parent[parent[name]]
                name = parent[name]
            return name

        for total, parts in self.sums:
            hidden = [name for name in (total, *parts) if name in parent]
            for name in hidden[1:]:
                parent[root(name)] = root(hidden[0])
        groups: dict[Name, set[Name]] = {}
        for name in parent:
            groups.setdefault(root(name), set()).add(name)
        return [frozenset(group) for group in groups.values()]

    def _is_safe(self, name: Name, group: frozenset[Name]) -> bool:
        least, most = _Program(self, group).range_of(name)
        return most - least >= max(1, (self.min_cell - 1) // 4)

    def _hide_more(self, exposed: Name, group: frozenset[Name]) -> bool:
        # A total rather than all that is known of the small ones: in a small set the latter would
        # leave a page without numbers.
        return (
            self._hide_beside(exposed, group, self.kept | self.kept_longest)
            or self._hide_beside(exposed, group, self.kept_longest)
            or self._loosen(group)
            or self._hide_beside(exposed, group, set())
        )

    def _hide_beside(self, exposed: Name, group: frozenset[Name], kept: set[Name]) -> bool:
        """Hide one large count; False where there is none that helps."""
        lines = self.equations(group)
        weights: dict[Name, tuple[int, int, bool, int]] = {}
        for line in lines:
            hidden = [name for name in line if name in group]
            # What stands alone in a sum is as good as printed.
            bare = len(hidden) == 1 and self.covers[hidden[0]] is not Cover.UNPUBLISHED
            hideable = [
                (place, name)
                for place, name in enumerate(line)
                if name not in kept and self.is_open(name) and self.values[name] >= self.min_cell
            ]
            if bare and not hideable:
                return False  # nor would anything elsewhere help
            for place, name in hideable:
                alone, near, is_total, _ = weights.get(name, (0, 0, False, 0))
                weights[name] = (
                    alone - bare,
                    near - (exposed in line),
                    is_total or place == 0,
                    self.values[name],
                )
        if not weights:
            return False
        # First what stands beside a bare count, then rather a part than a total, and of these the
        # smallest: it loses the reader least.
        order = {name: number for number, name in enumerate(self.values)}

        def cost(name: Name) -> tuple[object, ...]:
            alone, near, is_total, value = weights[name]
            return alone == 0, is_total, alone, near, value, order[name]

        best = min(weights, key=cost)
        self.covers[best] = Cover.BESIDE
        return True

    def _loosen(self, group: frozenset[Name]) -> bool:
        """Say of no count in the group how large it is, and hide its zeros."""
        lines = self.equations(group)
        loose = [n for n in group if self.covers[n] in (Cover.SMALL, Cover.BESIDE)]
        loose += [n for line in lines for n in line if self.is_open(n) and n not in self.kept]
        for name in loose:
            self.covers[name] = Cover.UNKNOWN
        return bool(loose)


class _Program:
    """The linear program of one group of hidden counts."""

    def __init__(self, system: CountSystem, group: frozenset[Name]) -> None:
        self.names = [name for name in system.values if name in group]
        place = {name: number for number, name in enumerate(self.names)}
        lines = system.equations(group)
        self.matrix = np.zeros((len(lines), len(self.names)))
        self.right = np.zeros(len(lines))
        for row, line in enumerate(lines):
            for position, name in enumerate(line):
                sign = -1.0 if position == 0 else 1.0
                if name in place:
                    self.matrix[row, place[name]] += sign
                else:
                    self.right[row] -= sign * system.values[name]
        small = system.min_cell
        known = {
            Cover.SMALL: (1, small - 1),
            Cover.BESIDE: (small, None),
            Cover.UNKNOWN: (0, None),
            Cover.UNPUBLISHED: (0, None),
        }
        self.bounds = [known[system.covers[name]] for name in self.names]

    def range_of(self, name: Name) -> tuple[float, float]:
        """Return the least and the largest value of a hidden count."""
        ends = []
        for sign in (1.0, -1.0):
            aim = np.zeros(len(self.names))
            aim[self.names.index(name)] = sign
            matrix, right = (self.matrix, self.right) if len(self.right) else (None, None)
            found = linprog(aim, A_eq=matrix, b_eq=right, bounds=self.bounds)
            assert found.status in (0, 3), found.message  # 3: no bound
            ends.append(sign * found.fun if found.status == 0 else np.inf)
        return float(ends[0]), float(ends[1])


def check_min_cell(min_cell: int) -> None:
    """Refuse a limit below which hiding is no hiding.

    Raises:
        UserError: Neither 0 (nothing is hidden) nor at least 3.
    """
    if min_cell != 0 and min_cell < 3:
        raise UserError(
            f"report.min_cell={min_cell} hides nothing: '<{min_cell}' would be one known count. "
            "Take 5 or more (10 by default), or 0 to show every count."
        )

"""Stratified draws of images: the same for the same seed, and hardly moved by new files.

Images of one group (a patient, a video) count as one. A group belongs to the stratum of

- the rarest class in it, by the number of images that show a class, and
- the class whose share of its pixels exceeds that class's mean share the most.

In a stratum of n images, groups are ordered by sha256("seed:group"). A group of k images that
comes after r others stands at ``(r + jitter * k) / n``, its jitter in [0, 1) from the same digest.
A draw takes the lowest of these numbers over all strata. So every stratum gives a prefix of its
order, and about its share of the whole (a fixed jitter would pass over all small strata); and a
new file shifts the groups of its own stratum only.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cwbass.data.base import Sample


def group_of(id: str, pattern: re.Pattern[str] | None) -> str:
    """What the pattern finds in an id (its group 1, if it has one); the id itself if it finds nothing."""
    match = pattern.search(id) if pattern is not None else None
    if match is None:
        return id
    return (match.group(1) if match.re.groups else None) or match.group(0)


def draw(
    samples: Sequence[Sample], count: int, *, seed: int, pattern: re.Pattern[str] | None, hold_out: bool
) -> tuple[Sample, ...]:
    """Draw about ``count`` images.

    First every class, the rarest first, gets its first group that fits, unless an earlier pick
    shows it; then groups follow in the order described above.

    Args:
        samples: The pool; every sample carries ``pixels``.
        count: Images to draw, at most all of them.
        seed: Of the order.
        pattern: What groups images; None makes each its own group.
        hold_out: False draws what to train on: exactly ``count`` images; the last group is cut, by
            the same rule among its images, if it is too long. With single images and ``count`` >=
            the number of classes, every class of the pool is drawn. True draws what to keep from
            training: whole groups, each only if it brings the number nearer to ``count`` and
            leaves an image of each of its classes behind.

    Returns:
        The drawn samples, sorted by id.
    """
    groups, jitter = _groups(samples, seed, pattern)
    if not groups:
        return ()
    counts = [_pixels(group) for group in groups]  # [n, C] each
    pixels = np.array([count.sum(axis=0) for count in counts])  # [G, C]
    shows = np.array([np.count_nonzero(count, axis=0) for count in counts])  # [G, C]
    sizes = np.array([len(group) for group in groups])  # [G]

    picks = _Picks(sizes, shows, count, hold_out=hold_out)
    for c in np.argsort(shows.sum(axis=0), kind="stable"):
        showing = np.flatnonzero(shows[:, c])
        if not picks.taken[showing].any():
            any(picks.take(int(g)) for g in showing)  # stops at the first that fits
    for g in np.argsort(stratified_places(pixels, shows, sizes, jitter), kind="stable"):
        picks.take(int(g))

    drawn: list[Sample] = []
    for g in picks.order:
        rest = count - len(drawn)
        whole = hold_out or sizes[g] <= rest
        drawn += groups[g] if whole else draw(groups[g], rest, seed=seed, pattern=None, hold_out=False)
    return tuple(sorted(drawn, key=lambda sample: sample.id))


def stratified_places(
    pixels: NDArray[np.int64], shows: NDArray[np.int64], sizes: NDArray[np.int64], jitter: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Where each group stands in its stratum; draws take the lowest. [G] float64 in [0, 1).

    Args:
        pixels: Pixels of each class in each group, groups in the order of their digests. [G, C].
        shows: Images of each group that show a class. [G, C].
        sizes: Images of each group. [G].
        jitter: In [0, 1). [G].
    """
    rarest_first = np.argsort(shows.sum(axis=0), kind="stable")  # [C]
    rarest = rarest_first[(shows[:, rarest_first] > 0).argmax(axis=1)]  # [G]
    share = pixels / np.maximum(1, pixels.sum(axis=1, keepdims=True))  # [G, C]
    leading = (share - share.mean(axis=0)).argmax(axis=1)  # [G]
    stratum = np.where(shows.any(axis=1), rarest * shows.shape[1] + leading, -1)  # [G]

    places = np.empty(len(sizes))
    for value in np.unique(stratum):
        members = np.flatnonzero(stratum == value)
        before = np.cumsum(sizes[members]) - sizes[members]
        places[members] = (before + jitter[members] * sizes[members]) / sizes[members].sum()
    return places


class _Picks:
    """Groups taken so far, and whether one more fits."""

    def __init__(self, sizes: NDArray[np.int64], shows: NDArray[np.int64], count: int, *, hold_out: bool) -> None:
        self.taken = np.zeros(len(sizes), dtype=bool)  # [G]
        self.order: list[int] = []
        self._sizes, self._shows, self._count, self._hold_out = sizes, shows, count, hold_out
        self._total = 0
        self._left = shows.sum(axis=0)  # [C] images of each class that are not taken

    def take(self, g: int) -> bool:
        """Take group ``g`` if it fits."""
        if self.taken[g] or not self._fits(g):
            return False
        self.taken[g] = True
        self.order.append(g)
        self._total += int(self._sizes[g])
        self._left = self._left - self._shows[g]
        return True

    def _fits(self, g: int) -> bool:
        if not self._hold_out:
            return self._total < self._count
        nearer = abs(self._total + self._sizes[g] - self._count) < abs(self._total - self._count)
        last_of_a_class = (self._shows[g] > 0) & (self._shows[g] == self._left)
        return bool(nearer and not last_of_a_class.any())


def _pixels(group: Sequence[Sample]) -> NDArray[np.int64]:
    rows = [sample.pixels for sample in group]
    assert None not in rows, "count_pixels comes before draw"
    return np.array(rows, dtype=np.int64)


def _groups(
    samples: Sequence[Sample], seed: int, pattern: re.Pattern[str] | None
) -> tuple[list[list[Sample]], NDArray[np.float64]]:
    """Groups in the order of their digests, and the jitter of each."""
    members: dict[str, list[Sample]] = {}
    for sample in samples:
        members.setdefault(group_of(sample.id, pattern), []).append(sample)
    digests = {name: hashlib.sha256(f"{seed}:{name}".encode()).digest() for name in members}
    names = sorted(members, key=lambda name: digests[name])
    jitter = [int.from_bytes(digests[name][-6:], "big") / 2**48 for name in names]  # 48 bits stay below 1 in a double
    return [members[name] for name in names], np.array(jitter)

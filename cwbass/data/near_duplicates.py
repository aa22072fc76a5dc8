"""Images that look the same: a difference hash of 128 bits, and pairs that differ in few of them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

MAX_DISTANCE = 3  # bits; 99 % of street scenes scaled to 2/3 and saved as JPEG 60 stay within it
NUM_CHUNKS = MAX_DISTANCE + 1  # of hashes that differ in 3 bits at most, one chunk of four is equal
MAX_NEIGHBORS = 256  # hashes compared with each one in a chunk's order; bounds the work on sets of equal images
GRID = 9  # cells along a side
FLAT = 2  # grey levels; an image with less contrast has no structure to compare

Hash = tuple[int, int, int, int]


def difference_hash(image: Image.Image) -> Hash | None:
    """Whether brightness rises to the right (64 bits) and downward (64 bits) on a 9 x 9 grid.

    Returns:
        Four words of 32 bits; None for an image of one tone, which would match every other such.
    """
    gray = np.asarray(image.convert("L").resize((GRID, GRID), Image.Resampling.BOX), dtype=np.int16)  # [9, 9]
    if np.ptp(gray) <= FLAT:
        return None
    rises = np.stack([gray[:8, 1:] > gray[:8, :-1], gray[1:, :8] > gray[:-1, :8]])  # [2, 8, 8]
    first, second, third, fourth = np.packbits(rises).view(">u4").tolist()
    return first, second, third, fourth


def near_pairs(hashes: NDArray[np.uint32], roles: NDArray[np.int64]) -> NDArray[np.int64]:
    """Pairs of different roles whose hashes differ in at most ``MAX_DISTANCE`` bits.

    Sub-linear per image: only hashes that share a chunk are compared. In a set of more than
    ``MAX_NEIGHBORS`` images that share one, each is compared with those that sort next to it.

    Args:
        hashes: [N, 4] uint32.
        roles: [N].

    Returns:
        Indices i < j of each pair once, sorted. [P, 2] int64.
    """
    pairs = [np.empty((0, 2), dtype=np.int64)]
    for chunk in range(NUM_CHUNKS):
        # By this chunk first, then by the others, so that look-alikes stand side by side.
        order = np.lexsort([*np.delete(hashes, chunk, axis=1).T, hashes[:, chunk]])  # [N]
        key = hashes[order, chunk]
        for offset in range(1, min(len(order), MAX_NEIGHBORS + 1)):
            same_chunk = np.flatnonzero(key[offset:] == key[:-offset])
            if not len(same_chunk):
                break
            left, right = order[same_chunk], order[same_chunk + offset]
            distance = np.bitwise_count(hashes[left] ^ hashes[right]).sum(axis=1)
            near = (distance <= MAX_DISTANCE) & (roles[left] != roles[right])
            pairs.append(np.sort(np.stack([left[near], right[near]], axis=1), axis=1))
    return np.unique(np.concatenate(pairs), axis=0)

"""Neighbouring dimensions of tensors read as one, where every one of the tensors steps through them so.

Plain arithmetic on sizes and strides, for launches over tensors in memory and, before there are any, for the
schedule that decides what a template may be given.
"""

from __future__ import annotations

from collections.abc import Sequence


def joined(
    sizes: Sequence[int], strides: Sequence[Sequence[int]], least: int
) -> tuple[list[int], list[list[int]]]:
    """The sizes and each tensor's strides with dimensions joined from the front, to ``least`` if they can be.

    Two become one where ``stride = next stride · next size`` in every tensor; a broadcast dimension has the
    stride 0. ::

        [N, P, d], [N, P, 1]    →    [N P, d], [N P, 1]
        [N, P, d], [P, d]       →    [N, P d], [P d]
    """
    sizes, steps = list(sizes), [list(each) for each in strides]
    at = 0
    while len(sizes) > least and at + 1 < len(sizes):
        size, following = sizes[at], sizes[at + 1]
        if 1 in (size, following) or all(s[at] == s[at + 1] * following for s in steps):
            gone = at if size == 1 or following != 1 else at + 1
            sizes[at : at + 2] = [size * following]
            for each in steps:
                del each[gone]
        else:
            at += 1
    return sizes, steps

"""Shape profiles: the range of each varying size of a graph, for runtimes that build engines for shapes."""

from __future__ import annotations

from dataclasses import dataclass

from .contract import GraphSpec


@dataclass(frozen=True)
class SizeRange:
    """The smallest, the usual and the largest value of a size that varies."""

    smallest: int
    usual: int
    largest: int


#: the range of each varying size of a graph, by the name of its axis in the `GraphSpec`
Profile = dict[str, SizeRange]


def problems(profile: Profile, spec: GraphSpec) -> list[str]:
    """Each problem of a profile, as a sentence: axes without a range, ranges without an axis, ranges out of order."""
    problems = [f"{axis}: missing" for axis in sorted(spec.axes - profile.keys())]
    problems += [f"{axis}: unknown" for axis in sorted(profile.keys() - spec.axes)]
    for axis, sizes in profile.items():
        if not 1 <= sizes.smallest <= sizes.usual <= sizes.largest:
            problems.append(f"{axis}: {sizes.smallest}, {sizes.usual}, {sizes.largest} are not in order from 1 up")
    return problems

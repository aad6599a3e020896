"""Shape profiles: the range of each varying size of a graph, for runtimes that build engines for shapes."""

from __future__ import annotations

from dataclasses import dataclass

from .contract import GraphSpec


@dataclass(frozen=True)
class SizeRange:
    """The smallest, the usual and the largest of a size."""

    smallest: int
    usual: int
    largest: int


#: the extents of a graph's varying sizes by the names that its `GraphSpec` has for them
Profile = dict[str, SizeRange]


def problems(profile: Profile, spec: GraphSpec) -> list[str]:
    """What is wrong with a profile: sizes without an extent, extents without a size, extents out of order."""
    found = [f"{axis}: missing" for axis in sorted(spec.axes - profile.keys())]
    found += [f"{axis}: unknown" for axis in sorted(profile.keys() - spec.axes)]
    for size, extent in profile.items():
        if not 1 <= extent.smallest <= extent.usual <= extent.largest:
            found.append(f"{size}: {extent.smallest}, {extent.usual}, {extent.largest} are not in order from 1 up")
    return found

"""Shape profiles: the range of each varying size of a graph, for runtimes that build engines for shapes."""

from __future__ import annotations

from dataclasses import dataclass

from .contract import GraphSpec


@dataclass(frozen=True)
class Extent:
    """The smallest, the usual and the largest of a size."""

    smallest: int
    usual: int
    largest: int


#: the extents of a graph's varying sizes by the names that its `GraphSpec` has for them
Profile = dict[str, Extent]


def problems(profile: Profile, spec: GraphSpec) -> list[str]:
    """What is wrong with a profile: sizes without an extent, extents without a size, extents out of order."""
    sizes = {size for tensor in spec.inputs for size in tensor.shape if isinstance(size, str)}
    found = [f"{size}: missing" for size in sorted(sizes - profile.keys())]
    found += [f"{size}: unknown" for size in sorted(profile.keys() - sizes)]
    for size, extent in profile.items():
        if not 1 <= extent.smallest <= extent.usual <= extent.largest:
            found.append(f"{size}: {extent.smallest}, {extent.usual}, {extent.largest} are not in order from 1 up")
    return found

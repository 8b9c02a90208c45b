"""Remove files of a recording at every site, and say which site keeps one: crypto-erase, destruction."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from recorder.sites.site import Site, SiteError


@dataclass
class Removal:
    """What became of a removal."""

    removed: list[str] = field(default_factory=list)
    """``site: key`` of what is gone (or was never there)."""
    kept: dict[str, str] = field(default_factory=dict)
    """``site: key`` and why it is still there or not known to be gone: locked, versioned,
    unreachable.
    """

    @property
    def complete(self) -> bool:
        """Nothing is left anywhere."""
        return not self.kept


def remove_from_sites(sites: Sequence[Site], recording: str, names: Iterable[str]) -> Removal:
    """Remove files of the recording at the path ``recording`` (``recordings/{tenant}/…/{id}``) from
    every site.

    ``names`` are paths below it; ``keys.json`` alone is crypto-erase. Never raises for a site that
    refuses or does not answer: it is named in ``kept``, and the caller states it (a tombstone must not
    claim more than happened) and tries again. A bucket that locks or keeps versions hides the object
    only; that counts as kept.
    """
    result = Removal()
    for name in names:
        for site in sites:
            key = f"{recording}/{name}"
            label = f"{site.name}: {key}"
            try:
                site.delete(key)
            except SiteError as error:
                result.kept[label] = f"{error.code}: {error.detail}"
            else:
                result.removed.append(label)
    return result

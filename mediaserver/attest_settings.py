"""What others are to say of a recording, as an operator sets it: ``crypto.status`` and ``timestamp``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import pydantic
from pydantic import AfterValidator, Field

from mediaserver.section import Section
from recorder.fetch import check_url


class CertificateStatus(Section):
    """Revocation lists (CRLs) of the authority that issued the crypto certificates."""

    crl: tuple[str, ...] = Field(
        default=(),
        description="Files or http(s) addresses of the lists, one for each issuer in the chain. Each "
        "recording stores them as they are at its end, so that its signer's status can be checked for ever; "
        "it grows by their size. Empty: the status is not stated.",
    )
    refresh_s: float = Field(
        default=3600.0,
        gt=0,
        description="How old a stored list can be when an authority has a newer one.",
    )
    timeout_s: float = Field(
        default=20.0,
        gt=0,
        description="A list that takes longer is tried again later; the last one got is used.",
    )

    @pydantic.model_validator(mode="after")
    def _sources(self) -> CertificateStatus:
        for source in self.crl:
            if "://" in source:
                check_url(source)
        return self


class Timestamp(Section):
    """Time-stamps of an authority (RFC 3161) over each recording."""

    when: Literal["off", "stop"] = Field(
        default="off",
        description="stop: after the manifest is signed, and again after files were composed, an authority "
        "stamps a digest of all that is signed. One request each; calls and recordings never wait for it. "
        "off: when a recording was made rests on the server's own clock.",
    )
    url: Annotated[str, AfterValidator(check_url)] | None = Field(
        default=None,
        description="The authority's http(s) address. Only digests are sent there. Needed for stop.",
    )
    trust: Path | None = Field(
        default=None,
        description="PEM file with the authority's root certificate. Answers that do not lead to it are "
        "refused and asked for again. null: any answer is stored that holds by its own certificate.",
    )
    policy: str | None = Field(
        default=None,
        pattern=r"^[0-2](\.(0|[1-9]\d*))+$",
        description="OID of the policy to ask for. null: the authority's own.",
    )
    timeout_s: float = Field(
        default=20.0, gt=0, description="An answer slower than this counts as a failed try."
    )
    retry_hours: float = Field(
        default=72.0,
        gt=0,
        description="An authority that does not answer is asked again every few minutes for this long after "
        "the end of a recording. After that recorder timestamp does it by hand.",
    )

    @pydantic.model_validator(mode="after")
    def _reachable(self) -> Timestamp:
        if self.when == "stop" and self.url is None:
            raise ValueError("timestamp.when is stop, but timestamp.url names no authority")
        return self

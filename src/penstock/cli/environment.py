"""Names that begin with PENSTOCK_ in the environment: which of them we read, and what becomes of the others.

One that is nearly ours is an error, since whoever set it waits for an effect. Any other is told in one line and left,
as a program beside this one may share the prefix. What Kubernetes sets for a service called penstock is passed over.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Final

PREFIX: Final = "PENSTOCK_"
SWITCHES: Final[dict[str, str]] = {
    "PENSTOCK_COMPILED": "0 runs all modules as Python, whatever is compiled.",
    "PENSTOCK_HARDWARE_DIR": "Directory of measured machines; default: ~/.config/penstock/hardware.",
    "PENSTOCK_API_KEY": "Key that `penstock chat --url` sends.",
    "PENSTOCK_OPTIONS": "File with flags by verb, as `penstock --options`.",
}
"""All that we read beside keys of the deployment file (PENSTOCK_POLICY__MAX_SEQS) and flags of a verb
(PENSTOCK_BENCH_RATE)."""

NEAR: Final = 0.85
"""Share of letters, as difflib counts it, from which a name is taken for a mistake in typing another."""
_MENTIONED: Final = 0.6
_KUBERNETES: Final = re.compile(r"SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?")
_ADDRESS: Final = re.compile(r"(tcp|udp|sctp)://")


def environment_name(key: str) -> str:
    """
    >>> environment_name("policy.token_budget")
    'PENSTOCK_POLICY__TOKEN_BUDGET'
    """
    return PREFIX + key.replace(".", "__").upper()


def unknown_names(
    environment: Mapping[str, str], verb: str, verbs: Collection[str], flags: Iterable[str]
) -> dict[str, str]:
    """Names nobody reads, each with the nearest that somebody does, or "".

    Args:
        verb: the one that runs; flags of the others are theirs to check.
        flags: names in the environment of its own.

    Raises:
        InvalidDeployment: such a name is nearly one of ours, or is written as a key of the deployment file.
    """
    own = {*SWITCHES, *flags}
    others = tuple(f"{PREFIX}{one.upper()}_" for one in verbs if one != verb)
    left = [
        name
        for name, value in sorted(environment.items())
        if name.startswith(PREFIX) and name not in own and not _of_kubernetes(name, value)
        and not name.startswith(others)
    ]  # fmt: skip
    if not left:
        return {}
    from penstock.deployment import keys

    known = own | {environment_name(key) for key in keys()}
    return {name: _judged(name, known) for name in left if name not in known}


def _judged(name: str, known: Collection[str]) -> str:
    from penstock.errors import InvalidDeployment

    plain, short = {_plain(one): one for one in known}, _plain(name)
    same_end = sorted((one for one in plain if one.endswith("_" + short)), key=len)
    found = difflib.get_close_matches(short, plain, n=1, cutoff=_MENTIONED) or same_end
    nearest = plain[found[0]] if found else ""
    likeness = difflib.SequenceMatcher(None, short, found[0]).ratio() if found else 0.0
    if likeness >= NEAR or "__" in name:
        raise InvalidDeployment(
            field=name, value="...", why="this environment variable names no key and no flag",
            remedy=f"{nearest}, or unset it" if nearest else "unset it, or see `penstock serve --help`",
        )  # fmt: skip
    return nearest


def _plain(name: str) -> str:
    """Without what all names have, and whichever underscores somebody forgot."""
    return name.removeprefix(PREFIX).replace("__", "_")


def _of_kubernetes(name: str, value: str) -> bool:
    """Of a service that is called penstock, or penstock-something: its addresses, as pods of its namespace get them."""
    rest = name.removeprefix(PREFIX)
    if _ADDRESS.match(value):
        return rest.endswith("PORT") or _KUBERNETES.search(rest) is not None
    return re.search(rf"(^|_)({_KUBERNETES.pattern})$", rest) is not None

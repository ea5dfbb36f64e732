"""The card beside a snapshot's files, and the licence that it names."""

import re
from pathlib import Path

from mdsc.errors import UserError
from mdsc.publish.card import model_card
from mdsc.publish.card_facts import card_facts
from mdsc.publish.snapshot import CARD, Snapshot

LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]*")


def check_license(license: str, flag: str) -> None:
    if not LICENSE.fullmatch(license):
        raise UserError(
            f"{flag}: {license!r} is no licence as the hub names them; give e.g. apache-2.0, cc-by-4.0 or unknown."
        )


def write_card(snapshot: Snapshot, run: Path, repo: str, license: str) -> bool:
    """Write README.md into the snapshot; False where the run's folder has one of its own, which goes first."""
    card = snapshot.folder / CARD
    if card.is_file():
        return False
    card.write_text(model_card(card_facts(snapshot, run), repo, license), encoding="utf-8")
    return True

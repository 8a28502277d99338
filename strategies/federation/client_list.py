"""``clients.json`` of a run directory: the classes of the task, and the clients as the server knows them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from hyperlora.messages.signature import ClientCard
from hyperlora.storage.run_names import CLIENTS
from models.personalization.signature import Signature

FORMAT = 1


class ClientListError(ValueError):
    """The list of clients cannot be used; the message is one sentence."""


@dataclass(frozen=True)
class ClientList:
    """The class names in the order of the labels, and the cards by client-id."""

    class_names: Sequence[str]
    cards: Mapping[str, ClientCard]

    def as_json(self) -> dict[str, Any]:
        """Return plain lists, dicts, strings and numbers; a signature keeps six digits of every number."""
        clients = [_card_as_json(self.cards[name]) for name in sorted(self.cards)]
        return {"format": FORMAT, "class_names": list(self.class_names), "clients": clients}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> ClientList:
        """Inverse of :meth:`as_json`.

        Raises:
            ClientListError: another format, or a part is missing or wrong.
        """
        if not isinstance(value, Mapping) or value.get("format") != FORMAT:
            found = value.get("format") if isinstance(value, Mapping) else None
            raise ClientListError(f"{CLIENTS} is of format {found}, this program reads format {FORMAT}")
        try:
            names = tuple(str(name) for name in value["class_names"])
            cards = [_card_from_json(one, len(names)) for one in value["clients"]]
        except (LookupError, TypeError, ValueError, ArithmeticError, RuntimeError) as error:
            raise ClientListError(f"{CLIENTS} is damaged ({type(error).__name__}: {error})") from error
        return cls(names, {card.client_id: card for card in cards})


def _card_as_json(card: ClientCard) -> dict[str, Any]:
    return {
        "client_id": card.client_id,
        "domain": card.domain,
        "trains": card.trains,
        "num_examples": card.num_examples,
        "signature": [float(f"{number:.6g}") for number in card.signature.vector().tolist()],
    }


def _card_from_json(value: Mapping[str, Any], num_classes: int) -> ClientCard:
    signature = Signature.from_vector(torch.tensor(value["signature"], dtype=torch.float32), num_classes)
    return ClientCard(
        str(value["client_id"]), str(value["domain"]), bool(value["trains"]), int(value["num_examples"]), signature
    )

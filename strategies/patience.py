"""Which nodes are worth asking: one that does not answer rests, for twice as many rounds each time."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

FIRST_REST = 1


@dataclass
class Patience:
    """How long each silent node rests, in rounds of :attr:`clock`.

    A node that is silent in round 1 and whenever it is asked is asked in rounds 3, 6, 11, 20, ...: it delays some
    log2(rounds) rounds by the time limit, and not all of them. An answer of any kind makes its next rest short again.
    """

    clock: int = 0
    _rests: dict[int, int] = field(default_factory=dict)
    _until: dict[int, int] = field(default_factory=dict)

    def tick(self) -> None:
        """Begin the next round."""
        self.clock += 1

    def rests(self, node_id: int) -> bool:
        """Tell whether a node is not to be asked in this round."""
        return self.clock < self._until.get(node_id, 0)

    def note(self, asked: Iterable[int], answered: Iterable[int]) -> None:
        """Let the nodes among ``asked`` that are not among ``answered`` rest; what the others did is forgotten."""
        heard = set(answered)
        for node_id in set(asked):
            if node_id in heard:
                self._rests.pop(node_id, None)
                self._until.pop(node_id, None)
            else:
                rest = 2 * self._rests[node_id] if node_id in self._rests else FIRST_REST
                self._rests[node_id], self._until[node_id] = rest, self.clock + rest + 1

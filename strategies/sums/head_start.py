"""The head before round 1 where the server sees nothing but sums (``lora.head-start = classes``)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from flwr.serverapp import Grid

from hyperlora.messages.questions import TRIED_FACTORS, Question, public_anchor, public_clusters
from models.adapters.adapter import Adapter
from models.sums.clusters import Clusters
from models.sums.group_statistics import GroupStatistics
from strategies.engine.records import RoundRecord
from strategies.sums.channel import SumChannel


def start_from_sums(
    start: Adapter, channel: SumChannel, grid: Grid, names: Sequence[str], record: RoundRecord
) -> Adapter:
    """Return ``start`` with the discriminant of the classes of all clients, at the factor of the least loss over them.

    Args:
        start: what clients would begin with.
        channel: asks for sums.
        grid: sends the messages.
        names: the clients that train.
        record: of round 1; has their bytes and failures afterwards.

    Returns:
        ``start`` itself where there is no sum, or one that cannot be that of honest clients; the record says why.
    """
    width = start.head.shape[1] - 1
    everybody = Clusters(torch.zeros(width), torch.ones(width), torch.zeros(1, width), torch.tensor([len(names)]))
    classes = Question("classes", {**public_anchor(start), **public_clusters(everybody)})
    told = channel.ask(grid, names, classes, record)
    if told is None:
        return start
    try:
        head = GroupStatistics.of(told.sums).discriminant()
    except (ValueError, RuntimeError) as error:
        record.note_missing_sum("classes", str(error))
        return start
    whole = replace(start, head=head)
    tried = channel.ask(grid, names, Question("head losses", public_anchor(whole)), record)
    if tried is None:
        return start
    return replace(start, head=TRIED_FACTORS[int(tried.sums["losses"].argmin())] * head)

"""HyperLoRA as an ordinary Flower Strategy, for a ServerApp of your own."""

from __future__ import annotations

from hyperlora.config.schema import RunConfig
from models.adapters.adapted_model import AdaptedModel
from models.adapters.rank_budget import least_bytes
from strategies.engine.settings import RoundSettings
from strategies.engine.strategy import LoraStrategy
from strategies.federation.registrar import Registrar
from strategies.methods.registry import build_method, required_rank


class HyperLoraStrategy(LoraStrategy):
    """``HyperLoraStrategy(model, num_classes=10, min_clients=6).start(grid, num_rounds=30)``.

    Args:
        model: the frozen backbone with an adapter on it; every client has the same.
        num_classes: classes of the task.
        min_clients: clients to wait for before round 1.
        config: method, cohort size, local budget, seed and the method's settings; HyperLoRA with the defaults where it
            is None. Model, adapter and data are the caller's: of ``data``, ``model`` and ``lora`` it is read only how a
            run starts, what clients tell and what the method asks about, of ``run`` where its memory spills. A run of
            sums (``privacy.mode``) is made by ``hyperlora run`` alone.
    """

    def __init__(
        self, model: AdaptedModel, *, num_classes: int, min_clients: int, config: RunConfig | None = None
    ) -> None:
        config = config or RunConfig()
        initial = model.fresh_adapter(config.seed)
        super().__init__(
            build_method(config),
            initial=initial,
            registrar=Registrar.of(
                model,
                num_classes,
                required_rank=required_rank(config, initial.rank),
                most_clients=config.federation.clients_per_node,
                least_bytes=least_bytes(initial, config.wire.dtype),
            ),
            settings=RoundSettings.of(config, min_clients=min_clients),
        )

"""Noise at the clients: clipping, its size and where it comes from; the accountant and the budget."""

from __future__ import annotations

import math
import os
import random
import secrets
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dp_accounting
import numpy as np
import pytest
import torch

from benchmarks.local_grid import LocalGrid
from client_app.handlers import make_client_app
from client_app.privacy import private
from client_app.runtime import ClientRuntime, open_runtime
from client_app.site import Site
from client_app.token_cache import TokenCache
from hyperlora.accounting import composed_epsilon
from hyperlora.config.schema import ConfigError, RunConfig
from hyperlora.config.settings import PrivacyConfig
from hyperlora.data.federation import DataError
from hyperlora.messages.codec import ProtocolError
from hyperlora.messages.plan import Start, chosen
from hyperlora.messages.train import TrainReply, TrainRequest
from hyperlora.noise import noised, secret_noise, simulated_noise
from hyperlora.storage.state import StateError
from models.adapters.adapter import Adapter
from models.personalization.signature import Signature, compute_signature, private_signature
from strategies.engine.history import History
from strategies.engine.privacy_ledger import PrivacyLedger, participations
from strategies.engine.records import RoundRecord
from strategies.engine.strategy import LoraStrategy
from strategies.federation.registrar import Registrar
from strategies.methods.flexlora import FlexLoRA
from tests.builders import CLASSES, SIGNATURE_SIZE, fake_client_app, make_adapter, make_metrics, moved
from tests.unit.test_lora_strategy import CARDS, SETTINGS

WIDTH, COUNT, CLASSES_HERE = 6, 50, 3


def samples() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    features = torch.randn(COUNT, WIDTH, generator=generator)
    return features, torch.randint(0, CLASSES_HERE, (COUNT,), generator=generator)


def signature_of(
    features: torch.Tensor, labels: torch.Tensor, noise: float, seed: int = 1, clip: float = 1e3, told: int = COUNT
) -> Signature:
    draw = simulated_noise(seed)
    return private_signature(
        features,
        labels,
        num_classes=CLASSES_HERE,
        smoothing=1.0,
        clip=clip,
        noise=noise,
        draw=draw,
        reported_examples=told,
    )


def sums(signature: Signature) -> torch.Tensor:
    """Return mean, mean square and unsmoothed frequencies: what the noise is added to."""
    second = signature.feature_mean.square() + signature.feature_std.square()
    return torch.cat([signature.feature_mean, second, signature.class_frequencies])


def test_without_noise_and_with_a_wide_clip_it_is_the_plain_signature() -> None:
    features, labels = samples()
    plain = compute_signature(features, labels, num_classes=CLASSES_HERE, smoothing=1.0)
    assert torch.allclose(signature_of(features, labels, 0.0).vector(), plain.vector(), atol=1e-5)


def test_one_sample_replaced_moves_the_noised_sums_by_no_more_than_the_sensitivity() -> None:
    clip, features, labels = 0.7, *samples()
    largest = clip * math.sqrt(WIDTH)
    worst = 0.0
    for scale in (0.1, 1.0, 100.0):
        other, marks = features.clone(), labels.clone()
        other[0], marks[0] = -scale * features[0], (labels[0] + 1) % CLASSES_HERE
        sides = [signature_of(*pair, 0.0, clip=clip) for pair in ((features, labels), (other, marks))]
        left, right = ((one.feature_mean, one.feature_mean.square() + one.feature_std.square()) for one in sides)
        mean_part = (left[0] - right[0]) / largest
        square_part = (left[1] - right[1]) / (clip * largest * math.sqrt(2))
        worst = max(worst, float(torch.cat([mean_part, square_part]).norm()))
    label_part = math.sqrt(2) / COUNT
    assert 0.0 < math.hypot(worst, label_part) <= math.sqrt(8) / COUNT


def test_noise_has_the_size_that_the_accountant_reckons_with() -> None:
    features, labels = samples()
    plain = signature_of(features, labels, 0.0, clip=1.0)
    draws = torch.stack(
        [signature_of(features, labels, 2.0, seed, clip=1.0).feature_mean - plain.feature_mean for seed in range(400)]
    )
    assert float(draws.std()) == pytest.approx(2.0 * math.sqrt(8) * math.sqrt(WIDTH) / COUNT, rel=0.05)


def test_a_noised_signature_still_is_one() -> None:
    features, labels = samples()
    vector = signature_of(features, labels, 50.0).vector()
    assert Signature.from_vector(vector, CLASSES_HERE).class_frequencies.sum() == pytest.approx(1.0)


def reply_for(start: Adapter, up: tuple[str, ...] = ("A", "B", "head")) -> tuple[TrainReply, TrainRequest]:
    request = TrainRequest("client-0", 1, 10, Start(start))
    return TrainReply("client-0", 1, moved(start, "client-0", 1), make_metrics(), up=up), request


def distance(left: Adapter, right: Adapter) -> float:
    other = right.tensors()
    return float(sum((one - other[name]).square().sum() for name, one in left.tensors().items()) ** 0.5)


def test_a_movement_is_clipped_to_the_norm_and_keeps_its_direction() -> None:
    start = make_adapter(0)
    reply, request = reply_for(start)
    length = distance(reply.end, start)
    half = private(reply, request, clip=length / 2, noise=0.0, draw=simulated_noise(0))
    assert distance(half.end, start) == pytest.approx(length / 2, rel=1e-5)
    assert distance(half.end, reply.end) == pytest.approx(length / 2, rel=1e-5)
    assert distance(private(reply, request, clip=2 * length, noise=0.0, draw=simulated_noise(0)).end, reply.end) < 1e-5


def test_noise_on_an_adapter_is_the_multiplier_times_twice_the_clip_on_every_entry_that_travels() -> None:
    start = make_adapter(0)
    reply, request = reply_for(start, up=("B", "head"))
    quiet = private(reply, request, clip=0.5, noise=0.0, draw=simulated_noise(0))
    noisy = [private(reply, request, clip=0.5, noise=3.0, draw=simulated_noise(seed)) for seed in range(50)]
    spread = torch.cat(
        [
            (chosen(one.end, ("B", "head"))[name] - tensor).flatten()
            for one in noisy
            for name, tensor in chosen(quiet.end, ("B", "head")).items()
        ]
    )
    assert float(spread.std()) == pytest.approx(3.0, rel=0.05)
    untouched = chosen(reply.end, ("A",))
    assert all(torch.equal(tensor, untouched[name]) for name, tensor in chosen(noisy[0].end, ("A",)).items())


def test_a_noised_reply_tells_neither_losses_nor_gradients() -> None:
    reply, request = reply_for(make_adapter(0))
    told = private(reply, request, clip=1.0, noise=1.0, draw=simulated_noise(0)).metrics
    assert (told.train_loss, told.start_loss, told.end_loss, told.start_accuracy, told.end_accuracy) == (0,) * 5
    with pytest.raises(ValueError, match="nothing of its gradient"):
        private(replace(reply, gradient={"head": torch.ones(3)}), request, clip=1.0, noise=1.0, draw=simulated_noise(0))


def test_what_is_not_finite_is_not_released() -> None:
    reply, request = reply_for(make_adapter(0))
    for broken in (math.nan, math.inf):
        tensors = {name: tensor.clone() for name, tensor in reply.end.tensors().items()}
        next(iter(tensors.values())).flatten()[0] = broken
        with pytest.raises(ProtocolError, match="releases nothing"):
            private(replace(reply, end=Adapter.from_tensors(tensors)), request, clip=1.0, noise=1.0, draw=secret_noise)
        features, labels = samples()
        features[3, 2] = broken
        with pytest.raises(ValueError, match="not finite"):
            signature_of(features, labels, 1.0)


def test_a_client_whose_features_are_not_finite_is_left_out_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = open_runtime(NOISED)
    monkeypatch.setattr(runtime.model, "frozen_features", lambda tokens: torch.full((len(tokens), 4), math.nan))
    with pytest.raises(DataError, match="takes no part: the features"):
        replace(runtime, cache=TokenCache(runtime.model, runtime.federation, 2**20)).signature("clean-0")


def simulated_and_site() -> tuple[ClientRuntime, ClientRuntime]:
    runtime = open_runtime(NOISED)
    return replace(runtime, at_site=False), replace(runtime, at_site=True)


def test_noise_is_repeated_in_a_simulation_and_never_at_a_site() -> None:
    simulated, site = simulated_and_site()
    assert torch.equal(simulated.noise("a", 1)((9,)), simulated.noise("a", 1)((9,)))
    assert not torch.equal(simulated.noise("a", 1)((9,)), simulated.noise("a", 2)((9,)))
    drawn = []
    for _ in range(2):
        torch.manual_seed(0)
        np.random.seed(0)
        random.seed(0)
        drawn.append(site.noise("a", 1)((9,)))
    assert not torch.equal(*drawn)


def test_a_release_of_a_site_follows_from_no_seed_of_a_generator(monkeypatch: pytest.MonkeyPatch) -> None:
    known = 7
    for source in ("randbits", "randbelow"):
        monkeypatch.setattr(secrets, source, lambda bits: known)
    monkeypatch.setattr(random.SystemRandom, "getrandbits", lambda self, bits: known)
    _, site = simulated_and_site()
    reply, request = reply_for(make_adapter(0))
    quiet = private(reply, request, clip=1.0, noise=0.0, draw=secret_noise).end.tensors()
    released = private(reply, request, clip=1.0, noise=1.0, draw=site.noise("client-0", 1)).end.tensors()
    name = min(released)
    noise = ((released[name] - quiet[name]) / 2.0).flatten()[:8]
    for seed in range(2**14):
        generator = torch.Generator().manual_seed(seed)
        guess = torch.randn(released[name].shape, generator=generator).flatten()[:8]
        assert not torch.allclose(noise, guess, atol=1e-3)


def test_secret_noise_is_standard_normal() -> None:
    drawn = secret_noise((1000, 100)).flatten()
    assert drawn.dtype == torch.float64
    assert abs(float(drawn.mean())) < 0.03  # nine standard errors
    assert abs(float(drawn.std()) - 1.0) < 0.03
    expected = torch.special.ndtr(drawn.sort().values)
    steps = torch.arange(1, drawn.numel() + 1).double() / drawn.numel()
    assert float((expected - steps).abs().max()) < 0.015  # Kolmogorov and Smirnov; p below 1e-19 if it were normal
    assert secret_noise((0, 3)).shape == (0, 3)


def test_secret_noise_takes_fresh_bytes_of_the_system_for_every_number(monkeypatch: pytest.MonkeyPatch) -> None:
    taken, urandom = list[int](), os.urandom
    monkeypatch.setattr(os, "urandom", lambda size: taken.append(size) or urandom(size))
    secret_noise((30, 10))
    assert 8 * sum(taken) >= 52 * 300  # a generator takes one seed for all of them


def test_a_noised_number_is_on_a_grid_that_the_value_does_not_move() -> None:
    for scale in (0.003, 1.0, 50.0):
        step = 2.0 ** math.floor(math.log2(scale * 2.0**-16))
        for value in (0.0, 1 / 3, -1e-9):
            points = noised(torch.full((200,), value), scale, secret_noise).double() / step
            assert torch.equal(points, points.round())
    with pytest.raises(ValueError, match="NaN or infinity"):
        noised(torch.tensor([math.nan]), 1.0, secret_noise)


def test_a_client_app_of_your_own_draws_secret_noise_at_a_site(monkeypatch: pytest.MonkeyPatch) -> None:
    provided: list[Any] = []
    monkeypatch.setattr("client_app.handlers.app_around", lambda provide, settings: provided.append(provide))
    runtime = open_runtime(NOISED)
    make_client_app(lambda: runtime.model, runtime.federation, NOISED)
    at_site, simulated = (
        provided[0](SimpleNamespace(node_config=node), "").at_site
        for node in ({"client-id": "clean-0"}, {"partition-id": 0, "num-partitions": 2})
    )
    assert (at_site, simulated) == (True, False)


def test_the_accountant_agrees_with_a_composition_of_privacy_losses() -> None:
    event = dp_accounting.ComposedDpEvent(
        [dp_accounting.GaussianDpEvent(4.0), dp_accounting.SelfComposedDpEvent(dp_accounting.GaussianDpEvent(10.0), 6)]
    )
    accountant = dp_accounting.pld.PLDAccountant(dp_accounting.NeighboringRelation.REPLACE_ONE).compose(event)
    exact = composed_epsilon([(8.0, 1), (20.0, 6)], 1e-5)
    halves = composed_epsilon([(2.0, 1), (5.0, 6)], 1e-5)
    assert exact < composed_epsilon([(4.0, 1), (10.0, 6)], 1e-5) < halves
    assert accountant.get_epsilon(1e-5) == pytest.approx(halves, rel=1e-2)


def test_the_budget_is_spent_by_signatures_and_rounds() -> None:
    ledger = PrivacyLedger(PrivacyConfig(signature_noise=4.0, adapter_noise=10.0, epsilon=2.0))
    assert ledger.epsilon(1, 0) < ledger.epsilon(1, 3) < ledger.epsilon(2, 3)
    most = max(count for count in range(100) if ledger.affords(1, count))
    assert ledger.epsilon(1, most) <= 2.0 < ledger.epsilon(1, most + 1)
    assert PrivacyLedger(PrivacyConfig(adapter_noise=1.0)).affords(1, 10**6)
    assert participations([["a", "b"], ["a"]]) == {"a": 2, "b": 1}


def test_a_round_that_was_forgotten_still_counts() -> None:
    history = History()
    history.note_cohort(1, ["a", "b"])
    history.note_cohort(2, ["a"])
    history.note_cohort(2, ["a"])
    assert history.copy().asked == {"a": 3, "b": 1}
    resumed = History({1: ["a", "b"]})
    for _ in range(2):
        resumed.recall([["a", "b"], ["a"], ["a"]])
        assert resumed.asked == {"a": 3, "b": 1}
    assert History({1: ["a"]}, forgotten={"a": 2}).asked == {"a": 3}
    resumed.recall([])
    assert resumed.asked == {"a": 3, "b": 1}


def run_with(privacy: PrivacyConfig, rounds: int) -> tuple[LoraStrategy, list[RoundRecord]]:
    strategy = LoraStrategy(
        FlexLoRA(),
        initial=make_adapter(0, fresh=True),
        registrar=Registrar("fingerprint", SIGNATURE_SIZE, CLASSES),
        settings=replace(SETTINGS, privacy=privacy),
    )
    records: list[RoundRecord] = []
    strategy.start(LocalGrid(fake_client_app(CARDS), {}, 3), num_rounds=rounds, on_round=records.append)
    return strategy, records


def test_a_run_stops_when_every_client_has_spent_its_budget() -> None:
    budget = PrivacyConfig(signature_noise=4.0, adapter_noise=8.0, epsilon=1.9)
    ledger = PrivacyLedger(budget)
    most = max(count for count in range(100) if ledger.affords(1, count))
    strategy, records = run_with(budget, rounds=50)
    asked = participations(strategy.history.cohorts.values())
    assert most >= 1
    assert set(asked.values()) == {most}
    assert len(records) < 50
    assert records[-1].evaluation
    assert records[-1].privacy["epsilon"] == pytest.approx(ledger.epsilon(1, most))
    assert [one.privacy["epsilon"] for one in records] == sorted(one.privacy["epsilon"] for one in records)


def test_without_noise_nothing_is_accounted_for() -> None:
    _, records = run_with(PrivacyConfig(), rounds=2)
    assert [one.privacy for one in records] == [{}, {}]


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"privacy.adapter-noise": 1.0, "method": "fed-sb"}, "the gradient that its clients send in round 1"),
        ({"privacy.epsilon": 1.0, "privacy.signature-noise": 1.0}, "privacy.adapter-noise"),
        ({"privacy.delta": 0.0}, "privacy.delta"),
        (
            {
                "privacy.epsilon": 1.0,
                "privacy.signature-noise": 1.0,
                "privacy.adapter-noise": 1.0,
                "privacy.exact-figures": True,
            },
            "exact figures have no bound",
        ),
    ],
)
def test_settings_that_would_not_protect_are_refused(values: dict[str, float], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        RunConfig.parse(values)


NOISED = RunConfig.parse({"privacy.signature-noise": 2.0, "data.clients-per-domain": 1, "data.unseen-fraction": 0.0})


def test_a_site_draws_the_noise_of_its_signature_once(tmp_path: Path) -> None:
    site = Site(client_id="clean-0", state_dir=str(tmp_path))
    first = open_runtime(NOISED, site)
    told = first.signature("clean-0")
    first.cache.signatures.clear()
    assert first.signature("clean-0").digest() == told.digest()
    elsewhere = open_runtime(NOISED, Site(client_id="clean-0", state_dir=str(tmp_path / "other")))
    assert elsewhere.signature("clean-0").digest() != told.digest()


def test_a_site_without_a_place_for_its_noised_signature_is_told_so() -> None:
    with pytest.raises(ConfigError, match="state-dir"):
        open_runtime(NOISED, Site(client_id="clean-0")).signature("clean-0")


def test_settings_that_a_signature_does_not_depend_on_draw_no_fresh_noise(tmp_path: Path) -> None:
    site = Site(client_id="clean-0", state_dir=str(tmp_path))

    def told(values: dict[str, float]) -> str:
        runtime = open_runtime(NOISED.with_values(values), site)
        runtime.cache.signatures.clear()
        return runtime.signature("clean-0").digest()

    first, louder = told({}), told({"privacy.signature-noise": 3.0})
    assert first != louder
    for other in ({"privacy.delta": 1e-5 + 1e-14}, {"privacy.adapter-clip": 2.0}, {"privacy.adapter-clip": 3.0}):
        assert told(other) == first
    assert told({"privacy.signature-noise": 3.0}) == louder


def test_a_noised_signature_that_cannot_be_kept_is_not_released(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object, **options: object) -> None:
        raise StateError("the disk is full")

    monkeypatch.setattr("client_app.site_store.write_state", full)
    runtime = open_runtime(
        NOISED.with_values({"train.prefix-cache-mb": 0}), Site(client_id="clean-0", state_dir=str(tmp_path))
    )
    with pytest.raises(StateError, match="full"):
        runtime.signature("clean-0")

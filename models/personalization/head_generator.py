"""A head for a client in closed form: what its classes look like, learned from itself, its neighbours, the federation.

The mean of class c at client i, in coordinates in which samples of a class spread with unit variance, is

    y_ic = m_c + u_i + v_ic + noise / sqrt(n_ic),    u ~ N(0, s_u R),  v_c ~ N(0, s_v R),  R_ij = exp(-d_ij / length):

a mean over the federation, what all classes of a client share, and what one class has of its own; clients with close
signatures are alike in both. The best linear unbiased prediction of m_c + u_i + v_ic (kriging; Henderson 1975) shrinks
a client with few samples to its neighbours and those to the federation, class by class, and is defined for classes
that the client has no sample of. s_u, s_v and length are those of the largest likelihood (empirical Bayes; Robbins
1956). The head is the linear discriminant of the predicted means and of how samples spread at that client
(:mod:`models.personalization.within_class`), without the class prior. That is estimated alike:
the class frequencies of clients are drawn from one Dirichlet distribution, whose concentration has the largest
likelihood, and a client's own are their mean given its counts.

Up to ``MOST_EXACT`` class means are predicted together. Beyond that (a thousand classes) what all classes of a client
share is left out, so that every class is predicted by itself, and of very many clients some are fitted to.

Clients may lie: those whose statistics cannot be are not fitted to, and a newcomer learns nothing from a client whose
classes contradict its own (:mod:`models.personalization.plausible`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from models.personalization.class_means import MOST_OBSERVED, VAGUE, Block, Observed, Variances, evenly, likeliest
from models.personalization.class_statistics import ClassStatistics, bounded, pooled_covariance
from models.personalization.plausible import contradicting, drawn_in, with_likely_means, with_likely_spread
from models.personalization.within_class import WithinClass

RIDGE = 0.01
"""Share of the mean variance within classes that is added to every direction before it is inverted."""
CONCENTRATIONS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
SCALES = tuple(2.0 ** (-index / 2) for index in range(9))
"""Factors on a generated head that clients try beside the anchor's, which keeps its weight.

Discriminants of hundreds of classes are far surer of themselves than they are right. One number that divides logits
mends that (temperature scaling, Guo et al. 2017), here one of the federation.
"""
MOST_EXACT = 3000
"""Pairs of client and class that are predicted together."""
MOST_FITTED, MOST_NUMBERS = 1000, 2**26
"""Clients that a generator is fitted to, and numbers that its factors hold, at most."""


def at_scale(share: float, scale: float, factor: float) -> tuple[float, float]:
    """Return share and scale of the mixture scale ((1 - share) anchor + factor share generated)."""
    anchor, generated = scale * (1.0 - share), scale * share * factor
    return generated / (anchor + generated), anchor + generated


@dataclass(frozen=True)
class Whitening:
    """Features in which samples of a class spread with about unit variance: (x - centre) @ turn.

    Attributes:
        centre: (d,) mean feature of all samples.
        turn: (d, d) directions, divided by the standard deviation along each.
        ridge: (d,) variance along each that is added, so that 1 - ridge is the samples'.
    """

    centre: Tensor
    turn: Tensor
    ridge: Tensor

    @classmethod
    def of(cls, statistics: Sequence[ClassStatistics]) -> Whitening:
        """Fit to the statistics of clients; raises ValueError where nothing is known of the spread."""
        plain = pooled_covariance(statistics, 0.0).double()
        values, directions = torch.linalg.eigh(plain)
        added = RIDGE * plain.diagonal().mean()
        values = values.clamp_min(0.0) + added
        total = torch.stack([one.sums for one in statistics]).sum(dim=(0, 1))
        count = torch.stack([one.counts for one in statistics]).sum()
        return cls((total / count).double(), directions * values.rsqrt(), added / values)

    def observed(self, statistics: Sequence[ClassStatistics]) -> Observed:
        """Return the class means of clients in these coordinates."""
        counts = torch.stack([one.counts for one in statistics]).double()
        client, label = counts.nonzero(as_tuple=True)
        sums, taken = torch.stack([one.sums for one in statistics]).double(), counts[client, label]
        means = (sums[client, label] / taken[:, None] - self.centre) @ self.turn
        return Observed(client, label, means, float((1.0 - self.ridge).mean()) / taken)

    def head(self, means: Tensor, precision: Tensor) -> Tensor:
        """Return the linear discriminant (C, d + 1), for features as they are.

        Args:
            means: (C, d) of the classes, whitened.
            precision: (d, d) inverse covariance within classes, whitened.
        """
        discriminant = means @ precision
        weight = discriminant @ self.turn.mT
        bias = -0.5 * (discriminant * means).sum(dim=1) - weight @ self.centre
        head = torch.cat([weight, bias[:, None]], dim=1)
        return (head - head.mean(dim=0)).float()


@dataclass(frozen=True)
class HeadGenerator:
    """Predicts the class means of clients from the statistics of others and their own.

    Attributes:
        whitening: the coordinates.
        variances: of the model.
        within_class: how samples of a class spread at clients.
        names: client-ids of the N clients that it was fitted to.
        num_classes: C.
        observed: their class means.
        blocks: one of all classes, or one for every class that a client has samples of.
        pseudo_counts: (C,) parameters of the Dirichlet distribution of class frequencies.
        disbelieved: client-ids whose statistics cannot be.
    """

    whitening: Whitening
    variances: Variances
    within_class: WithinClass
    names: Sequence[str]
    num_classes: int
    observed: Observed
    blocks: Sequence[Block]
    pseudo_counts: Tensor
    disbelieved: frozenset[str] = frozenset()

    @classmethod
    def fit(cls, statistics: Mapping[str, ClassStatistics], distances: Tensor) -> HeadGenerator:
        """Fit to clients.

        Args:
            statistics: by client-id.
            distances: (N, N) squared distances of their signatures, in the order of ``statistics``.

        Raises:
            ValueError: no client has two samples of a class.
        """
        parts = bounded(list(statistics.values()))
        classes = len(parts[0].counts)
        clients = list(statistics)
        looked_at = evenly(len(parts), min(MOST_FITTED, int((MOST_NUMBERS / classes) ** 0.5))).tolist()
        kept = [looked_at[one] for one in believed([parts[one] for one in looked_at])]
        disbelieved = frozenset(clients[one] for one in set(looked_at) - set(kept))
        names, distances = [clients[one] for one in kept], distances[kept][:, kept].double()
        parts = [parts[one] for one in kept]
        whitening = Whitening.of(parts)
        observed = whitening.observed(parts)
        observed = replace(observed, means=drawn_in(observed.label, observed.means, observed.noise))
        variances = likeliest(observed.of_part(len(parts), classes, MOST_OBSERVED), distances)
        if len(observed.client) > MOST_EXACT:
            variances = replace(variances, client=0.0)
        within_class = WithinClass.fit(parts, whitening.turn, whitening.ridge, distances)
        frequencies = pseudo_counts(torch.stack([one.counts for one in parts]))
        blocks = _blocks(observed, variances, distances, classes)
        return cls(whitening, variances, within_class, names, classes, observed, blocks, frequencies, disbelieved)

    def head(self, name: str, distances: Tensor, own: ClassStatistics | None) -> Tensor:
        """Return the head (C, d + 1) of a client.

        Args:
            name: its client-id.
            distances: (N,) squared distances of its signature to those of the clients fitted to.
            own: its class statistics, which count for a client that was not fitted to; None where it sent none.
        """
        distances, own = self.heard(name, distances, own)
        means = self.expected_means(distances, own)
        return self.whitening.head(means, self.within_class.precision(distances, own))

    def expected_means(self, distances: Tensor, own: ClassStatistics | None) -> Tensor:
        """Return the whitened means (C, d) of the classes of a client at ``distances`` (N,), given its own besides."""
        means, spread = self.expected(distances)
        return means if own is None else posterior_means(means, spread, self.whitening.observed([own]))

    def heard(self, name: str, distances: Tensor, own: ClassStatistics | None) -> tuple[Tensor, ClassStatistics | None]:
        """Return a client's distances and own statistics; for a newcomer, contradicting clients are infinitely far.

        The own statistics are None for a client that the generator was fitted to, since the fit contains them already.
        """
        distances = distances.double()
        if own is None or name in self.names:
            return distances, None
        unlike = self._contradicting(self.whitening.observed([own]), distances)
        return distances.masked_fill(unlike, torch.inf), own

    def _contradicting(self, mine: Observed, distances: Tensor) -> Tensor:
        """Return whose classes contradict a client's own, boolean (N,)."""
        place = torch.full((self.num_classes,), -1).index_put((mine.label,), torch.arange(len(mine.label)))
        rows = (place[self.observed.label] >= 0).nonzero()[:, 0]
        theirs, v = self.observed.of(rows), self.variances
        same = place[theirs.label]
        expected = 2 * (1 - v.similarity(distances)[theirs.client]) * (v.client + v.single)
        expected = expected + theirs.noise + mine.noise[same]
        differences = (theirs.means - mine.means[same]).square().mean(dim=1)
        return contradicting(differences, expected, theirs.client, len(self.names))

    def log_frequencies(self, own: ClassStatistics) -> Tensor:
        """Return the logarithm of a client's expected class frequencies (C,), given its counts."""
        return torch.log((own.counts + self.pseudo_counts) / (own.counts + self.pseudo_counts).sum())

    def expected(self, distances: Tensor) -> tuple[Tensor, Tensor]:
        """Return the means (C, d) of a client's classes given all observations, and their covariance (C, C)."""
        v, width = self.variances, len(self.whitening.centre)
        means = torch.zeros(self.num_classes, width, dtype=torch.float64)
        spread = v.client + (v.single + VAGUE) * torch.eye(self.num_classes, dtype=torch.float64)
        for block in self.blocks:
            means[block.labels], explained = block.expected(v, distances)
            spread[block.labels[:, None], block.labels] -= explained
        return means, spread


def posterior_means(means: Tensor, spread: Tensor, own: Observed) -> Tensor:
    """Return expected class means given a client's own observations as well (Bayes' rule for Gaussians).

    Args:
        means: (C, d), expected without them.
        spread: (C, C), their covariance.
        own: what the client observed of some classes.
    """
    seen = own.label
    gain = torch.linalg.solve(spread[seen][:, seen] + torch.diag(own.noise), own.means - means[seen])
    found: Tensor = means + spread[:, seen] @ gain
    return found


def believed(statistics: Sequence[ClassStatistics]) -> list[int]:
    """Return the indices of clients with plausible statistics, judged by the spread and the class means of all."""
    likely = with_likely_spread(statistics)
    chosen = [statistics[one] for one in likely]
    observed = Whitening.of(chosen).observed(chosen)
    kept = with_likely_means(len(chosen), observed.client, observed.label, observed.means, observed.noise)
    return [likely[one] for one in kept]


def _blocks(observed: Observed, variances: Variances, distances: Tensor, classes: int) -> list[Block]:
    """Return one block of all classes, or one a class where classes of a client share nothing."""
    if len(observed.client) <= MOST_EXACT:
        return [Block.of(torch.arange(classes), observed, variances, distances)]
    return [
        Block.of(label[None], observed.of((observed.label == label).nonzero()[:, 0]), variances, distances)
        for label in observed.label.bincount(minlength=classes).nonzero()[:, 0]
    ]


def pseudo_counts(counts: Tensor) -> Tensor:
    """Return the parameters (C,) of the Dirichlet distribution that class counts (N, C) are most likely drawn from.

    Their mean is that of all samples; the concentration is the likeliest of a grid (Dirichlet-multinomial).
    """
    counts = counts.double()
    mean = (counts.sum(dim=0) + 1.0) / (counts.sum() + counts.shape[1])

    def fit(concentration: float) -> float:
        prior, total = concentration * mean, torch.tensor(concentration, dtype=torch.float64)
        by_class = torch.lgamma(prior + counts) - torch.lgamma(prior)
        return float((by_class.sum(dim=1) + torch.lgamma(total) - torch.lgamma(total + counts.sum(dim=1))).sum())

    parameters: Tensor = max(CONCENTRATIONS, key=fit) * mean
    return parameters.float()

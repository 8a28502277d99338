"""Local optimisers: AdamW and SGD, and those that know that A and B are two factors of one product.

Of G = dL/dW a step sees dL/dA = s B^T G and dL/dB = s G A^T alone, s the scaling, and moves W by s (B dA + dB A).
LoRA-Pro and AltLoRA choose dA and dB so that this is the gradient's projection onto what the factors can move, whatever
their gauge; inverses are pseudo-inverses, so that the zeros of a padded rank stay zeros. AdamW follows, element by
element, which keeps both at the learning rates of LoRA. LoRA+ is PEFT's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

if TYPE_CHECKING:
    from models.adapters.adapted_model import AdaptedModel

TOLERANCE = 1e-10
"""Eigenvalues below this share of the largest count as zero."""
Pair = tuple[nn.Parameter, nn.Parameter]


@dataclass(frozen=True)
class OptimizerSpec:
    """The local optimiser, started afresh with every adapter that is received.

    Attributes:
        name: ``adamw``, ``sgd``, ``lora+`` (arXiv 2402.12354), ``lora-pro`` (2407.18242) or ``altlora`` (2505.12455).
        learning_rate: of all that is trained.
        weight_decay: of the same.
        ratio: of lora_B's learning rate to lora_A's, for ``lora+``.
    """

    name: str
    learning_rate: float
    weight_decay: float
    ratio: float = 1.0

    def build(self, model: AdaptedModel) -> Sequence[Optimizer]:
        """Return optimisers over the adapter and the head, to be stepped in turn; frozen parameters have no state."""
        parameters = model.trainable_parameters()
        common: dict[str, Any] = {"lr": self.learning_rate, "weight_decay": self.weight_decay, "fused": True}
        if self.name == "sgd":
            return [torch.optim.SGD(parameters, **common)]
        if self.name == "lora+":
            return [self._lora_plus(model)]
        if self.name == "altlora":
            return _alternating(model, common)
        optimizer = AdamW(parameters, **common)
        if self.name == "lora-pro":
            optimizer.register_step_pre_hook(_before_step(model, _put_equivalent_gradients))
        return [optimizer]

    def _lora_plus(self, model: AdaptedModel) -> Optimizer:
        from peft.optimizers import create_loraplus_optimizer  # slow to import

        optimizer: Optimizer = create_loraplus_optimizer(
            model.peft_model,
            AdamW,
            lr=self.learning_rate,
            loraplus_lr_ratio=self.ratio,
            loraplus_weight_decay=self.weight_decay,
            fused=True,
        )
        return optimizer


def equivalent_gradients(B: Tensor, A: Tensor, dB: Tensor, dA: Tensor, scaling: float) -> tuple[Tensor, Tensor]:
    """Return LoRA-Pro's g^B and g^A: s (B g^A + g^B A) is the best approximation of G (arXiv 2407.18242).

    g^A = (B^T B)^-1 dA / s^2 + X A and g^B = (1 - B (B^T B)^-1 B^T) dB (A A^T)^-1 / s^2 - B X, with the X that
    keeps them nearest to dA and dB: B^T B X + X A A^T = -(B^T B)^-1 dA A^T / s^2.

    Args:
        B: (..., m, r).
        A: (..., r, n).
        dB: dL/dB, (..., m, r).
        dA: dL/dA, (..., r, n).
        scaling: s.
    """
    left, right = B.mT @ B, A @ A.mT
    inverse = _pseudo_inverse(left)
    of_A = inverse @ dA / scaling**2
    of_B = dB @ _pseudo_inverse(right) / scaling**2
    X = _sylvester(left, right, -of_A @ A.mT)
    return of_B - B @ (inverse @ (B.mT @ of_B)) - B @ X, of_A + X @ A


def _sylvester(left: Tensor, right: Tensor, C: Tensor) -> Tensor:
    """Return the X (..., r, r) of least norm with left X + X right = C, for symmetric left and right."""
    (values, Q), (others, P) = torch.linalg.eigh(left), torch.linalg.eigh(right)
    sums = values[..., :, None] + others[..., None, :]
    enough = sums > TOLERANCE * sums.amax(dim=(-2, -1), keepdim=True)
    X: Tensor = Q @ torch.where(enough, (Q.mT @ C @ P) / sums, 0.0) @ P.mT
    return X


def _pseudo_inverse(gram: Tensor) -> Tensor:
    """Return the pseudo-inverse of symmetric matrices (..., r, r) without a negative eigenvalue."""
    values, Q = torch.linalg.eigh(gram)
    enough = values > TOLERANCE * values[..., -1:]
    inverse: Tensor = Q @ (torch.where(enough, 1 / values, 0.0)[..., None] * Q.mT)
    return inverse


def _before_step(model: AdaptedModel, change: Callable[[list[Pair], float], None]) -> Callable[..., None]:
    """Return a hook that changes the gradients of the factors of every kind of modules before an optimiser's step."""

    @torch.no_grad()
    def hook(*_: object) -> None:
        for pairs in model.factor_pairs().values():
            change(pairs, model.scaling)

    return hook


def _put_equivalent_gradients(pairs: list[Pair], scaling: float) -> None:
    """Put LoRA-Pro's gradients in place of those of B and A; of a pair with one fixed factor that of the other."""
    B, A = _stacked(left.detach() for left, _ in pairs), _stacked(right.detach() for _, right in pairs)
    dB, dA = _stacked(_gradient(left) for left, _ in pairs), _stacked(_gradient(right) for _, right in pairs)
    if all(right.requires_grad and left.requires_grad for left, right in pairs):
        of_B, of_A = equivalent_gradients(B, A, dB, dA, scaling)
    else:
        of_B, of_A = dB @ _pseudo_inverse(A @ A.mT) / scaling**2, _pseudo_inverse(B.mT @ B) @ dA / scaling**2
    for index, (left, right) in enumerate(pairs):
        _set_gradient(left, of_B[index])
        _set_gradient(right, of_A[index])


def _alternating(model: AdaptedModel, common: dict[str, Any]) -> list[Optimizer]:
    """Return AltLoRA+: AdamW over A and the head, then over B, each on the gradient projected by the other factor.

    A moves along (B^T B)^-1 dA / s^2, then B along dB (A A^T)^-1 / s^2 with the new A. The first moment is of the last
    step's factors and projected onto today's: M_A <- (B^T B)^-1 B^T B_last M_A, M_B <- M_B A_last A^T (A A^T)^-1.
    """
    left = {id(one) for pairs in model.factor_pairs().values() for one, _ in pairs}
    groups = [[one for one in model.trainable_parameters() if (id(one) in left) == chosen] for chosen in (False, True)]
    made: list[Optimizer] = []
    for group, of_left in zip(groups, (False, True), strict=True):
        if group:
            optimizer = AdamW(group, **common)
            optimizer.register_step_pre_hook(_before_step(model, _Projection(optimizer, of_left)))
            made.append(optimizer)
    return made


class _Projection:
    """Projects gradients and first moments of one of the two factors by the other one, whose last value it keeps.

    All is written for B; A is that of the transposed product, (B A)^T = A^T B^T.
    """

    def __init__(self, optimizer: Optimizer, of_left: bool) -> None:
        self._optimizer, self._of_left = optimizer, of_left
        self._last: dict[nn.Parameter, Tensor] = {}

    def __call__(self, pairs: list[Pair], scaling: float) -> None:
        for left, right in pairs:
            own, other = (left, right) if self._of_left else (right, left)
            if own.grad is None:
                continue
            fixed = self._turned(other.detach()).to(torch.float64, copy=True)
            inverse = _pseudo_inverse(fixed @ fixed.mT)
            own.grad.copy_(self._turned(self._turned(own.grad).double() @ inverse / scaling**2))
            moment = self._optimizer.state[own].get("exp_avg")
            if moment is not None:
                aligned = self._turned(moment).double() @ (self._last[own] @ fixed.mT @ inverse)
                moment.copy_(self._turned(aligned))
            self._last[own] = fixed

    def _turned(self, factor: Tensor) -> Tensor:
        return factor if self._of_left else factor.mT


def _stacked(tensors: Iterable[Tensor]) -> Tensor:
    return torch.stack(list(tensors)).double()


def _gradient(parameter: nn.Parameter) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def _set_gradient(parameter: nn.Parameter, gradient: Tensor) -> None:
    if parameter.grad is not None:
        parameter.grad.copy_(gradient)

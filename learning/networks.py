"""The registry of networks as shapes: what parameters a plan's model has, in which order, and how they start.

Needs neither torch nor flwr, so that the hub can start a model and the egress filter can judge one without
them; `tasks` builds the same networks in torch, and a test holds the two together. All parameters travel as one
float32 vector in the order declared here.
"""

from __future__ import annotations

from math import prod, sqrt

import numpy as np
from numpy.typing import NDArray

from learning.plans import Model, Network, TrainingPlan

POOLED_SIDE = 4
"""The small CNN pools to this side before its dense layers, so its size does not depend on the image's."""

Vector = NDArray[np.float32]
Declared = tuple[tuple[str, tuple[int, ...]], ...]


def declared_arrays(model: Model, classes: int) -> Declared:
    """Names and shapes of the parameters, in the order in which they lie in the vector."""
    match model.network:
        case Network.SMALL_CNN:
            flat = 2 * model.width * POOLED_SIDE**2
            return (
                ("convolution1.weight", (model.width, 1, 3, 3)),
                ("convolution1.bias", (model.width,)),
                ("convolution2.weight", (2 * model.width, model.width, 3, 3)),
                ("convolution2.bias", (2 * model.width,)),
                ("dense1.weight", (model.hidden, flat)),
                ("dense1.bias", (model.hidden,)),
                ("dense2.weight", (classes, model.hidden)),
                ("dense2.bias", (classes,)),
            )


def parameter_count(plan: TrainingPlan) -> int:
    """Length of the plan's parameter vector."""
    return sum(prod(shape) for _, shape in declared_arrays(plan.model, len(plan.labels.codes)))


def initial_vector(plan: TrainingPlan) -> Vector:
    """The parameters before the first round: uniform in ±1/√fan-in, from the plan's seed, the same everywhere."""
    generator = np.random.default_rng(plan.training.seed)
    parts = []
    bound = 1.0
    for name, shape in declared_arrays(plan.model, len(plan.labels.codes)):
        if name.endswith(".weight"):
            bound = 1 / sqrt(prod(shape[1:]))
        parts.append(generator.uniform(-bound, bound, prod(shape)).astype(np.float32))
    return np.concatenate(parts)


def split_vector(vector: Vector, declared: Declared) -> dict[str, Vector]:
    """Cut a parameter vector into its named arrays (views, no copy). Raises ValueError on a wrong length."""
    if vector.shape != (sum(prod(shape) for _, shape in declared),):
        raise ValueError(f"{vector.shape} parameters where the network declares others")
    arrays, start = {}, 0
    for name, shape in declared:
        size = prod(shape)
        arrays[name] = vector[start : start + size].reshape(shape)
        start += size
    return arrays

"""What a trainer does: train a network from a parameter vector, and measure one. Imports torch.

Called only in the trainer's forked child. The same functions train the federated model and the baseline of a
site on its own, so the comparison differs in nothing but the federation. A GPU is used where there is one.
"""

from __future__ import annotations

from collections.abc import Sequence
from time import monotonic

import numpy as np
import torch
from torch import nn

from learning.dataset import Examples
from learning.networks import POOLED_SIDE, Vector, declared_arrays, initial_vector, split_vector
from learning.plans import Network, Training, TrainingPlan

MEASURE_BATCH = 512


class SmallCnn(nn.Module):
    """Two convolutions, pooling to a fixed side, two dense layers. Shapes: `networks.declared_arrays`."""

    def __init__(self, width: int, hidden: int, classes: int) -> None:
        super().__init__()
        self.convolution1 = nn.Conv2d(1, width, 3, padding=1)
        self.convolution2 = nn.Conv2d(width, 2 * width, 3, padding=1)
        self.pool = nn.AdaptiveMaxPool2d(POOLED_SIDE)
        self.dense1 = nn.Linear(2 * width * POOLED_SIDE**2, hidden)
        self.dense2 = nn.Linear(hidden, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(n, 1, rows, columns) in 0..1 to (n, classes) logits."""
        maps = torch.relu(self.convolution1(images))
        maps = self.pool(torch.relu(self.convolution2(maps)))
        return self.dense2(torch.relu(self.dense1(maps.flatten(1))))


def build(plan: TrainingPlan) -> nn.Module:
    """The plan's network, on the GPU where there is one."""
    match plan.model.network:
        case Network.SMALL_CNN:
            network = SmallCnn(plan.model.width, plan.model.hidden, len(plan.labels.codes))
    return network.to(_device())


def load_vector(network: nn.Module, plan: TrainingPlan, vector: Vector) -> None:
    """Put a parameter vector into the network. Raises ValueError on a wrong length."""
    arrays = split_vector(vector, declared_arrays(plan.model, len(plan.labels.codes)))
    network.load_state_dict({name: torch.tensor(array) for name, array in arrays.items()}, strict=True)


def vector_of(network: nn.Module, plan: TrainingPlan) -> Vector:
    """The network's parameters as one vector, in the declared order."""
    state = network.state_dict()
    names = [name for name, _ in declared_arrays(plan.model, len(plan.labels.codes))]
    return np.concatenate([state[name].detach().cpu().numpy().ravel() for name in names]).astype(np.float32)


def train(
    plan: TrainingPlan, vector: Vector, examples: Examples, *, epochs: int, seed: int
) -> tuple[Vector, float]:
    """Train on what is not held out; return the new parameters and the last epoch's mean loss."""
    torch.manual_seed(seed)
    network = build(plan)
    load_vector(network, plan, vector)
    images, labels = _tensors(examples, held_out=False)
    training = plan.training
    parameters = list(network.parameters())
    momenta = [torch.zeros_like(parameter) for parameter in parameters]
    network.train()
    total = 0.0
    for _ in range(epochs):
        total = 0.0
        for batch in torch.randperm(len(labels), device=labels.device).split(training.batch_size):
            loss = nn.functional.cross_entropy(network(images[batch]), labels[batch])
            _descend(parameters, momenta, torch.autograd.grad(loss, parameters), plan.training)
            total += loss.item() * len(batch)
    return vector_of(network, plan), total / max(1, len(labels))


@torch.no_grad()
def _descend(
    parameters: Sequence[nn.Parameter],
    momenta: Sequence[torch.Tensor],
    gradients: Sequence[torch.Tensor],
    training: Training,
) -> None:
    """One step of gradient descent with momentum, as torch.optim.SGD does it.

    Written out because the first optimiser that torch.optim makes loads its compiler: seconds in every trainer.
    """
    for parameter, momentum, gradient in zip(parameters, momenta, gradients, strict=True):
        momentum.mul_(training.momentum).add_(gradient)
        parameter.sub_(momentum, alpha=training.learning_rate)


@torch.no_grad()
def measure(plan: TrainingPlan, vector: Vector, examples: Examples) -> dict[str, float]:
    """Accuracy and how many were measured, on the hold-out."""
    network = build(plan)
    load_vector(network, plan, vector)
    network.eval()
    images, labels = _tensors(examples, held_out=True)
    if not len(labels):
        return {"accuracy": 0.0, "measured": 0.0}
    right = sum(
        int((network(part).argmax(1) == wanted).sum())
        for part, wanted in zip(images.split(MEASURE_BATCH), labels.split(MEASURE_BATCH), strict=True)
    )
    return {"accuracy": right / len(labels), "measured": float(len(labels))}


def train_round(
    plan: TrainingPlan, vector: Vector, examples: Examples, round_number: int
) -> tuple[Vector, dict[str, float]]:
    """One federated round at this site: measure what came, then train on it."""
    start = monotonic()
    metrics: dict[str, float] = measure(plan, vector, examples)
    seed = plan.training.seed + round_number
    update, loss = train(plan, vector, examples, epochs=plan.training.local_epochs, seed=seed)
    return update, metrics | {"loss": loss, "seconds": monotonic() - start}


def measure_final(plan: TrainingPlan, vector: Vector, examples: Examples) -> dict[str, float]:
    """Measure the finished model and, where the plan asks for it, what this site reaches alone with as much work."""
    start = monotonic()
    metrics: dict[str, float] = measure(plan, vector, examples)
    if plan.baseline:
        epochs = plan.schedule.rounds * plan.training.local_epochs
        alone, _ = train(plan, initial_vector(plan), examples, epochs=epochs, seed=plan.training.seed)
        metrics["baseline_accuracy"] = measure(plan, alone, examples)["accuracy"]
    return metrics | {"seconds": monotonic() - start}


def _tensors(examples: Examples, *, held_out: bool) -> tuple[torch.Tensor, torch.Tensor]:
    chosen = examples.held_out == held_out
    images = torch.tensor(examples.images[chosen]).unsqueeze(1)
    return images.to(_device()), torch.tensor(examples.labels[chosen]).to(_device())


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")

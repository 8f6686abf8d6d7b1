"""The policy in force at this node, and the rule files that ship with the product.

Consent itself reads no files; they are read here from the installed package. `Policies` holds the one policy that
every decision of this node uses, compiled once; giving it another changes the next decision.
"""

from __future__ import annotations

from importlib.resources import files

from consent.decision import CompiledPolicy, compile_policy
from consent.policy import Parameters, Policy, shipped_policy


def shipped_cedar() -> dict[str, str]:
    """Return the shipped rules, text by file name."""
    folder = files("consent").joinpath("policies")
    return {
        item.name: item.read_text(encoding="utf-8")
        for item in folder.iterdir()
        if item.name.endswith(".cedar")
    }


class Policies:
    """The policy in force. Without one, the shipped rules with the shipped numbers, or with `parameters`."""

    def __init__(self, policy: Policy | None = None, *, parameters: Parameters | None = None) -> None:
        self._policy = policy or shipped_policy(shipped_cedar(), parameters)
        self._compiled: CompiledPolicy | None = None

    @property
    def current(self) -> CompiledPolicy:
        """What `decide` takes. Raises Invalid when the policy is not sound, which `prepare` finds early."""
        if self._compiled is None:
            self._compiled = compile_policy(self._policy)
        return self._compiled

    def prepare(self) -> None:
        """Compile now: an unsound policy must stop the start, not the first decision. Raises Invalid.

        A command that decides nothing can do without.
        """
        _ = self.current

    @property
    def policy(self) -> Policy:
        """Rules and parameters, as data."""
        return self._policy

    @property
    def parameters(self) -> Parameters:
        """The numbers."""
        return self._policy.parameters

    def replace(self, policy: Policy) -> None:
        """Put another policy in force. Raises Invalid, and keeps the old one, when it is not sound."""
        self._compiled = compile_policy(policy)
        self._policy = policy

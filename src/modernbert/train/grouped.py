"""What the optimizers written here share: a step that goes group by group, and options that are checked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, overload

import torch
from torch.optim import Optimizer

from modernbert.errors import ConfigError

Group = dict[str, Any]


class GroupedOptimizer(Optimizer):
    """Steps group by group; a subclass says how, in `_step_group`, and what its options may be, in `_rules`.

    All have `lr`, `betas`, `eps` and `weight_decay`.
    """

    def add_param_group(self, param_group: Group) -> None:
        """Add a group of parameters; what it does not set, the constructor's arguments do."""
        super().add_param_group(param_group)
        self._admit(self.param_groups[-1])

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update every parameter that has a gradient.

        Args:
            closure: Computes the loss and its gradients anew, if given.

        Returns:
            The closure's loss.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            self._step_group(group)
        return loss

    def _step_group(self, group: Group) -> None:
        raise NotImplementedError

    def _rules(self, group: Group) -> Mapping[str, tuple[bool, str]]:
        """Say of a group's options, by name, whether they are right and what they must be."""
        return {
            "lr": (group["lr"] > 0, "above 0"),
            "betas": (
                len(group["betas"]) == 2 and all(0 <= beta < 1 for beta in group["betas"]),
                "two numbers, each at least 0 and below 1",
            ),
            "eps": (group["eps"] > 0, "above 0"),
        }

    def _admit(self, group: Group) -> None:
        """Refuse a new group that is not right; a subclass may complete it first."""
        for key, (is_right, rule) in self._rules(group).items():
            if not is_right:
                raise ConfigError(f"`{key}` is {group[key]!r}; it must be {rule}")

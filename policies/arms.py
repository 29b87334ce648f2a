"""The candidate models and what they charge: arms in a versioned price table."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Final

from policies.errors import InvalidArm, NoEligibleArm, UnknownArm

MAX_NAME_LENGTH: Final = 200
TOKENS_PER_MTOK: Final = 1_000_000
# English prose has about four characters a token; only the list cost below relies on it.
CHARACTERS_PER_TOKEN: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """A candidate model and its list price.

    Attributes:
        name: What the caller's gateway calls the model.
        input_usd_per_mtok: USD per million prompt tokens.
        output_usd_per_mtok: USD per million answer tokens.
        usd_per_call: USD per call on top; the whole price where tokens are not charged.
        typical_output_tokens: Answer length assumed where none is known.
    """

    name: str
    input_usd_per_mtok: float = 0.0
    output_usd_per_mtok: float = 0.0
    usd_per_call: float = 0.0
    typical_output_tokens: int = 256

    def __post_init__(self) -> None:
        """Refuse a name or price that could not be logged, masked or summed."""
        if not (0 < len(self.name) <= MAX_NAME_LENGTH and self.name.isprintable()):
            raise InvalidArm(
                f"name={self.name[:100]!r} must be 1 to {MAX_NAME_LENGTH} printable characters",
                field="name",
                value=self.name[:100],
                allowed=f"1 to {MAX_NAME_LENGTH} printable characters",
            )
        for field in (
            "input_usd_per_mtok",
            "output_usd_per_mtok",
            "usd_per_call",
            "typical_output_tokens",
        ):
            value = getattr(self, field)
            if not (math.isfinite(value) and value >= 0):
                raise InvalidArm(
                    f"{field}={value} must be finite and >= 0",
                    field=field,
                    value=value,
                    allowed="finite, >= 0",
                )

    def __hash__(self) -> int:
        """Hash by name alone: arms are looked up with every decision, and names are unique."""
        return hash(self.name)

    def cost_usd(self, *, tokens_in: float, tokens_out: float) -> float:
        """Price one call by its token counts, USD.

        >>> Arm(name="m", input_usd_per_mtok=1.0, output_usd_per_mtok=4.0).cost_usd(
        ...     tokens_in=1000, tokens_out=500)
        0.003
        """
        tokens_usd = tokens_in * self.input_usd_per_mtok + tokens_out * self.output_usd_per_mtok
        return self.usd_per_call + tokens_usd / TOKENS_PER_MTOK

    def list_cost_usd(self, prompt_characters: int) -> float:
        """Estimate one call from list prices alone, USD: what masks and new arms go by."""
        tokens_in = prompt_characters / CHARACTERS_PER_TOKEN
        return self.cost_usd(tokens_in=tokens_in, tokens_out=self.typical_output_tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class PriceTable:
    """All arms on offer at one moment; each change makes a new version.

    Attributes:
        version: Number that only grows; a decision names the one it was made under.
        arms: The arms, sorted by name.
    """

    version: int
    arms: tuple[Arm, ...]

    def __post_init__(self) -> None:
        """Refuse a name twice: the log could not tell the two apart."""
        names = [arm.name for arm in self.arms]
        if len(set(names)) != len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise InvalidArm(
                f"name={twice!r} stands twice", field="name", value=twice, allowed="unique names"
            )
        object.__setattr__(self, "arms", tuple(sorted(self.arms, key=lambda arm: arm.name)))

    @property
    def names(self) -> tuple[str, ...]:
        """The arms' names, in the order of `arms`."""
        return tuple(arm.name for arm in self.arms)

    def arm(self, name: str) -> Arm:
        """Find an arm by name; raises UnknownArm."""
        for arm in self.arms:
            if arm.name == name:
                return arm
        raise UnknownArm(
            f"model={name[:100]!r} is not known",
            field="model",
            value=name[:100],
            allowed=", ".join(self.names) or "none yet",
        )

    def offered(
        self,
        *,
        allow: Iterable[str] | None = None,
        max_cost_usd: float | None = None,
        prompt_characters: int = 0,
    ) -> tuple[Arm, ...]:
        """List the arms a request may be sent to, in table order.

        Decided from allow-list and list prices only, never from a policy's own estimates, so
        that every version faces the same arms.

        Args:
            allow: Names the caller permits; None permits all.
            max_cost_usd: Upper bound on an arm's list cost for this prompt, USD.
            prompt_characters: Length of the prompt, for the list cost.

        Raises:
            UnknownArm: The allow-list names an arm that does not exist.
            NoEligibleArm: Nothing is left.
        """
        arms = self.arms
        if allow is not None:
            wanted = {self.arm(name).name for name in allow}
            arms = tuple(arm for arm in arms if arm.name in wanted)
        if max_cost_usd is not None:
            arms = tuple(a for a in arms if a.list_cost_usd(prompt_characters) <= max_cost_usd)
        if arms:
            return arms
        field = "models" if max_cost_usd is None else "max_cost_usd"
        raise NoEligibleArm(
            f"{field} leaves no model to choose from",
            field=field,
            value=max_cost_usd,
            allowed=f"at least one of {', '.join(self.names) or 'no models: add one first'}",
        )

    def with_arm(self, arm: Arm, *, version: int) -> PriceTable:
        """Add an arm, or replace the one of that name, as a new version."""
        others = tuple(other for other in self.arms if other.name != arm.name)
        return PriceTable(version=version, arms=(*others, arm))

    def without(self, name: str, *, version: int) -> PriceTable:
        """Take an arm out, as a new version; raises UnknownArm."""
        gone = self.arm(name)
        return PriceTable(version=version, arms=tuple(a for a in self.arms if a is not gone))

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values, for the ledger and the publisher."""
        fields = Arm.__dataclass_fields__
        arms = [{name: getattr(arm, name) for name in fields} for arm in self.arms]
        return {"version": self.version, "arms": arms}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> PriceTable:
        """Read what `to_json` wrote."""
        return cls(version=value["version"], arms=tuple(Arm(**arm) for arm in value["arms"]))


def patched(arm: Arm, changes: dict[str, Any]) -> Arm:
    """Return the arm with some prices changed; raises InvalidArm."""
    return replace(arm, **changes)

"""What can go wrong, as one tree.

RouterError
├── InvalidRequest            what a caller sent is not allowed (HTTP 422)
│   ├── InvalidPreference     weights off the simplex
│   ├── InvalidPrompt         empty or too long
│   ├── InvalidOutcome        a quality, cost or token count out of range
│   └── InvalidArm            an arm's name or price
├── NoEligibleArm             allow-list and limits leave nothing to choose (HTTP 422)
├── NotFound                  HTTP 404
│   ├── UnknownDecision       forged, foreign or never made
│   ├── UnknownArm            no arm of that name
│   └── UnknownVersion        no version of that number or alias
├── Conflict                  HTTP 409: it contradicts what is already recorded
├── Unavailable               HTTP 503: a part of the service is away, try again
└── ArtifactError             a policy or encoder on disk that must not be loaded
    └── EncoderMismatch       a policy that was trained on another encoder's contexts

Every error carries what a handler needs to answer: `code`, `field`, `value`, `allowed`.
"""

from __future__ import annotations

from typing import ClassVar


class RouterError(Exception):
    """Root of the tree.

    Attributes:
        code: Stable machine-readable name of the cause.
        field: Which input it is about, as a dotted path; None where no single one is.
        value: What came in; None for what must not be repeated, such as a prompt.
        allowed: What would have been accepted, in words.
    """

    code: ClassVar[str] = "router_error"

    def __init__(
        self,
        message: str,
        *,
        field: str | None = None,
        value: object = None,
        allowed: str | None = None,
    ) -> None:
        """Keep the parts, so that a handler need not parse the message."""
        super().__init__(message)
        self.field, self.value, self.allowed = field, value, allowed

    def __reduce__(self) -> tuple[object, ...]:
        """Survive the way through a Ray actor call: rebuilt without calling __init__."""
        return _rebuild, (type(self), self.args, dict(self.__dict__))


def _rebuild(
    cls: type[RouterError], args: tuple[object, ...], state: dict[str, object]
) -> RouterError:
    """Put an error together again on the other side of a process boundary."""
    error = cls.__new__(cls, *args)
    error.args = args
    error.__dict__.update(state)
    return error


class InvalidRequest(RouterError, ValueError):
    """What a caller sent is not allowed; the message says what is."""

    code = "invalid_request"


class InvalidPreference(InvalidRequest):
    """Weights that are negative, not finite, or do not sum to one."""

    code = "invalid_preference"

    def __init__(self, *, quality: float, cost: float) -> None:
        """Keep both weights, so that a handler need not parse."""
        super().__init__(
            f"quality={quality} and cost={cost} must be >= 0 and sum to 1",
            field="preference",
            value={"quality": quality, "cost": cost},
            allowed="finite weights >= 0, not all zero",
        )
        self.quality, self.cost = quality, cost


class InvalidPrompt(InvalidRequest):
    """A prompt that is empty or longer than the service accepts."""

    code = "invalid_prompt"


class InvalidOutcome(InvalidRequest):
    """A quality, cost, latency or token count that cannot be true."""

    code = "invalid_outcome"


class InvalidArm(InvalidRequest):
    """An arm whose name or price cannot be used."""

    code = "invalid_arm"


class NoEligibleArm(RouterError, ValueError):
    """Allow-list and cost limit together leave no arm to choose from."""

    code = "no_eligible_arm"


class NotFound(RouterError, LookupError):
    """The thing named does not exist here."""

    code = "not_found"


class UnknownDecision(NotFound):
    """A decision id that was never issued here, or issued to another tenant."""

    code = "unknown_decision"


class UnknownArm(NotFound):
    """No arm of that name."""

    code = "unknown_model"


class UnknownVersion(NotFound):
    """No policy version of that number, or an alias that points nowhere."""

    code = "unknown_version"


class Conflict(RouterError):
    """It contradicts what is already recorded."""

    code = "conflict"


class Unavailable(RouterError):
    """A part of the service is away; the same call may succeed later."""

    code = "unavailable"


class ArtifactError(RouterError):
    """A stored policy or encoder that is damaged, unknown or does not fit."""

    code = "bad_artifact"


class EncoderMismatch(ArtifactError):
    """A policy trained on the contexts of another encoder than the one at hand."""

    code = "encoder_mismatch"

"""The JSON that goes over the wire, in and out; the OpenAPI page is made of these models."""

from __future__ import annotations

from typing import Annotated, Any, Final, NotRequired, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from typing_extensions import TypedDict

from policies.arms import Arm, PriceTable
from policies.errors import InvalidArm, InvalidPrompt
from policies.interaction import MAX_TOKENS, Outcome
from policies.preference import Preference
from services.decider import Routed, RouteRequest

MAX_LABEL: Final = 200

# Names end up in the ledger, where PostgreSQL takes no NUL, and in headers and logs.
Label = Annotated[str, StringConstraints(max_length=MAX_LABEL, pattern=r"^[^\x00-\x1f\x7f]*$")]
NonEmptyLabel = Annotated[Label, StringConstraints(min_length=1)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Tokens = Annotated[int, Field(ge=0, le=MAX_TOKENS)]


class _Strict(BaseModel):
    """Takes what is declared and nothing else: a misspelt key must not be ignored."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class PreferenceIn(_Strict):
    """Weights on quality and cost; scaled to sum to one, a missing one is 0."""

    quality: NonNegative = Field(default=0.0, description="Weight on quality.", examples=[0.7])
    cost: NonNegative = Field(default=0.0, description="Weight on cost.", examples=[0.3])

    def to_preference(self) -> Preference:
        """Scale the weights; raises InvalidPreference."""
        return Preference.normalised(quality=self.quality, cost=self.cost)


class MessagePart(BaseModel):
    """One part of a message; parts that are not text do not take part in routing."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)

    type: str = "text"
    text: str | None = None


class Message(BaseModel):
    """One message of a chat, in the form of OpenAI's API; further keys are ignored."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)

    role: str
    content: str | list[MessagePart] | None = None

    def text(self) -> str:
        """Return its text, parts joined by newlines."""
        if isinstance(self.content, str):
            return self.content
        return "\n".join(part.text for part in self.content or () if part.text is not None)


class RouteIn(_Strict):
    """A prompt, or a chat, to be routed."""

    prompt: str | None = Field(default=None, description="The prompt; or send `messages`.")
    messages: list[Message] | None = Field(
        default=None,
        description="A chat; its texts, joined by newlines in order, are what is routed.",
    )
    preference: PreferenceIn | None = Field(
        default=None, description="The trade-off; without it the configured one."
    )
    models: list[str] | None = Field(
        default=None, max_length=10_000, description="Only these models may be chosen."
    )
    max_cost_usd: NonNegative | None = Field(
        default=None,
        description="Only models whose list price for this prompt is at most this, USD.",
    )
    tenant: NonEmptyLabel | None = Field(
        default=None, description="Whose request; without it the key's tenant, or `default`."
    )
    session: Label | None = Field(
        default=None, description="Conversation it belongs to; an empty one is none."
    )
    deferred: bool = Field(
        default=False,
        description="Learned from only once feedback says `activate`, within the wait window.",
    )

    def to_request(self, *, tenant: str) -> RouteRequest:
        """Return what the router takes, for `tenant`; raises InvalidPrompt, InvalidPreference."""
        return RouteRequest(
            prompt=self._text(),
            preference=self.preference.to_preference() if self.preference else None,
            models=None if self.models is None else tuple(self.models),
            max_cost_usd=self.max_cost_usd,
            tenant=tenant,
            session=self.session or None,
            deferred=self.deferred,
        )

    def _text(self) -> str:
        """Return prompt or chat as one text."""
        if (self.prompt is None) == (self.messages is None):
            raise InvalidPrompt(
                "a request has either a prompt or messages",
                field="prompt",
                allowed="one of prompt, messages",
            )
        if self.prompt is not None:
            return self.prompt
        return "\n".join(message.text() for message in self.messages or ())


class RouteBatchIn(_Strict):
    """Several requests; a bare JSON list of them is taken as well."""

    requests: list[RouteIn]


class PreferenceOut(TypedDict):
    """The trade-off decided under; the two sum to one."""

    quality: float
    cost: float


class ExpectedOut(TypedDict):
    """What the policy expects of the chosen model: quality in [0, 1], cost in USD."""

    quality: float
    cost_usd: float


class RouteOut(TypedDict):
    """Where to send the prompt."""

    decision_id: Annotated[str, Field(description="Send it back with the outcome.")]
    model: str
    propensity: Annotated[float, Field(description="Probability that this model had.")]
    policy_version: int
    preference: PreferenceOut
    expected: NotRequired[
        Annotated[ExpectedOut, Field(description="Left out by policies that model no outcome.")]
    ]


class RouteBatchOut(TypedDict):
    """One result for each request, in order."""

    results: list[RouteOut]


def route_out(routed: Routed) -> RouteOut:
    """Show what a caller may see of a decision."""
    decision, expected = routed.decision, routed.expected
    preference = decision.preference
    out = RouteOut(
        decision_id=decision.decision_id,
        model=decision.arm,
        propensity=decision.propensity,
        policy_version=decision.policy_version,
        preference={"quality": preference.quality, "cost": preference.cost},
    )
    if expected is not None:
        out["expected"] = {"quality": expected.quality, "cost_usd": expected.cost_usd}
    return out


class FeedbackIn(_Strict):
    """What came back for a decision, whole or in part."""

    decision_id: NonEmptyLabel
    event_id: NonEmptyLabel | None = Field(
        default=None, description="Names this report; without it, equal values are a duplicate."
    )
    quality: float | None = Field(default=None, description="Judged quality, 0 to 1.")
    cost_usd: float | None = Field(default=None, description="What the call cost, USD.")
    tokens_in: Tokens | None = Field(default=None, description="Priced where cost_usd is missing.")
    tokens_out: Tokens | None = None
    latency_ms: float | None = Field(default=None, description="How long the call took, ms.")
    final: bool = Field(default=False, description="Nothing more will come: learn from it now.")
    correction: bool = Field(
        default=False, description="What it names replaces all that was reported of it before."
    )
    activate: bool = Field(
        default=False, description="The model was used after all: for a decision with `deferred`."
    )
    tenant: NonEmptyLabel | None = Field(
        default=None, description="Whose decision; without it the key's tenant, or `default`."
    )

    def to_outcome(self) -> Outcome:
        """Return what the ledger takes; raises InvalidOutcome."""
        return Outcome(**self.model_dump(exclude={"tenant"}))


class FeedbackOut(BaseModel):
    """What became of one outcome."""

    decision_id: str | None = Field(
        default=None, description="Left out for an item of a list that names none."
    )
    status: str
    error: dict[str, Any] | None = None


class FeedbackListOut(BaseModel):
    """One result for each outcome, in order."""

    results: list[FeedbackOut]


class RefusedRow(BaseModel):
    """One row of an Arrow stream that was not stored."""

    row: int
    decision_id: str
    status: str
    error: ErrorDetail


class FeedbackBulkOut(BaseModel):
    """What became of an Arrow stream's rows."""

    rows: int
    counts: dict[str, int] = Field(description="Rows by status.")
    refused_rows: int
    refused: list[RefusedRow] = Field(description="The first 100 of those that were not stored.")


class PricesIn(_Strict):
    """What a model charges, USD."""

    input_usd_per_mtok: NonNegative = Field(
        default=0.0, description="USD per million prompt tokens."
    )
    output_usd_per_mtok: NonNegative = Field(
        default=0.0, description="USD per million answer tokens."
    )
    usd_per_call: NonNegative = Field(default=0.0, description="USD per call, on top.")
    typical_output_tokens: Tokens = Field(default=256, description="Usual answer length, tokens.")

    def to_arm(self, name: str) -> Arm:
        """Return the arm of that name; raises InvalidArm."""
        if not set(name.split("/")).isdisjoint({"", ".", ".."}):
            # Clients and proxies rewrite such paths, so they would name another model, or none.
            raise InvalidArm(
                f"name={name[:100]!r} has a part between slashes that is empty, `.` or `..`",
                field="name",
                value=name[:100],
                allowed="parts with a name of their own, such as meta/llama-3",
            )
        return Arm(name=name, **self.model_dump())

    def changes(self) -> dict[str, float | int]:
        """Return only what was sent."""
        return self.model_dump(exclude_unset=True)


class ModelOut(PricesIn):
    """A model on offer."""

    name: str


class ModelsOut(BaseModel):
    """The price table of now."""

    price_version: int
    models: list[ModelOut]

    @classmethod
    def of(cls, table: PriceTable) -> Self:
        """Show a price table."""
        arms = table.to_json()["arms"]
        return cls(price_version=table.version, models=[ModelOut(**arm) for arm in arms])


class MoveIn(_Strict):
    """Who moves an alias, and why: kept in the history."""

    who: Label = "http"
    why: Annotated[str, StringConstraints(max_length=1000)] = ""


class RollbackIn(MoveIn):
    """Where to go back to."""

    to: int | None = Field(
        default=None, ge=1, le=2**31 - 1, description="Version; else the previous champion."
    )


class ErrorDetail(BaseModel):
    """Why a request was refused."""

    code: str
    field: str | None
    value: Any = Field(description="What came in, cut to 100 characters; never a prompt.")
    allowed: str | None
    message: str


class ErrorOut(BaseModel):
    """The body of every answer of 400 and above."""

    error: ErrorDetail

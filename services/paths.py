"""Every path there is, as one FastAPI application: it answers the cold ones and documents all."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final, Protocol

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import PlainTextResponse
from fastapi_offline import FastAPIOffline
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException
from starlette.routing import Match
from starlette.types import Scope

from policies.errors import NotFound, RouterError
from services.bulk import ARROW_STREAM
from services.operations import Operations
from services.preview import PreviewOut
from services.refusals import MalformedJson, MethodNotAllowed, from_complaint, refusal
from services.replies import Reply
from services.wire import (
    ErrorOut,
    FeedbackBulkOut,
    FeedbackIn,
    FeedbackListOut,
    FeedbackOut,
    RouteBatchIn,
    RouteBatchOut,
    RouteIn,
    RouteOut,
)

DESCRIPTION: Final = (
    "Chooses, for each prompt, the model that is worth its price to this caller, and learns from "
    "what comes back. Send a prompt to `/v1/route`, and the outcome to `/v1/feedback`."
)
_SCHEMAS: Final = "#/components/schemas/{model}"
_BODIES: Final = (RouteIn, RouteBatchIn, FeedbackIn, ErrorOut)


class HotHandlers(Protocol):
    """The handlers that have a short cut past FastAPI; `services.api.Api` has them."""

    async def route(self, body: bytes, scope: Scope) -> Reply:
        """Choose a model for one prompt."""

    async def route_batch(self, body: bytes, scope: Scope) -> Reply:
        """Choose a model for each of several prompts."""

    async def preview(self, body: bytes, scope: Scope) -> Reply:
        """Say how likely each model would be, and what is expected of it; nothing is decided."""

    async def feedback(self, body: bytes, scope: Scope) -> Reply:
        """Report what came back."""

    async def healthz(self, body: bytes, scope: Scope) -> Reply:
        """Say that this process answers."""


def application(operations: Operations, hot: HotHandlers) -> FastAPI:
    """Build the FastAPI application of every path there is."""
    app = FastAPIOffline(
        title="BaRP Router",
        version="1",
        description=DESCRIPTION,
        responses={"4XX": {"model": ErrorOut}, "503": {"model": ErrorOut}},
    )
    app.include_router(_hot_routes(hot))
    app.include_router(_model_routes(operations))
    app.include_router(_version_routes(operations))
    app.include_router(_health_routes(operations, hot))
    app.add_exception_handler(RouterError, _refuse)
    app.add_exception_handler(RequestValidationError, _refuse)
    app.add_exception_handler(HTTPException, _refuse)
    app.openapi = _with_bodies(app)  # type: ignore[method-assign]  # FastAPI's documented way
    return app


def _hot_routes(hot: HotHandlers) -> APIRouter:
    routes = APIRouter(tags=["routing"])
    routes.add_api_route(
        "/v1/route",
        _endpoint(hot.route),
        methods=["POST"],
        response_model=RouteOut,
        openapi_extra=_body("RouteIn"),
    )
    routes.add_api_route(
        "/v1/route/batch",
        _endpoint(hot.route_batch),
        methods=["POST"],
        response_model=RouteBatchOut,
        openapi_extra=_body("RouteBatchIn", or_list_of="RouteIn"),
    )
    routes.add_api_route(
        "/v1/route/preview",
        _endpoint(hot.preview),
        methods=["POST"],
        response_model=PreviewOut,
        openapi_extra=_body("RouteIn"),
    )
    routes.add_api_route(
        "/v1/feedback",
        _endpoint(hot.feedback),
        methods=["POST"],
        status_code=202,
        response_model=FeedbackOut,
        responses={
            200: {
                "model": FeedbackListOut | FeedbackBulkOut,
                "description": "For a list, NDJSON and an Arrow stream, always.",
            }
        },
        openapi_extra=_feedback_body(),
    )
    return routes


def _model_routes(operations: Operations) -> APIRouter:
    routes = APIRouter(prefix="/v1/models", tags=["models"])
    # Names such as meta/llama-3 contain slashes.
    name = "/{name:path}"
    routes.add_api_route("", operations.models, methods=["GET"])
    routes.add_api_route(name, operations.put_model, methods=["PUT"])
    routes.add_api_route(name, operations.patch_model, methods=["PATCH"])
    routes.add_api_route(name, operations.delete_model, methods=["DELETE"])
    return routes


def _version_routes(operations: Operations) -> APIRouter:
    routes = APIRouter(prefix="/v1/versions", tags=["versions"])
    routes.add_api_route("", operations.versions, methods=["GET"])
    routes.add_api_route("/history", operations.history, methods=["GET"])
    routes.add_api_route("/rollback", operations.rollback, methods=["POST"])
    routes.add_api_route("/{number}", operations.version, methods=["GET"])
    routes.add_api_route("/{number}/rebuild", operations.rebuild, methods=["POST"])
    routes.add_api_route("/{number}/promote", operations.promote, methods=["POST"])
    return routes


def _health_routes(operations: Operations, hot: HotHandlers) -> APIRouter:
    routes = APIRouter(tags=["operation"])
    routes.add_api_route("/v1/decisions/{decision_id}", operations.decision, methods=["GET"])
    routes.add_api_route("/v1/events", operations.events, methods=["GET"])
    routes.add_api_route("/v1/status", operations.status, methods=["GET"])
    routes.add_api_route(
        "/healthz", _endpoint(hot.healthz), methods=["GET"], response_class=PlainTextResponse
    )
    routes.add_api_route("/readyz", operations.readyz, methods=["GET"])
    routes.add_api_route(
        "/metrics", operations.metrics, methods=["GET"], response_class=PlainTextResponse
    )
    return routes


def _endpoint(
    handler: Callable[[bytes, Scope], Awaitable[Reply]],
) -> Callable[[Request], Awaitable[Response]]:
    """Make a hot handler one of FastAPI's."""

    async def endpoint(request: Request) -> Response:
        return (await handler(await request.body(), request.scope)).to_response()

    # What the description calls it.
    endpoint.__name__, endpoint.__doc__ = handler.__name__, handler.__doc__
    return endpoint


async def _refuse(request: Request, error: Exception) -> Response:
    """Give FastAPI's own errors the one error body."""
    if isinstance(error, RouterError):
        return refusal(error).to_response()
    if isinstance(error, RequestValidationError):
        complaint = dict(error.errors()[0])
        # FastAPI puts where the value came from in front: body, path, query.
        complaint["loc"] = complaint["loc"][1:]
        return refusal(from_complaint(complaint)).to_response()
    status = error.status_code if isinstance(error, HTTPException) else 500
    if status == 404:
        missing = NotFound("no such path", field="path", allowed="what /docs lists")
        return refusal(missing).to_response()
    if status == 405:
        return refusal(MethodNotAllowed(_methods(request))).to_response()
    broken = MalformedJson("the body cannot be read", field="body", allowed="JSON, UTF-8")
    return refusal(broken).to_response()


def _methods(request: Request) -> list[str]:
    """List the methods that a path has; what can be read can be asked for by HEAD."""
    found = {
        method
        for method in ("DELETE", "GET", "PATCH", "POST", "PUT")
        for route in request.app.routes
        if route.matches({**request.scope, "method": method})[0] is Match.FULL
    }
    return sorted(found | ({"HEAD"} if "GET" in found else set()))


def _body(model: str, *, or_list_of: str | None = None) -> dict[str, Any]:
    """Describe a JSON body that the handler reads by itself."""
    schema: dict[str, Any] = {"$ref": _SCHEMAS.format(model=model)}
    if or_list_of is not None:
        items = {"$ref": _SCHEMAS.format(model=or_list_of)}
        schema = {"anyOf": [schema, {"type": "array", "items": items}]}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def _feedback_body() -> dict[str, Any]:
    """Describe the bodies that feedback comes in."""
    described = _body("FeedbackIn", or_list_of="FeedbackIn")
    described["requestBody"]["content"] |= {
        "application/x-ndjson": {
            "schema": {"type": "string", "description": "One FeedbackIn a line."}
        },
        ARROW_STREAM: {
            "schema": {
                "type": "string",
                "format": "binary",
                "description": "Arrow IPC stream; columns as the fields of FeedbackIn.",
            }
        },
    }
    return described


def _with_bodies(app: FastAPI) -> Callable[[], dict[str, Any]]:
    """Add the schemas of bodies that handlers read by themselves to what FastAPI finds."""
    found = app.openapi

    def openapi() -> dict[str, Any]:
        described = found()
        _, added = models_json_schema(
            [(model, "validation") for model in _BODIES], ref_template=_SCHEMAS
        )
        schemas = described.setdefault("components", {}).setdefault("schemas", {})
        for name, schema in added["$defs"].items():
            schemas.setdefault(name, schema)
        return described

    return openapi

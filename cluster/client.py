"""The command line's way to a running service: its public HTTP API, nothing else."""

from __future__ import annotations

import json
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import quote

import httpx
import psutil

from cluster.options import load_settings
from cluster.places import places
from cluster.settings import Settings
from cluster.signing import signing_secret
from policies.errors import RouterError
from services.keys import service_key

TIMEOUT_S: Final = 30.0
DEFAULT_URL: Final = "http://127.0.0.1:8000"
# Where a service leaves its address, in its state folder.
SERVICE_FILE: Final = "service.json"


class ServiceError(RouterError):
    """The service said no, or could not be reached."""

    code = "service_error"


class ServiceClient:
    """Calls one service; every refusal becomes a ServiceError with the service's own words."""

    def __init__(
        self, url: str | None = None, *, api_key: str | None = None, timeout_s: float = TIMEOUT_S
    ) -> None:
        """Take its base URL; None asks the state folder, see `reach`."""
        url, api_key = reach(url, api_key)
        headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        self.url = url
        self._http = httpx.Client(base_url=url, headers=headers, timeout=timeout_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._http.close()

    def get(self, path: str) -> Any:
        """GET a path; return the decoded JSON."""
        return self._call("GET", path, None)

    def post(self, path: str, body: Any = None) -> Any:
        """POST a JSON body to a path; return the decoded JSON."""
        return self._call("POST", path, body)

    def put_model(self, name: str, prices: dict[str, Any]) -> Any:
        """Add a model, or replace its prices."""
        return self._call("PUT", f"/v1/models/{quote(name)}", prices)

    def patch_model(self, name: str, prices: dict[str, Any]) -> Any:
        """Change some prices of a model."""
        return self._call("PATCH", f"/v1/models/{quote(name)}", prices)

    def delete_model(self, name: str) -> Any:
        """Take a model off the table."""
        return self._call("DELETE", f"/v1/models/{quote(name)}", None)

    def _call(self, method: str, path: str, body: Any) -> Any:
        try:
            answer = self._http.request(method, path, json=body)
        except httpx.TransportError as error:
            raise ServiceError(
                f"no service answers at {self.url} ({type(error).__name__}): start one with "
                "`barp serve`, or name another with --url",
                field="url",
                value=self.url,
            ) from error
        if answer.is_error:
            raise ServiceError(_refusal(answer), field=path, value=answer.status_code)
        return answer.json()


def reach(url: str | None, api_key: str | None) -> tuple[str, str | None]:
    """Return where to call and with which key: what was given, else what the state folder says.

    Its owner needs no key of their own for the service that runs on it; the service's own key
    goes to nobody else.
    """
    if url is not None:
        return url, api_key
    settings = load_settings()
    url = _announced(settings)
    if url is None:
        return DEFAULT_URL, api_key
    if api_key is None and (settings.signing_secret or places(settings).secret_file.exists()):
        api_key = service_key(signing_secret(settings))
    return url, api_key


def _announced(settings: Settings) -> str | None:
    """Return where the service of this state folder listens; None where none runs.

    What a service that was killed has left behind is not believed.
    """
    try:
        found = json.loads((settings.state_dir / SERVICE_FILE).read_bytes())
        return str(found["url"]) if psutil.pid_exists(int(found["pid"])) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _refusal(answer: httpx.Response) -> str:
    """Say what the service said, in one line."""
    try:
        error = answer.json()["error"]
    except (ValueError, KeyError, TypeError):
        return f"{answer.status_code} {answer.reason_phrase}: {answer.text[:200]}"
    parts = [f"{answer.status_code} {error.get('code')}"]
    for key in ("message", "field", "value", "allowed"):
        if error.get(key) is not None:
            parts.append(f"{key}: {error[key]}")
    return "; ".join(parts)

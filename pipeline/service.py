"""Kubeflow Pipelines as a service: where it is, who asks, and what its failures mean.

The generated client of the API is used as it is. ``kfp.Client`` on top of it waits for ever, keeps settings in the
home folder, and makes an experiment of every name that is misspelt.
"""

from __future__ import annotations

import json
import logging
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

import kfp_server_api
import urllib3
import yaml

from cwbass.errors import ParamsError, ServiceError

logger = logging.getLogger(__name__)

API = "/apis/v2beta1"
CONNECT_SECONDS = 5.0
_EQUALS = 1
_NOT_FOUND = 5  # of gRPC: the API knows the request, and not what it names
_PASSING = (408, 429)


@dataclass(frozen=True, slots=True)
class Service:
    """Address and credentials; a token or cookies never appear in a message or a log."""

    host: str | None = None
    namespace: str | None = None
    token: str | None = None
    token_file: str | None = None  # read again for each request: mounted tokens are renewed
    cookies: str | None = None
    ca_cert: str | None = None

    def __repr__(self) -> str:
        return f"Service({self.host!r}, namespace={self.namespace!r})"


def read_service(given: Service, credentials: Path | None) -> Service:
    """What is given, and from a credentials file what is not.

    Args:
        given: From options and the environment.
        credentials: YAML with any of the fields of :class:`Service`.

    Raises:
        ParamsError: The file cannot be read, or there is no host; what a file holds is not repeated.
    """
    service = given
    if credentials is not None:
        values = _read_credentials(credentials)
        if given.token or given.token_file:  # either is the token, and goes before both of the file's
            values = {key: value for key, value in values.items() if key not in ("token", "token_file")}
        service = replace(given, **{key: value for key, value in values.items() if getattr(given, key) is None})
    if service.host is None:
        raise ParamsError("no host is given. Use --host, CWBASS_KFP_HOST, or host: in a credentials file.")
    parts = urlsplit(service.host)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username:
        raise ParamsError(
            f"--host is {_without_user(service.host)!r}; give an address such as https://kubeflow.example.com/pipeline."
        )
    return replace(service, host=f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}")


def connect(service: Service) -> kfp_server_api.ApiClient:
    """A client; nothing is sent yet.

    Raises:
        ParamsError: The token cannot be read or sent, the authority's certificate is not there, or the environment names no proxy as
            one.
    """
    if service.ca_cert and not Path(service.ca_cert).is_file():
        raise ParamsError(f"ca_cert is {service.ca_cert!r}: no such file. Name the authority's certificate, PEM.")
    config = kfp_server_api.Configuration(host=service.host)
    config.ssl_ca_cert = service.ca_cert
    config.proxy, config.proxy_headers = _proxy(str(service.host))
    # A redirect is a login page, not an answer; it must come back to be named.
    config.retries = urllib3.Retry(total=2, redirect=False, status=0, backoff_factor=0.3)
    if service.token_file:
        path = Path(service.token_file)
        config.refresh_api_key_hook = lambda config: config.api_key.update(authorization=_token(path))
    if service.token or service.token_file:
        config.api_key["authorization"] = _header(service.token) if service.token else _token(Path(str(service.token_file)))
        config.api_key_prefix["authorization"] = "Bearer"
    return kfp_server_api.ApiClient(config, cookie=service.cookies and _header(service.cookies))


def find_experiment(client: kfp_server_api.ApiClient, name: str, namespace: str | None, *, create: bool, seconds: float) -> str:
    """Id of an experiment.

    Args:
        client: From :func:`connect`.
        name: As people see it.
        namespace: None on a single-user cluster.
        create: Make it if there is none.
        seconds: To wait for each answer.

    Raises:
        ParamsError: There is none of the name, and none is to be made.
        ServiceError: The service cannot be reached or fails.
    """
    api = kfp_server_api.ExperimentServiceApi(client)
    place = {"namespace": namespace} if namespace else {}
    only = json.dumps({"predicates": [{"operation": _EQUALS, "key": "display_name", "stringValue": name}]})
    found = _ask(client, api.experiment_service_list_experiments, seconds, filter=only, **place).experiments or []
    if match := next((each for each in found if each.display_name == name), None):
        return str(match.experiment_id)
    if create:
        wanted = kfp_server_api.V2beta1Experiment(display_name=name, **place)
        return str(_ask(client, api.experiment_service_create_experiment, seconds, experiment=wanted).experiment_id)
    where = f" in namespace {namespace}" if namespace else ""
    known = ", ".join(list_experiments(client, namespace, seconds=seconds)) or "none"
    raise ParamsError(f"there is no experiment {name!r}{where}; there are: {known}. Name one, or add --create-experiment.")


def list_experiments(client: kfp_server_api.ApiClient, namespace: str | None, *, seconds: float) -> list[str]:
    """Names of the first experiments there are, sorted; the arguments are those of :func:`find_experiment`.

    Raises:
        ParamsError: Host or token is wrong, or the namespace may not be looked at.
        ServiceError: The service cannot be reached or fails.
    """
    api = kfp_server_api.ExperimentServiceApi(client)
    place = {"namespace": namespace} if namespace else {}
    found = _ask(client, api.experiment_service_list_experiments, seconds, page_size=20, **place).experiments or []
    return sorted(str(each.display_name) for each in found)


def create_run(client: kfp_server_api.ApiClient, run: kfp_server_api.V2beta1Run, *, seconds: float) -> str:
    """Start a run; returns its id.

    Raises:
        ParamsError: The service refuses it.
        ServiceError: The service cannot be reached or fails; the run may have started if it did not answer.
    """
    api = kfp_server_api.RunServiceApi(client)
    doubt = "The run may have started: look before you submit again."
    return str(_ask(client, api.run_service_create_run, seconds, doubt, run=run).run_id)


def get_run(client: kfp_server_api.ApiClient, run_id: str, *, seconds: float) -> kfp_server_api.V2beta1Run:
    """A run as it stands.

    Raises:
        ParamsError: There is no such run, or the token is no longer good.
        ServiceError: The service cannot be reached or fails.
    """
    return _ask(client, kfp_server_api.RunServiceApi(client).run_service_get_run, seconds, run_id=run_id)


def _ask(client: kfp_server_api.ApiClient, call: Callable[..., Any], seconds: float, doubt: str = "", **values: Any) -> Any:
    """One request, with an end to waiting and an answer that is JSON."""
    with _failures(client, seconds, doubt):
        answer = call(**values, _request_timeout=(CONNECT_SECONDS, seconds))
        _check_json(client)
    return answer


@contextmanager
def _failures(client: kfp_server_api.ApiClient, seconds: float, doubt: str) -> Iterator[None]:
    """What the client raises inside becomes a ParamsError where a retry cannot help, else a ServiceError."""
    host = client.configuration.host
    try:
        yield
    except kfp_server_api.ApiException as error:
        raise _of_status(error, client, host) from None  # the answer's headers are no one's business
    except urllib3.exceptions.MaxRetryError as error:
        if isinstance(error.reason, urllib3.exceptions.SSLError):
            raise ParamsError(
                f"{host}: no TLS connection ({_short(error.reason)}). "
                "Check http or https; a private authority's certificate is named as ca_cert: in a credentials file."
            ) from error
        if isinstance(error.reason, urllib3.exceptions.ReadTimeoutError):
            raise _silent(host, seconds, doubt) from error
        raise ServiceError(f"{host} cannot be reached ({_short(error.reason)}). Check --host and the network.") from error
    except urllib3.exceptions.TimeoutError as error:
        raise _silent(host, seconds, doubt) from error
    except (urllib3.exceptions.HTTPError, OSError) as error:
        raise ServiceError(f"{host}: the connection broke ({_short(error)}). {doubt or 'Try again.'}") from error


def _silent(host: str, seconds: float, doubt: str) -> ServiceError:
    return ServiceError(
        f"{host} took the request, and did not answer in {seconds:g} s. {doubt or 'Try again, or give it more with --timeout.'}"
    )


def _of_status(error: kfp_server_api.ApiException, client: kfp_server_api.ApiClient, host: str) -> ParamsError | ServiceError:
    status = error.status or 0
    if status in (401, 403):
        known = bool(client.configuration.api_key or client.cookie)
        why = "does not accept the token" if known else "asks for a token"
        return ParamsError(f"{host} {why} ({status}). Give a valid one with --token-file, CWBASS_KFP_TOKEN or --credentials.")
    if 300 <= status < 400:
        return ParamsError(
            f"{host} sends to another page ({status}), a login perhaps. Give a token or cookies, or the API's own address."
        )
    if status == 404 and _body(error).get("code") != _NOT_FOUND:
        return ParamsError(
            f"{host} has no {API} (404). Give the address of Kubeflow Pipelines, e.g. https://kubeflow.example.com/pipeline."
        )
    if 400 <= status < 500 and status not in _PASSING:
        return ParamsError(f"{host} refuses the request ({status}): {_message(error)}")
    return ServiceError(f"{host} failed ({status}): {_message(error)} Try again later.")


def _proxy(host: str) -> tuple[str | None, dict[str, str] | None]:
    """Address of the proxy that HTTP_PROXY or HTTPS_PROXY, and NO_PROXY, name for a host, and the headers it asks for."""
    parts = urlsplit(host)
    given = None if proxy_bypass(parts.netloc) else getproxies().get(parts.scheme)
    if given is None:
        return None, None
    try:
        proxy = urllib3.util.parse_url(given if "://" in given else f"http://{given}")
    except urllib3.exceptions.LocationParseError:
        proxy = urllib3.util.Url()
    if not proxy.host or proxy.scheme not in ("http", "https"):  # what it is may be a password
        raise ParamsError(
            f"{parts.scheme.upper()}_PROXY is no address of an HTTP proxy. Write http://proxy.example.com:3128, or let NO_PROXY name "
            f"{parts.hostname}."
        )
    headers = urllib3.util.make_headers(proxy_basic_auth=unquote(proxy.auth)) if proxy.auth else None
    return f"{proxy.scheme}://{proxy.netloc}", headers


def _check_json(client: kfp_server_api.ApiClient) -> None:
    """The generated client makes an empty answer of a page that is no JSON."""
    try:
        json.loads(client.last_response.data)
    except ValueError:
        raise ParamsError(
            f"{client.configuration.host} answers with a page, not with JSON: a login perhaps, or another service. "
            "Check --host and the token."
        ) from None


def _message(error: kfp_server_api.ApiException) -> str:
    body = _body(error)
    return f"{_short(body.get('message') or body.get('error') or error.reason).rstrip('.')}."


def _body(error: kfp_server_api.ApiException) -> dict[str, Any]:
    """What the service says of an error; empty where that is no JSON object."""
    try:
        body = json.loads(error.body)
    except (TypeError, ValueError):
        return {}
    return body if isinstance(body, dict) else {}


def _short(value: object) -> str:
    return " ".join(str(value).split())[:300]


def _without_user(host: str) -> str:
    return host.rpartition("@")[2]


def _read_credentials(path: Path) -> dict[str, str]:
    names = [field.name for field in fields(Service)]
    try:
        if stat.S_IMODE(path.stat().st_mode) & 0o077:
            logger.warning("%s can be read by others; run: chmod 600 %s", path, path)
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ParamsError(f"--credentials {path} cannot be read: {error.strerror}.") from error
    except (yaml.YAMLError, UnicodeDecodeError):
        values = None  # and no word of what is in it
    if not isinstance(values, dict) or not all(isinstance(value, str) for value in values.values()):
        raise ParamsError(f"--credentials {path} is no YAML of texts. It takes: {', '.join(names)}.")
    if unknown := sorted(str(key) for key in values if key not in names):
        raise ParamsError(f"--credentials {path}: unknown key {', '.join(unknown)}. It takes: {', '.join(names)}.")
    return values


def _token(path: Path) -> str:
    try:
        return _header(path.read_text(encoding="ascii").strip())
    except (OSError, UnicodeDecodeError) as error:
        raise ParamsError(
            f"the token file {path} cannot be read: {getattr(error, 'strerror', None) or 'it is no text'}."
        ) from None


def _header(secret: str) -> str:
    if not secret or not secret.isascii() or not secret.isprintable():
        raise ParamsError("the token or the cookies are empty, or hold what no HTTP header takes. Give them again.")
    return secret

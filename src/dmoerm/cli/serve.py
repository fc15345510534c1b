"""`dmoerm serve`: a model behind HTTP, for trainers, programs and people."""

from __future__ import annotations

import functools
import ipaddress
import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from .options import BatchTokens, Deterministic, Dtype, Quantization, grouped


@dataclass(frozen=True)
class LimitOptions:
    """The limits of a pass, of the queue and of a request."""

    batch_tokens: BatchTokens = None
    pass_timeout: Annotated[
        float, typer.Option(min=0.1, help="Seconds after which a pass is taken as stuck: the server ends.")
    ] = 600.0
    queue_seconds: Annotated[float, typer.Option(min=0.1, help="Longest expected wait in the queue, in seconds.")] = (
        45.0
    )
    queue_tokens: Annotated[int, typer.Option(min=1, help="Maximum tokens in the queue.")] = 262_144
    queue_requests: Annotated[int, typer.Option(min=1, help="Maximum requests in the queue.")] = 1024
    queue_bytes: Annotated[int, typer.Option(min=1, help="Maximum bytes that wait to be tokenized.")] = 2**24
    overload_status: Annotated[
        int, typer.Option(metavar="503|429", help="Status of a request that a full queue refuses.")
    ] = 503
    max_body_bytes: Annotated[int, typer.Option(min=1024, help="Maximum bytes of a body; beyond it: 413.")] = 4 * 2**20
    max_responses: Annotated[int, typer.Option(min=1, help="Maximum responses of a request; beyond it: 422.")] = 256
    max_request_tokens: Annotated[int, typer.Option(min=1, help="Maximum tokens per request; beyond it: 422.")] = (
        131_072
    )
    score_cache: Annotated[
        int, typer.Option(min=0, help="Scores that are kept for responses that are sent again; 0: none.")
    ] = 0


@dataclass(frozen=True)
class EngineOptions:
    """How many copies of the model score, and where."""

    engines: Annotated[
        int,
        typer.Option(
            min=0, max=64, help="Copies of the model, each in its own process; 0: one per device, at least 1."
        ),
    ] = 0
    device: Annotated[
        list[str] | None, typer.Option(help="An engine's device, such as cuda:0; once per engine, or for all in turn.")
    ] = None


@dataclass(frozen=True)
class AccessOptions:
    """Who may send requests."""

    api_key_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The key that clients must send; otherwise $DMOERM_API_KEY."),
    ] = None
    allow_host: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Name by which clients reach a server without a key, such as *.example.com."),
    ] = None
    allow_origin: Annotated[
        list[str] | None, typer.Option(help="Origin of a web page that may send requests (CORS); none by default.")
    ] = None


@grouped
def command(
    model: Annotated[str, typer.Argument(help="A model's or a run's folder, or a hub name.")],
    access: AccessOptions,
    limits: LimitOptions,
    engines: EngineOptions,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0: all networks.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8000,
    reuse_port: Annotated[
        bool, typer.Option("--reuse-port", help="Share the port with other servers, to replace one without a pause.")
    ] = False,
    name: Annotated[
        str, typer.Option(help="The model's name in answers; by default the folder's or the hub's name.")
    ] = "",
    dtype: Dtype = None,
    quantization: Quantization = "none",
    deterministic: Deterministic = False,
    judge_templates: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="YAML with more prompts of judges for /v1/chat/completions."),
    ] = None,
    log_format: Annotated[str, typer.Option(help="json, text, or auto: text on a terminal.")] = "auto",
    traces: Annotated[
        bool, typer.Option("--traces", help="Send OpenTelemetry traces, as the variables OTEL_… say (extra: otel).")
    ] = False,
) -> None:
    """Serve a model over HTTP: /v1/score, and the protocols of vLLM, SGLang, OpenRLHF, slime, TEI, Cohere and others.

    A browser gets a page at /. docs/serving.md describes the protocols, limits and security.
    """
    from ..errors import ConfigError
    from ..io.paths import model_folder, model_name
    from .models import follows, load_model, processes

    if log_format not in ("auto", "json", "text"):
        raise ConfigError(f"--log-format {log_format}: use json, text or auto")
    if limits.overload_status not in (429, 503):
        raise ConfigError(f"--overload-status {limits.overload_status}: use 503 or 429, which clients repeat")
    try:
        from ..model.checkpoint import download, local_folder
        from ..model.loading import load_options
        from ..serving import ServingConfig
        from ..serving.server import serve
        from ..serving.tracing import Tracing
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"the server needs the package {error.name}: pip install '.[serve]' in dmoerm's folder"
        ) from None
    key, hosts = _key(access.api_key_file), tuple(access.allow_host or ())
    access_settings = {
        "api_key": key,
        "allow_hosts": (*hosts, host) if hosts or key is None else (),
        "allow_origins": tuple(access.allow_origin or ()),
    }
    scoring = {"deterministic": deterministic, "engines": engines.engines, "devices": tuple(engines.device or ())}
    settings = ServingConfig(judge_templates=judge_templates, **scoring, **asdict(limits), **access_settings)
    _warn(host, settings.api_key)
    load = functools.partial(load_model, model, dtype, deterministic, quantization, divide=True)
    if processes() > 1 and (engines.engines > 1 or engines.device):
        raise ConfigError(
            "--engines, --device: several processes divide one model; leave them out, or start one process"
        )
    for each in engines.device or ():
        load_options({"device_map": each})
    folder = model_folder(model)
    if Path(folder).exists() or model.count("/") != 1:
        local_folder(folder, {})
    else:  # a model on the hub is downloaded while /health is answered
        download(folder, ("config.json",))
    if follows():
        load()
    serve(
        load,
        settings,
        name=name or model_name(model),
        host=host,
        port=port,
        json_logs=log_format == "json" or (log_format == "auto" and not sys.stderr.isatty()),
        tracing=Tracing.from_environment() if traces else None,
        reuse_port=reuse_port,
    )


def _key(file: Path | None) -> str | None:
    """Read the key from the file or the environment; arguments are visible to all users of the machine."""
    from ..client.base import KEY_VARIABLE
    from ..errors import ConfigError

    if file is None:
        return os.environ.get(KEY_VARIABLE) or None
    try:
        key = file.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise ConfigError(f"--api-key-file {file}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"--api-key-file {file}: is not a text in UTF-8") from None
    if not key:
        raise ConfigError(f"--api-key-file {file}: is empty")
    return key


def _warn(host: str, key: str | None) -> None:
    try:
        local = ipaddress.ip_address(host).is_loopback
    except ValueError:
        local = host == "localhost"
    if not local and key is None:
        Console(stderr=True).print(
            f"[yellow]warning:[/yellow] other machines can reach {host} and no API key is set; "
            "set DMOERM_API_KEY or --api-key-file",
            soft_wrap=True,
        )

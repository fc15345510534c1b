"""`dmoerm serve`: a model behind HTTP, for trainers, programs and people."""

from __future__ import annotations

import functools
import ipaddress
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ..errors import ConfigError
from ..io.paths import model_folder, model_name
from .models import follows, load_model, processes
from .options import Backbone, BatchTokens, Deterministic, Dtype, Quantization, lazily, note

if TYPE_CHECKING:
    from .. import serving
    from ..model import checkpoint
else:
    serving, checkpoint = lazily("serving", "model.checkpoint")


def command(
    model: Annotated[str, typer.Argument(help="A model's or a run's folder, or a hub name.")],
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0: all networks.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8000,
    workers: Annotated[
        int, typer.Option(min=1, max=64, help="Processes behind the port, each with the model; on the GPUs in turn.")
    ] = 1,
    name: Annotated[
        str, typer.Option(help="The model's name in answers; by default the folder's or the hub's name.")
    ] = "",
    backbone: Backbone = None,
    dtype: Dtype = None,
    quantization: Quantization = "none",
    deterministic: Deterministic = False,
    batch_tokens: BatchTokens = None,
    pass_timeout: Annotated[
        float, typer.Option(min=0.1, help="Seconds after which a pass counts as stuck: the server ends.")
    ] = 600.0,
    queue_seconds: Annotated[
        float, typer.Option(min=0.1, help="Refuse a request whose expected wait in the queue is longer; in seconds.")
    ] = 45.0,
    overload_status: Annotated[Literal["503", "429"], typer.Option(help="Status beyond the queue's limits.")] = "503",
    api_key_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The key that clients must send; otherwise $DMOERM_API_KEY.")
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Name by which clients reach a server without a key, such as *.example.com."),
    ] = None,
    allow_origin: Annotated[
        list[str] | None, typer.Option(help="Origin of a web page that may send requests (CORS); none by default.")
    ] = None,
) -> None:
    """Serve a model over HTTP: /v1/score, and the protocols of vLLM, SGLang, OpenRLHF, slime, TEI, Cohere and others.

    A browser gets a page at /. docs/serving.md describes the protocols, limits and security.
    """
    if processes() > 1 and workers > 1:
        raise ConfigError("--workers: several processes divide one model; leave it out, or start one process")
    key, hosts = _key(api_key_file), tuple(allow_host or ())
    settings = serving.ServingConfig(
        batch_tokens=batch_tokens,
        deterministic=deterministic,
        pass_timeout=pass_timeout,
        queue_seconds=queue_seconds,
        overload_status=429 if overload_status == "429" else 503,
        api_key=key,
        allow_hosts=(*hosts, host) if hosts or key is None else (),
        allow_origins=tuple(allow_origin or ()),
    )
    if key is None and not _is_local(host):
        fix = "set DMOERM_API_KEY or --api-key-file"
        note(f"warning: other machines can reach {host} and no API key is set; {fix}")
    load = functools.partial(load_model, model, dtype, deterministic, quantization, divide=True, backbone=backbone)
    folder = model_folder(model)
    if Path(folder).exists() or model.count("/") != 1:
        checkpoint.local_folder(folder, {})
    else:  # a model on the hub is downloaded while /health is answered
        checkpoint.download(folder, ("config.json",))
    if follows():
        load()
    json_logs = not sys.stderr.isatty()
    serving.serve(
        load, settings, name=name or model_name(model), host=host, port=port, workers=workers, json_logs=json_logs
    )


def _key(file: Path | None) -> str | None:
    """Read the key from the file or the environment; arguments are visible to all users of the machine."""
    if file is None:
        return os.environ.get("DMOERM_API_KEY") or None
    try:
        key = file.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise ConfigError(f"--api-key-file {file}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"--api-key-file {file}: is not a text in UTF-8") from None
    if not key:
        raise ConfigError(f"--api-key-file {file}: is empty")
    return key


def _is_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"

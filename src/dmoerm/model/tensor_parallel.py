"""Score with one model that several processes hold together: tensor parallelism by transformers' plan of the family.

    process 0      encodes, sends each pass to the others, and returns the scores
    processes 1…   `follow`: run the same pass with their part of every layer

A `colwise` layer gives each process some of the heads (or of the feed-forward width), a `rowwise` layer reads them and
adds the processes' results. Embeddings, norms, heads and the router are whole in each process. The plan is that of
transformers' `tp_plan`; its layers are divided by PyTorch's `parallelize_module`, since packed tokens do not run
through the model's own forward.
"""

from __future__ import annotations

import atexit
import contextlib
from datetime import timedelta
from typing import Any

import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from ..errors import ConfigError
from .dmoerm import DMoERM
from .experts import lora_layers
from .families import is_packed
from .layers import Decoder

_STYLES = {"colwise": ColwiseParallel, "rowwise": RowwiseParallel}
_WHOLE = ("replicated_with_grad_allreduce", "embedding_rowwise")  # styles that inference may leave whole
_FOREVER = timedelta(days=3650)  # a server may wait for requests for as long


def parallelize(model: DMoERM, device: torch.device) -> None:
    """Divide the layers of trunk and branches over all processes, and move the rest to the process's device.

    Args:
        model: the same model in CPU memory of each process; `torch.distributed` is initialized.

    Raises:
        ConfigError: the family has no plan that packed tokens support, or the heads cannot be divided.
    """
    mesh = init_device_mesh(device.type, (distributed.get_world_size(),))
    plan = _plan(model.general.branch, mesh.size())  # pyright: ignore[reportArgumentType]
    tasks = [model.task_model(task) for task in model.config.tasks]
    lora = [item for task in tasks for item in lora_layers(task.experts.branch or nn.Module()).items()]
    parts = [model.trunk, model.general.branch, *(task.base.branch for task in tasks)]
    for part in {id(part): part for part in parts if part is not None}.values():  # tasks may share the general branch
        styles = {name: _STYLES[style](use_local_output=True) for name, style in plan.items()}
        parallelize_module(part, mesh, styles, src_data_rank=None)
    for name, layer in lora:
        style = plan.get(".".join("*" if part.isdigit() else part for part in name.split(".")))
        if style == "rowwise":
            raise ConfigError(f"a LoRA on {name!r} cannot be divided over processes; its layer adds their results")
        if style == "colwise":  # keep the rows whose outputs this process's part of the layer has
            rows = layer.lora_B.detach().chunk(mesh.size(), dim=1)[mesh.get_local_rank()].contiguous()
            layer.lora_B = nn.Parameter(rows, requires_grad=False)
    model.to(device)  # pyright: ignore[reportArgumentType]


def _plan(branch: Decoder, count: int) -> dict[str, str]:
    """Return the names of the divided layers, with a wildcard for the layer's number, and their styles."""
    config: Any = branch.config
    plan = {name: style for name, style in (config.base_model_tp_plan or {}).items() if style not in _WHOLE}
    unknown = sorted(set(plan.values()) - set(_STYLES))
    if not plan or unknown or not is_packed(config):
        reason = f"its plan has the styles {', '.join(unknown)}" if unknown else "it has no plan"
        raise ConfigError(f"a backbone of type {config.model_type!r} cannot be divided over processes: {reason}")
    for name in ("num_attention_heads", "num_key_value_heads", "intermediate_size"):
        if (size := getattr(config, name)) % count:
            hint = "start a number that divides it"
            raise ConfigError(f"the backbone's {name} is {size}, which {count} processes cannot divide; {hint}")
    return plan


def lead(model: DMoERM) -> None:
    """Send each pass of process 0 to the other processes, until the program ends."""
    group: Any = distributed.new_group(backend="gloo", timeout=_FOREVER)
    score_encoded = model.score_encoded

    def send(*arguments: Any, **options: Any) -> Any:
        distributed.broadcast_object_list([(arguments, options)], src=0, group=group)
        return score_encoded(*arguments, **options)

    def end() -> None:
        distributed.broadcast_object_list([None], src=0, group=group)
        _close(group)

    model.score_encoded = send
    atexit.register(end)


def _close(group: Any) -> None:
    """End the communication. Layers hold the groups, whose threads on a CPU must not outlive the interpreter."""
    world: Any = distributed.group.WORLD
    for each in (group, world):
        with contextlib.suppress(RuntimeError):  # a group of GPUs has no backend for a CPU
            each._get_backend(torch.device("cpu")).shutdown()
    distributed.destroy_process_group()


def follow(model: DMoERM) -> None:
    """Run the passes of process 0 until it ends, then end the communication."""
    group: Any = distributed.new_group(backend="gloo", timeout=_FOREVER)
    while True:
        received: list[Any] = [None]
        distributed.broadcast_object_list(received, src=0, group=group)
        if received[0] is None:
            _close(group)
            return
        with contextlib.suppress(Exception):  # process 0 raises the same error and reports it
            arguments, options = received[0]
            model.score_encoded(*arguments, **options)

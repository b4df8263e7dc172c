"""From options to processes: which command runs where, on which port, with which GPUs. Nothing is started here."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from llava_core.config import CONTROL_PORT, CONTROLLER_PORT, PAGE_PORT, WORKER_PORT, WorkerTimings
from llava_core.errors import BadRequest
from serve.credentials import PUBLIC_LINK, check_exposure
from serve.launcher.config import LaunchConfig, ModelSpec
from serve.launcher.gpus import device_environment, hand_out
from serve.launcher.ports import choose_port
from serve.launcher.settings import WHOLE, setting_flags
from serve.launcher.supervisor import ChildSpec

ROOT = Path(__file__).resolve().parent.parent.parent
_WORKER_HOST = "127.0.0.1"
_ADDRESS_QUOTAS = ("address_rate", "address_at_once", "rate_storage", "trusted_proxies")
_CPU_SHARE, _GPU_SHARE = 50, 85
"""Percent of free memory that one worker alone takes for keys and values."""
_DRAINED_S = WorkerTimings.drain_s + 5.0
"""For those whose running answers may finish first."""


@dataclass(frozen=True)
class Machine:
    """What of this machine bears on the plan; `is_free(host, port)` says whether a server could listen there."""

    gpus: tuple[str, ...]
    cores: int
    environment: Mapping[str, str]
    is_free: Callable[[str, int], bool]


@dataclass(frozen=True)
class Plan:
    """The processes, controller first, page last, and the addresses a person needs. `titles` says what a process is
    beside its name; `notes` are sentences to show before the start; `shared` says that a public link is coming."""

    children: tuple[ChildSpec, ...]
    page_url: str
    api_url: str
    """Without the /v1 at its end."""
    control_url: str
    titles: Mapping[str, str]
    notes: tuple[str, ...] = ()
    shared: bool = False


def make_plan(config: LaunchConfig, machine: Machine, *, logs: Path) -> Plan:
    """The topology of `config`; BadRequest for ports that are taken, GPUs that are not there, and a
    public link to a page that asks nobody who they are."""
    if not config.models:
        raise BadRequest("there is no model to launch; name one with --model", param="--model")
    if config.share:
        check_exposure(PUBLIC_LINK, guarded=config.login, insecure=config.insecure, remedy="add --login")
    wanted = {port for port in (config.port, config.controller_port, config.control_port) if port is not None}
    wanted |= {config.worker_port + index for index in range(len(config.models))} if config.worker_port else set()
    ports = _Ports(machine, wanted)
    controller_port = ports.take("controller", config.controller_host, config.controller_port, CONTROLLER_PORT)
    page_port = ports.take("page", config.host, config.port, PAGE_PORT, option="--port")
    api_url = f"http://{reachable(config.controller_host)}:{controller_port}"
    page_url = f"http://{reachable(config.host)}:{page_port}"
    worker_ports: list[int] = []
    for index in range(len(config.models)):
        named = None if config.worker_port is None else config.worker_port + index
        default = worker_ports[-1] + 1 if worker_ports else WORKER_PORT
        worker_ports.append(ports.take(f"worker {index + 1}", _WORKER_HOST, named, default, option="--worker-port"))

    control_port = ports.take(
        "control plane", config.control_host, config.control_port, CONTROL_PORT, option="--control-port"
    )
    control_url = f"http://{reachable(config.control_host)}:{control_port}"

    controller = ChildSpec(
        name="controller",
        argv=(
            *_python("serve.controller"),
            *("--host", config.controller_host, "--port", str(controller_port)),
            *("--control-host", config.control_host, "--control-port", str(control_port)),
            *(("--insecure",) if config.insecure else ()),
            *_given(config, ("key_rate", "key_at_once", *_ADDRESS_QUOTAS)),
            *_moderation_flags(config),
        ),
        ready_url=f"{api_url}/health/live",
        log=logs / "controller.log",
        cwd=ROOT,
        rank=1,
        grace_s=_DRAINED_S,
    )
    page = ChildSpec(
        name="page",
        argv=(*_python("serve.gradio_web_server"), *_page_flags(config, page_port, control_url, logs)),
        ready_url=f"{page_url}/health/live",
        log=logs / "page.log",
        # Not on its command line, which every user of the machine can read: it may hold a password.
        variables={"LLAVA_SERVE_DATABASE_URL": config.database_url} if config.database_url else {},
        cwd=ROOT,
    )
    gpus = hand_out(config.models, machine.gpus)
    shares = _kv_shares(config, gpus, on_cpu=not machine.gpus)
    workers = [
        ChildSpec(
            name=f"worker {index}",
            argv=(*_python("serve.model_worker"), *_worker_flags(config, spec, held, port, control_url, share)),
            ready_url=f"http://{_WORKER_HOST}:{port}/health/ready",
            log=logs / f"worker-{index}.log",
            variables=device_environment(
                held, workers=len(config.models), cores=machine.cores, environment=machine.environment
            ),
            cwd=ROOT,
            grace_s=_DRAINED_S,
        )
        for index, (spec, held, port, share) in enumerate(
            zip(config.models, gpus, worker_ports, shares, strict=True), 1
        )
    ]
    titles = {
        worker.name: describe(spec, held) for worker, spec, held in zip(workers, config.models, gpus, strict=True)
    }
    notes = [*ports.moved, *_gpu_notes(config.models, machine.gpus)]
    return Plan((controller, *workers, page), page_url, api_url, control_url, titles, tuple(notes), config.share)


def reachable(host: str) -> str:
    """The address to write for a server that listens on `host`, wildcards among them, on this machine."""
    wildcards = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "[::1]"}
    return wildcards.get(host, f"[{host}]" if ":" in host else host)


def describe(spec: ModelSpec, gpus: tuple[str, ...] | None) -> str:
    """A model as one short phrase for the console."""
    what = spec.name or (Path(spec.path).name if spec.path else spec.engine or "echo")
    where = "" if gpus is None else " on the CPU" if not gpus else f" on GPU {', '.join(gpus)}"
    quantized = spec.quantize if spec.quantize != WHOLE else None
    return f"{what}{f' in {quantized}' if quantized else ''}{where}"


def _kv_shares(config: LaunchConfig, gpus: Sequence[tuple[str, ...] | None], *, on_cpu: bool) -> list[str | None]:
    """For workers that share a device, what each may take of its free memory; None leaves it to the worker.

    Each would otherwise take most of it for itself.
    """
    held = [("cpu",) if gpu == () or (gpu is None and on_cpu) else gpu or () for gpu in gpus]
    loads = [(spec.engine or config.engine) != "echo" for spec in config.models]
    users = Counter[str](device for devices, real in zip(held, loads, strict=True) if real for device in devices)
    shares: list[str | None] = []
    for devices in held:
        most = max((users[device] for device in devices), default=1)
        whole = _CPU_SHARE if devices == ("cpu",) else _GPU_SHARE
        shares.append(f"{whole // most}%" if most > 1 else None)
    return shares


def _gpu_notes(specs: Sequence[ModelSpec], gpus: Sequence[str]) -> list[str]:
    return [
        f"no NVIDIA GPU was found here, yet {spec.path} was to run on GPU {', '.join(spec.gpus)}"
        for spec in specs
        if spec.gpus and not gpus
    ]


class _Ports:
    """Ports given out so far in this plan; those in `wanted` are kept for the processes that name them."""

    def __init__(self, machine: Machine, wanted: set[int]) -> None:
        self._machine, self._wanted, self._given_out = machine, wanted, set[int]()
        self.moved: list[str] = []

    def take(self, who: str, host: str, named: int | None, default: int, *, option: str = "--controller-port") -> int:
        port = choose_port(
            named,
            default,
            option=option,
            is_free=lambda port: self._machine.is_free(host, port),
            given_out=self._given_out | (self._wanted if named is None else set()),
        )
        self._given_out.add(port)
        if named is None and port != default:
            self.moved.append(f"port {default} is taken, so the {who} listens on {port}")
        return port


def _python(module: str) -> tuple[str, ...]:
    return sys.executable, "-m", module


def _worker_flags(
    config: LaunchConfig,
    spec: ModelSpec,
    gpus: tuple[str, ...] | None,
    port: int,
    control_url: str,
    kv_share: str | None,
) -> Sequence[str]:
    pairs = {
        "--host": _WORKER_HOST,
        "--port": str(port),
        "--controller-address": control_url,
        "--worker-address": f"http://{_WORKER_HOST}:{port}",
        "--model-path": spec.path,
        "--model-base": spec.base,
        "--model-name": spec.name,
        "--conv-template": spec.conv_template or config.conv_template,
        "--dtype": spec.dtype or config.dtype,
        "--engine": spec.engine or config.engine,
        "--device": "cpu" if gpus == () else None,
    }
    flags = [word for option, value in pairs.items() if value is not None for word in (option, value)]
    flags += [word for host in config.allow_image_host for word in ("--allow-image-host", host)]
    return [*flags, *setting_flags(spec, config, kv_memory=kv_share), *spec.arguments]


def _given(config: LaunchConfig, names: Sequence[str]) -> Sequence[str]:
    """The options of these names, as far as they were given."""
    given = {f"--{name.replace('_', '-')}": getattr(config, name) for name in names}
    return [word for option, value in given.items() if value is not None for word in (option, str(value))]


def _moderation_flags(config: LaunchConfig) -> Sequence[str]:
    flags = _given(config, ("moderation_url", "moderation_model", "moderation_classifier"))
    switches = {
        "--moderation-fail-open": config.moderation_fail_open,
        "--moderation-hold-answers": config.moderation_hold_answers,
    }
    return [*flags, *(flag for flag, wanted in switches.items() if wanted)]


def _page_flags(config: LaunchConfig, port: int, control_url: str, logs: Path) -> Sequence[str]:
    flags = ["--host", config.host, "--port", str(port), "--controller-url", control_url]
    if config.model_list_mode:
        flags += ["--model-list-mode", config.model_list_mode]
    if config.history:
        flags += ["--history", config.history]
    if config.keep_days:
        flags += ["--keep-days", str(config.keep_days)]
    switches = {
        "--embed": config.embed,
        "--share": config.share,
        "--record": config.record,
        "--login": config.login,
        "--insecure": config.insecure,
        "--keep-originals": config.keep_originals,
    }
    flags += [option for option, wanted in switches.items() if wanted]
    flags += [*_given(config, _ADDRESS_QUOTAS), *_moderation_flags(config)]
    return [*flags, *(["--logs", str(logs)] if config.record else [])]

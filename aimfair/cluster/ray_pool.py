"""Ray as a pool: a cluster that is there, or one of this machine alone that lives as long as the pool.

Nothing of Ray reaches the terminal: no dashboard, no statistics sent to its makers, its logs stay in its files.
"""

import logging
import os
import pickle
import secrets
import signal
import socket
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from aimfair.base.errors import AimfairError, ConfigError, one_line
from aimfair.base.interrupt import Interrupt, Interrupted
from aimfair.base.libraries import optional
from aimfair.cluster.pool import Call, Ended, Message, RemoteError, Send, Told
from aimfair.cluster.settings import ClusterSettings

_STORE = 100 * 2**20  # bytes of a local object store: little is sent
_SECONDS_TO_LOOK = 120
_SECONDS_TO_REACH = 20
_SECONDS_TO_START = 180

_LOST = {
    "NodeDiedError": "its machine was lost",
    "OutOfMemoryError": "its machine ran out of memory",
    "WorkerCrashedError": "its process died",
}
"""Errors of Ray that end a call with its process, and what they mean."""


@contextmanager
def ray_pool(
    address: str | None, settings: ClusterSettings, *, threads: int, uses_gpu: bool, warn: Callable[[str], None]
) -> Iterator["RayPool"]:
    """A pool on the cluster at ``address``, or if that is None on a new one of this machine.

    Args:
        threads: CPUs of a call, unless the settings say otherwise.
        uses_gpu: whether calls take a GPU where the cluster has any, unless the settings say otherwise.

    Raises:
        AimfairError: Ray is not installed, or the cluster cannot be reached.
        ConfigError: no machine of a local cluster has what a call takes.
    """
    if address is not None and address != "auto":
        _require_answer(address)
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    if address is None:
        _protect()
    with optional("--on ray", "'aimfair[ray]'"):
        import ray
    _silence(ray)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    with tempfile.TemporaryDirectory(prefix="aimfair-ray-", ignore_cleanup_errors=True) as folder:
        where: dict[str, Any] = {"address": address}
        if address is None:
            where = {
                "address": "local",
                "include_dashboard": False,
                "object_store_memory": _STORE,
                "_temp_dir": folder,
            }
        try:
            with _patient(ray):
                ray.init(**where, log_to_driver=False, configure_logging=False)
        except Exception as error:  # of many kinds
            what = "Ray cannot be started here" if address is None else f"--address {address}: no Ray cluster answers"
            raise AimfairError(f"{what}: {str(error).strip().splitlines()[0]}") from error
        try:
            for number, handler in handlers.items():  # Ray has set its own, which end the process
                signal.signal(number, handler)
            yield RayPool(ray, settings, threads=threads, uses_gpu=uses_gpu, warn=None if address is None else warn)
        finally:
            ray.shutdown()


@contextmanager
def _patient(ray: Any) -> Iterator[None]:
    """Inside, a new cluster has minutes to start. Ray waits for 30 seconds, which are too few on a busy machine, and no
    setting changes that."""
    services = ray._private.services
    get_node, end = services.get_node, time.monotonic() + _SECONDS_TO_START

    def get_node_patiently(*arguments: Any) -> Any:
        while True:
            try:
                return get_node(*arguments)
            except RuntimeError:  # it is not there yet
                if time.monotonic() > end:
                    raise
                time.sleep(0.1)

    services.get_node = get_node_patiently
    try:
        yield
    finally:
        services.get_node = get_node


def _silence(ray: Any) -> None:
    """What Ray has to say is in its files; of what it says of lost machines no setting keeps the terminal clear."""
    logging.getLogger("ray").setLevel(logging.CRITICAL)
    ray._private.worker.print_to_stdstream = lambda *_, **__: None


def _require_answer(address: str) -> None:
    """Ray itself tries for many minutes."""
    host, _, port = address.rpartition(":")
    if "://" in address or not host or not port.isdecimal():
        raise ConfigError(
            f"--address: found {address}, expected HOST:PORT, or auto on a machine of the cluster: the process that"
            " starts the run must be in the cluster"
        )
    try:
        socket.create_connection((host, int(port)), timeout=_SECONDS_TO_REACH).close()
    except (OSError, OverflowError) as error:
        raise AimfairError(f"--address {address}: no Ray cluster answers: {one_line(error)}") from error


def _protect() -> None:
    """A local cluster takes no calls of other users of this machine: its token is known to this process alone."""
    if not os.environ.keys() & {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"}:
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)  # with which Ray asks for it


class RayPool:
    """See :func:`ray_pool`; ``warn``: what tells that no machine has what a call takes; None: that is an error."""

    def __init__(
        self,
        ray: Any,
        settings: ClusterSettings,
        *,
        threads: int,
        uses_gpu: bool,
        warn: Callable[[str], None] | None,
    ):
        self._ray, self.retries = ray, settings.retries
        self._calls: dict[Any, str] = {}
        have = ray.cluster_resources()
        gpus = settings.gpus if settings.gpus is not None else float(uses_gpu and have.get("GPU", 0) > 0)
        share = cpus_of_call(self._nodes(), gpus, threads)
        self.threads = share if gpus else threads  # on a CPU last bits depend on them
        self._plain = {"num_cpus": share if settings.cpus is None else settings.cpus, "num_gpus": 0}
        self._with_device = {**self._plain, "num_gpus": gpus}
        for key, resource in (("cpus", "CPU"), ("gpus", "GPU")):
            wanted = self._with_device[f"num_{key}"]
            most = max(node["Resources"].get(resource, 0) for node in self._nodes())
            if wanted > most:
                fault = f"cluster.{key}: a task takes {wanted:g}, no machine of the cluster has more than {most:g}"
                if warn is None:
                    raise ConfigError(f"{fault}; set cluster.{key}{' or threads' if key == 'cpus' else ''} to less")
                warn(f"{fault}: waiting for one that has")
        self.slots = max(int(sum(map(self._room, self._nodes()))), 1)
        parts = [(len(self._nodes()), "machine"), (have.get("CPU", 0), "CPU"), (have.get("GPU", 0), "GPU")]
        found = [f"{number:g} {noun}{'' if number == 1 else 's'}" for number, noun in parts if number]
        self.description = f"{', '.join(found)}: {self.slots} at a time"
        self._task = ray.remote(_call)
        here = self._at(ray.get_runtime_context().get_node_id())
        lasting = {"max_restarts": -1, "max_task_retries": -1}  # with it no more than messages are lost
        self._mailbox = ray.remote(_Mailbox).options(num_cpus=0, **lasting, **here).remote()

    def submit(self, call: Call) -> None:
        options = self._with_device if call.uses_device else self._plain
        # lost processes are counted and told by those who wait, hence no retries here
        task = self._task.options(max_retries=0, scheduling_strategy="SPREAD", **options)
        self._calls[task.remote(pickle.dumps(call.function), self._mailbox, call.name)] = call.name

    def wait(self, seconds: float) -> Sequence[Told | Ended]:
        ready, _ = self._ray.wait(list(self._calls), timeout=seconds)
        found: list[Told | Ended] = [
            Told(name, message) for name, message in self._ray.get(self._mailbox.take.remote())
        ]
        return [*found, *(self._ended(one) for one in ready)]

    def stop(self) -> None:
        for call in self._calls:
            self._ray.cancel(call, force=False, recursive=False)  # its last messages still come

    def everywhere(self, function: Callable[[], None]) -> None:
        """Calls a function on every machine.

        Raises:
            AimfairError: it raised one somewhere, or a machine does not answer.
        """
        calls = {}
        for node in self._nodes():
            task = self._task.options(num_cpus=0, max_retries=0, **self._at(node["NodeID"]))
            calls[task.remote(pickle.dumps(_Ignoring(function)), None, "")] = node
        ready, late = self._ray.wait(list(calls), num_returns=len(calls), timeout=_SECONDS_TO_LOOK)
        if late:
            raise AimfairError(
                f"{calls[late[0]]['NodeManagerHostname']}: this machine of the cluster did not answer within"
                f" {_SECONDS_TO_LOOK} seconds"
            )
        for call in ready:
            try:
                error = self._ray.get(call)[1]
            except self._ray.exceptions.RayError as failure:  # aimfair cannot be imported there, say
                host, reason = calls[call]["NodeManagerHostname"], one_line(failure).split(" Traceback ")[-1]
                raise AimfairError(f"{host}: aimfair cannot be run on this machine of the cluster: {reason}") from None
            if error is not None:
                raise error

    def _room(self, node: Mapping[str, Any]) -> float:
        """How many calls that use a device a machine takes at a time."""
        takes = {"CPU": self._with_device["num_cpus"], "GPU": self._with_device["num_gpus"]}
        return min(float(node["Resources"].get(name, 0)) // count for name, count in takes.items() if count)

    def _nodes(self) -> list[Mapping[str, Any]]:
        return [node for node in self._ray.nodes() if node["Alive"]]

    def _at(self, node: str) -> dict[str, Any]:
        strategy = self._ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(node, soft=False)
        return {"scheduling_strategy": strategy}

    def _ended(self, ready: Any) -> Ended:
        name, errors = self._calls.pop(ready), self._ray.exceptions
        try:
            result, error = self._ray.get(ready)
            return Ended(name, result=result, error=error)
        except errors.TaskCancelledError:
            return Ended(name, error=Interrupted(signal.SIGINT))
        except tuple(getattr(errors, kind) for kind in _LOST) as error:
            return Ended(name, lost=_LOST[type(error).__name__])
        except errors.RayError as error:
            return Ended(name, error=RemoteError(f"{name}: {one_line(error)}"))


def cpus_of_call(nodes: Sequence[Mapping[str, Any]], gpus: float, threads: int) -> int:
    """CPUs of a call: as many as its threads, but where it takes GPUs no more than their share of a machine."""
    with_gpu = [node["Resources"] for node in nodes if node["Resources"].get("GPU", 0)] if gpus else []
    shares = [int(gpus / one["GPU"] * one.get("CPU", 0)) for one in with_gpu]
    return max(min([threads, *shares]), 1)


# -- in other processes ------------------------------------------------------------------------------------------------


class _Mailbox:
    """Messages on their way: an actor beside the process that waits for them."""

    def __init__(self) -> None:
        self._messages: list[tuple[str, Message]] = []

    def put(self, name: str, message: Message) -> None:
        self._messages.append((name, message))

    def take(self) -> list[tuple[str, Message]]:
        taken, self._messages = self._messages, []
        return taken


class _Ignoring:
    """A function without messages, as a call."""

    def __init__(self, function: Callable[[], None]):
        self._function = function

    def __call__(self, _: Send) -> None:
        self._function()


def _call(pickled: bytes, mailbox: Any, name: str) -> tuple[Any, BaseException | None]:
    """The result of a call, or its error: as Ray's own tasks do it, errors would come as other ones."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is loaded
    os.environ.setdefault("GOMP_SPINCOUNT", "0")
    last: list[Any] = []

    def send(message: Message) -> None:
        last[:] = [mailbox.put.remote(name, message)]

    result, error = None, None
    try:
        with Interrupt() as stop:  # a process that is interrupted while it imports torch may die
            function = pickle.loads(pickled)
        stop.check()
        result = function(send)
    except KeyboardInterrupt:
        error = _portable(Interrupted(signal.SIGINT))
    except BaseException as failure:
        error = _portable(failure)
    if last:
        import ray

        ray.get(last)  # all messages are there before the end is
    return result, error


def _portable(error: BaseException) -> BaseException:
    """An error that can be pickled, with its traceback as a note; those for users keep no more than their line."""
    if isinstance(error, AimfairError):
        return RemoteError(str(error), exit_code=error.exit_code)
    trace = "".join(traceback.format_exception(error))
    try:
        copy: BaseException = pickle.loads(pickle.dumps(error))
    except Exception:
        return RemoteError(f"{type(error).__name__}: {one_line(error)}", trace)
    copy.add_note(trace)
    return copy

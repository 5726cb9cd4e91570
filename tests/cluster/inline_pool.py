"""A pool without processes: calls are made when they are waited for, the last first, each from its pickled bytes."""

import pickle
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import torch

from aimfair.base.interrupt import Interrupted
from aimfair.cluster.pool import Call, Ended, Message, RemoteError, Told


class InlinePool:
    """
    Args:
        lose: name of a call -> how often its process is lost after it has done its work, before it can say so.
        signal: name of a call -> how often its process is stopped by SIGTERM.
    """

    def __init__(
        self, *, retries: int = 1, lose: Mapping[str, int] | None = None, signal: Mapping[str, int] | None = None
    ):
        self.retries, self.slots = retries, 2
        self.made: list[str] = []
        self.stopped = False
        self.before: Callable[[str], None] = lambda name: None
        self._lose, self._signal = Counter(lose or {}), Counter(signal or {})
        self._calls: dict[str, bytes] = {}

    @property
    def threads(self) -> int:
        """Those of this process, which a run may have set since the pool was made."""
        return torch.get_num_threads()

    def submit(self, call: Call) -> None:
        assert call.name not in self._calls
        self._calls[call.name] = pickle.dumps(call.function)

    def wait(self, seconds: float) -> Sequence[Told | Ended]:
        name, function = self._calls.popitem()
        if self.stopped or self._signal[name] > 0:
            self._signal[name] -= 1
            return [Ended(name, error=RemoteError(str(Interrupted(15)), exit_code=143))]
        self.before(name)
        self.made.append(name)
        told: list[Message] = []
        try:
            ended = Ended(name, result=pickle.loads(pickle.dumps(pickle.loads(function)(told.append))))
        except Exception as error:
            ended = Ended(name, error=error)
        if self._lose[name] > 0:
            self._lose[name] -= 1
            ended = Ended(name, lost="its process died")
        return [*(Told(name, message) for message in told), ended]

    def everywhere(self, function: Callable[[], None]) -> None:
        pickle.loads(pickle.dumps(function))()

    def stop(self) -> None:
        self.stopped = True

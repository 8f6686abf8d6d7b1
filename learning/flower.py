"""The one adapter to Flower: everything that touches its private API is here, and in `PRIVATE_SYMBOLS`.

Imported only by child processes (`runner`, `driver` and what they run). Flower moves its internals with nearly
every release, so the version is pinned and a contract test names each symbol below. Three doors: `Control`
(registers members' keys, starts and stops runs), `SiteRuntime` (claims tasks from a site's supernode),
`HubRuntime` (claims server tasks from the superlink). No request retries on its own: every caller has a
deadline and says what to do.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import httpx
from flwr.app import Context, Message
from flwr.app.error import Error
from flwr.common.serde import (
    context_from_proto,
    context_to_proto,
    fab_from_proto,
    fab_to_proto,
    run_from_proto,
    user_config_to_proto,
)
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    ListRunsRequest,
    RegisterNodeRequest,
    StartRunRequest,
    StopRunRequest,
    UnregisterNodeRequest,
)
from flwr.proto.runtime_pb2 import (
    AcquireTaskRequest,
    PullTaskInputRequest,
    PushTaskOutputRequest,
    SendTaskHeartbeatRequest,
)
from flwr.serverapp import Grid
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.fab import Fab
from flwr.supercore.inflatable.inflatable_utils import ObjectPullError
from flwr.supercore.interceptors import (
    RuntimeTokenHttpInterceptor,
    RuntimeVersionHttpInterceptor,
    SuperExecAuthHttpInterceptor,
)
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.grid.http_grid import HttpGrid
from flwr.supernode.runtime.run_clientapp import pull_task_input, push_message

from consent.errors import Unavailable

PRIVATE_SYMBOLS = {
    "flwr.app.error": ("Error",),
    "flwr.common.serde": (
        "context_from_proto",
        "context_to_proto",
        "fab_from_proto",
        "fab_to_proto",
        "run_from_proto",
        "user_config_to_proto",
    ),
    "flwr.proto.control_pb2": (
        "ListNodesRequest",
        "ListRunsRequest",
        "RegisterNodeRequest",
        "StartRunRequest",
        "StopRunRequest",
        "UnregisterNodeRequest",
    ),
    "flwr.proto.runtime_pb2": (
        "AcquireTaskRequest",
        "PullTaskInputRequest",
        "PushTaskOutputRequest",
        "SendTaskHeartbeatRequest",
    ),
    "flwr.supercore.control": ("ControlHttpClient",),
    "flwr.supercore.fab": ("Fab",),
    "flwr.supercore.inflatable.inflatable_utils": ("ObjectPullError",),
    "flwr.supercore.interceptors": (
        "RuntimeTokenHttpInterceptor",
        "RuntimeVersionHttpInterceptor",
        "SuperExecAuthHttpInterceptor",
    ),
    "flwr.supercore.runtime": ("RuntimeHttpClient",),
    "flwr.supercore.task_identity": ("TaskIdentity",),
    "flwr.superlink.grid.http_grid": ("HttpGrid",),
    "flwr.supernode.runtime.run_clientapp": ("pull_task_input", "push_message"),
}
"""Module by module, what this file uses beyond Flower's documented API."""

REFUSED_CODE = 201
"""Our error code in a reply: a site's refusal, whose reason is one of the fixed words."""

HEARTBEAT_SECONDS = 10.0
MESSAGE_SECONDS = 30.0
"""How long a claimed task may be without its message."""
OBJECT_POLL_SECONDS = 0.25
COMPLETED, FAILED = "completed", "failed"
_ACQUIRE = frozenset({"/flwr.proto.Runtime/AcquireTask"})


@dataclass(frozen=True)
class RunStatus:
    """How a Flower run stands: `ended` with `outcome` ("completed", "failed", "stopped") or neither."""

    ended: bool
    outcome: str
    details: str


class Control:
    """The superlink's Control API. Whoever reaches it may do anything, so only the hub's driver does."""

    def __init__(self, address: str, root_certificate: bytes) -> None:
        self._client = ControlHttpClient.from_server_address(
            server_address=address,
            insecure=False,
            root_certificates=root_certificate,
            interceptors=[RuntimeVersionHttpInterceptor(component_name="flwr CLI")],
        )

    def register(self, public_key_pem: bytes) -> int:
        """Allow the supernode with this EC public key; return its node id."""
        return int(self._client.RegisterNode(RegisterNodeRequest(public_key=public_key_pem)).node_id)

    def unregister(self, node_id: int) -> None:
        """Forget a supernode: its next request is refused."""
        self._client.UnregisterNode(UnregisterNodeRequest(node_id=node_id))

    def online(self) -> tuple[int, ...]:
        """Ids of the supernodes that are connected."""
        nodes = self._client.ListNodes(ListNodesRequest()).nodes_info
        return tuple(node.node_id for node in nodes if node.status == "online")

    def start(self, bundle: bytes, config: dict[str, str]) -> int:
        """Start a run of `bundle`; return Flower's run id. Raises Unavailable when Flower takes none."""
        fab = Fab(sha256(bundle).hexdigest(), bundle, {})
        answer = self._client.StartRun(
            StartRunRequest(
                fab=fab_to_proto(fab), override_config=user_config_to_proto(dict(config)), federation=""
            )
        )
        if not answer.run_id:
            raise Unavailable("Flower did not take the run.", mend="See the superlink's log.")
        return int(answer.run_id)

    def status(self, run_id: int) -> RunStatus:
        """Where a run stands."""
        status = self._client.ListRuns(ListRunsRequest(run_id=run_id)).run_dict[run_id].status
        return RunStatus(status.status == "finished", status.sub_status, status.details)

    def stop(self, run_id: int) -> None:
        """Stop a run."""
        self._client.StopRun(StopRunRequest(run_id=run_id))

    def close(self) -> None:
        """Close the connection."""
        self._client.close()


class SiteTask:
    """One message that a supernode holds for this site: claimed, alive by heartbeats, answered once."""

    def __init__(self, client: RuntimeHttpClient, passed_over: Callable[[], bool]) -> None:
        """Fetch the message. `passed_over` says whether the supernode holds a newer one.

        Raises Unavailable when the supernode does not hand it over.
        """
        self._client = client
        self._heartbeat = Heartbeat(client)
        try:
            self.message, self.context, self.run, fab = pull_task_input(_Patient(client, passed_over))
        except (httpx.HTTPError, RuntimeError, ObjectPullError, Unavailable) as error:
            self.abandon()
            raise Unavailable(f"The supernode's message cannot be read ({type(error).__name__}).") from error
        self.bundle_digest = sha256(fab.content).hexdigest()

    @property
    def ended(self) -> bool:
        """Whether the run was stopped or the claim was lost meanwhile."""
        return self._heartbeat.lost

    def reply(self, message: Message) -> None:
        """Send the answer and close the task."""
        self._finish(message, COMPLETED, "")

    def refuse(self, words: str) -> None:
        """Answer with an error whose reason is `words`, and close the task."""
        self._finish(Message(Error(code=REFUSED_CODE, reason=words), reply_to=self.message), FAILED, words)

    def abandon(self) -> None:
        """Stop the heartbeat and answer nothing."""
        self._heartbeat.stop()
        self._client.close()

    def _finish(self, message: Message, outcome: str, details: str) -> None:
        try:
            push_message(self._client, message, self.context)
            self._client.PushTaskOutput(
                PushTaskOutputRequest(
                    context=context_to_proto(self.context), sub_status=outcome, details=details
                )
            )
        finally:
            self.abandon()


class _Patient:
    """A runtime client that waits for the message and its parts, which a supernode offers before it has them.

    A supernode works on one message after the other. When a run is stopped while it receives one, it leaves that task
    behind without its parts and says nothing: a newer task is the only sign that they will never come.
    """

    def __init__(self, client: RuntimeHttpClient, passed_over: Callable[[], bool]) -> None:
        self._client, self._passed_over = client, passed_over

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def PullMessages(self, request: Any) -> Any:  # noqa: N802 (Flower's name)
        end = time.monotonic() + MESSAGE_SECONDS
        while True:
            answer = self._client.PullMessages(request)
            if answer.messages_list or time.monotonic() > end:
                return answer
            time.sleep(0.02)

    def PullObject(self, request: Any) -> Any:  # noqa: N802 (Flower's name)
        """Called by several threads at once, one for each part."""
        while True:
            answer = self._client.PullObject(request)
            if answer.object_available or not answer.object_found:
                return answer
            if self._passed_over():
                raise Unavailable("The supernode gave this message up.", code="learning-away")
            time.sleep(OBJECT_POLL_SECONDS)


class SiteRuntime:
    """The supernode's Runtime API on loopback: plain HTTP, claims authenticated by a shared secret (HMAC)."""

    def __init__(self, address: str, secret: bytes) -> None:
        self._address = address
        self._acquire = _runtime_client(address, None, _executor(secret))
        self._newer: str | None = None
        self._claiming = threading.Lock()

    def acquire(self) -> SiteTask | None:
        """Claim the oldest waiting message, if any. Raises Unavailable when the supernode does not answer."""
        token, self._newer = self._newer or _claim(self._acquire, "flwr-clientapp"), None
        if token is None:
            return None
        client = _runtime_client(self._address, None, RuntimeTokenHttpInterceptor(token))
        return SiteTask(client, self._passed_over)

    def _passed_over(self) -> bool:
        """Whether a newer message waits: it is claimed, and the next that `acquire` gives."""
        with self._claiming:
            if self._newer is None:
                self._newer = _claim(self._acquire, "flwr-clientapp")
            return self._newer is not None


@dataclass(frozen=True)
class HubTask:
    """A claimed server task: `run_id` is Flower's."""

    run_id: int
    token: str
    address: str
    root_certificate: bytes

    def run(self, app: Callable[[Grid, Context], None]) -> None:
        """Run the server app to its end and report how it ended. Never unpacks the bundle."""
        grid = HttpGrid(self.address, False, self.root_certificate, token=self.token)
        client = grid._runtime_client
        heartbeat = Heartbeat(client)
        outcome, details = FAILED, "The server app ended without a result."
        try:
            answer = client.PullTaskInput(PullTaskInputRequest())
            TaskIdentity.task_id = answer.task_id
            TaskIdentity.run_id = answer.run.run_id
            TaskIdentity.node_id = answer.context.node_id
            grid.set_run(run_from_proto(answer.run))
            fab_from_proto(answer.fab)
            app(grid, context_from_proto(answer.context))
            outcome, details = COMPLETED, ""
        except Exception as error:
            details = str(error)[:500]
            raise
        finally:
            heartbeat.stop()
            grid._retry_invoker.max_tries = 1
            client.PushTaskOutput(PushTaskOutputRequest(sub_status=outcome, details=details))
            grid.close()


class HubRuntime:
    """The superlink's Runtime API: TLS on loopback, claims authenticated by a shared secret (HMAC)."""

    def __init__(self, address: str, root_certificate: bytes, secret: bytes) -> None:
        self._address, self._root = address, root_certificate
        self._acquire = _runtime_client(address, root_certificate, _executor(secret))

    def acquire(self) -> HubTask | None:
        """Claim the oldest waiting server task, if any. Raises Unavailable when the superlink is not there."""
        answer = _acquire(self._acquire, "flwr-serverapp")
        if answer is None:
            return None
        run_id, token = answer
        return HubTask(run_id, token, self._address, self._root)


class Heartbeat:
    """Tells the Runtime API every few seconds that the claimed task is alive."""

    def __init__(self, client: RuntimeHttpClient) -> None:
        self.lost = False
        self._client = client
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="flower-heartbeat", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the beats."""
        self._stop.set()
        self._thread.join(timeout=HEARTBEAT_SECONDS)

    def _beat(self) -> None:
        while not self._stop.is_set():
            try:
                alive = self._client.SendTaskHeartbeat(SendTaskHeartbeatRequest()).success
            except httpx.TransportError:
                alive = True  # away for a moment: the next beat decides
            except (httpx.HTTPStatusError, RuntimeError):
                alive = False
            if not alive:
                self.lost = True
                return
            self._stop.wait(HEARTBEAT_SECONDS)


def _runtime_client(address: str, root: bytes | None, interceptor: object) -> RuntimeHttpClient:
    return RuntimeHttpClient.from_server_address(
        server_address=address,
        insecure=root is None,
        root_certificates=root,
        interceptors=[RuntimeVersionHttpInterceptor(component_name="flower-superexec"), interceptor],
    )


def _executor(secret: bytes) -> SuperExecAuthHttpInterceptor:
    return SuperExecAuthHttpInterceptor(master_secret=secret, protected_methods=_ACQUIRE)


def _claim(client: RuntimeHttpClient, kind: str) -> str | None:
    answer = _acquire(client, kind)
    return None if answer is None else answer[1]


def _acquire(client: RuntimeHttpClient, kind: str) -> tuple[int, str] | None:
    try:
        answer = client.AcquireTask(AcquireTaskRequest(supported_task_types=[kind]))
    except httpx.HTTPError as error:
        raise Unavailable(f"Flower's runtime does not answer ({type(error).__name__}).") from error
    if not answer.HasField("task") or not answer.token:
        return None
    return int(answer.task.run_id), str(answer.token)

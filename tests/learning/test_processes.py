"""What our processes stand on: sealed memory, channels, confinement, and the trainer itself."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from consent.errors import Corrupt, Invalid
from learning import tasks
from learning.channel import MAX_MESSAGE_BYTES, AsyncChannel, Channel, Closed, pair
from learning.confinement import forbid_dumps, forbid_files, leave_network
from learning.dataset import Examples, open_examples, seal_examples
from learning.digits import digits_as_examples
from learning.networks import declared_arrays, initial_vector, parameter_count
from learning.processes import environment
from learning.sealed import map_sealed, read_sealed, reserve, seal_bytes
from tests.learning.region import digits_plan


def test_sealed_memory_cannot_be_changed_grown_or_shrunk() -> None:
    """Once sealed, neither the maker nor the receiver changes it."""
    descriptor = seal_bytes("test", (b"abc", b"def"))
    with pytest.raises(PermissionError):
        os.write(descriptor, b"x")
    with pytest.raises(PermissionError):
        os.ftruncate(descriptor, 100)
    assert read_sealed(descriptor) == b"abcdef"


def test_reserved_memory_is_filled_and_never_grows() -> None:
    """A child may fill what was reserved, and no more."""
    descriptor = reserve("test", 8)
    with pytest.raises(PermissionError):
        os.ftruncate(descriptor, 16)
    with map_sealed(descriptor, writable=True) as mapping:
        mapping[:] = b"12345678"
    with map_sealed(descriptor, writable=True) as mapping:
        assert bytes(mapping) == b"12345678"
    os.close(descriptor)


def test_what_is_not_sealed_is_not_taken() -> None:
    """A file, a plain memfd, an empty one, one that is too large: Corrupt before it is mapped."""
    with tempfile.TemporaryFile() as file:
        file.write(b"x")
        file.flush()
        with pytest.raises(Corrupt):
            map_sealed(file.fileno())
    plain = os.memfd_create("plain")
    os.write(plain, b"x")
    empty, large = seal_bytes("empty", ()), seal_bytes("large", (bytes(100),))
    for descriptor, limit in ((plain, 10), (empty, 10), (large, 10)):
        with pytest.raises(Corrupt):
            map_sealed(descriptor, limit=limit)
        os.close(descriptor)


def test_examples_come_out_as_they_went_in() -> None:
    """Images, labels and flags through sealed memory, without a copy and read-only."""
    examples = digits_as_examples(0, 3, limit=20)
    descriptor = seal_examples(examples)
    again = open_examples(descriptor)
    os.close(descriptor)

    assert np.array_equal(again.images, examples.images)
    assert np.array_equal(again.labels, examples.labels)
    assert np.array_equal(again.held_out, examples.held_out)
    assert not again.images.flags.writeable


@pytest.mark.parametrize(
    "content",
    [
        b"no header at all",
        b'{"count":1,"rows":8}\n',
        b'{"count":9,"rows":8,"columns":8}\nshort',
        b"[]\n" + bytes(64),
    ],
)
def test_broken_examples_are_corrupt(content: bytes) -> None:
    """A header that is missing or does not fit the size is refused."""
    descriptor = seal_bytes("broken", (content,))
    with pytest.raises(Corrupt):
        open_examples(descriptor)
    os.close(descriptor)


async def test_channels_carry_messages_and_descriptors() -> None:
    """Between a blocking and an awaiting end, with a descriptor; the other end's death is Closed."""
    ours, theirs = pair()
    near, far = AsyncChannel(ours), Channel(theirs)
    descriptor = seal_bytes("test", (b"inside",))
    await near.send({"ask": 1}, (descriptor,))
    os.close(descriptor)
    message, descriptors = far.receive(5) or ({}, [])
    assert message == {"ask": 1}
    assert read_sealed(descriptors[0]) == b"inside"
    assert far.receive(0.01) is None
    far.send({"answer": 2})
    assert (await near.receive())[0] == {"answer": 2}
    waiting = asyncio.create_task(near.receive())
    await asyncio.sleep(0)
    far.close()
    with pytest.raises(Closed):
        await waiting
    with pytest.raises(Closed):
        await near.send({})
    near.close()


def test_a_malformed_message_is_refused() -> None:
    """Not JSON, not an object, or too long is Invalid; nothing is half read."""
    ours, theirs = pair()
    channel = Channel(ours)
    for data in (b"{", b"[1]", b'"x"', b"x" * (MAX_MESSAGE_BYTES + 1)):
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        theirs.send(data)
        with pytest.raises(Invalid):
            channel.receive(1)
    with pytest.raises(Invalid):
        channel.send({"long": "x" * MAX_MESSAGE_BYTES})
    channel.close()
    theirs.close()


def in_child(deed: Callable[[], str]) -> str:
    """What a forked child says of a deed."""
    source, sink = os.pipe()
    if (child := os.fork()) == 0:
        try:
            os.write(sink, deed().encode())
        finally:
            os._exit(0)
    os.close(sink)
    with os.fdopen(source, "rb") as file:
        said = file.read().decode()
    os.waitpid(child, 0)
    return said


@pytest.mark.requirement("R2")
def test_a_confined_process_reaches_no_network_and_writes_no_file() -> None:
    """A listener on this very machine is out of reach, and no file takes a byte."""
    with socket.create_server(("127.0.0.1", 0)) as listening, tempfile.TemporaryDirectory() as folder:
        port = listening.getsockname()[1]

        def deed() -> str:
            left = leave_network()
            forbid_dumps()
            forbid_files(cpu_seconds=10)
            said = []
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1)
                said.append("connected")
            except OSError:
                said.append("unreachable")
            try:
                with open(f"{folder}/leak", "wb", buffering=0) as file:
                    file.write(b"plaintext")
                said.append("written")
            except OSError:
                said.append("unwritable")
            return f"{left} {' '.join(said)}"

        said = in_child(deed)
        if said.startswith("False"):
            pytest.skip("this kernel allows no network namespace; a node says so in its status")
        assert said == "True unreachable unwritable"


class Trainer:
    """The real trainer process at the other end of a channel."""

    def __init__(self) -> None:
        ours, theirs = pair()
        argv = [sys.executable, "-m", "learning.trainer", str(theirs.fileno()), str(os.getpid())]
        self.process = subprocess.Popen(argv, pass_fds=(theirs.fileno(),))
        theirs.close()
        self.channel = Channel(ours)
        packet = self.channel.receive(60)
        assert packet is not None
        self.hello = packet[0]

    def ask(
        self, kind: str, examples: Examples, seconds: float = 60, **changes: object
    ) -> tuple[dict, np.ndarray]:  # type: ignore[type-arg]
        plan = digits_plan(**changes)
        vector = initial_vector(plan)
        room = reserve("room", 4 * parameter_count(plan))
        descriptors = (seal_bytes("in", (vector.tobytes(),)), seal_examples(examples), room)
        answer, _ = self.channel.ask(
            {"kind": kind, "round": 1, "seconds": seconds, "plan": plan.to_json()},
            descriptors,
            timeout_seconds=90,
        )
        with map_sealed(room, writable=True) as mapping:
            update = np.frombuffer(bytes(mapping), np.float32)
        for descriptor in descriptors:
            os.close(descriptor)
        return answer, update


@pytest.fixture(scope="module")
def trainer() -> Iterator[Trainer]:
    one = Trainer()
    yield one
    one.channel.close()
    one.process.wait(10)


def test_the_trainer_trains_and_measures(trainer: Trainer) -> None:
    """It hands back parameters that moved and finite metrics, and measures without moving anything."""
    examples = digits_as_examples(0, 3, limit=60)
    answer, update = trainer.ask("train", examples)
    assert set(answer["metrics"]) == {"accuracy", "measured", "loss", "seconds"}
    assert np.isfinite(update).all()
    assert not np.array_equal(update, initial_vector(digits_plan()))

    answer, untouched = trainer.ask("evaluate", examples)
    assert 0 <= answer["metrics"]["baseline_accuracy"] <= 1
    assert not untouched.any()
    assert trainer.hello["network"] in ("none", "shared")


def test_a_trainer_that_takes_too_long_or_fails_is_ended_and_the_next_works(trainer: Trainer) -> None:
    """The deadline ends the child; broken input ends in a word; the process stays."""
    examples = digits_as_examples(0, 3, limit=60)
    assert trainer.ask("train", examples, seconds=0.001)[0] == {"failed": "Deadline"}
    wrong = Examples(examples.images, examples.labels + 50, examples.held_out)
    assert "failed" in trainer.ask("train", wrong)[0]
    assert "metrics" in trainer.ask("evaluate", examples, baseline=False)[0]


def test_the_same_work_gives_the_same_parameters(trainer: Trainer) -> None:
    """Seeded by plan and round: a site can repeat what it did."""
    examples = digits_as_examples(1, 3, limit=60)
    assert np.array_equal(trainer.ask("train", examples)[1], trainer.ask("train", examples)[1])


def test_declared_arrays_are_the_networks_own() -> None:
    """The shapes that the filter judges by are those of the torch network, in its order."""
    plan = digits_plan()
    state = tasks.build(plan).state_dict()
    assert [(name, tuple(value.shape)) for name, value in state.items()] == list(
        declared_arrays(plan.model, len(plan.labels.codes))
    )


def test_children_see_no_proxy_and_no_telemetry(
    monkeypatch: pytest.MonkeyPatch, tmp_path: os.PathLike[str]
) -> None:
    """The environment of a child is ours: switches of Flower set, nothing of the owner's besides paths."""
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example:3128")
    monkeypatch.setenv("ACCORD_CREDENTIAL", "secret")
    seen = environment(tmp_path)  # type: ignore[arg-type]
    assert "HTTPS_PROXY" not in seen
    assert "ACCORD_CREDENTIAL" not in seen
    assert (seen["FLWR_TELEMETRY_ENABLED"], seen["FLWR_DISABLE_UPDATE_CHECK"]) == ("0", "1")
    assert str(tmp_path) in seen["FLWR_HOME"]


def test_no_daemon_loads_flower_or_torch() -> None:
    """What a node or the hub imports of this floor needs neither."""
    program = (
        "import learning.api, learning.cohort, learning.service, learning.site, learning.runs, sys; "
        "sys.exit(any(name in sys.modules for name in ('flwr', 'torch', 'sklearn')))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False, timeout=60).returncode == 0

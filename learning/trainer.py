"""The warm trainer: a process that has torch loaded, no network, and forks one child per message.

Started by the runner with one end of a channel; reads a request (plan, kind, round; descriptors: parameters,
examples, and memory reserved for the answer), forks a child that may write no file, waits for it within the
deadline, and answers with its metrics. It holds no key, no Flower connection and no identity; the examples that
it is handed are de-identified already. The parent never touches a GPU: a forked child could not use it then.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import sys
from time import monotonic
from typing import Any

import numpy as np
import torch

from learning import tasks
from learning.channel import Channel, Closed, Message
from learning.confinement import die_with_parent, forbid_dumps, forbid_files, leave_network
from learning.dataset import open_examples
from learning.plans import TrainingPlan
from learning.sealed import map_sealed

MAX_ANSWER_BYTES = 16 * 1024
MAX_SECONDS = 24 * 3600


def serve(channel: Channel) -> None:
    """Answer requests until the runner closes the channel."""
    while True:
        packet = channel.receive()
        if packet is None:
            continue
        request, descriptors = packet
        try:
            answer = _in_child(channel, request, descriptors)
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        channel.send(answer)


def _in_child(channel: Channel, request: Message, descriptors: list[int]) -> Message:
    source, sink = os.pipe()
    seconds = min(float(request["seconds"]), MAX_SECONDS)
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        try:
            die_with_parent(parent)
            os.close(source)
            channel.close()
            forbid_files(cpu_seconds=int(seconds) + 60)
            os.write(sink, json.dumps(_work(request, descriptors)).encode())
        except BaseException as error:
            with contextlib.suppress(OSError):
                os.write(sink, json.dumps({"failed": type(error).__name__}).encode())
        finally:
            os._exit(0)
    os.close(sink)
    try:
        return _answer_of(source, seconds)
    finally:
        os.close(source)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def _answer_of(source: int, seconds: float) -> Message:
    end, data = monotonic() + seconds, b""
    while True:
        ready, _, _ = select.select([source], [], [], max(0.0, end - monotonic()))
        if not ready:
            return {"failed": "Deadline"}
        part = os.read(source, MAX_ANSWER_BYTES)
        if not part or len(data) + len(part) > MAX_ANSWER_BYTES:
            break
        data += part
    try:
        answer = json.loads(data)
    except ValueError:
        return {"failed": "Ended"}
    return answer if isinstance(answer, dict) else {"failed": "Answer"}


def _work(request: Message, descriptors: list[int]) -> dict[str, Any]:
    plan = TrainingPlan.from_json(request["plan"])
    incoming, examples_at, room = descriptors
    vector = np.frombuffer(map_sealed(incoming), np.float32)
    examples = open_examples(examples_at)
    if request["kind"] == "evaluate":
        return {"metrics": tasks.measure_final(plan, vector, examples)}
    update, metrics = tasks.train_round(plan, vector, examples, int(request["round"]))
    with map_sealed(room, writable=True) as answer:
        answer[:] = update.tobytes()
    return {"metrics": metrics}


def main() -> None:
    """`python -m learning.trainer DESCRIPTOR PARENT`."""
    die_with_parent(int(sys.argv[2]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(max(1, int(os.environ.get("OMP_NUM_THREADS", "1"))))
    channel = Channel.inherited(int(sys.argv[1]))
    network = "none" if leave_network() else "shared"
    forbid_dumps()
    with contextlib.suppress(Closed):
        channel.send({"ready": True, "network": network})
        serve(channel)


if __name__ == "__main__":
    main()

"""The worker processes of a node: as many as may be, started when there is work, ended when there has been none.

`Workers` gives each job to one process, in the order in which callers came. Leaves what a job is to `rendering` and what is
done with it to `worker`. An idle node has no such process, whose memory it would hold for nothing; that a new one takes a
moment to start `wake` hides from whoever looks at a page first (figures: docs/rendering.md). A worker that takes longer than
the deadline, dies or has rested too long is ended here, and by nobody else.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import struct
import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from consent.errors import Invalid, Sentence, Unavailable
from node.imaging.passage import READY, Passage

DEADLINE_SECONDS = 20.0
REST_SECONDS = 300.0
"""A worker that had no job for so long is ended: a reader between two studies finds it, a node at night is small."""
MAX_WAITING = 256
LARGE_BYTES = 4 * 1024 * 1024
"""More than this is copied for a worker in a thread."""
PROGRAM = ("-m", "node.imaging.worker")
JOBS_PER_WORKER = 2_000
"""A worker is replaced after so many pictures, so that a leak in a decoder stays small."""
_PLACES = re.compile(r"(?:[^%]|%\(\w+\)s)*")

Bytes = bytes | bytearray


class Workers:
    """At most `count` processes. `close` ends them and whatever starts or watches them."""

    def __init__(
        self, count: int, *, deadline_seconds: float = DEADLINE_SECONDS, rest_seconds: float = REST_SECONDS
    ) -> None:
        self._all = tuple(Worker() for _ in range(count))
        self._free = list(self._all)
        """Those without a job, the one that rested least last: it is taken first, so that the others may end."""
        self._turns = asyncio.Semaphore(count)
        self._deadline_seconds = deadline_seconds
        self._rest_seconds = rest_seconds
        self._waiting = 0
        self._closed = False
        self._waking: asyncio.Task[None] | None = None
        self._watching: asyncio.Task[None] | None = None

    async def run(self, job: Mapping[str, Any], *data: Bytes) -> tuple[dict[str, Any], bytes]:
        """The answer of a worker: its head and its bytes. Raises Invalid as the worker did, or Unavailable."""
        if self._waiting >= MAX_WAITING:
            raise Unavailable("Too many pictures are waiting to be drawn.", mend="Try again in a moment.")
        self._waiting += 1
        try:
            await self._turns.acquire()
        finally:
            self._waiting -= 1
        if self._closed:
            self._turns.release()
            raise Unavailable("The node is stopping.", mend="Ask again when it is back.")
        worker = self._free.pop()
        try:
            async with asyncio.timeout(self._deadline_seconds):
                return await worker.run(job, *data)
        except (TimeoutError, EOFError, OSError) as error:
            await worker.stop()
            raise Unavailable(
                "Work on this image took too long or too much memory and was stopped.",
                mend="Ask for a smaller picture, or download the instance.",
                code="render-stopped",
            ) from error
        except asyncio.CancelledError:
            await worker.stop()  # its answer would otherwise be taken for the next job's
            raise
        finally:
            self._rest(worker)

    def wake(self) -> None:
        """Have every worker started, without waiting for it: somebody is about to look at pictures."""
        if not self._closed and (self._waking is None or self._waking.done()):
            self._waking = asyncio.create_task(self._wake_all(), name="imaging-wake")

    async def close(self) -> None:
        """End every worker, and start none again; a job that is in work ends as if its worker had died."""
        self._closed = True
        for task in (self._waking, self._watching):
            if task is not None:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task
        self._waking = self._watching = None
        await asyncio.gather(*(worker.stop() for worker in self._all))

    async def _wake_all(self) -> None:
        """Start those that have no job. One that does not start is tried again by the first job that needs it."""
        async with asyncio.TaskGroup() as starting:
            for worker in [one for one in self._free if not one.running]:
                if await self._taken(worker):
                    starting.create_task(self._wake_one(worker))

    async def _wake_one(self, worker: Worker) -> None:
        try:
            with suppress(TimeoutError, EOFError, OSError):
                async with asyncio.timeout(self._deadline_seconds):
                    await worker.start()
        finally:
            self._rest(worker)

    def _rest(self, worker: Worker) -> None:
        worker.rests_since = asyncio.get_running_loop().time()
        # One without a process is the last choice: the others are quicker.
        self._free.insert(len(self._free) if worker.running else 0, worker)
        self._turns.release()
        if not self._closed and (self._watching is None or self._watching.done()):
            self._watching = asyncio.create_task(self._watch(), name="imaging-rest")

    async def _watch(self) -> None:
        """End workers that have rested too long. Over when none is left."""
        while any(worker.running for worker in self._all):
            now = asyncio.get_running_loop().time()
            resting = [worker.rests_since for worker in self._free if worker.running]
            await asyncio.sleep(max(0.0, min(resting, default=now) + self._rest_seconds - now))
            await self._end_rested()

    async def _end_rested(self) -> None:
        since = asyncio.get_running_loop().time() - self._rest_seconds
        for worker in [one for one in self._free if one.running and one.rests_since <= since]:
            if await self._taken(worker):
                try:
                    await worker.stop()
                finally:
                    self._rest(worker)

    async def _taken(self, worker: Worker) -> bool:
        """Take this worker out of its rest; False when it has a job by now, or somebody waits for one."""
        if self._turns.locked() or worker not in self._free:
            return False
        await self._turns.acquire()  # at once: a turn is free and nobody is before us
        self._free.remove(worker)
        return True


class Worker:
    """One child process, its pipes, and the memory by which it gets its jobs' data."""

    def __init__(self) -> None:
        self._process: asyncio.subprocess.Process | None = None
        self._ending: asyncio.subprocess.Process | None = None
        self._passage: Passage | None = None
        self._jobs = 0
        self.rests_since = 0.0
        """By the event loop's clock."""

    @property
    def running(self) -> bool:
        """Whether there is a process now."""
        return self._process is not None and self._process.returncode is None

    async def start(self) -> asyncio.subprocess.Process:
        """The process, a new one where there is none or it has done enough."""
        if self._process is None or not self.running or self._jobs >= JOBS_PER_WORKER:
            await self.stop()
            self._passage = Passage.opened()
            readers = () if self._passage is None else (self._passage.reader,)
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                *PROGRAM,
                *map(str, readers),
                pass_fds=readers,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,  # decoders print what they parsed; nothing of it may leak
                env=_environment(),
                limit=4 * 1024 * 1024,
            )
            self._jobs = 0
            await self._ready(self._process)
        return self._process

    async def _ready(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        try:
            await process.stdout.readexactly(len(READY))
        except BaseException:
            await self.stop()  # what it says too late would be taken for an answer
            raise

    async def run(self, job: Mapping[str, Any], *data: Bytes) -> tuple[dict[str, Any], bytes]:
        """The answer to one job. Raises Invalid as the worker did, EOFError when it ended, OSError."""
        size_bytes = sum(map(len, data))
        head = json.dumps({**job, "size_bytes": size_bytes}).encode()
        try:
            process = await self.start()
            assert process.stdin is not None
            assert process.stdout is not None
            self._jobs += 1
            if self._passage is not None and size_bytes > LARGE_BYTES:
                await asyncio.to_thread(self._passage.put, data)
            elif self._passage is not None:
                self._passage.put(data)
            process.stdin.write(struct.pack(">I", len(head)) + head)
            if self._passage is None:
                process.stdin.writelines(data)
            await process.stdin.drain()
            (size,) = struct.unpack(">I", await process.stdout.readexactly(4))
            answer = json.loads(await process.stdout.readexactly(size))
            body = await process.stdout.readexactly(answer["size_bytes"])
        except asyncio.IncompleteReadError as error:
            raise EOFError("the worker ended") from error
        if self._passage is not None:
            self._passage.clear()
        if not answer["ok"]:
            raise Invalid(_heard(*answer["message"]), mend=_heard(*answer["mend"]), code=answer["code"])
        return answer, body

    async def stop(self) -> None:
        """End the process and give back its memory; nothing where there is none."""
        process, self._process = self._process, None
        passage, self._passage = self._passage, None
        if process is not None:
            with suppress(ProcessLookupError):
                process.kill()
            self._ending = process
        if passage is not None:
            passage.close()
        if self._ending is not None:  # also one whose end somebody stopped waiting for
            await self._ending.wait()


def _heard(words: str, values: Mapping[str, object]) -> str:
    """What a worker said. One that an image took over gets no format of its own."""
    return Sentence(words, **values) if values and _PLACES.fullmatch(words) else words


def _environment() -> dict[str, str]:
    kept = {
        name: os.environ[name] for name in ("PATH", "LANG", "PYTHONPATH", "VIRTUAL_ENV") if name in os.environ
    }
    return {**kept, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}

"""The floor under WADO-RS over HTTPS: aiohttp streams as many bytes from memory by TLS 1.3.

No disk, no decryption, no digest, no rules, no log. What our node takes longer than this is what those cost.
`python -m tests.bench.floor PORT CERTIFICATE KEY` serves it.
"""

from __future__ import annotations

import os
import ssl
import sys
from functools import cache

from aiohttp import web

WRITE_BYTES = 256 * 1024
MIB = 1024 * 1024
PATH = "/dicom-web/bytes"


async def stream(request: web.Request) -> web.StreamResponse:
    """GET /dicom-web/bytes?size=N: N bytes that lie in memory, not in a cache of the processor."""
    size = int(request.query["size"])
    view = memoryview(_memory(size))
    response = web.StreamResponse(headers={"Content-Type": "application/octet-stream"})
    response.content_length = size
    await response.prepare(request)
    for start in range(0, size, WRITE_BYTES):
        await response.write(view[start : start + WRITE_BYTES])
    await response.write_eof()
    return response


@cache
def _memory(size: int) -> bytes:
    return (os.urandom(MIB) * (size // MIB + 1))[:size]


def main(port: int, certificate: str, key: str) -> None:
    """Serve until ended."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(certificate, key)
    app = web.Application()
    app.router.add_get(PATH, stream)
    web.run_app(app, host="127.0.0.1", port=port, ssl_context=context, print=None)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3])

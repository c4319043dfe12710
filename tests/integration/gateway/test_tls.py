"""The gateway speaks TLS itself, where it is given a certificate."""

from __future__ import annotations

import asyncio
import ssl
import subprocess
from pathlib import Path

import pytest
import uvloop
from tests.integration.gateway.rig import (
    Upstream,
    chat,
    deployment,
    engine_script,
    request,
    rig,
    table,
)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("tls")
    key, cert = folder / "key.pem", folder / "cert.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    command += ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    try:
        subprocess.run(
            [*command, "-keyout", str(key), "-out", str(cert)], check=True, capture_output=True
        )
    except FileNotFoundError:
        pytest.skip("there is no openssl command to make a certificate with")
    return key, cert


def test_tls(tmp_path: Path, certificate: tuple[Path, Path]) -> None:
    async def main() -> None:
        key, cert = certificate
        server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        server.load_cert_chain(cert, key)
        client = ssl.create_default_context(cafile=str(cert))
        engine = await Upstream(engine_script).start()
        routes = table(deployment("tiny", engine.port))
        async with rig(tmp_path, routes, tls=server) as pool:
            reader, writer = await asyncio.open_connection("127.0.0.1", pool.port, ssl=client)
            for streamed in (False, True):
                writer.write(request("POST", "/v1/chat/completions", chat(streamed)))
                head = await reader.readuntil(b"\r\n\r\n")
                assert head.startswith(b"HTTP/1.1 200 OK\r\n")
                await reader.readuntil(b"0\r\n\r\n" if streamed else b"}}}")
            writer.close()
            await writer.wait_closed()
        await engine.stop()

    uvloop.run(main())

"""The gateway among its neighbours: waiting for replicas, retries, quotas, the control plane."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from pathlib import Path

import msgspec
import uvloop
from tests.integration.gateway.rig import (
    KEY,
    LIMITS,
    OTHER_KEY,
    STREAM_HEAD,
    Asked,
    Rig,
    Upstream,
    chat,
    chunk,
    delta,
    deployment,
    engine_script,
    key,
    request,
    rig,
    say,
    serve,
    table,
    whole,
)

from onefleet.domain.ids import Instant
from onefleet.wire.gateway import Endpoint, TenantRoute


async def hang(asked: Asked, writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(30)


# --- waiting for a replica ----------------------------------------------------------------------


def test_a_request_waits_for_a_replica_and_wakes_it(tmp_path: Path) -> None:
    async def main() -> None:
        engine = await Upstream(engine_script).start()
        cold = deployment("tiny", wait_reason="the replica starts")
        async with rig(tmp_path, table(cold)) as pool:
            before = len(pool.control.reports)
            started = time.monotonic()
            held = [
                asyncio.ensure_future(pool.ask("POST", "/v1/chat/completions", chat(bool(n % 2))))
                for n in range(6)
            ]
            await pool.until(
                lambda: any(one.demand[0].waiting for one in pool.control.reports[before:])
            )
            assert time.monotonic() - started < 3  # at once: a poll is held for 10 s
            await pool.until(lambda: pool.control.reports[-1].demand[0].waiting == 6)
            assert not any(one.done() for one in held)
            pool.control.set(deployment("tiny", engine.port))
            for reply in await asyncio.gather(*held):
                assert reply.status == 200
            assert int(reply.header("x-pool-queue-ms") or 0) > 0
        await engine.stop()

    uvloop.run(main())


def test_waiting_ends_by_an_honest_error(tmp_path: Path) -> None:
    async def main() -> None:
        cold = deployment("tiny", wait_reason="2 devices are held by premium work")
        limits = replace(LIMITS, hold_ms=150, held=2)
        async with rig(tmp_path, table(cold), limits) as pool:
            held = [
                asyncio.ensure_future(pool.ask("POST", "/v1/chat/completions", chat()))
                for _ in range(2)
            ]
            await pool.until(lambda: pool.process.gateway.demand()[0].waiting == 2)
            over = await pool.ask("POST", "/v1/chat/completions", chat())
            assert (over.status, over.error["code"]) == (503, "overloaded")
            assert over.header("retry-after-ms") == "1000"
            assert "2 requests wait" in over.error["message"]
            for reply in await asyncio.gather(*held):
                assert (reply.status, reply.error["code"]) == (504, "timeout")
                assert "2 devices are held by premium work" in reply.error["message"]
            pool.control.set(deployment("tiny", replicas_max=0))
            await pool.until(lambda: pool.process.gateway.generation == 2)
            reply = await pool.ask("POST", "/v1/chat/completions", chat())
            assert (reply.status, reply.header("retry-after")) == (503, "10")

    uvloop.run(main())


def test_a_client_that_leaves_the_queue_is_forgotten(tmp_path: Path) -> None:
    async def main() -> None:
        async with rig(tmp_path, table(deployment("tiny"))) as pool:
            client = await pool.connect()
            client.send(request("POST", "/v1/chat/completions", chat()))
            await pool.until(lambda: pool.process.gateway.demand()[0].waiting == 1)
            client.close()
            await pool.until(lambda: pool.process.gateway.demand()[0].waiting == 0)
            client = await pool.connect()
            client.send(request("POST", "/v1/chat/completions", chat()))
            await pool.until(lambda: pool.process.gateway.demand()[0].waiting == 1)
            pool.control.set()  # the deployment is gone
            reply = await client.reply()
            assert (reply.status, reply.error["code"]) == (404, "model_not_found")

    uvloop.run(main())


def test_a_full_replica_is_waited_for_in_order(tmp_path: Path) -> None:
    order: list[str] = []
    running = 0
    most = 0

    async def script(asked: Asked, writer: asyncio.StreamWriter) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        order.append(asked.json["user"])
        await asyncio.sleep(0.03)
        running -= 1
        await engine_script(asked, writer)

    async def test(pool: Rig, engine: Upstream) -> None:
        clients = []
        for number in range(8):
            client = await pool.connect()
            client.send(request("POST", "/v1/chat/completions", chat(user=str(number))))
            await asyncio.sleep(0.002)
            clients.append(client)
        for client in clients:
            assert (await client.reply()).status == 200
        assert most == 2
        assert order == [str(number) for number in range(8)]

    serve(tmp_path, test, script=script, slots=2)


# --- several replicas ---------------------------------------------------------------------------


def test_requests_go_where_there_is_room_and_prefixes_stay_together(tmp_path: Path) -> None:
    async def script(asked: Asked, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.01)
        await engine_script(asked, writer)

    async def main() -> None:
        engines = [await Upstream(script).start() for _ in range(3)]
        routes = table(deployment("tiny", *(one.port for one in engines)))
        async with rig(tmp_path, routes) as pool:
            await asyncio.gather(
                *(pool.ask("POST", "/v1/chat/completions", chat()) for _ in range(30))
            )
            assert [len(one.asked) for one in engines] == [10, 10, 10]
            for topic in ("a", "b", "c", "d"):
                history = [{"role": "system", "content": topic * 400}]
                before = [len(one.asked) for one in engines]
                for turn in range(5):
                    history.append({"role": "user", "content": f"turn {turn} " * 20})
                    body = chat(messages=history)
                    assert (await pool.ask("POST", "/v1/chat/completions", body)).status == 200
                now = [len(one.asked) for one in engines]
                took = [after - earlier for after, earlier in zip(now, before, strict=True)]
                assert sorted(took) == [0, 0, 5]
        for one in engines:
            await one.stop()

    uvloop.run(main())


def test_a_replica_that_is_gone_costs_nobody_an_answer(tmp_path: Path) -> None:
    async def main() -> None:
        good = await Upstream(engine_script).start()
        gone = await Upstream(engine_script).start()
        await gone.stop()
        async with rig(tmp_path, table(deployment("tiny", gone.port, good.port))) as pool:
            replies = await asyncio.gather(
                *(pool.ask("POST", "/v1/chat/completions", chat(bool(n % 2))) for n in range(20))
            )
            assert {reply.status for reply in replies} == {200}
            # It comes back at another port, after everything was refused for a while.
            await good.stop()
            held = asyncio.ensure_future(pool.ask("POST", "/v1/chat/completions", chat()))
            await asyncio.sleep(0.1)
            again = await Upstream(engine_script).start()
            pool.control.set(deployment("tiny", again.port))
            assert (await held).status == 200
            await again.stop()

    uvloop.run(main())


def test_an_answer_that_did_not_begin_is_asked_of_another_replica_once(tmp_path: Path) -> None:
    async def dies(asked: Asked, writer: asyncio.StreamWriter) -> None:
        writer.transport.abort()

    async def begins_and_dies(asked: Asked, writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM_HEAD)
        await writer.drain()
        await asyncio.sleep(0.02)
        writer.transport.abort()

    async def main() -> None:
        failing = say(whole(b'{"error":"x"}', "500 Internal Server Error"))
        for number, bad in enumerate((dies, begins_and_dies, failing)):
            engines = [await Upstream(bad).start(), await Upstream(engine_script).start()]
            routes = table(deployment("tiny", *(one.port for one in engines), engine="streams"))
            async with rig(tmp_path / str(number), routes) as pool:
                for streamed in (True, False):
                    reply = await pool.ask("POST", "/v1/chat/completions", chat(streamed))
                    assert reply.status == 200
                    await asyncio.sleep(0.6)  # the bad one is tried again after shun_ms
                assert len(engines[0].asked) >= 1
                assert pool.process.gateway.metrics.retries >= 1
                engines[1].script = bad
                reply = await pool.ask("POST", "/v1/chat/completions", chat())
                assert reply.status == 502
                total = sum(len(one.asked) for one in engines)
                reply = await pool.ask("POST", "/v1/chat/completions", chat())
                assert sum(len(one.asked) for one in engines) <= total + 2  # no amplification
            for one in engines:
                await one.stop()

    uvloop.run(main())


def test_an_idle_connection_that_the_engine_closed_is_not_the_clients_trouble(
    tmp_path: Path,
) -> None:
    async def script(asked: Asked, writer: asyncio.StreamWriter) -> None:
        if asked.connection > len(served):
            served.append(asked.connection)
            await engine_script(asked, writer)
        else:
            writer.transport.abort()  # the second request of any connection

    served: list[int] = []

    async def test(pool: Rig, engine: Upstream) -> None:
        client = await pool.connect()
        for streamed in (False, True, False, True):
            client.send(request("POST", "/v1/chat/completions", chat(streamed)))
            reply = await client.reply()
            assert reply.status == 200
            assert reply.complete
        assert pool.process.gateway.metrics.retries == 0

    serve(tmp_path, test, script=script)


def test_idle_connections_are_closed_before_the_engine_does(tmp_path: Path) -> None:
    async def test(pool: Rig, engine: Upstream) -> None:
        await pool.ask("POST", "/v1/chat/completions", chat())
        (target,) = pool.process.gateway._targets.values()
        upstream = target.engines[0].upstream
        assert upstream._keep_ms == 4_000  # of 5,000 in the dialect
        assert len(upstream._idle) == 1
        upstream.tick(pool.process.gateway.clock() + 3_900)
        assert len(upstream._idle) == 1
        upstream.tick(pool.process.gateway.clock() + 4_100)
        assert not upstream._idle

    serve(tmp_path, test, engine="streams")


# --- tenants ------------------------------------------------------------------------------------


def test_tenants_see_their_own_and_what_is_public(tmp_path: Path) -> None:
    async def main() -> None:
        engine = await Upstream(engine_script).start()
        mine = deployment("mine", engine.port, tenant_id="other", public=False)
        shared = deployment("tiny", engine.port)
        own = deployment(
            "tiny", engine.port, tenant_id="other", public=False, deployment_id="dep-own"
        )
        async with rig(tmp_path, table(mine, shared, own)) as pool:
            for text, names in ((KEY, {"tiny"}), (OTHER_KEY, {"tiny", "mine"})):
                reply = await pool.ask("GET", "/v1/models", api_key=text)
                assert {one["id"] for one in reply.json["data"]} == names
            reply = await pool.ask("POST", "/v1/chat/completions", chat(model="mine"))
            assert (reply.status, reply.error["code"]) == (404, "model_not_found")
            reply = await pool.ask("GET", "/v1/models/mine", api_key=OTHER_KEY)
            assert reply.json["owned_by"] == "other"
            for text in (KEY, OTHER_KEY):
                await pool.ask("POST", "/v1/chat/completions", chat(), api_key=text)
            await pool.until(lambda: pool.control.usage[0] == 2)
            rows = {
                (row.tenant_id, row.deployment_id, row.key_id)
                for report in pool.control.reports
                for row in report.usage
            }
            assert rows == {
                ("default", "dep-tiny", "key-default"),
                ("other", "dep-own", "key-other"),
            }
        await engine.stop()

    uvloop.run(main())


def test_quotas(tmp_path: Path) -> None:
    async def main() -> None:
        engine = await Upstream(engine_script).start()
        tenants = (
            TenantRoute(tenant_id="default", requests_per_minute=3),
            TenantRoute(tenant_id="other", tokens_per_minute=1_000),
        )
        routes = table(deployment("tiny", engine.port), tenants=tenants)
        async with rig(tmp_path, routes) as pool:
            for left in (2, 1, 0):
                reply = await pool.ask("POST", "/v1/chat/completions", chat())
                assert reply.status == 200
                assert reply.header("x-ratelimit-limit-requests") == "3"
                assert reply.header("x-ratelimit-remaining-requests") == str(left)
            reply = await pool.ask("POST", "/v1/chat/completions", chat(stream=True))
            assert (reply.status, reply.error["code"]) == (429, "rate_limit_exceeded")
            assert reply.error["type"] == "rate_limit_error"
            wait = int(reply.header("retry-after-ms") or 0)
            assert 15_000 < wait <= 20_000
            assert reply.header("retry-after") == str(-(-wait // 1000))
            assert reply.header("x-ratelimit-remaining-requests") == "0"
            assert reply.header("x-should-retry") is None
            assert len(engine.asked) == 3

            big = await pool.ask(
                "POST", "/v1/chat/completions", chat(max_tokens=1_500), api_key=OTHER_KEY
            )
            assert (big.status, big.header("x-should-retry")) == (429, "false")
            assert "1000 a minute" in big.error["message"]
            # 900 are taken at admission; the answer used 10, so the rest comes back.
            for _ in range(3):
                reply = await pool.ask(
                    "POST", "/v1/chat/completions", chat(max_tokens=900), api_key=OTHER_KEY
                )
                assert reply.status == 200
            left = int(reply.header("x-ratelimit-remaining-tokens") or 0)
            assert 960 <= left <= 1_000
            # What an engine refuses costs no tokens.
            engine.script = say(whole(b'{"error":{"message":"no"}}', "400 Bad Request"))
            for _ in range(5):
                reply = await pool.ask(
                    "POST", "/v1/chat/completions", chat(max_tokens=900), api_key=OTHER_KEY
                )
                assert reply.status == 400
            # A new limit is in force at once, and what was used stays used.
            pool.control.table = msgspec.structs.replace(
                pool.control.table,
                tenants=(TenantRoute(tenant_id="default", requests_per_minute=4),),
            )
            pool.control.set(deployment("tiny", engine.port))
            await pool.until(lambda: pool.process.gateway.generation == 2)
            engine.script = engine_script
            statuses = [
                (await pool.ask("POST", "/v1/chat/completions", chat())).status for _ in range(2)
            ]
            assert statuses == [200, 429]
        await engine.stop()

    uvloop.run(main())


def test_a_revoked_key_is_refused_with_the_next_table(tmp_path: Path) -> None:
    async def test(pool: Rig, engine: Upstream) -> None:
        assert (await pool.ask("GET", "/v1/models")).status == 200
        pool.control.table = msgspec.structs.replace(pool.control.table, keys=(key(OTHER_KEY),))
        pool.control.set(deployment("tiny", engine.port))
        await pool.until(lambda: pool.process.gateway.generation == 2)
        assert (await pool.ask("GET", "/v1/models")).status == 401
        assert (await pool.ask("GET", "/v1/models", api_key=OTHER_KEY)).status == 200

    serve(tmp_path, test)


# --- what it shows ------------------------------------------------------------------------------


def test_metrics(tmp_path: Path) -> None:
    async def test(pool: Rig, engine: Upstream) -> None:
        await pool.ask("POST", "/v1/chat/completions", chat(stream=True))
        await pool.ask("POST", "/v1/chat/completions", chat())
        await pool.ask("POST", "/v1/chat/completions", chat(model="no"))
        reply = await pool.ask("GET", "/metrics", api_key=None)
        text = reply.body.decode()
        labels = (
            'gen_ai_operation_name="chat",gen_ai_provider_name="onefleet",'
            'gen_ai_request_model="tiny"'
        )
        for name in ("request_duration", "time_to_first_token"):
            line = f'gen_ai_server_{name}_seconds_bucket{{{labels},le="+Inf"}}'
            line = line.replace(f'{{{labels},le="+Inf"}}', "")
            assert line in text
        assert f"gen_ai_server_request_duration_seconds_count{{{labels}}} 2.0" in text
        assert 'onefleet_gateway_answers_total{status="200"} 2.0' in text
        assert 'onefleet_gateway_errors_total{code="model_not_found"} 1.0' in text
        kind = 'deployment="tiny",kind="cached",operation="chat"'
        assert f"onefleet_gateway_tokens_total{{{kind}}} 8.0" in text

    serve(tmp_path, test)


def test_a_deployment_removed_while_its_engine_is_gone(tmp_path: Path) -> None:
    """The request is put back into a queue that nobody serves any more: it must not wait there."""

    async def main() -> None:
        engine = await Upstream(engine_script).start()
        await engine.stop()
        async with rig(tmp_path, table(deployment("tiny", engine.port))) as pool:
            (target,) = pool.process.gateway._targets.values()
            held = asyncio.ensure_future(pool.ask("POST", "/v1/chat/completions", chat()))
            await pool.until(lambda: target.waiting)
            (waiter,) = target._queue.waiters
            target._queue.remove(waiter)  # as if it had been granted and its connection refused
            pool.control.set()
            await pool.until(lambda: target.removed)
            target.put_back(waiter, Instant(0))
            assert (await held).status == 404

    uvloop.run(main())


def test_an_endpoint_that_moves_is_followed(tmp_path: Path) -> None:
    async def main() -> None:
        old = await Upstream(hang).start()
        new = await Upstream(engine_script).start()
        async with rig(tmp_path, table(deployment("tiny", old.port))) as pool:
            waiting = await pool.connect()
            waiting.send(request("POST", "/v1/chat/completions", chat()))
            await pool.until(lambda: old.asked)
            moved = (Endpoint(replica_id="rep-new", host="127.0.0.1", port=new.port),)
            pool.control.set(deployment("tiny", endpoints=moved))
            await pool.until(lambda: pool.process.gateway.generation == 2)
            for _ in range(3):
                reply = await pool.ask("POST", "/v1/chat/completions", chat())
                assert reply.header("x-pool-replica") == "rep-new"
            assert not old.left  # what the old one answers goes on
        await old.stop()
        await new.stop()

    uvloop.run(main())


def test_stopping_answers_what_is_under_way(tmp_path: Path) -> None:
    async def slow(asked: Asked, writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM_HEAD + chunk(delta("a")))
        await asyncio.sleep(0.3)
        writer.write(chunk(delta("b")) + chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n")

    async def test(pool: Rig, engine: Upstream) -> None:
        client, idle = await pool.connect(), await pool.connect()
        client.send(request("POST", "/v1/chat/completions", chat(stream=True)))
        await client.reader.readuntil(b'"a"')
        stopping = asyncio.ensure_future(pool.process.stop())
        assert await idle.closed()
        rest = await client.reader.read()
        assert rest.endswith(b"[DONE]\n\n\r\n0\r\n\r\n")
        assert await stopping is True
        engine.script = hang

    serve(tmp_path, test, script=slow)


def test_stopping_does_not_wait_for_ever(tmp_path: Path) -> None:
    async def test(pool: Rig, engine: Upstream) -> None:
        client = await pool.connect()
        client.send(request("POST", "/v1/chat/completions", chat()))
        await pool.until(lambda: engine.asked)
        assert await pool.process.stop() is False
        await pool.until(lambda: engine.left)

    serve(tmp_path, test, replace(LIMITS, drain_ms=200), hang)

"""``onefleet tour``: the promise of the pool, shown with real work and real numbers.

1. a model answers; 2. a training job runs beside it; 3. a premium burst takes the job's device,
the job is suspended, resumes and ends bit-identical; 4. what sharing was worth.
Everything goes over the public API, so it needs nothing that a user's script has not.
"""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass

import click

from onefleet.cli.boundary import debug_option, program, say
from onefleet.cli.options import current_screen, data_dir_option
from onefleet.cli.pool import connect
from onefleet.cli.progress import Bar
from onefleet.cli.run import send_code
from onefleet.cli.speech import speak
from onefleet.cli.times import Number
from onefleet.cli.tour_burst import QUESTIONS, Burst, ask_all
from onefleet.cli.tour_pool import MODEL, PREMIUM, PREMIUM_TENANT, SHARED, TourPool, await_route
from onefleet.cli.tour_training import COMPUTE_S, FOLDER, Output, Training, choose_training, output
from onefleet.config import settings
from onefleet.domain.errors import InternalError, OnefleetError, Unsupported
from onefleet.domain.quantities import counted, size
from onefleet.wire.api import DeviceView, EventView, JobView, NewDeployment, NewJob, UtilisationView
from onefleet.wire.client import Client, segment

QUESTION = "What is the capital of France, and what is it known for?"
ANSWER_TOKENS = 64
BURST_S = 150.0
RUN_S = 150.0


@dataclass
class Scene:
    """What the steps hand on to each other."""

    it: TourPool
    serving: DeviceView
    free: list[DeviceView]
    training: Training
    code: str


@click.command()
@click.option(
    "--compute",
    type=Number(2.0),
    default=COMPUTE_S,
    show_default=True,
    metavar="S",
    help="How long the training job computes; it runs twice.",
)
@data_dir_option
@debug_option
def tour(compute: float, data_dir: str | None) -> None:
    """See the pool work: chat, train, suspend, resume; then what sharing was worth.

    It takes under 3 minutes and exits non-zero, saying why, if a step fails.
    """
    started = time.monotonic()
    it = TourPool(connect(data_dir, BURST_S), current_screen())
    layout = settings(data_dir).layout
    _title("1. A model answers")
    _chat(it)
    _title("2. A training job runs beside it")
    scene = _prepare(it, compute)
    since = int(time.time() * 1000)
    job = _submit(scene, "tour-training")
    try:
        _first_losses(scene, job)
        _title("3. A premium burst needs the device")
        mark = it.last_event()
        burst, ran = _burst(scene, job)
        disturbed = _resumed(scene, job, mark, burst, ran)
    except BaseException:
        _cancel(it, job)
        raise
    used = it.utilisation(since)
    _prove(scene, disturbed)
    _title("4. What sharing was worth")
    _worth(scene, it.job(job.id), used)
    _where(it, str(layout.credentials), job, time.monotonic() - started)


def _title(text: str) -> None:
    click.echo(f"\n{text}\n{'-' * len(text)}")


def _chat(it: TourPool) -> None:
    model = it.model()
    click.echo(f"model   {model.id}: {size(model.size_bytes)}, {model.licence}")
    it.deployment(NewDeployment(model=model.id, name=SHARED, slots=len(QUESTIONS)))
    ready = it.ready(SHARED)
    click.echo(f"served  as {ready.name!r} by {ready.engine}, {ready.slots} requests at once")
    await_route(it.pool, SHARED)
    click.echo(f"ask     {QUESTION}\nanswer  ", nl=False)
    answer = speak(
        it.pool,
        {
            "model": SHARED,
            "messages": [{"role": "user", "content": QUESTION}],
            "max_tokens": ANSWER_TOKENS,
            "temperature": 0,
        },
        lambda text: click.echo(text.replace("\n", " "), nl=False),
    )
    click.echo(
        f"\nspeed   first token after {answer.first_s * 1000:.0f} ms, then "
        f"{answer.tokens_per_second:.0f} tokens/s ({answer.completion_tokens} tokens)"
    )


def _prepare(it: TourPool, compute_s: float) -> Scene:
    it.premium_tenant()
    it.deployment(
        NewDeployment(
            model=MODEL,
            name=PREMIUM,
            tenant=PREMIUM_TENANT,
            tier="premium",
            replicas_min=0,
            replicas_max=1,
            slots=len(QUESTIONS),
        )
    )
    serving, free = it.serving_devices()
    node = it.node(serving.node)
    with Bar(it.screen, "measuring this machine"):
        training = choose_training(compute_s, saves_itself=node.checkpoint == "cooperative")
    return Scene(it, serving, free, training, send_code(it.pool, FOLDER).digest)


def _submit(scene: Scene, name: str) -> JobView:
    # All free devices: so that the burst cannot be served without taking from the job.
    count = len(scene.free)
    new = NewJob(
        command=scene.training.command,
        name=name,
        tier="standard",
        device_kind=scene.serving.kind,
        devices_min=count,
        devices_max=count,
        code=scene.code,
    )
    return scene.it.pool.post("/api/v1/jobs", new, JobView)


def _first_losses(scene: Scene, job: JobView) -> None:
    it = scene.it
    devices = counted(len(scene.free), "device")
    click.echo(f"job     {job.id}, standard tier, {devices}")
    click.echo(f"runs    {scene.training.what}")
    with Bar(it.screen, "the first losses"):
        it.await_job(
            job.id, lambda now: len(output(it.pool, job.id).losses) >= 3, "print 3 losses", RUN_S
        )
        # What it takes is in its agent's next report.
        running = it.await_job(job.id, lambda now: now.memory_bytes > 0, "tell its memory", RUN_S)
    click.echo(f"on      {', '.join(running.devices)}; {_saved_by(running)}")
    for line in output(it.pool, job.id).losses[:3]:
        click.echo(f"        {line}")


def _saved_by(job: JobView) -> str:
    match job.checkpoint:
        case "criu":
            return "saved from outside by criu, with no line of code for it"
        case "cooperative":
            return f"asked to save itself, since {job.checkpoint_reason}"
        case other:
            raise Unsupported(
                f"this machine cannot suspend a job: {other}",
                why=job.checkpoint_reason,
                hint="onefleet doctor",
            )


def _burst(scene: Scene, job: JobView) -> tuple[Burst, JobView]:
    """Returns the answers, and the job as it was just before."""
    it = scene.it
    before = it.job(job.id)
    with it.key(PREMIUM_TENANT) as key:
        client = Client(it.pool.base_url, key, timeout_s=BURST_S)
        await_route(client, PREMIUM)
        click.echo(
            f"burst   {len(QUESTIONS)} requests at once of tenant {PREMIUM_TENANT!r} "
            f"to {PREMIUM!r} (premium, no replica now)"
        )
        with Bar(it.screen, "the burst waits for a device") as bar:
            burst = ask_all(client, PREMIUM, bar)
    return burst, before


def _resumed(scene: Scene, job: JobView, mark: int, burst: Burst, before: JobView) -> Output:
    it = scene.it
    suspended = it.job(job.id)
    events = it.events(mark, job.id)
    saved = _between(events, "job.saving", "job.suspended")
    if saved is None:
        raise InternalError(
            "the burst was answered without suspending the job",
            why=f"the job is {suspended.phase}; the event log has no job.suspended",
            hint=f"onefleet why {job.id}",
        )
    image = f"its image is {size(suspended.image_bytes)}" if suspended.image_bytes else "by itself"
    click.echo(
        f"saved   the job in {saved:.2f} s: {size(before.memory_bytes)} of memory before, "
        f"{size(suspended.memory_bytes)} now; {image}"
    )
    said = " ".join(burst.answers[0].text.split())
    click.echo(
        f"answers {len(burst.answers)} of {len(QUESTIONS)}, {burst.tokens} tokens; first token "
        f"after {burst.first_s:.1f} s (job saved, model loaded), all after {burst.total_s:.1f} s"
    )
    click.echo(f"        {QUESTIONS[0]} {said}")
    with Bar(it.screen, "the burst is over; the job resumes by itself") as bar:
        it.await_job(job.id, lambda now: now.phase in ("running", "ended"), "resume", RUN_S)

        def ended(now: JobView) -> bool:
            done = len(output(it.pool, job.id).losses)
            bar.to(done / 24, "the job goes on")
            return now.outcome is not None

        finished = it.await_job(job.id, ended, "finish", RUN_S)
    restored = _between(it.events(mark, job.id), "job.restoring", "job.running")
    click.echo(
        f"resumed by itself{f' in {restored:.2f} s' if restored else ''}, and finished: "
        f"suspended {finished.suspends}x, {finished.lost_ms} ms of work lost"
    )
    result = output(it.pool, job.id)
    click.echo(f"        {result.losses[-1]}")
    if result.verse:
        click.echo(f"        {result.verse}")
    return result


def _between(events: list[EventView], first: str, last: str) -> float | None:
    """Seconds from the first event of one kind to the next of the other."""
    begun = next((e for e in events if e.kind == first), None)
    if begun is None:
        return None
    ended = next((e for e in events if e.kind == last and e.sequence > begun.sequence), None)
    return None if ended is None else (ended.at - begun.at) / 1000


def _prove(scene: Scene, disturbed: Output) -> None:
    it = scene.it
    twin = _submit(scene, "tour-undisturbed")
    try:
        with Bar(it.screen, "the same script once more, undisturbed") as bar:

            def ended(now: JobView) -> bool:
                bar.to(len(output(it.pool, twin.id).losses) / 24)
                return now.outcome is not None

            finished = it.await_job(twin.id, ended, "finish", RUN_S)
    except BaseException:
        _cancel(it, twin)
        raise
    undisturbed = output(it.pool, twin.id)
    same = undisturbed.text == disturbed.text
    click.echo(f"digest  {disturbed.digest}  suspended and resumed")
    click.echo(f"digest  {undisturbed.digest}  undisturbed ({finished.suspends} suspends)")
    if not same or undisturbed.digest != disturbed.digest:
        raise InternalError(
            "the two runs of the same script differ",
            why="what was resumed is not what was suspended",
            hint=f"onefleet logs {twin.id}",
        )
    click.echo("        equal: every printed loss and every bit of the final state")


def _worth(scene: Scene, job: JobView, used: UtilisationView) -> None:
    lasted = max(used.until - used.since, 1)
    devices = max(round(used.capacity_device_ms / lasted), 1)
    held = sum(used.held_device_ms.values())
    premium = used.held_device_ms.get("premium.replica", 0)
    count = len(scene.free)
    # Each owner keeps a device of its own for as long; the same work holds less of them.
    apart_devices = 2 + count
    apart = lasted + min(job.ran_ms, lasted) * count + min(premium, lasted)
    click.echo(
        f"with    {devices} devices, shared by 3 owners for {lasted / 1000:.0f} s: "
        f"{held / (devices * lasted):.0%} of the device time was held by work"
    )
    click.echo(
        f"without {apart_devices} devices, as each owner needs its own: "
        f"{apart / (apart_devices * lasted):.0%} would have been"
    )
    click.echo(
        "        (held: a job or replica was placed there, busy or not. without: the same work in\n"
        "        the same time; the job's device idles once it ends, after "
        f"{job.ran_ms / 1000:.0f} s, and the\n"
        f"        premium one but for {premium / 1000:.0f} s)"
    )


def _where(it: TourPool, credentials: str, job: JobView, took_s: float) -> None:
    url = it.pool.base_url
    click.echo(f"\nconsole {url}/console")
    click.echo(f"API     {url}/v1  (any OpenAI client; the key is in {credentials})")
    name = program()
    click.echo(f"try     {name} chat {SHARED}")
    click.echo(f"        {name} why {job.id}")
    click.echo(f"        {name} top")
    say(f"the tour took {took_s:.0f} s")


def _cancel(it: TourPool, job: JobView) -> None:
    with suppress(OnefleetError):
        it.pool.post(f"/api/v1/jobs/{segment(job.id)}/cancel", None, JobView)

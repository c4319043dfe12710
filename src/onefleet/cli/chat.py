"""``onefleet chat``: talk to a deployment through the same API that every client uses."""

from __future__ import annotations

import sys
from typing import Any

import click

from onefleet.cli.boundary import debug_option, say
from onefleet.cli.options import data_dir_option
from onefleet.cli.pool import connect
from onefleet.cli.speech import Answer, speak
from onefleet.cli.times import Number
from onefleet.wire.api import DeploymentView
from onefleet.wire.client import Client, segment

#: A first token may have to wait for a replica to start.
TIMEOUT_S = 300.0
#: How the id of a deployment begins.
DEPLOYMENT_ID = "dep-"


@click.command()
@click.argument("name", metavar="NAME")
@click.argument("prompt", nargs=-1)
@click.option("--system", help="The system message.")
@click.option("--max-tokens", type=click.IntRange(1), default=512, show_default=True)
@click.option("--temperature", type=Number(0, 2))
@click.option("--seed", type=int)
@click.option("--output", "-o", type=click.Choice(("text", "json")), default="text")
@data_dir_option
@debug_option
def chat(
    name: str,
    prompt: tuple[str, ...],
    system: str | None,
    max_tokens: int,
    temperature: float | None,
    seed: int | None,
    output: str,
    data_dir: str | None,
) -> None:
    """Talk to the deployment NAME (or its id).

    With a PROMPT (or text on stdin) it answers once; on a terminal without one it goes on until
    an empty line or Ctrl-D. Speed is printed on stderr.
    """
    pool = connect(data_dir, TIMEOUT_S)
    messages = [{"role": "system", "content": system}] if system else []
    request: dict[str, Any] = {
        "model": _served(pool, name),
        "messages": messages,
        "max_tokens": max_tokens,
    }
    if temperature is not None:
        request["temperature"] = temperature
    if seed is not None:
        request["seed"] = seed
    text = " ".join(prompt)
    if not text and not sys.stdin.isatty():
        text = sys.stdin.read().strip()
        if not text:
            raise click.UsageError("no prompt: neither as an argument nor on stdin")
    if text:
        _once(pool, request, text, output)
        return
    while text := _ask():
        _once(pool, request, text, output)


def _ask() -> str:
    try:
        return str(click.prompt(">", prompt_suffix=" ", default="", show_default=False, err=True))
    except click.Abort:
        return ""


def _served(pool: Client, name: str) -> str:
    """The name that the deployment is served under: the /v1 API knows no ids."""
    if not name.startswith(DEPLOYMENT_ID):
        return name
    return pool.get(f"/api/v1/deployments/{segment(name)}", DeploymentView).name


def _once(pool: Client, request: dict[str, Any], text: str, output: str) -> None:
    request["messages"].append({"role": "user", "content": text})
    if output == "json":
        answer = speak(pool, request)
        _print_json(request["model"], answer)
    else:
        answer = speak(pool, request, lambda piece: click.echo(piece, nl=False))
        click.echo()
        say(speed_line(answer))
    request["messages"].append({"role": "assistant", "content": answer.text})


def speed_line(answer: Answer) -> str:
    """How fast it was, for a person."""
    cached = f" ({answer.cached_tokens} cached)" if answer.cached_tokens else ""
    return (
        f"[first token {answer.first_s * 1000:.0f} ms, {answer.tokens_per_second:.1f} tokens/s; "
        f"{answer.prompt_tokens} tokens in{cached}, {answer.completion_tokens} out]"
    )


def _print_json(model: str, answer: Answer) -> None:
    import json
    from dataclasses import asdict

    body = {"apiVersion": "onefleet/v1", "object": "Answer", "model": model, **asdict(answer)}
    click.echo(json.dumps(body, indent=2, ensure_ascii=False))

"""`aquatint explain`: why a run went where it went."""

import json
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from common.commands.output import JsonOption, KeyOption, UrlOption, show, when

COLUMNS = {
    "node": "node",
    "waiting": "waiting",
    "load": "load",
    "eviction": "eviction",
    "own": "own",
    "predicted": "predicted",
    "took": "took",
    "": "why",
}


def explain(
    run: Annotated[str, typer.Argument(help="Id of a run, as `x-run-id` of its answer.")],
    as_json: JsonOption = False,
    url: UrlOption = None,
    key: KeyOption = None,
) -> None:
    """Tell why a run went where it went: nodes turned away, predicted and real seconds. Needs an administrator's key."""
    from common.api_client import ApiClient

    decisions = ApiClient(url, key).call("GET", f"/v1/runs/{run}/decisions")["data"]
    if as_json:
        typer.echo(json.dumps(decisions, ensure_ascii=False, indent=2))
    else:
        tell(decisions)


def tell(decisions: Sequence[dict[str, Any]]) -> None:
    """Print them for people."""
    if not decisions:
        typer.echo("Nothing is known of it: it never got as far as a node.")
    for decision in decisions:
        if "parts" in decision:
            _tell_plan(decision)
            continue
        if "part" in decision:
            typer.echo(f"part {decision['part']}")
        work = decision["work"]
        typer.echo(
            f"attempt {decision['attempt']}, {when(int(decision['at']))}: {work['kind']}, {work['pictures']} picture(s), "
            f"{work['units']:g} megapixel-steps, after {decision['waited_s']:g} s of waiting"
        )
        show(rows_of(decision), COLUMNS, as_json=False, empty="")
        others = {"more nodes have the model": decision["not_named"], "do not have it": decision["without_the_model"]}
        for words, count in others.items():
            if count > 0:
                typer.echo(f"{count} {words}")


def _tell_plan(plan: dict[str, Any]) -> None:
    whole, took_s = plan["whole"], plan.get("took_s")
    took = "" if took_s is None else f", and took {took_s:g} s"
    typer.echo(
        f"made in parts: predicted to be done in {plan['predicted_s']:g} s{took}; "
        f"{whole['predicted_s']:g} s by {whole['node']} alone"
    )
    show(plan["parts"], {"node": "node", "pictures": "pictures", "predicted": "predicted_s"}, as_json=False, empty="")


def rows_of(decision: dict[str, Any]) -> list[dict[str, Any]]:
    """The picked node, the next best, and those turned away; seconds."""
    picked = _row(decision, "picked") | {"took": decision.get("took_s")}
    others = [_row(other, "would be done later") for other in decision["others"]]
    away = [{"node": node, "why": f"turned away: {why}"} for node, why in decision["turned_away"].items()]
    return [picked, *others, *away]


def _row(told: dict[str, Any], why: str) -> dict[str, Any]:
    terms_s: dict[str, float] = told["terms_s"]
    return {"node": told["node"], "predicted": told["predicted_s"], "why": why} | terms_s

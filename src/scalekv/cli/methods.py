"""``scalekv methods``: the compression methods by name."""

from __future__ import annotations

from textwrap import wrap

from scalekv.cli.options import Json
from scalekv.cli.output import Output


def methods(json: Json = False) -> None:
    """List the cache policies."""
    from scalekv.policies import POLICIES

    output = Output(json=json)
    entries = []
    for name, policy in POLICIES.items():
        default = str(policy().settings()["budget"])
        entries.append({"name": name, "summary": policy.summary, "source": policy.source, "default_budget": default})
    width = max(len(name) for name in POLICIES)
    for entry in entries:
        first, *more = wrap(entry["summary"], 78 - width)
        output.say(f"{entry['name']:<{width}}  {first}")
        for line in more:
            output.say(f"{'':<{width}}  {line}")
        output.say(f"{'':<{width}}  {entry['source']}", style="dim")
    output.result(entries)

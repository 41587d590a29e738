# SPDX-License-Identifier: Apache-2.0
"""Page of a run: tables, figures, what left the sites."""

from __future__ import annotations

import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedmonai.io import OutputPath, write_text
from fedmonai.report.figures import draw_figures
from fedmonai.report.run_tables import RunTables, read_run

__all__ = ["UNITS", "finish", "format_table", "markdown_table", "write_report"]


UNITS = {"psnr": ("PSNR [dB]", 2), "ssim": ("SSIM", 4), "nmse": ("NMSE", 4), "dice": ("Dice", 4)}
UNITS |= {"hd95": ("HD95 [mm]", 2), "assd": ("ASSD [mm]", 2)}


def finish(run_dir: OutputPath) -> None:
    """Write the report of a run and its trained bundles, then print its table and where these are.

    The sites' plan is that of the live config's federation; without one there is no bundle.
    """
    path = write_report(run_dir)
    bundles = _write_bundles(run_dir)
    lines = [*(f"trained bundle: {bundle}" for bundle in bundles), f"report: {path}"]
    print(f"\n{format_table(run_dir)}", *lines, sep="\n", flush=True)


def _write_bundles(run_dir: OutputPath) -> list[Path]:
    from fedmonai.bundle.live_config import find_resolver  # MONAI, which a report alone does not need
    from fedmonai.federated.federation import Federation
    from fedmonai.federated.local_pool import LocalPool
    from fedmonai.report.trained_bundle import write_run_bundles

    resolver = find_resolver()
    federation = None if resolver is None else resolver.resolved_content.get("federation")
    if not isinstance(federation, Federation):
        return []
    return write_run_bundles(run_dir, federation.sites.plan, isinstance(federation.sites, LocalPool))


def write_report(run_dir: str | Path) -> str:
    """Write ``report.md`` and ``figures/*.png`` of a run, whole or partial, and return the path of the former.

    Raises:
        ConfigError: when the folder holds no run, or a file of it is damaged.
    """
    tables = read_run(run_dir)
    figures = draw_figures(tables)
    parts = [
        _heading(tables),
        _results(tables),
        _training(tables),
        _participation(tables),
        _traffic(tables),
        _privacy(tables),
    ]
    parts.append(_figures(tables, figures))
    path = tables.folder / "report.md"
    write_text("\n\n".join(p for p in parts if p) + "\n", path)
    return str(path)


def format_table(run_dir: str | Path) -> str:
    """The test results per site as plain text: PSNR and SSIM where they were measured, else all metrics."""
    tables = read_run(run_dir)
    names = tables.metric_names("test")
    chosen = [n for n in names if n in ("psnr", "ssim")] or names
    if not chosen:
        return "no test results yet"
    return "\n\n".join(_aligned(_test_rows(tables, name, spread=False)) for name in chosen)


def _heading(tables: RunTables) -> str:
    run, rounds = tables.run, tables.rounds
    versions = ", ".join(f"{name} {number}" for name, number in run.get("versions", {}).items())
    lines = [
        f"# {run.get('method', 'Federated run')}: {len(run.get('sites', []))} sites, "
        f"{len(rounds)} of {run['num_rounds']} rounds",
        f"- training at {', '.join(run.get('train_sites', []))}; tested at {', '.join(run.get('test_sites', []))}",
        f"- strategy {run.get('strategy')}, shared keys {run.get('shared_keys')}, kept local {run.get('local_keys')}",
        f"- best round {run.get('best_round')}, by the mean validation {run.get('key_metric')} over sites; the test "
        "split was read once, at the end",
        *_configs(rounds),
        f"- seed {run.get('seed')}, {run.get('threads')} threads, device {run.get('device')}, {versions}",
    ]
    return "\n".join([lines[0], "", *lines[1:], *(f"- note: {plain(note)}" for note in run.get("notes", []))])


def _configs(rounds: Sequence[Mapping[str, Any]]) -> list[str]:
    """The configs that the rounds ran with, a line if there are any; the files are beside the report."""
    named = [(str(record["config"]), int(record["round"])) for record in rounds if record.get("config")]
    spans: list[list[Any]] = []
    for digest, number in named:
        if spans and spans[-1][0] == digest:
            spans[-1][2] = number
        else:
            spans.append([digest, number, number])
    texts = [f"{digest} (rounds {first} to {last})" for digest, first, last in spans]
    return [f"- config {', '.join(texts)}: `config_<name>.yaml`"] if texts else []


def _results(tables: RunTables) -> str:
    names = tables.metric_names("test")
    if not names:
        return "## Test\n\nNo test results yet: the run has not ended."
    blocks = [markdown_table(_test_rows(tables, name, spread=True)) for name in names]
    return "## Test, per site\n\nMean and standard deviation over volumes.\n\n" + "\n\n".join(blocks)


def _test_rows(tables: RunTables, metric: str, spread: bool) -> list[list[str]]:
    label, digits = UNITS.get(metric, (metric, 4))
    columns = tables.test_columns()
    rows = [[label, *(heading for heading, _, _ in columns)]]
    means: list[list[float]] = [[] for _ in columns]
    for site in tables.sites:
        values = [tables.test_cases(site, metric, model, end) for _, model, end in columns]
        if any(values):
            rows.append([site, *(_mean_text(v, digits, spread) for v in values)])
            for index, cases in enumerate(values):
                means[index] += [statistics.fmean(cases)] if cases else []
    rows.append(["mean", *(f"{statistics.fmean(m):.{digits}f}" if m else "-" for m in means)])
    return rows


def _mean_text(values: Sequence[float], digits: int, spread: bool) -> str:
    if not values:
        return "-"
    mean = f"{statistics.fmean(values):.{digits}f}"
    return f"{mean} ± {statistics.stdev(values):.{digits}f}" if spread and len(values) > 1 else mean


def _training(tables: RunTables) -> str:
    """What handlers at the sites reported of the last round: terms of the loss and measures beside them."""
    found = tables.rounds[-1].get("train_metrics", {}) if tables.rounds else {}
    weights = {name.removesuffix("_weight"): values for name, values in found.items() if name.endswith("_weight")}
    names = [name for name in found if not name.endswith("_weight")]
    if not names:
        return ""
    headings = []
    for name in names:
        factors = sorted(set(weights.get(name, {}).values()))
        headings.append(f"{name} (weight {', '.join(f'{factor:g}' for factor in factors)})" if factors else name)
    rows = [["site", *headings]]
    for site in sorted({site for name in names for site in found[name]}):
        rows.append([site, *(f"{found[name][site]:.4g}" if site in found[name] else "-" for name in names)])
    return f"## Training, means over the last round\n\nTerms are without their weights.\n\n{markdown_table(rows)}"


def _participation(tables: RunTables) -> str:
    failed = [(r["round"], site, reason) for r in tables.rounds for site, reason in r["failed"].items()]
    asked = {site: sum(site in r["participants"] for r in tables.rounds) for site in tables.run.get("train_sites", [])}
    lines = [
        f"- {site}: asked in {count} rounds, failed in {sum(f[1] == site for f in failed)}"
        for site, count in asked.items()
    ]
    lines += [f"- round {number}, site {site}: {plain(reason)}" for number, site, reason in failed]
    lines += [f"- round {r['round']}: {plain(note)}" for r in tables.rounds for note in r.get("notes", [])]
    return "\n".join(["## Participation", "", *lines]) if tables.rounds else ""


def _traffic(tables: RunTables) -> str:
    """Bytes by site and by what was asked: of the rounds, of the join before them, of the final test after them."""
    if not tables.rounds:
        return ""
    totals: dict[tuple[str, str, str, str], int] = {}
    for record in (*tables.rounds, tables.run.get("final_test", {})):
        for way in ("up", "down"):
            for site, kinds in record.get(f"bytes_{way}", {}).items():
                for kind, items in kinds.items():
                    for item, size in items.items():
                        totals[site, kind, item, way] = totals.get((site, kind, item, way), 0) + size
    rows = [["site", "request", "item", "up", "down"]]
    for where in sorted({(site, kind, item) for site, kind, item, _ in totals}):
        rows.append([*where, *(_bytes(totals.get((*where, way), 0)) for way in ("up", "down"))])
    sums = (sum(size for where, size in totals.items() if where[-1] == way) for way in ("up", "down"))
    rows.append(["all", "", "", *(_bytes(size) for size in sums)])
    parts = ["## What crossed the wire, all rounds", markdown_table(rows), _wire_form(tables), _attachments(tables)]
    return "\n\n".join(p for p in [*parts, _pace(tables)] if p)


def _wire_form(tables: RunTables) -> str:
    dtype = tables.run.get("wire_dtype", "float32")
    return "" if dtype == "float32" else f"Weights travelled as {dtype}, updates as their change in {dtype}."


def _pace(tables: RunTables) -> str:
    seconds = [r["seconds"] for r in tables.rounds]
    pace = f"{statistics.median(seconds):.2f} s per round (median), {sum(seconds):.1f} s in all."
    shares = []
    for name, what in (("seconds_per_site", "work"), ("waiting_per_site", "waiting for transport")):
        found = [sum(kinds.values()) for record in tables.rounds for kinds in record.get(name, {}).values()]
        shares += [f"{statistics.median(found):.2f} s of {what}"] if found else []
    return f"{pace} Per site and round (median): {', '.join(shares)}." if shares else pace


def _attachments(tables: RunTables) -> str:
    """What the strategy says of its attachments, as the range over rounds."""
    found: dict[tuple[str, str], list[float]] = {}
    for record in tables.rounds:
        for name, numbers in record.get("attachments", {}).items():
            for what, number in numbers.items():
                found.setdefault((name, what), []).append(number)
    lines = [
        f"- {name}, {what.replace('_', ' ')}: {min(numbers):g} to {max(numbers):g}, in {len(numbers)} of "
        f"{len(tables.rounds)} rounds"
        for (name, what), numbers in sorted(found.items())
    ]
    return "\n".join(lines)


def _privacy(tables: RunTables) -> str:
    """What every site had spent after its last update; nothing for a run without differential privacy."""
    spent = {site: numbers for record in tables.rounds for site, numbers in record.get("privacy", {}).items()}
    if not spent:
        return ""
    rows = [["site", "epsilon", "delta", "noise / clipping norm", "clipping norm"]]
    for site, numbers in sorted(spent.items()):
        names = ("epsilon", "delta", "noise_multiplier", "clip_norm")
        # rounds of a run that was continued with a filter, or by another version, had left without noise
        bare = any(site in _sent(record) and site not in record.get("privacy", {}) for record in tables.rounds)
        told = {**numbers, **({"epsilon": "unbounded"} if bare else {})}
        rows.append([site, *(told[n] if isinstance(told[n], str) else f"{told[n]:.4g}" for n in names)])
    text = (
        "Against any change to a site's data. Covered are the weights; counts, mean losses and mean metrics left the "
        "sites without noise."
    )
    if any(numbers.get("seeded") for numbers in spent.values()):
        text += " **The noise was drawn from a seed: whoever knows the seed can take it off, so nobody is protected.**"
    return "\n\n".join(["## Differential privacy", text, markdown_table(rows)])


def _sent(record: Mapping[str, Any]) -> set[str]:
    """The sites whose updates left them in a round."""
    return {*record.get("completed", ()), *record.get("observers", ())}


def _bytes(size: int) -> str:
    return f"{size / 1e6:.2f} MB ({size:,} bytes)" if size >= 1e4 else f"{size} bytes"


def _figures(tables: RunTables, figures: list[Path]) -> str:
    lines = [f"![{path.stem}]({path.relative_to(tables.folder).as_posix()})" for path in figures]
    return "\n\n".join(["## Figures", *lines]) if lines else ""


def plain(text: str) -> str:
    """A text of somebody else's for a markdown page: one line, and nothing in it is a link, a picture or HTML.

    Example:
        >>> print(plain("see ![x](http://host/x.png)"))
        see !\\[x\\](http://host/x.png)
    """
    return re.sub(r"([\\`\[\]<>|])", r"\\\1", " ".join(text.split()))


def markdown_table(rows: list[list[str]]) -> str:
    """Rows of text, the heading first, as a markdown table."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def _aligned(rows: list[list[Any]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )

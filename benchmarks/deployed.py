# SPDX-License-Identifier: Apache-2.0
"""Cost of a deployed round: bytes and seconds of a job on NVFlare, beside a stock job of ``MonaiAlgo``.

    python benchmarks/deployed.py [--rounds 20] [--sites 4] [--channels 32] [--json deployed.json] [--check]

Both train the bundle ``fl_mr`` on the same slice per site in NVFlare's simulator, one process per site, one thread
each, and validate the received weights in every round. The stock job is NVFlare's ``FedAvgRecipe`` with the client in
``benchmarks/stock_client.py``; ours is what ``python -m fedmonai.integrations.nvflare --env sim`` starts, with float32
and with bfloat16 on the wire, its final test included. Bytes are those that NVFlare itself counted at the job's server.
Seconds per round are the median of all rounds but the first: of the stock job from one "Round n started" in the
server's log to the next, of ours from ``rounds.jsonl``. Kinds run alternately, ``--repeats`` times.

Environment: one with ``fedmonai[nvflare]``. Load and machine are in the JSON file; on a busy machine only the bytes
are meaningful. Of R rounds the stock job validates the weights before each, ours those after each: R + 1 trips of
weights down, so that the target in bytes is one of 20 rounds or more. ``--in_process`` counts ours without NVFlare.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import math
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from importlib import metadata
from itertools import pairwise
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from measuring import conditions, print_conditions, write_results

ROOT = Path(__file__).parents[1]
BUNDLE = ROOT / "bundles" / "fl_mr"
#: ours to the stock job, in bytes and in seconds
TARGET = 1.05
MEGABYTE = 1024 * 1024


def write_data(folder: Path) -> None:
    """One slice per split."""
    generator = np.random.default_rng(0)
    for split in ("train", "val", "test"):
        (folder / split).mkdir(parents=True)
        image = generator.random((1, 32, 32), dtype=np.float32)
        with h5py.File(folder / split / f"{split}.h5", "w") as file:
            file["kspace"] = np.fft.fftshift(np.fft.fft2(image, norm="ortho"), axes=(-2, -1)).astype(np.complex64)
            file["reconstruction_esc"] = image
            file.attrs["max"], file.attrs["norm"] = image.max(), np.linalg.norm(image)


def site_ids(folder: Path, channels: int) -> dict[str, Any]:
    """Ids of a site's ``train.json``; the rate is large enough that the weights differ in every round."""
    ids = {"base_channels": channels, "resolution": 32, "batch_size": 1, "sequence": None, "device": "cpu"}
    return {**ids, "lr": 1e-3, "dataset_dir": str(folder / "data")}


def our_ids(folder: Path, sites: int, rounds: int, channels: int, wire_dtype: str) -> dict[str, Any]:
    """Overrides of ``federated.yaml``."""
    ids = site_ids(folder, channels)
    data = ids.pop("dataset_dir")
    names = {f"site-{number}": {"dataset_dir": data} for number in range(1, sites + 1)}
    given: dict[str, Any] = {"num_rounds": rounds, "sites": names, "local_epochs": 1, "wire_dtype": wire_dtype}
    return given | {f"local::{key}": value for key, value in ids.items()}


def run_ours(folder: Path, sites: int, rounds: int, channels: int, wire_dtype: str) -> Path:
    """Run our job and return the simulator's workspace."""
    words = [sys.executable, "-m", "fedmonai.integrations.nvflare", "--bundle", str(BUNDLE), "--env", "sim"]
    given = {"name": "ours", "output_dir": str(folder / "runs"), **our_ids(folder, sites, rounds, channels, wire_dtype)}
    for key, value in given.items():
        words += [f"--{key}", value if isinstance(value, str) else repr(value)]
    _call(words, folder)
    return folder / "runs" / ".simulator"


def run_stock(folder: Path, sites: int, rounds: int, channels: int) -> Path:
    """Run the stock job and return the simulator's workspace."""
    bundle = folder / "bundle"
    shutil.copytree(BUNDLE / "configs", bundle / "configs")  # MONAI's handlers write beside the configs
    own = {"bundle_root": str(bundle), "output_dir": str(folder / "stock"), "standalone": False}
    ids = json.dumps({**site_ids(folder, channels), **own}, separators=(",", ":"))
    words = [sys.executable, __file__, "--stock_in", str(folder), "--sites", str(sites), "--rounds", str(rounds)]
    _call([*words, "--channels", str(channels), "--stock_ids", ids], folder)
    return folder / "simulator"


def stock_job(folder: Path, sites: int, rounds: int, channels: int, ids: str) -> None:
    """Start NVFlare's own recipe in this process."""
    from nvflare.app_opt.pt.recipes.fedavg import FedAvgRecipe
    from nvflare.recipe import SimEnv

    network = {
        "class_path": "fedmonai.networks.reconstruction_unet.ReconstructionUNet",
        "args": {"in_channels": 1, "out_channels": 1, "base_channels": channels},
    }
    recipe = FedAvgRecipe(
        name="stock",
        model=network,
        min_clients=sites,
        num_rounds=rounds,
        train_script=str(Path(__file__).with_name("stock_client.py")),
        train_args=f"--bundle {folder / 'bundle'} --ids {ids}",
        key_metric="psnr",
    )
    names = [f"site-{number}" for number in range(1, sites + 1)]
    recipe.execute(SimEnv(clients=names, num_threads=sites, workspace_root=str(folder / "simulator")))


def _call(words: list[str], folder: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HOME": str(folder), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(words[:4])} failed:\n{(done.stdout + done.stderr)[-3000:]}")


#: NVFlare's histograms of what the job's server sent and received, in MB of 1024 * 1024 bytes
POOLS = {"down": "sent_msg_sizes@server.simulate_job", "up": "received_msg_sizes@server.simulate_job"}


def counted(workspace: Path) -> dict[str, int]:
    """Bytes that NVFlare counted at the job's server, both ways: all messages, with their headers.

    Raises:
        SystemExit: when the simulator has written no statistics.
    """
    files = sorted(workspace.rglob("simulator_cell_stats.json"))
    if not files:
        raise SystemExit(f"NVFlare has written no statistics below {workspace}")
    pools = json.loads(files[0].read_text(encoding="utf-8"))
    found = {}
    for way, name in POOLS.items():
        bins = [one for category in pools[name]["pool"]["cat_data"].values() for one in category if one]
        found[way] = round(sum(one["total"] for one in bins) * MEGABYTE)
    return found


def stamps(workspace: Path, pattern: str) -> list[float]:
    """Times of the lines of the server's log in which a pattern is found; a line without a time has the one before."""
    logs = sorted(workspace.rglob("server/**/log.txt")) + sorted(workspace.rglob("log.txt"))
    lines = logs[0].read_text(encoding="utf-8", errors="replace").splitlines() if logs else []
    found, now = [], 0.0
    for line in lines:
        stamp = re.match(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d),(\d+)", line)
        if stamp:
            now = time.mktime(time.strptime(stamp[1], "%Y-%m-%d %H:%M:%S")) + int(stamp[2]) / 1000
        if re.search(pattern, line):
            found.append(now)
    return found


def seconds_per_round(kind: str, folder: Path, workspace: Path) -> float | None:
    """Median seconds of a round without the first, which warms up; ``None`` for fewer than two."""
    if kind == "stock":
        times = stamps(workspace, r"Round \d+ started")
        lengths = [later - earlier for earlier, later in pairwise(times)]
    else:
        text = (folder / "runs" / "ours" / "server" / "rounds.jsonl").read_text(encoding="utf-8")
        lengths = [json.loads(line)["seconds"] for line in text.splitlines()]
    return statistics.median(lengths[1:]) if len(lengths) > 1 else None


def own_count(folder: Path) -> dict[str, int]:
    """Bytes by our own records: tensors and plain values, all requests."""
    from fedmonai.federated.costs import added

    server = folder / "runs" / "ours" / "server"
    lines = [json.loads(line) for line in (server / "rounds.jsonl").read_text(encoding="utf-8").splitlines()]
    lines.append(json.loads((server / "run.json").read_text(encoding="utf-8"))["final_test"])
    return {way: sum(added(line[f"bytes_{way}"]) for line in lines) for way in ("up", "down")}


KINDS = ("stock", "float32", "bfloat16")


def measure(kind: str, sites: int, rounds: int, channels: int) -> dict[str, Any]:
    """One run in a folder of its own."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_data(folder / "data")
        started = time.perf_counter()
        if kind == "stock":
            workspace = run_stock(folder, sites, rounds, channels)
        else:
            workspace = run_ours(folder, sites, rounds, channels, kind)
        result: dict[str, Any] = {"seconds": time.perf_counter() - started, "nvflare_bytes": counted(workspace)}
        result["seconds_per_round"] = seconds_per_round(kind, folder, workspace)
        if kind != "stock":
            result["recorded_bytes"] = own_count(folder)
        return result


def interleaved(repeats: int, **sizes: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Run all kinds alternately."""
    for _ in range(repeats):
        for kind in KINDS:
            yield kind, measure(kind, **sizes)


def in_process(kind: str, sites: int, rounds: int, channels: int) -> dict[str, int]:
    """Bytes by our own records of a run in this process, without NVFlare; they count the messages of a deployed run."""
    from fedmonai.integrations.job import describe
    from fedmonai.integrations.runtime import federation_config

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_data(folder / "data")
        ids = our_ids(folder, sites, rounds, channels, kind)
        out = folder / "runs" / "ours" / "server"
        with contextlib.redirect_stdout(io.StringIO()):
            federation_config(describe(BUNDLE, (), ids=ids), BUNDLE, out).get_parsed_content("run")
        return own_count(folder)


def ratios_to_stock(runs: Mapping[str, list[dict[str, Any]]]) -> dict[str, dict[str, float]]:
    """Medians of ours divided by those of the stock job."""
    values: dict[str, Callable[[dict[str, Any]], float]] = {
        "bytes": lambda one: float(sum(one["nvflare_bytes"].values())),
        "seconds": lambda one: float(one["seconds_per_round"] or math.nan),
    }
    found = {}
    for what, value in values.items():
        medians = {kind: statistics.median(value(one) for one in results) for kind, results in runs.items()}
        found[what] = {kind: medians[kind] / medians["stock"] for kind in KINDS[1:]}
    return found


#: options of a run of a few seconds, without NVFlare
SMOKE = ["--in_process", "--rounds", "2", "--sites", "2", "--channels", "2", "--json", "{folder}/deployed.json"]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--sites", type=int, default=4)
    parser.add_argument("--channels", type=int, default=32, help="of the U-Net; 32 are 7.76 M weights")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--check", action="store_true", help="exit with 1 if a target is missed")
    parser.add_argument("--in_process", action="store_true", help="only our bytes, from a run in this process")
    parser.add_argument("--stock_in", default="", help=argparse.SUPPRESS)
    parser.add_argument("--stock_ids", default="", help=argparse.SUPPRESS)
    settings = parser.parse_args(arguments)
    sizes = {"sites": settings.sites, "rounds": settings.rounds, "channels": settings.channels}
    if settings.stock_in:
        stock_job(Path(settings.stock_in), ids=settings.stock_ids, **sizes)
        return 0
    print_conditions(conditions())
    if settings.in_process:
        recorded = {kind: in_process(kind, **sizes) for kind in KINDS[1:]}
        for kind, both in recorded.items():
            print(f"{kind}: {both['down']:,} bytes down, {both['up']:,} up")
        write_results(settings.json, "deployed", {"sizes": sizes, "recorded_bytes": recorded})
        return 0
    runs: dict[str, list[dict[str, Any]]] = {kind: [] for kind in KINDS}
    for kind, result in interleaved(settings.repeats, **sizes):
        runs[kind].append(result)
        print(f"{kind}: {json.dumps(result)}", flush=True)
    ratios = ratios_to_stock(runs)
    print(f"to the stock job: {json.dumps(ratios)}")
    versions = {"nvflare": metadata.version("nvflare"), "monai": metadata.version("monai")}
    write_results(
        settings.json, "deployed", {"sizes": sizes, "ratios_to_stock": ratios, "runs": runs, "with": versions}
    )
    good = all(ratios[what]["float32"] <= TARGET for what in ratios)
    return 1 if settings.check and not good else 0


if __name__ == "__main__":
    raise SystemExit(main())

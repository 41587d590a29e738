# SPDX-License-Identifier: Apache-2.0
"""The command ``fedmonai``, also as ``python -m fedmonai``."""

from __future__ import annotations

import signal
from typing import Any

from fedmonai.command_line import Command, described_in, run_command_line
from fedmonai.commands.bundle import check, digest, ids, lint, try_bundle, verify
from fedmonai.commands.collection import bundles, copy, demo, pack

# Commands whose modules import torch are described from their source, and imported when they run.


@described_in("fedmonai.data.convert.prepare", "prepare_mri")
def _mri(**given: Any) -> Any:
    from fedmonai.data.convert.prepare import prepare_mri

    return prepare_mri(**given)


@described_in("fedmonai.commands.prostate", "prepare_prostate")
def _prostate(**given: Any) -> Any:
    from fedmonai.commands.prostate import prepare_prostate

    return prepare_prostate(**given)


@described_in("fedmonai.commands.weak_labels", "make_labels")
def _weak(**given: Any) -> Any:
    from fedmonai.commands.weak_labels import make_labels

    return make_labels(**given)


@described_in("fedmonai.commands.weak_labels", "convert_scribbles")
def _scribbles(**given: Any) -> Any:
    from fedmonai.commands.weak_labels import convert_scribbles

    return convert_scribbles(**given)


@described_in("fedmonai.commands.weak_labels", "report_labels")
def _labels(**given: Any) -> Any:
    from fedmonai.commands.weak_labels import report_labels

    return report_labels(**given)


@described_in("fedmonai.data.generated.mri_federation", "generate_mri_federation")
def _generate(**given: Any) -> Any:
    from fedmonai.data.generated.mri_federation import generate_mri_federation

    return generate_mri_federation(**given)


@described_in("fedmonai.data.partition", "simulate_sites")
def _split(**given: Any) -> Any:
    from fedmonai.data.partition import simulate_sites

    return simulate_sites(**given)


@described_in("fedmonai.commands.compare", "compare")
def _compare(**given: Any) -> Any:
    from fedmonai.commands.compare import compare

    return compare(**given)


@described_in("fedmonai.commands.leave_one_out", "leave_out")
def _leave_one_out(**given: Any) -> Any:
    from fedmonai.commands.leave_one_out import leave_out

    return leave_out(**given)


@described_in("fedmonai.commands.results", "report")
def _report(**given: Any) -> Any:
    from fedmonai.commands.results import report

    return report(**given)


TABLE = {
    "bundles": Command(bundles),
    "copy": Command(copy, words=2),
    "demo": Command(demo, words=1),
    "pack": Command(pack, words=1),
    "prepare": {
        "mri": Command(_mri),
        "prostate": Command(_prostate),
        "weak": Command(_weak),
        "scribbles": Command(_scribbles),
    },
    "generate": Command(_generate),
    "split": Command(_split),
    "labels": Command(_labels),
    "check": Command(check),
    "try": Command(try_bundle, words=1),
    "lint": Command(lint, words=1),
    "ids": Command(ids, words=1),
    "digest": Command(digest, words=1),
    "verify": Command(verify, words=1),
    "compare": Command(_compare),
    "leave_one_out": Command(_leave_one_out),
    "report": Command(_report, words=1),
}


def main() -> None:
    """Run a command."""
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # a listing piped into `head` ends without a traceback
    run_command_line(TABLE)


if __name__ == "__main__":
    main()

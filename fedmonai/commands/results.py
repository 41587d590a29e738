# SPDX-License-Identifier: Apache-2.0
"""Commands on the folder of a run."""

from __future__ import annotations

from fedmonai.report.page import format_table, write_report


def report(run: str) -> str:
    """Rewrite report.md and the figures of a run, finished or not, and print its table.

    Args:
        run: folder of the run.
    """
    path = write_report(str(run))
    return f"{format_table(str(run))}\nreport: {path}"

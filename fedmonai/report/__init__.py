# SPDX-License-Identifier: Apache-2.0
"""Tables and figures of a run, read from its folder."""

from fedmonai.report.compared import ComparedRun, Comparison
from fedmonai.report.comparison import write_comparison
from fedmonai.report.comparison_figures import check_projection
from fedmonai.report.outside import outside_table, write_outside_report
from fedmonai.report.run_tables import RunTables, read_run
from fedmonai.report.write import finish, format_table, write_report

__all__ = [
    "ComparedRun",
    "Comparison",
    "RunTables",
    "check_projection",
    "finish",
    "format_table",
    "outside_table",
    "read_run",
    "write_comparison",
    "write_outside_report",
    "write_report",
]

# SPDX-License-Identifier: Apache-2.0
"""What travels with a BYOC job: three lines that call the installed package."""

from pathlib import Path

from fedmonai.integrations.nvflare.client import main

main(Path(__file__).resolve().parents[1])

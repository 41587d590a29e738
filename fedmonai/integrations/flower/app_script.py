# SPDX-License-Identifier: Apache-2.0
"""What travels with a Flower app: two names for Flower to load, made by the installed package."""

from pathlib import Path

from fedmonai.integrations.flower.client import client_app
from fedmonai.integrations.flower.server import server_app

server = server_app(Path(__file__).with_name("fedmonai_job.json"))
client = client_app(Path(__file__).with_name("fedmonai_job.json"))

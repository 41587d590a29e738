# SPDX-License-Identifier: Apache-2.0
"""The round: sites, strategies, messages, their guard, and the engine that drives them in one process."""

from fedmonai.federated.cross_site import write_cross_site
from fedmonai.federated.federation import Federation, attach
from fedmonai.federated.filters import KeepSharedKeys
from fedmonai.federated.guard import Guard, RefusedMessage
from fedmonai.federated.mean_with_previous import MeanWithPrevious
from fedmonai.federated.message import SharedKeys, attachments_of, message_bytes, weights_message
from fedmonai.federated.owned_mean import OwnedMean
from fedmonai.federated.privacy import GaussianPrivacy
from fedmonai.federated.records import SiteFailure
from fedmonai.federated.remote import RemoteSites, Transport
from fedmonai.federated.robust import Median, TrimmedMean
from fedmonai.federated.seeding import derive_seed
from fedmonai.federated.service import SiteService
from fedmonai.federated.site import SiteAlgo
from fedmonai.federated.sites import Sites
from fedmonai.federated.strategy import Strategy, WeightedMean
from fedmonai.federated.target_latents import TargetLatents
from fedmonai.federated.transfer import RandomTransfer
from fedmonai.federated.wire import Reply, Request, pack, unpack

__all__ = [
    "Federation",
    "GaussianPrivacy",
    "Guard",
    "KeepSharedKeys",
    "MeanWithPrevious",
    "Median",
    "OwnedMean",
    "RandomTransfer",
    "RefusedMessage",
    "RemoteSites",
    "Reply",
    "Request",
    "SharedKeys",
    "SiteAlgo",
    "SiteFailure",
    "SiteService",
    "Sites",
    "Strategy",
    "TargetLatents",
    "Transport",
    "TrimmedMean",
    "WeightedMean",
    "attach",
    "attachments_of",
    "derive_seed",
    "message_bytes",
    "pack",
    "unpack",
    "weights_message",
    "write_cross_site",
]

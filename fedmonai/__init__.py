# SPDX-License-Identifier: Apache-2.0
"""Federated learning for medical images as MONAI bundles. Importing this package imports nothing heavy."""

__version__ = "0.1.0"

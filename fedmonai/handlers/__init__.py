# SPDX-License-Identifier: Apache-2.0
"""What a method does at a site during local training and evaluation: ignite handlers."""

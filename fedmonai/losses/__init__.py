# SPDX-License-Identifier: Apache-2.0
"""Losses: tensors in, a scalar out. They know no engine, no round and no config."""

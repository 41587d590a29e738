# SPDX-License-Identifier: Apache-2.0
"""Losses: functions of tensors, independent of engines, rounds and configs."""

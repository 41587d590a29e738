# SPDX-License-Identifier: Apache-2.0
"""Tables and figures of a run, read from its folder."""

# SPDX-License-Identifier: Apache-2.0
"""Commands of ``fedmonai``, a function each; the table is in ``fedmonai.__main__``."""

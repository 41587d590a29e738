# SPDX-License-Identifier: Apache-2.0
"""Gate: what a bundle's config may say, by grammar, catalogue and policy."""

# SPDX-License-Identifier: Apache-2.0
"""What a bundle's config may say: grammar, catalogue, policy."""

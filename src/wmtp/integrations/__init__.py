"""Early stopping for other trainers: `wmtp.integrations.transformers` and `wmtp.integrations.lightning`.

Each is imported by its own name, as each needs the library that it is named after.
"""

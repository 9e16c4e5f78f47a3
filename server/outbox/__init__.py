"""Webhooks and push: what an app learns without a socket."""

"""Whole-call signalling over one WebSocket (docs/signal.md): messages, and what is kept of each client."""

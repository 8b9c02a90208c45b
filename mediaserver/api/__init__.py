"""The HTTP API: rooms, tokens, WHIP and WHEP, recordings, files, events, invitations (docs/api.md).

``routing`` says what a route is and wraps every handler with access, strict bodies and idempotency; the other
modules hold the handlers of one thing each. All errors are problems (``problems``, RFC 9457).
"""

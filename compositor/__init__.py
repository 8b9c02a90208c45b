"""From journals to pictures: timeline, layout, canvas, overlays, text, mixer, decode, encode.

A follower of the journal in its own process. It writes sealed files only; plain files arise from an explicit
export.
"""

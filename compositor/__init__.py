"""From journals to pictures: timeline, layout, overlays, mixing, encoding."""

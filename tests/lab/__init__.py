"""The network laboratory: namespaces joined by a link that loses, delays and changes; see docs/lab.md."""

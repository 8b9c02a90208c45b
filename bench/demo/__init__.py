"""`make demo`: one call from the first packet to the proof, in under three minutes."""

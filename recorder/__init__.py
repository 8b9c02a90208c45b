"""Everything of a recording that outlives a call: journal, sealed files, keys, manifest, verification."""

"""Real pictures and sound that say when they were captured, and the readers that find it out again.

Every published frame carries a bar code (`barcode`) with its sender and its capture time in ms; every second
it flashes while the sound beeps; words spoken by espeak-ng stand at known times. Whatever comes out at the
far end of relay, journal, compositor and MP4 can therefore be measured against what went in, without
trusting any timestamp on the way.
"""

"""What a court, an expert or an archive is handed: the export package, its report, its how-to.

``parcel`` writes a directory or a zip, all of it or nothing. ``facts`` gathers what the report says, ``html``
and ``pdf`` print it. ``open.sh`` and ``HOWTO.md`` go into every package: with them and OpenSSL anybody checks
and opens it without this program. ``recorder.export`` puts them together.
"""

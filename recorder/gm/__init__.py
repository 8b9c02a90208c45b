"""The national algorithms: SM3, SM4-GCM, SM2 and certificates, each through a native library and self-tested.

Nothing here is implemented in Python but the glue. ``recorder.gm.selftest.require()`` runs the published
vectors once per process and raises ``SelfTestError`` where a library gives another answer.
"""

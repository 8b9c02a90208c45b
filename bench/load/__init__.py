"""The load generator: participants with real ICE, DTLS and SRTP whose media never passes through Python.

`clip` makes what is sent, `connection` joins (ICE, DTLS; in Python), `engine` sends and checks (in C, by a
thread of its own).
"""

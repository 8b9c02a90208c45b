"""The whole server, driven from outside: real processes, sockets, browsers, disks, and kills."""

"""The live call: transport, forwarder, rooms, HTTP control plane."""

"""Engines: what carries messages between a ServerApp and the ClientApps of simulated devices.

An engine is a `flwr.serverapp.Grid`, so the apps are Flower's own and also run under Flower's runtimes. `inline` runs
everything in one process, for a debugger; `ray` trains on worker processes. Both take every message and every device state
through the same bytes, so they give the same results bit for bit.
"""

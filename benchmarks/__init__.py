"""Figures of the gateway and the library, measured beside nginx on the machine at hand. See README.md."""

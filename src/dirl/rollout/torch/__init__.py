"""The reference engine: any device, any block size, everything in plain torch."""

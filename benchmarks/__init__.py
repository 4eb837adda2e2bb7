"""What the README claims, measured: `python -m benchmarks.decoders` and the others."""

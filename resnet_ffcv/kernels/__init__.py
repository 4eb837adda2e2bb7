"""Numeric code, compiled by numba; knows nothing of FFCV, torch or files."""

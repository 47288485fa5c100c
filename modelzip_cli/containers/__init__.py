"""Bytes <-> named arrays: safetensors files and torch files, read and written by us."""

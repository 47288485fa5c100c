"""Bytes <-> named arrays: safetensors files, torch files of any age, Hugging Face directories."""

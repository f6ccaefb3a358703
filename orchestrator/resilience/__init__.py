"""Prove that failures lose nothing: resume proofs, chaos and a faulty proxy."""

"""Verbs about this machine: prepare it, measure it, plan with its figures."""

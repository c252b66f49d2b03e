"""Verbs about the machine at hand: prepare it, measure it, plan with it."""
